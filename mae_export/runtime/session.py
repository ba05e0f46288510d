"""The one seam around the device: a session runs named arrays through a model, whatever runs it underneath."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol

import numpy.typing as npt

from mae_export.errors import InputError, MachineError
from mae_export.manifest import Manifest

Array = npt.NDArray[Any]
CHECKPOINTS = (".pth", ".pt", ".bin", ".ckpt", ".safetensors")


class Session(Protocol):
    """A model that is ready to run."""

    @property
    def name(self) -> str:
        """File name of the model, for people and for what is made with it."""
        ...

    @property
    def manifest(self) -> Manifest:
        """What the model promises."""
        ...

    @property
    def digest(self) -> str:
        """SHA-256 of the model's bytes, hexadecimal; features carry it."""
        ...

    @property
    def description(self) -> str:
        """What runs it and where, for people ("ONNX Runtime 1.31, CPUExecutionProvider")."""
        ...

    def run(self, feeds: Mapping[str, Array], outputs: Sequence[str] | None = None) -> dict[str, Array]:
        """Run one batch.

        Args:
            feeds: every input of the manifest by name, with its dtype and shape.
            outputs: names of the outputs wanted; None means all of the manifest's.

        Returns:
            Arrays by output name, batch first. They are the caller's: the next run does not reuse their memory.

        Raises:
            InputError: when a feed is missing, unknown, or of the wrong dtype or shape.
            MaskError: when `ids_keep` names a patch that does not exist, or names one twice.
        """
        ...

    def close(self) -> None:
        """Give device memory back; the session cannot run afterwards. Closing twice is harmless."""
        ...

    def __enter__(self) -> Session: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...


def open_session(path: str | Path, *, threads: int = 0) -> Session:
    """Open a model file.

    Args:
        path: an ONNX graph written by mae-export.
        threads: CPU threads for the model; 0 lets the runtime choose.

    Raises:
        InputError: when the file is missing or is no model of ours.
        MachineError: when no runtime that can run it is installed.
    """
    path = Path(path)
    if not path.is_file():
        raise InputError(f"there is no model at {path}; expected an .onnx file written by `mae-export export`")
    if path.suffix.lower() in CHECKPOINTS:
        raise InputError(f"{path} is a checkpoint, not a graph; run first: mae-export export {path} -o NAME.onnx")
    try:
        from mae_export.runtime.ort import OrtSession
    except ModuleNotFoundError as error:
        raise MachineError(
            f"opening {path} needs ONNX Runtime, which is not installed; run: pip install 'mae-export[cpu]'"
        ) from error
    return OrtSession(path, threads=threads)
