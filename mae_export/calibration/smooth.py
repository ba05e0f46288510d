"""Outlier channels moved from activations into weights, where they cost nothing: SmoothQuant, folded into norms.

A norm's scale and bias are divided by s, one number per channel, and the rows of the weights behind it multiplied: the
products stay what they were. s_j = max|x_j|^a / max|w_j|^(1 - a), with the exponent a that leaves the least noise
(Xiao et al. 2023, arXiv:2211.10438; there a is given). s is rounded to powers of two, so that the float32 graph does
not change by a bit. FP8 needs none of it: its steps grow with the number.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from mae_export.calibration.insert import constant, output_axis, stored
from mae_export.calibration.sites import Site
from mae_export.calibration.table import TensorRange

Array = npt.NDArray[Any]
NORMS = frozenset({"LayerNormalization", "RMSNormalization"})
STEPS = 127  # of INT8, on either side of 0
EXPONENTS = (0.25, 0.375, 0.5, 0.625, 0.75, 0.875, 1.0)
PEAK = 4.0  # largest |x| of a channel over its root mean square, as in a normal distribution seen some 10^4 times
FLOOR = 1e-3  # of the largest channel: below, a channel is as good as empty


@dataclass(frozen=True, kw_only=True)
class Reach:
    """What depends on the channels of one norm.

    Attributes:
        values: names of the norm's output and of what only moves it, channels last.
        products: nodes that multiply one of the values with a weight; nothing else reads them.
    """

    values: tuple[str, ...]
    products: tuple[ir.Node, ...]


def smooth(model: ir.Model, sites: Sequence[Site], ranges: Mapping[str, TensorRange]) -> dict[str, TensorRange]:
    """Fold per-channel factors into norms and the weights behind them, in place, where that lessens the noise.

    Args:
        model: float32.
        sites: products that will be quantized to INT8.
        ranges: of their activations, with channels.

    Returns:
        The ranges of the changed graph.
    """
    changed = dict(ranges)
    quantized = {site.node for site in sites}
    for norm in [node for node in model.graph if node.op_type in NORMS]:
        reach = reach_of(norm)
        if reach is None:
            continue
        names = [name for name in reach.values if name in ranges and ranges[name].channels]
        weights = [_rows(node) for node in reach.products if node.name in quantized]
        if not names or not weights:
            continue
        seen = np.max([ranges[name].channels for name in names], axis=0)
        factors = best_factors(seen, np.concatenate(weights, axis=1), clip=max(ranges[name].high for name in names))
        if factors is not None:
            _fold(model, norm, reach, factors)
            changed |= {name: _divided(ranges[name], factors) for name in names}
    return changed


def best_factors(seen: Array, weight: Array, *, clip: float) -> Array | None:
    """Powers of two [C] by which to divide the channels, or None when none lessen the noise of the product.

    Args:
        seen: largest |x| of each channel, [C].
        weight: of all products behind it, [C, N].
        clip: largest |x| that would be represented as it is.
    """
    strengths = np.abs(weight).max(axis=1)
    if not seen.any() or not strengths.any():
        return None
    inputs, strengths = (np.maximum(x, FLOOR * x.max()).astype(np.float64) for x in (seen, strengths))
    best, least = None, _noise(seen, weight, clip)
    for exponent in EXPONENTS:
        logs = exponent * np.log2(inputs) - (1 - exponent) * np.log2(strengths)
        factors = np.exp2(np.rint(logs - logs.mean())).astype(np.float32)
        divided = seen / factors
        noise = _noise(divided, weight * factors[:, None], float(divided.max()))
        if noise < least:
            best, least = factors, noise
    return best


def _noise(seen: Array, weight: Array, clip: float) -> float:
    """Mean square error of a product whose two sides are rounded to 8 bits, under a normal distribution."""
    spread = seen.astype(np.float64) / PEAK
    activation = (clip / STEPS) ** 2 / 12 + _clipped(spread, clip)
    weights = (np.abs(weight).max(axis=0).astype(np.float64) / STEPS) ** 2 / 12
    strengths = (weight.astype(np.float64) ** 2).sum(axis=1)
    return float((activation * strengths).sum() + weights.sum() * (spread**2).sum())


def _clipped(spread: Array, clip: float) -> Array:
    """Mean square of what of a normal distribution lies beyond +-clip, for each standard deviation."""
    found = np.zeros_like(spread)
    for index, deviation in enumerate(spread):
        if deviation * 2 * PEAK > clip:  # beyond 8 standard deviations there is nothing
            t = clip / deviation
            tail, density = math.erfc(t / math.sqrt(2)), math.exp(-t * t / 2) * math.sqrt(2 / math.pi)
            found[index] = deviation**2 * ((1 + t * t) * tail - t * density)
    return found


def reach_of(norm: ir.Node) -> Reach | None:
    """What depends on a norm's channels; None when anything but products with weights does."""
    scale, last = norm.inputs[1] if len(norm.inputs) > 1 else None, norm.outputs[0]
    if scale is None or scale.const_value is None or len(scale.const_value.shape) != 1:
        return None
    width, values, products = scale.const_value.shape[0], {last}, set()
    todo = [last]
    while todo:
        value = todo.pop()
        if value.is_graph_output() or value.shape is None or value.shape[-1] != width:
            return None
        for user, index in value.uses():
            if user.op_type == "Shape":
                continue
            if _is_product(user, index):
                products.add(user)
            elif _keeps_channels(user, index, len(value.shape)):
                todo += [output for output in user.outputs if output not in values]
                values |= set(user.outputs)
            else:
                return None
    if any(not set(_floats(value.producer())) <= values for value in values - {last}):
        return None  # joined with something else
    ordered = sorted(products, key=lambda node: node.name or "")
    return Reach(values=tuple(value.name or "" for value in values), products=tuple(ordered)) if products else None


