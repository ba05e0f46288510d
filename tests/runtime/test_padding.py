import numpy as np

from mae_export.manifest import TensorSpec
from mae_export.runtime.padding import concatenate_padded, stack_padded, without_padding


def test_equal_arrays_are_stacked() -> None:
    a, b = np.arange(6).reshape(2, 3), np.arange(6, 12).reshape(2, 3)
    assert np.array_equal(stack_padded([a, b]), np.arange(12).reshape(2, 2, 3))


def test_unequal_arrays_are_padded_at_the_end_of_every_axis() -> None:
    a, b = np.ones((1, 3), np.int32), np.full((2, 1), 5, np.int32)
    stacked = stack_padded([a, b], fill=-1)
    assert stacked.tolist() == [[[1, 1, 1], [-1, -1, -1]], [[5, -1, -1], [5, -1, -1]]]
    assert stacked.dtype == np.int32
    assert stacked.flags.c_contiguous


def test_concatenation_pads_all_axes_but_the_first() -> None:
    joined = concatenate_padded([np.ones((1, 2)), np.full((2, 3), 4.0)])
    assert joined.tolist() == [[1, 1, 0], [4, 4, 4], [4, 4, 4]]
    assert concatenate_padded([np.arange(2), np.arange(3)]).tolist() == [0, 1, 0, 1, 2]


def test_padding_is_taken_off_the_end_of_every_symbolic_axis() -> None:
    attention = TensorSpec(name="attention_0", dtype="float32", shape=("batch", 2, "kept+1", "kept+1"))
    row = np.arange(2 * 5 * 5).reshape(2, 5, 5)
    assert np.array_equal(without_padding(row, attention, 2), row[:, :3, :3])
    assert np.array_equal(without_padding(row, attention, 0), row)
    pooled = TensorSpec(name="pooled", dtype="float32", shape=("batch", 5))
    assert np.array_equal(without_padding(row[0, 0], pooled, 2), row[0, 0])
