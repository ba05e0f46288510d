"""Position tables against a closed form, the tables that MAE's authors stored, and a bicubic filter written here."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch

from mae_export.encoders.checkpoint import read_checkpoint
from mae_export.encoders.positions import resample_table, sincos_table
from mae_export.errors import InputError


def sincos_value(dim: int, index: int, row: int, column: int) -> float:
    """One entry of the table, from the formula of the paper's code."""
    quarter, k = divmod(index, dim // 4)
    angle = (column, column, row, row)[quarter] / 10000 ** (k / (dim // 4))
    return (math.sin, math.cos, math.sin, math.cos)[quarter](angle)


def cubic(distance: float) -> float:
    """Keys' kernel with a = -0.75, the one of bicubic interpolation in PyTorch."""
    a, x = -0.75, abs(distance)
    if x <= 1:
        return (a + 2) * x**3 - (a + 3) * x**2 + 1
    return a * x**3 - 5 * a * x**2 + 8 * a * x - 4 * a if x < 2 else 0.0


def filter_matrix(old: int, new: int, mode: str) -> np.ndarray:
    """[new, old]: what each new sample takes of each old one; pixel centres aligned, edges repeated, no antialias."""
    matrix = np.zeros((new, old))
    for target in range(new):
        centre = (target + 0.5) * old / new - 0.5
        if mode == "bilinear":
            centre = max(centre, 0.0)
        for tap in range(math.floor(centre) - 1, math.floor(centre) + 3):
            weight = cubic(tap - centre) if mode == "bicubic" else max(0.0, 1 - abs(tap - centre))
            matrix[target, min(max(tap, 0), old - 1)] += weight
    return matrix


def resampled(table: np.ndarray, old: tuple[int, int], new: tuple[int, int], mode: str) -> np.ndarray:
    grid = table.astype(np.float64).reshape(*old, -1)
    rows, columns = filter_matrix(old[0], new[0], mode), filter_matrix(old[1], new[1], mode)
    return np.einsum("ai,bj,ijd->abd", rows, columns, grid).reshape(-1, table.shape[-1])


@pytest.mark.parametrize(("dim", "grid", "prefix"), [(8, (3, 2), 1), (48, (2, 5), 0), (4, (1, 1), 2), (64, (1, 7), 1)])
def test_the_table_is_its_closed_form(dim: int, grid: tuple[int, int], prefix: int) -> None:
    expected = [[0.0] * dim] * prefix
    expected += [
        [sincos_value(dim, index, row, column) for index in range(dim)]
        for row in range(grid[0])
        for column in range(grid[1])
    ]
    table = sincos_table(dim, grid, prefix_rows=prefix)
    assert table.dtype == torch.float32
    assert table.shape == (1, prefix + grid[0] * grid[1], dim)
    np.testing.assert_allclose(table[0].numpy(), expected, rtol=0, atol=6e-8)


def test_the_table_is_rounded_once_even_far_from_the_origin() -> None:
    """Angles of hundreds, reduced in float32, would be off by 1e-5."""
    table = sincos_table(1024, (1, 500), prefix_rows=0)
    exact = [sincos_value(1024, index, 0, 499) for index in range(1024)]
    assert np.abs(table[0, 499].numpy() - exact).max() < 4e-8


def test_the_tables_are_those_that_the_authors_stored(fixture_dir: Path) -> None:
    tensors = read_checkpoint(fixture_dir / "mae" / "checkpoint.pth").tensors
    for name, dim in (("pos_embed", 48), ("decoder_pos_embed", 32)):
        stored = tensors[name]
        table = sincos_table(dim, (8, 8), prefix_rows=1)
        assert table.shape == stored.shape
        assert float((table - stored).abs().max()) < 1e-6
        assert not stored[0, 0].any()


@pytest.mark.parametrize("dim", [2, 6, 49])
def test_widths_without_four_quarters_are_refused(dim: int) -> None:
    with pytest.raises(InputError) as caught:
        sincos_table(dim, (2, 2), prefix_rows=0)
    assert str(caught.value) == f"a sin-cos table needs a width divisible by 4, found {dim}"


@pytest.mark.parametrize("mode", ["bicubic", "bilinear"])
@pytest.mark.parametrize(
    ("old", "new"), [((8, 8), (12, 12)), ((8, 8), (5, 9)), ((3, 5), (6, 4)), ((4, 4), (2, 2)), ((1, 4), (3, 7))]
)
@pytest.mark.parametrize("prefix", [0, 1, 2])
def test_resampling_is_the_filter_written_here(
    mode: str, old: tuple[int, int], new: tuple[int, int], prefix: int
) -> None:
    table = torch.randn(1, prefix + old[0] * old[1], 6, generator=torch.Generator().manual_seed(1))
    before = table.clone()
    found = resample_table(table, old, new, mode=mode)
    assert found.shape == (1, prefix + new[0] * new[1], 6)
    assert torch.equal(found[:, :prefix], before[:, :prefix])
    np.testing.assert_allclose(
        found[0, prefix:], resampled(before[0, prefix:].numpy(), old, new, mode), rtol=0, atol=5e-6
    )
    assert torch.equal(table, before)


def test_bicubic_is_the_default_and_differs_from_bilinear() -> None:
    table = torch.randn(1, 17, 4, generator=torch.Generator().manual_seed(1))
    found = resample_table(table, (4, 4), (6, 6))
    assert torch.equal(found, resample_table(table, (4, 4), (6, 6), mode="bicubic"))
    assert float((found - resample_table(table, (4, 4), (6, 6), mode="bilinear")).abs().max()) > 0.1


def test_the_same_grid_gives_the_same_table() -> None:
    table = torch.randn(1, 16, 4)
    assert resample_table(table, (4, 4), (4, 4)) is table


def test_half_precision_tables_are_filtered_in_float32() -> None:
    table = torch.randn(1, 17, 4, generator=torch.Generator().manual_seed(1)).half()
    found = resample_table(table, (4, 4), (6, 6))
    assert found.dtype == torch.float16
    assert torch.equal(found, resample_table(table.float(), (4, 4), (6, 6)).half())


def test_rows_and_columns_are_not_exchanged() -> None:
    """A table that counts rows keeps counting them after its columns were stretched."""
    table = torch.arange(3.0).repeat_interleave(2).reshape(1, 6, 1)
    found = resample_table(table, (3, 2), (3, 4))
    np.testing.assert_allclose(found.reshape(3, 4), [[0] * 4, [1] * 4, [2] * 4], rtol=0, atol=1e-6)
