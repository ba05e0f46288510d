"""Faults after the encoder: outputs mixed up, and rows of a batch that depend on where they are."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx_ir as ir

from benchmarks.editing import Edit


def outputs_exchanged(edit: Edit) -> None:
    first, second = edit.output("pooled"), edit.output("mean_patch")
    one, other = edit.add("Identity", first), edit.add("Identity", second)
    edit.give(first, other)
    edit.give(second, one)


def stale_layer(edit: Edit) -> None:
    edit.give(edit.output("layer_1"), edit.output("layer_0"))


def tokens_shifted(edit: Edit) -> None:
    """The class token is given as the first patch, and the last patch is lost."""
    tokens = edit.output("patch_tokens")
    first, last = (edit.value(np.array([v], np.int64)) for v in (0, -1))
    axis = edit.value(np.array([1], np.int64))
    rest = edit.add("Slice", tokens, first, last, axis)
    head = edit.add("Unsqueeze", edit.output("pooled"), axis)
    edit.give(tokens, edit.add("Concat", head, rest, axis=1))


def nan_token(edit: Edit) -> None:
    """The last value of the last token."""
    tokens = edit.output("patch_tokens")
    order = edit.range(tokens, 1)
    last = edit.add("Sub", edit.extent(tokens, 1), edit.value(np.int64(1)))
    hit = edit.add("Unsqueeze", edit.add("Equal", order, last), edit.value(np.array([1], np.int64)))
    noise = np.zeros(edit.dim, np.float32)
    noise[-1] = np.nan
    zeros = edit.value(np.zeros(edit.dim, np.float32))
    edit.give(tokens, edit.add("Add", tokens, edit.add("Where", hit, edit.value(noise), zeros)))


def _shifted_rows(edit: Edit, chosen: Callable[[ir.Value], ir.Value], amount: float) -> None:
    """Add `amount * chosen(row index)`, int64 [B] to float [B], to an output."""
    old = edit.any_output()
    rank = len(old.shape) if old.shape is not None else 2
    each = edit.add("Cast", chosen(edit.range(old, 0)), to=ir.DataType.FLOAT)
    shift = edit.add("Mul", each, edit.value(np.float32(amount)))
    axes = edit.value(np.arange(1, rank, dtype=np.int64))
    edit.give(old, edit.add("Add", old, edit.add("Unsqueeze", shift, axes)))


def row_dependent(edit: Edit) -> None:
    _shifted_rows(edit, lambda rows: rows, 1e-3)


def later_rows(edit: Edit) -> None:
    _shifted_rows(edit, lambda rows: edit.add("Greater", rows, edit.value(np.int64(3))), 1e-2)


def batch_one(edit: Edit) -> None:
    size = edit.extent(edit.any_output(), 0)
    _shifted_rows(edit, lambda rows: edit.add("Equal", edit.add("Add", rows, size), edit.value(np.int64(1))), 1e-2)


def black_is_nan(edit: Edit) -> None:
    """As after dividing by an image's largest value."""
    pixels = edit.add("Cast", edit.graph.inputs[0], to=ir.DataType.FLOAT)
    axes = edit.value(np.arange(1, len(edit.manifest.inputs[0].shape), dtype=np.int64))
    _shifted_rows(edit, lambda _: edit.add("Reciprocal", edit.add("ReduceMax", pixels, axes, keepdims=0)), 0.0)


def neighbours_leak(edit: Edit) -> None:
    old = edit.any_output()
    mean = edit.add("ReduceMean", old, edit.value(np.array([0], np.int64)), keepdims=1)
    edit.give(old, edit.add("Add", old, edit.add("Mul", mean, edit.value(np.float32(1e-3)))))
