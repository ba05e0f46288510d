"""The picture of what each part of an encoder loses in 8 bits: blocks down, kinds of layer across."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
from matplotlib.figure import Figure

from mae_export.files import put_in_place, staging

if TYPE_CHECKING:
    from mae_export.calibration.sensitivity import Sensitivity

DPI = 100
FLOOR = 1e-6  # of a loss; below it, features are the same for any use
KINDS = ("qkv", "scores", "mix", "attention", "proj", "fc1", "fc2", "other", "all")


def loss_grid(sensitivity: Sensitivity) -> tuple[npt.NDArray[np.float64], list[str], list[str]]:
    """1 - cosine of each part.

    Returns:
        float [blocks, kinds], NaN where a block has no such part; the blocks; the kinds.
    """
    blocks = list(dict.fromkeys(loss.part.block for loss in sensitivity.losses))
    present = {loss.part.kind for loss in sensitivity.losses}
    kinds = [kind for kind in KINDS if kind in present]
    grid = np.full((len(blocks), len(kinds)), np.nan)
    for loss in sensitivity.losses:
        grid[blocks.index(loss.part.block), kinds.index(loss.part.kind)] = 1 - loss.fidelity.cosine
    return grid, blocks, kinds


def sensitivity_figure(sensitivity: Sensitivity, out: Path) -> None:
    """Write the picture.

    Args:
        sensitivity: what was measured.
        out: PNG file to write.
    """
    grid, blocks, kinds = loss_grid(sensitivity)
    shown = np.log10(np.maximum(grid, FLOOR))
    figure = Figure(figsize=(max(5.5, 2.4 + 0.9 * len(kinds)), 1.9 + 0.28 * len(blocks)), dpi=DPI, layout="constrained")
    axes: Any = figure.add_subplot()
    image = axes.imshow(shown, aspect="auto", cmap="viridis", vmin=np.log10(FLOOR), vmax=0)
    axes.set_xticks(range(len(kinds)), kinds)
    axes.set_yticks(range(len(blocks)), blocks)
    for (row, column), value in np.ndenumerate(grid):
        if np.isfinite(value):
            light = shown[row, column] > np.log10(FLOOR) / 3
            axes.text(
                column, row, f"{value:.1e}", ha="center", va="center", fontsize=7, color="black" if light else "white"
            )
    figure.colorbar(image, ax=axes, label="loss, 10^x")
    axes.set_title(
        f"{sensitivity.graph_name}, {sensitivity.precision} {sensitivity.preset}: 1 - cosine of {sensitivity.feature}\n"
        f"one part in 8 bits at a time; all together {1 - sensitivity.everything.cosine:.1e}",
        fontsize=9,
    )
    with staging(out) as folder:
        figure.savefig(folder / out.name, format="png")
        put_in_place(folder / out.name, out)
