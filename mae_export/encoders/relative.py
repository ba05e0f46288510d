"""Learned biases of attention by the offset between two patches: which row of the table a pair of tokens takes, and
how a table is resized to another grid.

A grid of h x w patches has (2h-1)(2w-1) offsets, query minus key, row-major; three rows follow for the class token.
"""

from __future__ import annotations

import torch
from torch import Tensor

from mae_export.errors import InputError

CLASS_ROWS = 3  # class token to patch, patch to class token, class token to itself
Grid = tuple[int, int]


def table_rows(grid: Grid) -> int:
    """Rows of the table of a grid."""
    return (2 * grid[0] - 1) * (2 * grid[1] - 1) + CLASS_ROWS


def relative_index(grid: Grid) -> Tensor:
    """Row of the table for each query (first axis) and key, int64 [1 + N, 1 + N]; token 0 is the class token."""
    rows, columns = (axis.reshape(-1) for axis in torch.meshgrid(*map(torch.arange, grid), indexing="ij"))
    down = rows[:, None] - rows[None, :] + grid[0] - 1
    right = columns[:, None] - columns[None, :] + grid[1] - 1
    from_class, to_class, itself = (table_rows(grid) - CLASS_ROWS + row for row in range(CLASS_ROWS))
    index = torch.full((len(rows) + 1, len(rows) + 1), itself)
    index[0, 1:] = from_class
    index[1:, 0] = to_class
    index[1:, 1:] = down * (2 * grid[1] - 1) + right
    return index


def kept_index(index: Tensor, ids_keep: Tensor) -> Tensor:
    """Rows and columns of `relative_index` for the class token and kept patches: int64 [B, K] -> [B, 1 + K, 1 + K]."""
    tokens = torch.cat([torch.zeros_like(ids_keep[:, :1]), ids_keep + 1], dim=1)
    pairs = tokens.unsqueeze(2) * index.shape[0] + tokens.unsqueeze(1)
    return index.reshape(-1).index_select(0, pairs.reshape(-1)).reshape(pairs.shape)


def bias_of(table: Tensor, index: Tensor) -> Tensor:
    """Look the biases up: table [R, H] and index [T, T] or [B, T, T] -> [1, H, T, T] or [B, H, T, T]."""
    # From a table that has the heads first, whole rows of tokens come out in order, and nothing is transposed.
    chosen = table.T.index_select(1, index.reshape(-1)).reshape(table.shape[1], -1, *index.shape[-2:])
    return chosen.transpose(0, 1)


def resample_bias(table: Tensor, old: Grid, new: Grid) -> Tensor:
    """Resize a table to another grid as BEiT's authors do for fine-tuning; the three last rows stay.

    Offsets of the old table are taken to lie at 0, 1, 1 + q, 1 + q + q^2, ... and their negatives, with q such that
    they span the new offsets. A bicubic spline through them is read at whole offsets
    (run_class_finetuning.py of microsoft/unilm, which calls scipy's interp2d). The authors know square grids only;
    here each axis is resized by itself, and left alone when it stays.

    Args:
        table: [R, H]; the spline is computed in float64.
        old: rows and columns of the table's grid.
        new: those wanted.

    Returns:
        [R', H] of the table's dtype, or `table` itself when the grid stays.

    Raises:
        InputError: when the table has fewer than four offsets along an axis to be resized.
    """
    if old == new:
        return table
    heads = table.shape[1]
    cells = table[:-CLASS_ROWS].double().reshape(2 * old[0] - 1, 2 * old[1] - 1, heads)
    down, right = (_axis(before, after) for before, after in zip(old, new, strict=True))
    cells = torch.einsum("ai,bj,ijh->abh", down, right, cells)
    return torch.cat([cells.reshape(-1, heads).to(table.dtype), table[-CLASS_ROWS:]])


def _axis(old: int, new: int) -> Tensor:
    """What each offset of the new axis takes of each old one, float64 [2 new - 1, 2 old - 1]."""
    if old == new:
        return torch.eye(2 * old - 1, dtype=torch.float64)
    if old < 3:
        raise InputError(
            f"relative positions of {old} patches along an axis cannot be resized: their spline needs 3 or more; keep "
            "the image size of training"
        )
    ratio = _ratio(old - 1, new - 1)
    steps = ratio ** torch.arange(old - 1, dtype=torch.float64)
    beyond = steps.cumsum(0)
    places = torch.cat([-beyond.flip(0), torch.zeros(1, dtype=torch.float64), beyond])
    wanted = torch.arange(1 - new, new, dtype=torch.float64)
    return spline_matrix(places, wanted.clamp(places[0], places[-1]))


def _ratio(steps: int, reach: int) -> float:
    """The q between 1.01 and 1.5 with 1 + q + ... + q^(steps - 1) = reach, bisected as finely as the authors do."""
    left, right, middle = 1.01, 1.5, 0.0
    while right - left > 1e-6:
        middle = (left + right) / 2
        if (1 - middle**steps) / (1 - middle) > reach:
            right = middle
        else:
            left = middle
    return middle


def spline_matrix(places: Tensor, wanted: Tensor) -> Tensor:
    """Cubic spline interpolation as a matrix: values at `places` to values at `wanted`.

    The spline has no knot at the second and the last but one place ("not-a-knot"), as FITPACK's interpolating
    splines. Its second derivatives m solve h_i m_i + 2 (h_i + h_i+1) m_i+1 + h_i+1 m_i+2 = 6 (s_i+1 - s_i) with steps
    h and slopes s of the values.

    Args:
        places: increasing, float64 [n], n at least 4.
        wanted: float64 [k], within the first and the last place.

    Returns:
        float64 [k, n].
    """
    count = len(places)
    values = torch.eye(count, dtype=places.dtype)
    step = places.diff()
    slope = values.diff(dim=0) / step[:, None]
    inner = torch.arange(1, count - 1)
    system, right = torch.zeros_like(values), torch.zeros_like(values)
    system[inner, inner - 1] = step[:-1]
    system[inner, inner] = 2 * (step[:-1] + step[1:])
    system[inner, inner + 1] = step[1:]
    right[1:-1] = 6 * slope.diff(dim=0)
    for row, first in ((0, 0), (-1, count - 3)):  # the third derivative does not jump at the knot that is none
        before, after = step[first], step[first + 1]
        system[row, first : first + 3] = torch.stack([after, -(before + after), before])
    bend: Tensor = torch.linalg.solve(system, right)

    cell = (torch.searchsorted(places, wanted, right=True) - 1).clamp(0, count - 2)
    width = step[cell, None]
    past, ahead = (wanted - places[cell])[:, None], (places[cell + 1] - wanted)[:, None]
    bent = (bend[cell] * ahead**3 + bend[cell + 1] * past**3) / (6 * width)
    low = (values[cell] / width - bend[cell] * width / 6) * ahead
    high = (values[cell + 1] / width - bend[cell + 1] * width / 6) * past
    return bent + low + high
