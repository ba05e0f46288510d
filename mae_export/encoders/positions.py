"""How tokens know where they are: tables of absolute positions, built and resampled as the authors do."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from mae_export.errors import InputError


def sincos_table(dim: int, grid: tuple[int, int], *, prefix_rows: int) -> Tensor:
    """Fixed two-dimensional sin-cos table in MAE's layout.

    The four quarters of a row are sin(column w), cos(column w), sin(row w), cos(row w) with
    w_k = 10000^(-k / (dim / 4)); prefix rows are zero (get_2d_sincos_pos_embed of facebookresearch/mae).

    Args:
        dim: token width, divisible by 4.
        grid: rows and columns.
        prefix_rows: zero rows in front, one for a class token.

    Returns:
        float32 [1, prefix_rows + rows * columns, dim], computed in float64.

    Raises:
        InputError: when `dim` is not divisible by 4.
    """
    if dim % 4:
        raise InputError(f"a sin-cos table needs a width divisible by 4, found {dim}")
    quarter = dim // 4
    frequencies = 10000.0 ** (-torch.arange(quarter, dtype=torch.float64) / quarter)
    rows, columns = torch.meshgrid(
        torch.arange(grid[0], dtype=torch.float64), torch.arange(grid[1], dtype=torch.float64), indexing="ij"
    )
    angles = [axis.reshape(-1, 1) * frequencies for axis in (columns, rows)]
    table = torch.cat([part for angle in angles for part in (angle.sin(), angle.cos())], dim=1)
    table = torch.cat([torch.zeros(prefix_rows, dim, dtype=torch.float64), table])
    return table.unsqueeze(0).float()


def resample_table(table: Tensor, old: tuple[int, int], new: tuple[int, int], *, mode: str = "bicubic") -> Tensor:
    """Resize a table of absolute positions to another grid, leaving its prefix rows as they are.

    Bicubic with align_corners=False in float32 as interpolate_pos_embed of facebookresearch/mae does.

    Args:
        table: [1, P + old rows * old columns, D].
        old: rows and columns of the table.
        new: rows and columns wanted.
        mode: `bicubic` or `bilinear`.

    Returns:
        [1, P + new rows * new columns, D], or `table` itself when the grid stays.
    """
    if old == new:
        return table
    prefix = table.shape[1] - old[0] * old[1]
    patches = table[:, prefix:].float().reshape(1, *old, -1).permute(0, 3, 1, 2)
    patches = F.interpolate(patches, size=new, mode=mode, align_corners=False)
    patches = patches.permute(0, 2, 3, 1).flatten(1, 2).to(table.dtype)
    return torch.cat([table[:, :prefix], patches], dim=1)
