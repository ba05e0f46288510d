"""Rotary positions: queries and keys turned by angles that grow with row and column (EVA-02).

Neighbouring values of a head form pairs. The first half of a head's pairs turn with the row, the second half with the
column, each half from fast to slow, so that the product of a query and a key depends on the offset between their
patches. Prefix tokens stay as they are. What decides accuracy is here: coordinates, angles and the order of pairs.
"""

from __future__ import annotations

import torch
from torch import Tensor

from mae_export.errors import InputError


def rotations(grid: tuple[int, int], trained: tuple[int, int], *, width: int, base: float, prefix: int) -> Tensor:
    """Cosines and signed sines by which every token's pairs turn, as `rotate` takes them.

    Pair i of an axis turns by coordinate * base^(-4 i / width). Coordinates count patches of pre-training: on another
    grid they are arange(ft) / ft * pt, as in VisionRotaryEmbeddingFast of EVA-02 with `intp_freq`.

    Args:
        grid: rows and columns of patches.
        trained: rows and columns of pre-training.
        width: values per head, a multiple of 4.
        base: of the angles.
        prefix: tokens in front that do not turn.

    Returns:
        float64 [prefix + rows * columns, 2 * width] in ordinary memory: cos a, cos a, cos b, cos b, ..., then
        -sin a, sin a, -sin b, sin b, ...

    Raises:
        InputError: when `width` is not a multiple of 4.
    """
    if width % 4:
        raise InputError(f"rotary positions need heads of a multiple of 4 values, found {width}; pass --set heads=N")
    here = torch.device("cpu")  # also while an encoder is built without memory, on the meta device
    frequencies = base ** (-4.0 * torch.arange(width // 4, dtype=torch.float64, device=here) / width)
    rows, columns = (
        torch.arange(now, dtype=torch.float64, device=here) / now * then
        for now, then in zip(grid, trained, strict=True)
    )
    by_row = (rows[:, None] * frequencies)[:, None, :].expand(-1, grid[1], -1)
    by_column = (columns[:, None] * frequencies)[None, :, :].expand(grid[0], -1, -1)
    angles = torch.cat([by_row, by_column], dim=-1).flatten(0, 1)
    angles = torch.cat([angles.new_zeros(prefix, width // 2), angles])
    sines = torch.stack([-angles.sin(), angles.sin()], dim=-1).flatten(-2)
    return torch.cat([angles.cos().repeat_interleave(2, dim=-1), sines], dim=-1)


def rotate(x: Tensor, turns: Tensor) -> Tensor:
    """Turn each pair (p, q) of the last axis by its angle a to (p cos a - q sin a, q cos a + p sin a).

    Args:
        x: queries or keys, [B, H, T, width].
        turns: [1 or B, 1, T, 2 * width], rows of `rotations`.
    """
    width = x.shape[-1]
    partners = torch.tensor([index ^ 1 for index in range(width)], device=x.device)
    return x * turns[..., :width] + x.index_select(-1, partners) * turns[..., width:]
