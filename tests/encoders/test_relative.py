"""Relative positions: rows against their definition and the authors' buffers, resizing against SciPy's splines."""

import numpy as np
import pytest
import torch
from scipy.interpolate import CubicSpline, RectBivariateSpline

from mae_export.encoders.checkpoint import read_checkpoint
from mae_export.encoders.relative import (
    bias_of,
    kept_index,
    relative_index,
    resample_bias,
    spline_matrix,
    table_rows,
)
from mae_export.errors import InputError

GRIDS = [(1, 1), (1, 4), (2, 3), (4, 2), (3, 3)]


def row_of(grid: tuple[int, int], query: int, key: int) -> int:
    """Row for two tokens, from the definition: offsets row-major from the most negative, then the class token's."""
    height, width = grid
    offsets = [(down, right) for down in range(1 - height, height) for right in range(1 - width, width)]
    if query == 0 or key == 0:
        return len(offsets) + (2 if query == key else 0 if query == 0 else 1)
    (top, left), (other_top, other_left) = divmod(query - 1, width), divmod(key - 1, width)
    return offsets.index((top - other_top, left - other_left))


@pytest.mark.parametrize("grid", GRIDS)
def test_every_pair_takes_the_row_of_its_offset(grid: tuple[int, int]) -> None:
    index, tokens = relative_index(grid), 1 + grid[0] * grid[1]
    assert (index.shape, index.dtype) == ((tokens, tokens), torch.int64)
    assert index.tolist() == [[row_of(grid, query, key) for key in range(tokens)] for query in range(tokens)]
    assert set(index.flatten().tolist()) == set(range(table_rows(grid)))


@pytest.mark.parametrize(("folder", "grid"), [("beit2", (4, 4)), ("beit2_plain", (8, 8))])
def test_rows_are_those_of_the_authors_buffer(fixture_dir, folder: str, grid: tuple[int, int]) -> None:
    tensors = read_checkpoint(fixture_dir / folder / "checkpoint_release.pth").tensors
    assert torch.equal(relative_index(grid), tensors["rel_pos_bias.relative_position_index"])
    assert table_rows(grid) == len(tensors["rel_pos_bias.relative_position_bias_table"])


def test_kept_patches_take_their_rows_along() -> None:
    index, ids = relative_index((2, 3)), torch.tensor([[5, 0, 2], [1, 4, 3]])
    found = kept_index(index, ids)
    for sample in range(2):
        tokens = [0, *(1 + ids[sample]).tolist()]
        assert found[sample].tolist() == [[index[query, key].item() for key in tokens] for query in tokens]


def test_biases_come_with_the_heads_in_front() -> None:
    table = torch.arange(2.0 * table_rows((2, 3))).reshape(-1, 2)
    index = relative_index((2, 3))
    assert torch.equal(bias_of(table, index), table[index].permute(2, 0, 1)[None])
    kept = kept_index(index, torch.tensor([[5, 0], [1, 4], [2, 3]]))
    assert torch.equal(bias_of(table, kept), table[kept].permute(0, 3, 1, 2))


@pytest.mark.parametrize("count", [4, 5, 6, 27, 63])
def test_the_spline_is_scipys(count: int) -> None:
    draws = np.random.default_rng(count)
    places = np.cumsum(draws.uniform(0.2, 2.0, count))
    wanted = np.concatenate([places, draws.uniform(places[0], places[-1], 40)])
    values = draws.normal(size=count)
    matrix = spline_matrix(torch.from_numpy(places), torch.from_numpy(wanted)).numpy()
    expected = CubicSpline(places, values, bc_type="not-a-knot")(wanted)
    np.testing.assert_allclose(matrix @ values, expected, rtol=0, atol=1e-10)
    cubic = 0.3 * places**3 - 2 * places + 1  # a spline without knots
    np.testing.assert_allclose(matrix @ cubic, 0.3 * wanted**3 - 2 * wanted + 1, rtol=1e-10, atol=1e-9)


def places_of(old: int, new: int) -> np.ndarray:
    """Where the authors put the offsets of the old axis: q by bisection between 1.01 and 1.5."""
    left, right = 1.01, 1.5
    while right - left > 1e-6:
        q = (left + right) / 2
        left, right = (left, q) if sum(q**step for step in range(old - 1)) > new - 1 else (q, right)
    beyond = np.cumsum([q**step for step in range(old - 1)])
    return np.concatenate([-beyond[::-1], [0.0], beyond])


