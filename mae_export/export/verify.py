"""PyTorch as the reference: the encoder as a session, so that `runtime.compare` can judge any artefact against it.

The reference takes the long way that the paper describes (normalise every pixel, convolve, add positions, then keep
tokens), not the short way of the graph (fold, cut, keep, multiply), so that an error in the short way shows.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from mae_export.encoders.encoder import Encoder, padding_mask
from mae_export.encoders.families.installed import families
from mae_export.encoders.load import load_encoder
from mae_export.encoders.overrides import Overrides
from mae_export.errors import InputError
from mae_export.export.view import PREDICTIONS, ExportView
from mae_export.manifest import Manifest, Verification
from mae_export.runtime.compare import Report, compare
from mae_export.runtime.device_array import DeviceArray, on_host
from mae_export.runtime.session import Session
from mae_export.runtime.thresholds import limits_of

Array = npt.NDArray[Any]


class TorchSession:
    """The encoder behind the session protocol, computing in float32 on the CPU.

    Args:
        encoder: at the image size of the manifest.
        manifest: names the inputs and outputs to imitate.
        digest: SHA-256 of the checkpoint.
    """

    def __init__(self, encoder: Encoder, manifest: Manifest, *, digest: str) -> None:
        self._encoder = encoder
        self._manifest = manifest
        self._digest = digest

    @property
    def name(self) -> str:
        """The family's name."""
        return self._manifest.family

    @property
    def manifest(self) -> Manifest:
        """The imitated graph's."""
        return self._manifest

    @property
    def digest(self) -> str:
        """SHA-256 of the checkpoint."""
        return self._digest

    @property
    def description(self) -> str:
        """Version of PyTorch."""
        return f"PyTorch {torch.__version__}, float32 on CPU"

    def run(self, feeds: Mapping[str, Array], outputs: Sequence[str] | None = None) -> dict[str, Array]:
        """Run one batch; see `Session.run`."""
        names = tuple(outputs) if outputs is not None else tuple(spec.name for spec in self._manifest.outputs)
        with torch.inference_mode():
            values = self._outputs({name: torch.from_numpy(array) for name, array in feeds.items()}, names)
        return {name: value.numpy() for name, value in zip(names, values, strict=True)}

    def run_on_device(self, feeds: Mapping[str, Array], outputs: Sequence[str] | None = None) -> dict[str, DeviceArray]:
        """Run one batch; see `Session.run_on_device`. The device is the CPU."""
        return on_host(self.run(feeds, outputs))

    def _outputs(self, feeds: Mapping[str, Tensor], names: tuple[str, ...]) -> tuple[Tensor, ...]:
        ids, num, hidden = feeds.get("ids_keep"), feeds.get("num_keep"), feeds.get("mask")
        embedded = (
            self._embed_images(feeds["images"], ids) if "images" in feeds else self._embed_patches(feeds["patches"])
        )
        valid = mask = None
        if num is not None:
            prefix = self._encoder.spec.prefix_tokens
            valid, mask = padding_mask(num, embedded.shape[1], prefix, dtype=embedded.dtype)
        view = ExportView(self._encoder, self._manifest.mask_mode, ragged=num is not None, features=names)
        encoded = self._encoder.encode_tokens(
            embedded, ids, hidden=hidden, mask=mask, attentions=view.request.attentions
        )
        named = view.outputs(encoded, ids, valid)
        return tuple(named[name] for name in names)

    def _convolve(self, images: Tensor) -> Tensor:
        """uint8 [B, H, W, C] -> [B, N, D]."""
        image = self._encoder.spec.image
        pixels = (images.float() / 255 - torch.tensor(image.mean)) / torch.tensor(image.std)
        proj: Tensor = self._encoder.patch_embed.proj(pixels.permute(0, 3, 1, 2))
        return proj.flatten(2).transpose(1, 2)

    def _embed_images(self, images: Tensor, ids: Tensor | None) -> Tensor:
        embedded = self._convolve(images)
        return embedded if ids is None else embedded.gather(1, ids.unsqueeze(-1).expand(-1, -1, embedded.shape[-1]))

    def _embed_patches(self, patches: Tensor) -> Tensor:
        batch, kept, _ = patches.shape
        _, height, width = self._encoder.spec.patch
        cells = patches.reshape(batch * kept, height, width, -1)
        return self._convolve(cells).reshape(batch, kept, -1)

    def close(self) -> None:
        """Nothing to give back."""

    def __enter__(self) -> TorchSession:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def verify(candidate: Session, reference: Session) -> tuple[Report, Verification]:
    """Compare, and summarise the result for the candidate's manifest by its largest error of values."""
    report = compare(candidate, reference)
    worst = max(report.measured, key=lambda found: found.agreement.max_error)
    return report, Verification(
        reference=report.reference,
        worst_output=worst.output,
        error=float(np.format_float_scientific(worst.agreement.max_error, precision=3)),
        limit=limits_of(candidate.manifest.precision).error,
        checks=len(report.checks),
    )


def checkpoint_reference(path: Path, manifest: Manifest, overrides: Overrides) -> TorchSession:
    """The encoder of a checkpoint, set up as the graph's manifest says, to judge the graph by.

    What the tensors do not say is taken from the manifest unless `overrides` says otherwise.

    Raises:
        InputError: when the checkpoint cannot be loaded, is not of the graph's family, or cannot predict what the graph
            does.
    """
    encoder, report = load_encoder(path, family=manifest.family, overrides=_as_exported(manifest.encoder, overrides))
    predicted = [output.name for output in manifest.outputs if output.name in PREDICTIONS]
    if predicted and encoder.decoder is None:
        raise InputError(f"the graph gives a {predicted[0]}, but {path} none: {families()[manifest.family].undecoded}")
    return TorchSession(encoder.resized(manifest.image.size), manifest, digest=report.sha256)


def _as_exported(encoder: dict[str, Any], overrides: Overrides) -> Overrides:
    stated = {"heads": encoder["heads"], "eps": encoder["eps"]}
    stated |= {key: tuple(encoder["image"][key]) for key in ("mean", "std")}
    if encoder["decoder"] and "heads" in encoder["decoder"]:
        stated["decoder_heads"] = encoder["decoder"]["heads"]
    wanted = {name: value for name, value in stated.items() if getattr(overrides, name) is None}
    return replace(overrides, **wanted)
