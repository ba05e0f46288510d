"""Which products of a graph run in 8 bits: the one place that decides it, with a reason for each that does not.

`linear` takes every product with weights except the embedding of raw pixels, whose subtraction of the mean costs most
and whose share of the work is least. `full` adds attention, as a whole or not at all: query, key, softmax, value and
the attention's output, because builders fuse attention of one type only and a part of it is worse than none. Sums,
norms and what enters them stay as they are: the residual stream of a trained encoder has values in the hundreds.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import onnx_ir as ir

from mae_export.calibration.sites import MOVES, Site
from mae_export.calibration.wanted import QuantizeOptions
from mae_export.errors import GraphError, UsageError

MOST_TOKENS, HEADS = 512, (16, 32, 64)  # that builders fuse in INT8 attention; of FP8 they take heads of any width
ATTENTION = ("scores", "mix")


@dataclass(frozen=True, kw_only=True)
class Placement:
    """What runs in 8 bits.

    Attributes:
        sites: products with all their inputs in 8 bits, in the order of the graph.
        left_out: reason by name of node for every other site that the preset takes.
    """

    sites: tuple[Site, ...]
    left_out: dict[str, str]


def place(model: ir.Model, sites: Sequence[Site], options: QuantizeOptions) -> Placement:
    """Choose the products that run in 8 bits.

    Args:
        model: float32; not changed.
        sites: of the model.
        options: what is wanted.

    Raises:
        UsageError: when `keep` names no module of the graph.
        GraphError: when nothing is left to quantize, or `full` finds no attention that can be quantized whole.
    """
    if options.preset == "linear":
        sites = [site for site in sites if site.weight]
    left_out = dict(_left_out(sites, options))
    if options.preset == "full":
        left_out |= _unfit_attention(model, sites, left_out, options)
        if all(site.node in left_out for site in sites if site.kind in ATTENTION):
            reasons = "; ".join(sorted({left_out[site.node] for site in sites if site.kind in ATTENTION}))
            raise GraphError(
                f"no attention of this graph can be quantized as a whole ({reasons or 'it has none'}); "
                "expected at least one: use --preset linear"
            )
    chosen = tuple(site for site in sites if site.node not in left_out)
    if not chosen:
        raise GraphError("nothing is left to quantize; expected products with weights: keep fewer modules in float32")
    return Placement(sites=chosen, left_out=left_out)


def _left_out(sites: Sequence[Site], options: QuantizeOptions) -> Iterator[tuple[str, str]]:
    for name in options.keep:
        if not any(_is_part_of(site.name, name) for site in sites):
            known = ", ".join(dict.fromkeys(site.name for site in sites))
            raise UsageError(f"no module {name!r} to keep in float32; this graph has: {known}")
    for site in sites:
        if any(_is_part_of(site.name, name) for name in options.keep):
            yield site.node, "kept on request"
        elif site.kind == "patch_embed":
            yield site.node, "embeds raw pixels"


def _is_part_of(module: str, name: str) -> bool:
    return module == name or module.startswith(f"{name}.")


def _unfit_attention(
    model: ir.Model, sites: Sequence[Site], left_out: dict[str, str], options: QuantizeOptions
) -> dict[str, str]:
    """Attention products that cannot be quantized together with everything around them."""
    nodes = {node.name: node for node in model.graph}
    taken = {site.node for site in sites if site.node not in left_out}
    found: dict[str, str] = {}
    for mix in (site for site in sites if site.kind == "mix"):
        group = [mix, *(site for site in sites if site.kind == "scores" and _leads_to(nodes[site.node], mix))]
        if any(site.node not in taken for site in group):
            reason: str | None = "a part of this attention is kept"
        elif not all(_is_quantized(user, taken) for user in _users(nodes[mix.node].outputs[0])):
            reason = "the attention's output is not quantized"
        else:
            reason = _beyond_int8(nodes[mix.node]) if options.precision == "int8" else None
        if reason is None:
            continue
        found |= {site.node: reason for site in group if site.node not in left_out}
    return found


def _beyond_int8(mix: ir.Node) -> str | None:
    """Why builders fuse no INT8 attention of this size; None when they do, or when that depends on the profile."""
    tokens, width = (None if value is None or value.shape is None else value.shape[-1] for value in mix.inputs)
    if isinstance(tokens, int) and tokens > MOST_TOKENS:
        return f"{tokens} tokens exceed the {MOST_TOKENS} of INT8 attention"
    if isinstance(width, int) and width not in HEADS:
        return f"INT8 attention has heads of width {', '.join(map(str, HEADS))}, and this one of {width}"
    return None


def _leads_to(scores: ir.Node, mix: Site) -> bool:
    """Whether the softmax of a mix comes from these scores; no product lies between them."""
    todo, seen = [scores], set()
    while todo:
        node = todo.pop()
        for user in (user for value in node.outputs for user in value.consumers()):
            if user.name == mix.node:
                return True
            if user not in seen and user.op_type not in ("MatMul", "Gemm", "Conv"):
                seen.add(user)
                todo.append(user)
    return False


def _users(value: ir.Value) -> Iterator[ir.Node | None]:
    """What computes with a value, behind nodes that only move it; None for an output of the graph."""
    if value.is_graph_output():
        yield None
    for user in value.consumers():
        if user.op_type in MOVES:
            yield from _users(user.outputs[0])
        elif user.op_type != "Shape":
            yield user


def _is_quantized(user: ir.Node | None, taken: set[str]) -> bool:
    return user is not None and user.name in taken