def resized(table: np.ndarray, old: tuple[int, int], new: tuple[int, int]) -> np.ndarray:
    """The authors' resizing, through the FITPACK spline that interp2d called."""
    cells = table[:-3].reshape(2 * old[0] - 1, 2 * old[1] - 1, -1)
    axes = [(places_of(before, after), np.arange(1 - after, after)) for before, after in zip(old, new, strict=True)]
    heads = [
        RectBivariateSpline(axes[0][0], axes[1][0], cells[:, :, head], s=0)(
            *(wanted.clip(places[0], places[-1]) for places, wanted in axes)
        ).ravel()
        for head in range(cells.shape[-1])
    ]
    return np.concatenate([np.stack(heads, axis=-1), table[-3:]])


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ((14, 14), (24, 24)),
        ((14, 14), (32, 32)),
        ((8, 8), (4, 4)),
        ((3, 3), (4, 4)),
        ((4, 4), (9, 9)),
        ((4, 6), (7, 5)),
    ],
)
def test_a_table_is_resized_as_the_authors_do(old: tuple[int, int], new: tuple[int, int]) -> None:
    table = np.random.default_rng(2).normal(size=(table_rows(old), 3))
    found = resample_bias(torch.from_numpy(table), old, new)
    assert found.shape == (table_rows(new), 3)
    np.testing.assert_allclose(found, resized(table, old, new), rtol=0, atol=1e-11)
    assert torch.equal(found[-3:], torch.from_numpy(table[-3:]))


def test_the_ratio_is_the_one_that_the_authors_name() -> None:
    """Their code mentions 1.090307 for 224 to 384 pixels; a table that holds its places then becomes whole offsets."""
    beyond = np.cumsum(1.090307 ** np.arange(13))
    places = np.concatenate([-beyond[::-1], [0.0], beyond])
    down, right = np.meshgrid(places, places, indexing="ij")
    table = torch.from_numpy(np.concatenate([np.stack([down.ravel(), right.ravel()], axis=1), np.zeros((3, 2))]))
    found = resample_bias(table, (14, 14), (24, 24))[:-3].reshape(47, 47, 2).numpy()
    offsets = np.arange(-23, 24)
    np.testing.assert_allclose(found[:, :, 0], np.tile(offsets[:, None], 47), rtol=0, atol=1e-3)
    np.testing.assert_allclose(found[:, :, 1], np.tile(offsets, (47, 1)), rtol=0, atol=1e-3)


def test_an_axis_that_stays_is_left_alone() -> None:
    table = torch.randn(table_rows((3, 5)), 2, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    found = resample_bias(table, (3, 5), (6, 5))[:-3].reshape(11, 9, 2)
    column = torch.cat([table[:-3].reshape(5, 9, 2)[:, :1].expand(-1, 5, -1).reshape(25, 2), table[-3:]])
    alone = resample_bias(column, (3, 3), (6, 3))[:-3].reshape(11, 5, 2)  # one column, repeated
    torch.testing.assert_close(found[:, 0], alone[:, 0], rtol=0, atol=1e-12)


def test_the_same_grid_gives_the_same_table() -> None:
    table = torch.randn(table_rows((4, 4)), 2)
    assert resample_bias(table, (4, 4), (4, 4)) is table


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_the_spline_is_computed_in_float64(dtype: torch.dtype) -> None:
    table = torch.randn(table_rows((4, 4)), 2, generator=torch.Generator().manual_seed(1)).to(dtype)
    before = table.clone()
    found = resample_bias(table, (4, 4), (6, 6))
    assert torch.equal(found, resample_bias(table.double(), (4, 4), (6, 6)).to(dtype))
    assert torch.equal(table, before)


@pytest.mark.parametrize("old", [(2, 4), (4, 1)])
def test_too_few_offsets_are_refused(old: tuple[int, int]) -> None:
    side = min(old)
    with pytest.raises(InputError) as caught:
        resample_bias(torch.randn(table_rows(old), 2), old, (5, 5))
    assert str(caught.value) == (
        f"relative positions of {side} patches along an axis cannot be resized: their spline needs 3 or more; keep the "
        "image size of training"
    )
