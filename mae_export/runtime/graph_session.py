"""What sessions on .onnx files have in common, whichever runtime computes: identity, checks before a run, closing."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

import numpy.typing as npt

from mae_export.errors import UsageError
from mae_export.files import model_files, sha256_files
from mae_export.manifest import Manifest
from mae_export.runtime.feeds import check_feeds

if TYPE_CHECKING:
    from typing_extensions import Self


class GraphSession:
    """An open graph; a subclass holds the runtime's session and runs it.

    Args:
        path: the .onnx file; its data file, if any, lies next to it.
        manifest: the graph's.
        runtime: the runtime's session.
    """

    def __init__(self, path: Path, manifest: Manifest, runtime: Any) -> None:
        self._path = path
        self._manifest = manifest
        self._runtime = runtime

    @property
    def name(self) -> str:
        """File name of the graph."""
        return self._path.name

    @property
    def manifest(self) -> Manifest:
        """What the graph promises."""
        return self._manifest

    @cached_property
    def digest(self) -> str:
        """SHA-256 of the graph's bytes followed by its data file's."""
        return sha256_files(*model_files(self._path))

    def close(self) -> None:
        """Give the memory back."""
        self._runtime = None

    def _open(self) -> Any:
        if self._runtime is None:
            raise UsageError(f"the session on {self._path} is closed; open it again")
        return self._runtime

    def _checked(self, feeds: Mapping[str, npt.NDArray[Any]], outputs: Sequence[str] | None) -> tuple[str, ...]:
        """Check one batch before the runtime sees it; returns the names of the outputs wanted."""
        names = tuple(spec.name for spec in self._manifest.outputs) if outputs is None else tuple(outputs)
        for name in names:
            self._manifest.output(name)
        check_feeds(self._manifest, feeds)
        return names

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
