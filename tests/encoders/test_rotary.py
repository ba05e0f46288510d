"""Rotations against complex numbers: a pair of values is one number, a rotation its product with exp(i angle)."""

import numpy as np
import pytest
import torch

from mae_export.encoders.rotary import rotate, rotations
from mae_export.errors import InputError
from tests.encoders.formulas import close, random

GRID = (3, 4)


def turned(x: np.ndarray, row: float, column: float, base: float = 10000.0) -> np.ndarray:
    """The values of one head for a patch at a row and a column: the first half turns with the row."""
    pairs = len(x) // 4
    speeds = base ** (-2 * np.arange(pairs) / (2 * pairs))
    angles = np.concatenate([row * speeds, column * speeds])
    numbers = (x[0::2] + 1j * x[1::2]) * np.exp(1j * angles)
    return np.stack([numbers.real, numbers.imag], axis=-1).ravel()


@pytest.mark.parametrize("width", [4, 12, 64])
@pytest.mark.parametrize("trained", [GRID, (6, 2)])
def test_rotation_is_a_complex_product(width: int, trained: tuple[int, int]) -> None:
    table = rotations(GRID, trained, width=width, base=10000.0, prefix=1)
    x = random(2, 3, 13, width)
    found = rotate(x, table[None, None])
    expected = x.numpy().copy()
    for batch, head, token in np.ndindex(2, 3, 12):
        row, column = divmod(token, GRID[1])
        place = row / GRID[0] * trained[0], column / GRID[1] * trained[1]
        expected[batch, head, 1 + token] = turned(x[batch, head, 1 + token].numpy(), *place)
    close(found, expected)


def test_rows_and_columns_are_not_interchangeable() -> None:
    """The control of the test above: with rows and columns swapped, only the diagonal agrees."""
    table = rotations((3, 3), (3, 3), width=12, base=10000.0, prefix=0)
    x = random(1, 1, 9, 12)
    found = rotate(x, table[None, None])[0, 0].numpy()
    swapped = np.stack([turned(x[0, 0, token].numpy(), *divmod(token, 3)[::-1]) for token in range(9)])
    equal = np.abs(found - swapped).max(axis=-1) < 1e-12
    assert equal.tolist() == [token // 3 == token % 3 for token in range(9)]


def test_products_depend_on_offsets_only() -> None:
    table = rotations((4, 4), (4, 4), width=8, base=100.0, prefix=0)
    query, key = (random(1, 1, 1, 8, seed=seed).expand(-1, -1, 16, -1) for seed in (1, 2))
    logits = (rotate(query, table[None, None]) @ rotate(key, table[None, None]).transpose(-1, -2))[0, 0]
    by_offset: dict[tuple[int, int], set[float]] = {}
    for i, j in np.ndindex(16, 16):
        offset = (i // 4 - j // 4, i % 4 - j % 4)
        by_offset.setdefault(offset, set()).add(round(float(logits[i, j]), 12))
    assert len(by_offset) == 49
    assert all(len(values) == 1 for values in by_offset.values())
    assert len({value for (value,) in by_offset.values()}) == 49


def test_prefix_tokens_and_the_first_patch_stay() -> None:
    table = rotations(GRID, GRID, width=12, base=10000.0, prefix=2)
    x = random(1, 1, 14, 12)
    assert torch.equal(rotate(x, table[None, None])[:, :, :3], x[:, :, :3])
    assert not torch.allclose(rotate(x, table[None, None])[:, :, 3], x[:, :, 3])


def test_a_doubled_grid_halves_the_steps() -> None:
    trained = rotations((2, 3), (2, 3), width=8, base=10000.0, prefix=0).reshape(2, 3, 16)
    doubled = rotations((4, 6), (2, 3), width=8, base=10000.0, prefix=0).reshape(4, 6, 16)
    close(doubled[::2, ::2], trained.numpy())


def test_tables_are_exact_and_in_memory_wherever_the_encoder_is_built() -> None:
    with torch.device("meta"):
        table = rotations(GRID, GRID, width=12, base=10000.0, prefix=1)
    assert (table.dtype, table.device.type, table.shape) == (torch.float64, "cpu", (13, 24))


def test_heads_that_cannot_be_paired_are_refused() -> None:
    with pytest.raises(InputError, match="need heads of a multiple of 4 values, found 6; pass --set heads=N"):
        rotations(GRID, GRID, width=6, base=10000.0, prefix=1)
