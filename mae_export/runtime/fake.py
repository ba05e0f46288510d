"""A session without a runtime: the same checks and shapes as a real one, and features that a reader can compute."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from types import TracebackType
from typing import Any

import numpy as np
import numpy.typing as npt

from mae_export.errors import InputError, UsageError
from mae_export.manifest import Manifest, TensorSpec
from mae_export.runtime.device_array import DeviceArray, on_host
from mae_export.runtime.feeds import check_feeds
from mae_export.runtime.patchify import patchify

Array = npt.NDArray[Any]


class FakeSession:
    """Runs a closed form instead of a model.

    The token of patch n, whose mean colour is c (0..1 per channel), is `c @ M + n / N` with
    `M[i, j] = cos((i + 1) * (j + 1))`. Outputs of rank 3 are the tokens of the visible patches, outputs of rank 2 their
    mean; so hidden patches change the result, and every mask mode that drops them gives the same features. A patch
    under `mask` is black.

    Args:
        manifest: of the model to stand in for.
        function: computes all outputs from the feeds instead.
    """

    def __init__(
        self, manifest: Manifest, function: Callable[[Mapping[str, Array]], dict[str, Array]] | None = None
    ) -> None:
        self._manifest = manifest
        self._function = function
        self._closed = False

    @property
    def name(self) -> str:
        """`fake`."""
        return "fake"

    @property
    def manifest(self) -> Manifest:
        """What it promises."""
        return self._manifest

    @property
    def digest(self) -> str:
        """SHA-256 of the manifest."""
        return hashlib.sha256(self._manifest.to_json().encode()).hexdigest()

    @property
    def description(self) -> str:
        """`fake session`."""
        return "fake session"

    def run(self, feeds: Mapping[str, Array], outputs: Sequence[str] | None = None) -> dict[str, Array]:
        """Compute one batch; see `Session.run`.

        Raises:
            InputError, MaskError: when the feeds are not what the manifest asks for.
            UsageError: after `close`.
        """
        if self._closed:
            raise UsageError("the session is closed; open the model again")
        check_feeds(self._manifest, feeds)
        names = [spec.name for spec in self._manifest.outputs] if outputs is None else outputs
        specs = [self._manifest.output(name) for name in names]
        if self._function is not None:
            computed = self._function(feeds)
            return {spec.name: computed[spec.name] for spec in specs}
        return {spec.name: self._output(spec, feeds) for spec in specs}

    def run_on_device(self, feeds: Mapping[str, Array], outputs: Sequence[str] | None = None) -> dict[str, DeviceArray]:
        """Run one batch; see `Session.run_on_device`. The device is the CPU."""
        return on_host(self.run(feeds, outputs))

    def _output(self, spec: TensorSpec, feeds: Mapping[str, Array]) -> Array:
        dim = spec.shape[-1]
        if len(spec.shape) not in (2, 3) or not isinstance(dim, int):
            raise InputError(f"the fake session has no closed form for output {spec.name!r}; pass a function")
        pixels, ids = self._visible(feeds)
        rows, keep, _ = pixels.shape
        channels = self._manifest.image.channels
        colours = pixels.reshape(rows, keep, -1, channels).mean(axis=2) / 255
        matrix = np.cos(np.outer(np.arange(1, channels + 1), np.arange(1, dim + 1)))
        tokens = colours @ matrix + ids[..., None] / self._manifest.patches.count
        if len(spec.shape) == 2:
            num_keep = feeds.get("num_keep", np.full(rows, keep))[:, None]
            visible = np.arange(keep) < num_keep
            tokens = (tokens * visible[..., None]).sum(axis=1) / num_keep
        result: Array = tokens.astype(spec.dtype)
        return result

    def _visible(self, feeds: Mapping[str, Array]) -> tuple[Array, Array]:
        """Pixels [B, K, t*p*p*C] and indices [B, K] of the visible patches."""
        if "patches" in feeds:
            return feeds["patches"], feeds["ids_keep"]
        patches = patchify(feeds["images"], self._manifest.patches)
        if "mask" in feeds:
            patches = np.where(feeds["mask"][..., None], 0, patches)
        ids = feeds.get("ids_keep", np.tile(np.arange(patches.shape[1]), (len(patches), 1)))
        return np.take_along_axis(patches, ids[..., None], axis=1), ids

    def close(self) -> None:
        """Refuse further runs."""
        self._closed = True

    def __enter__(self) -> FakeSession:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