def _is_product(user: ir.Node, index: int) -> bool:
    weight = user.inputs[1] if len(user.inputs) > 1 else None
    if index != 0 or user.op_type not in ("MatMul", "Gemm") or weight is None or weight.const_value is None:
        return False
    turned = user.op_type == "Gemm" and "transA" in user.attributes and user.attributes["transA"].as_int()
    return len(weight.const_value.shape) == 2 and not turned


def _keeps_channels(user: ir.Node, index: int, rank: int) -> bool:
    """Whether a node only moves whole vectors along the last axis of the input at `index`."""
    if user.op_type in ("Concat", "Gather", "Split"):
        axis = user.attributes.get_int("axis", 0) % rank
        return axis != rank - 1 and (index == 0 or user.op_type == "Concat")
    if user.op_type == "Transpose":
        return list(user.attributes["perm"].as_ints())[-1] == rank - 1
    if user.op_type == "Slice":
        axes = user.inputs[3] if len(user.inputs) > 3 else None
        return axes is not None and axes.const_value is not None and _before_last(axes.const_value.numpy(), rank)
    return user.op_type in ("Identity", "Reshape", "Squeeze", "Unsqueeze")


def _before_last(axes: Array, rank: int) -> bool:
    return all(int(axis) % rank != rank - 1 for axis in axes.reshape(-1))


def _floats(node: ir.Node | None) -> Iterable[ir.Value]:
    return (value for value in (node.inputs if node else ()) if value is not None and value.dtype == ir.DataType.FLOAT)


def _rows(node: ir.Node) -> Array:
    """The weight as [inputs, outputs]."""
    weight = stored(node, 1)
    return weight.T if output_axis(node) == 0 else weight


def _fold(model: ir.Model, norm: ir.Node, reach: Reach, factors: Array) -> None:
    for index in (1, 2):
        value = norm.inputs[index] if index < len(norm.inputs) else None
        if value is not None and value.const_value is not None:
            name = f"{norm.name}_smooth_{'scale' if index == 1 else 'bias'}"
            norm.replace_input_with(index, constant(model, name, value.const_value.numpy() / factors))
    for node in reach.products:
        along = factors[None, :] if output_axis(node) == 0 else factors[:, None]
        node.replace_input_with(1, constant(model, f"{node.name}_smooth", stored(node, 1) * along))


def _divided(found: TensorRange, factors: Array) -> TensorRange:
    channels, means = (tuple((np.asarray(x) / factors).tolist()) if x else () for x in (found.channels, found.means))
    most = max(channels)
    return TensorRange(low=-most, high=most, minimum=-most, maximum=most, channels=channels, means=means)
