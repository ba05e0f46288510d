"""Pictures of what a model sees, predicts and costs: arrays in, PNG files out.

Arrays become rows of pictures first, which is arithmetic; drawing them is the last step. matplotlib's global state is
not used, so figures may be drawn from any thread and on machines without a display.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine

from mae_export.errors import InputError
from mae_export.files import put_in_place, staging
from mae_export.manifest import Manifest, Patches
from mae_export.runtime.patchify import patchify

DPI = 100
GAP = 0.06  # between pictures, as a share of a picture's side
HIDDEN = 0.82  # grey of patches that the encoder did not see
PATCH_EPS = 1e-6  # of MAE's per-patch target
MEASURED, IDEAL = "#1f5fa8", "#8a8a8a"

Array = npt.NDArray[Any]
Pictures = npt.NDArray[np.float32]


@dataclass(frozen=True, kw_only=True)
class PictureRow:
    """Pictures side by side under one label.

    Attributes:
        label: what the row shows; line breaks are kept.
        pictures: float32 [n, h, w, 3] in 0..1; smaller ones are drawn at the size of the first row's.

    Raises:
        InputError: when the array is not that.
    """

    label: str
    pictures: Pictures

    def __post_init__(self) -> None:
        if self.pictures.ndim != 4 or self.pictures.shape[-1] != 3 or 0 in self.pictures.shape:
            raise InputError(f"the row {self.label!r} has shape {list(self.pictures.shape)}; expected [n, h, w, 3]")


@dataclass(frozen=True, kw_only=True)
class SpeedCurve:
    """What leaving patches out saves.

    Attributes:
        title: which encoder ran, and on what.
        kept: share of the patches that were kept, descending from 1.
        images_per_second: measured for each share.
        ideal: speed-up for each share if time followed the number of multiply-adds.

    Raises:
        InputError: when lengths differ, a number is not positive, or the first share is not 1.
    """

    title: str
    kept: tuple[float, ...]
    images_per_second: tuple[float, ...]
    ideal: tuple[float, ...]

    def __post_init__(self) -> None:
        lengths = {len(self.kept), len(self.images_per_second), len(self.ideal)}
        if len(lengths) != 1 or not self.kept or min(*self.kept, *self.images_per_second, *self.ideal) <= 0:
            raise InputError("a speed curve needs as many shares as speeds and ideals, all of them positive")
        if self.kept[0] != 1 or list(self.kept) != sorted(self.kept, reverse=True):
            raise InputError(f"the kept shares are {self.kept}; expected them to descend from 1, the reference")

    @property
    def speed_up(self) -> tuple[float, ...]:
        """Images per second over those with every patch."""
        return tuple(speed / self.images_per_second[0] for speed in self.images_per_second)


def reconstruction_rows(
    images: npt.NDArray[np.uint8], ids_keep: npt.NDArray[np.int64], predicted: Array, *, manifest: Manifest
) -> tuple[PictureRow, PictureRow, PictureRow]:
    """The image, what the encoder saw of it, and what the decoder made of that, with the visible patches pasted in.

    A target that was normalised per patch says nothing of a patch's mean and contrast; these are then taken from the
    image itself, and the label says so.

    Args:
        images: uint8 [n, H, W, 3], as the encoder takes them.
        ids_keep: int64 [n, K].
        predicted: the output `reconstruction`, float [n, N, p * p * 3].
        manifest: of the model that predicted.

    Raises:
        InputError: when shapes disagree with each other or with the manifest.
    """
    patches = manifest.patches
    true = patchify(images, patches).astype(np.float32) / 255
    if predicted.shape != true.shape or ids_keep.shape[:1] != images.shape[:1]:
        raise InputError(
            f"the reconstruction has shape {list(predicted.shape)} and ids_keep {list(ids_keep.shape)}; "
            f"expected {list(true.shape)} and [{len(images)}, K] for these images"
        )
    visible = np.zeros(true.shape[:2], dtype=bool)
    np.put_along_axis(visible, ids_keep, True, axis=1)
    pixels, note = _pixels(predicted, true, manifest)
    shown = visible[:, :, None]
    return (
        PictureRow(label="Image", pictures=_assemble(true, patches)),
        PictureRow(
            label=f"Visible\n{visible.mean():.0%} of patches",
            pictures=_assemble(np.where(shown, true, np.float32(HIDDEN)), patches),
        ),
        PictureRow(label=f"Reconstruction{note}", pictures=_assemble(np.where(shown, true, pixels), patches)),
    )


def pca_map(tokens: Array, grid: tuple[int, int]) -> Pictures:
    """Colours for patch tokens: their first three principal components over all images, as red, green and blue.

    The sign of a component is chosen so that its largest weight is positive; each is scaled to 0..1.

    Args:
        tokens: float [n, N, D], D >= 3, raster order.
        grid: rows and columns, N = rows * columns.

    Returns:
        float32 [n, rows, columns, 3] in 0..1.

    Raises:
        InputError: when the tokens do not fit the grid.
    """
    if tokens.ndim != 3 or tokens.shape[1] != grid[0] * grid[1] or tokens.shape[2] < 3:
        raise InputError(
            f"patch tokens have shape {list(tokens.shape)}; expected [n, {grid[0]} * {grid[1]}, D] with D >= 3"
        )
    flat = tokens.reshape(-1, tokens.shape[-1]).astype(np.float64)
    centred = flat - flat.mean(axis=0)
    axes = np.linalg.svd(centred, full_matrices=False)[2][:3]
    axes *= np.sign(axes[np.arange(3), np.abs(axes).argmax(axis=1)])[:, None]
    scores = centred @ axes.T
    low, span = scores.min(axis=0), np.ptp(scores, axis=0)
    colours: Pictures = ((scores - low) / np.where(span > 0, span, 1)).astype(np.float32)
    return colours.reshape(len(tokens), *grid, 3)


def save_pictures(rows: Sequence[PictureRow], path: Path) -> None:
    """Draw rows of pictures.

    Args:
        rows: from top to bottom, all with the same number of pictures.
        path: of the PNG file, which is replaced.

    Raises:
        InputError: when rows differ in length, or the folder cannot be written.
    """
    figure = Figure(figsize=(16, 1 + 14 * len(rows) / max(1, len(rows[0].pictures))), dpi=DPI, layout="constrained")
    _draw_pictures(figure.add_subplot(), rows)
    save_figure(figure, path)


def save_speed_curve(curve: SpeedCurve, path: Path) -> None:
    """Draw images per second, and the speed-up beside its ideal, over the share of patches kept.

    Raises:
        InputError: when the folder cannot be written.
    """
    figure = Figure(figsize=(8, 8), dpi=DPI, layout="constrained")
    _draw_speed(figure.add_subplot(2, 1, 1), figure.add_subplot(2, 1, 2), curve)
    save_figure(figure, path)


def demo_figure(rows: Sequence[PictureRow], curve: SpeedCurve, path: Path, *, title: str) -> None:
    """Draw rows of pictures and, beside them, what leaving patches out saves; 1600 pixels wide.

    Raises:
        InputError: when rows differ in length, or the folder cannot be written.
    """
    spacing = ConstrainedLayoutEngine(w_pad=0.12, h_pad=0.1, wspace=0.03)
    figure = Figure(figsize=(16, 7.5), dpi=DPI, layout=spacing)
    figure.suptitle(title, fontsize=15, fontweight="bold")
    grid = figure.add_gridspec(2, 2, width_ratios=(2.1, 1))
    _draw_pictures(figure.add_subplot(grid[:, 0]), rows)
    _draw_speed(figure.add_subplot(grid[0, 1]), figure.add_subplot(grid[1, 1]), curve)
    save_figure(figure, path)


def _pixels(predicted: Array, true: Array, manifest: Manifest) -> tuple[Array, str]:
    """Predicted patches as pixels in 0..1, and what the label must add."""
    mean, std = (np.asarray(values, dtype=np.float32) for values in (manifest.image.mean, manifest.image.std))
    repeats = predicted.shape[-1] // len(mean)
    mean, std = np.tile(mean, repeats), np.tile(std, repeats)
    note = ""
    if (manifest.encoder.get("decoder") or {}).get("target") == "patch-normalised":
        normalised = (true - mean) / std
        variance = normalised.var(axis=-1, ddof=1, keepdims=True)
        predicted = predicted * np.sqrt(variance + PATCH_EPS) + normalised.mean(axis=-1, keepdims=True)
        note = "\ntrue mean and\ncontrast per patch"
    return np.clip(predicted * std + mean, 0, 1), note


def _assemble(cells: Array, patches: Patches) -> Pictures:
    """Patches [n, N, p * p * 3] back to pictures [n, H, W, 3]; still images only."""
    (_, height, width), (_, rows, columns) = patches.patch, patches.grid
    pixels = cells.reshape(-1, rows, columns, height, width, 3).transpose(0, 1, 3, 2, 4, 5)
    return pixels.reshape(-1, rows * height, columns * width, 3).astype(np.float32)


def _draw_pictures(axes: Axes, rows: Sequence[PictureRow]) -> None:
    count = len(rows[0].pictures)
    if any(len(row.pictures) != count for row in rows):
        raise InputError(f"rows have {[len(row.pictures) for row in rows]} pictures; expected the same number in each")
    height, width = rows[0].pictures.shape[1:3]
    aspect = height / width
    for down, row in enumerate(rows):
        top = down * (aspect + GAP)
        for across, picture in enumerate(row.pictures):
            left = across * (1 + GAP)
            smooth = "nearest" if picture.shape[0] < height else None
            axes.imshow(picture, extent=(left, left + 1, top + aspect, top), interpolation=smooth)
    axes.set_xlim(0, count * (1 + GAP) - GAP)
    axes.set_ylim(len(rows) * (aspect + GAP) - GAP, 0)
    centres = [down * (aspect + GAP) + aspect / 2 for down in range(len(rows))]
    axes.set_yticks(centres, [row.label for row in rows], fontsize=12)
    axes.set_xticks([])
    axes.tick_params(length=0)
    axes.set_frame_on(False)


def _draw_speed(upper: Axes, lower: Axes, curve: SpeedCurve) -> None:
    upper.set_title(curve.title, fontsize=12)
    upper.plot(curve.kept, curve.images_per_second, "o-", color=MEASURED)
    lower.plot(curve.kept, curve.speed_up, "o-", color=MEASURED, label="measured")
    lower.plot(curve.kept, curve.ideal, "--", color=IDEAL, label="ideal: fewer multiply-adds")
    for axes, values, text in ((upper, curve.images_per_second, "{:,.1f}"), (lower, curve.speed_up, "{:.2f}×")):
        for kept, value in zip(curve.kept, values, strict=True):
            axes.annotate(
                text.format(value),
                (kept, value),
                (6, 6),
                textcoords="offset points",
                fontsize=10,
                color=MEASURED,
                bbox={"facecolor": "white", "edgecolor": "none", "pad": 0.5},
            )
        axes.set_xlim(0, 1.15)
        axes.set_xticks(curve.kept, [f"{kept:.0%}" for kept in curve.kept])
        axes.grid(alpha=0.25)
        axes.spines[["top", "right"]].set_visible(False)
    upper.set_ylim(0, 1.15 * max(curve.images_per_second))
    lower.set_ylim(0, 1.15 * max(*curve.speed_up, *curve.ideal))
    upper.set_ylabel("images per second", fontsize=12)
    lower.set_ylabel("speed-up", fontsize=12)
    lower.set_xlabel("share of patches kept", fontsize=12)
    lower.legend(frameon=False, fontsize=11, loc="upper right")


def save_figure(figure: Figure, path: Path) -> None:
    """Write a figure as PNG, whole or not at all.

    Raises:
        InputError: when the folder cannot be written.
    """
    with staging(path) as folder:
        staged = folder / path.name
        figure.savefig(staged, format="png")
        put_in_place(staged, path)
