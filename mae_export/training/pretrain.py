"""MAE pre-training on a small scale, with the recipe of main_pretrain.py on one CPU.

It trains the very modules that the loader builds, so what `save_checkpoint` writes is a checkpoint like any other.
Crops are prepared in a background thread, one batch ahead.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import torch
from torch import Tensor

from mae_export.encoders.vit import ViT
from mae_export.errors import InputError, UsageError
from mae_export.manifest import Patches
from mae_export.runtime.patchify import patchify
from mae_export.spec import EncoderSpec
from mae_export.training.crops import Pixels, RandomCrops
from mae_export.training.initialise import initialise
from mae_export.training.loss import reconstruction_loss
from mae_export.training.masking import kept_patches, random_masking
from mae_export.training.optimise import BETAS, learning_rate, parameter_groups, scaled_rate

Progress = Callable[[float, float], None]


@dataclass(frozen=True, kw_only=True)
class PretrainOptions:
    """How to pre-train; what is predicted is the spec's `decoder.target`.

    Attributes:
        steps: number of batches; give this or `seconds`. Equal seeds then give equal weights on one machine.
        seconds: time budget; the schedule follows the clock.
        batch: images per step.
        base_lr: peak learning rate for a batch of 256; the peak is `base_lr * batch / 256`.
        weight_decay: of matrices.
        mask_ratio: share of the patches that is hidden.
        warmup: share of the training during which the rate rises.
        min_area: smallest share of an image that a crop covers.
        seed: of weights, crops and masks.

    Raises:
        UsageError: when a value is out of range, or not exactly one of `steps` and `seconds` is given.
    """

    steps: int | None = None
    seconds: float | None = None
    batch: int = 64
    base_lr: float = 1.5e-4
    weight_decay: float = 0.05
    mask_ratio: float = 0.75
    warmup: float = 0.05
    min_area: float = 0.2
    seed: int = 0

    def __post_init__(self) -> None:
        if (self.steps is None) == (self.seconds is None):
            raise UsageError("give either steps or seconds, and not both: one of them ends the training")
        for name, value, fits in (
            ("steps", self.steps, self.steps is None or self.steps >= 1),
            ("seconds", self.seconds, self.seconds is None or 0 < self.seconds < math.inf),
            ("batch", self.batch, self.batch >= 1),
            ("base_lr", self.base_lr, 0 < self.base_lr < math.inf),
            ("weight_decay", self.weight_decay, 0 <= self.weight_decay < math.inf),
            ("mask_ratio", self.mask_ratio, 0 < self.mask_ratio < 1),
            ("warmup", self.warmup, 0 <= self.warmup < 1),
            ("min_area", self.min_area, 0 < self.min_area <= 1),
            ("seed", self.seed, 0 <= self.seed < 2**63),
        ):
            if not fits:
                raise UsageError(f"{name} is {value}, which is out of range; see PretrainOptions for what it may be")


@dataclass(frozen=True, kw_only=True)
class Pretrained:
    """The trained model in evaluation mode without gradients, and the loss of every step."""

    model: ViT
    losses: tuple[float, ...]


def pretrain(
    images: Sequence[Pixels], spec: EncoderSpec, *, options: PretrainOptions, progress: Progress | None = None
) -> Pretrained:
    """Pre-train an encoder and its decoder from random weights.

    Args:
        images: uint8 [h, w, 3] each, RGB, of any size.
        spec: of an MAE with a decoder whose target is known.
        options: how.
        progress: called after each step with the share of the training that is done and the step's loss.

    Raises:
        UsageError: when the spec has no decoder, or it is unknown what the decoder is to predict.
        InputError: when there are no images, or the training diverges.
        ImageError: when an array is not uint8 [h, w, 3].
        MaskError: when the mask ratio leaves nothing visible or nothing hidden.
    """
    decoder = spec.decoder
    if decoder is None or decoder.target == "unknown" or spec.image.frames != 1 or spec.image.channels != 3:
        raise UsageError(
            "pre-training needs RGB images, and a decoder whose target is 'image-normalised' or 'patch-normalised'; "
            f"found {spec.image.frames} x {spec.image.channels} channels and decoder={decoder}"
        )
    kept = kept_patches(spec.patches, options.mask_ratio)
    crops = RandomCrops(images, size=spec.image.size, min_area=options.min_area, seed=options.seed)
    model = initialise(spec, seed=options.seed)
    optimiser = torch.optim.AdamW(parameter_groups(model, options.weight_decay), betas=BETAS)
    peak = scaled_rate(options.base_lr, options.batch)
    generator = torch.Generator().manual_seed(options.seed)
    clock = _Clock(options)
    losses: list[float] = []
    with ThreadPoolExecutor(max_workers=1) as background:
        upcoming = background.submit(crops.batch, options.batch)
        while (done := clock.done(len(losses))) < 1:
            patches = normalised_patches(upcoming.result(), spec)
            upcoming = background.submit(crops.batch, options.batch)
            ids_keep = random_masking(options.batch, spec.patches, kept, generator)
            loss = reconstruction_loss(
                reconstruct(model, patches, ids_keep),
                patches,
                ids_keep,
                patch_normalised=decoder.target == "patch-normalised",
            )
            for group in optimiser.param_groups:
                group["lr"] = learning_rate(done, peak=peak, warmup=options.warmup)
            optimiser.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimiser.step()
            losses.append(_finite(loss.item(), len(losses), peak))
            if progress:
                progress(min(1.0, clock.done(len(losses))), losses[-1])
    return Pretrained(model=model.eval().requires_grad_(False), losses=tuple(losses))


def normalised_patches(images: Pixels, spec: EncoderSpec) -> Tensor:
    """uint8 images [B, H, W, 3] to the model's patches: float32 [B, N, p * p * 3], values in (y, x, c) order."""
    geometry = Patches(patch=spec.patch, grid=spec.grid, prefix_tokens=spec.prefix_tokens)
    values = torch.from_numpy(patchify(images, geometry)).float() / 255
    repeats = spec.patch_values // spec.image.channels
    return (values - torch.tensor(spec.image.mean * repeats)) / torch.tensor(spec.image.std * repeats)


def reconstruct(model: ViT, patches: Tensor, ids_keep: Tensor) -> Tensor:
    """Predict all patches [B, N, p * p * C] from those that `ids_keep` [B, K] names.

    Raises:
        InputError: when the model has no decoder.
    """
    if model.decoder is None:
        raise InputError("this encoder has no decoder; a reconstruction needs a pre-training checkpoint with decoder_*")
    visible = patches.gather(1, ids_keep.unsqueeze(-1).expand(-1, -1, patches.shape[-1]))
    tokens = model.finish(model.encode(visible, ids_keep).tokens)
    predicted: Tensor = model.decoder(tokens, ids_keep)
    return predicted


class _Clock:
    """Says which share of the training is done, by steps or by time."""

    def __init__(self, options: PretrainOptions) -> None:
        self._steps, self._seconds = options.steps, options.seconds
        self._start = time.monotonic()

    def done(self, step: int) -> float:
        if self._steps is not None:
            return step / self._steps
        return (time.monotonic() - self._start) / (self._seconds or math.inf)


def _finite(loss: float, step: int, peak: float) -> float:
    if not math.isfinite(loss):
        raise InputError(
            f"the training diverged: the loss is {loss} at step {step}; lower base_lr (peak rate {peak:g})"
        )
    return loss
