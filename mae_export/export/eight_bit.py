"""What 8-bit attention asks of an engine: which blocks are quantized, and the numbers of tokens that builders fuse.

Builders fuse INT8 attention up to 512 tokens and FP8 attention from 32 on, for all numbers of tokens that a profile
allows; beyond, the quantized products run one by one, which is slower than attention that was never quantized.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import onnx

from mae_export.errors import InputError
from mae_export.manifest import Manifest
from mae_export.runtime.engine_file import Profile

MOST_TOKENS = {"Int8": 512}
LEAST_TOKENS = {"FP8": 32}
TYPES = {onnx.TensorProto.INT8: "Int8", onnx.TensorProto.FLOAT8E4M3FN: "FP8"}


@dataclass(frozen=True, kw_only=True)
class QuantizedAttention:
    """One attention whose probabilities are quantized: data type as TensorRT spells it, tokens where they are fixed."""

    softmax: str
    dtype: str
    tokens: int | None


def quantized_attention(graph: onnx.GraphProto, softmaxes: Sequence[str]) -> Iterator[QuantizedAttention]:
    """Those of a graph's attention blocks whose probabilities are quantized.

    Args:
        graph: its weights are not read.
        softmaxes: names of the softmax nodes of its attention blocks.
    """
    stored = {tensor.name: tensor.data_type for tensor in graph.initializer}
    shapes = {value.name: value.type.tensor_type.shape.dim for value in graph.value_info}
    readers = {name: node for node in graph.node if node.op_type == "QuantizeLinear" for name in node.input[:1]}
    for node in graph.node:
        reader = readers.get(node.output[0]) if node.name in softmaxes else None
        if reader is not None and len(reader.input) > 2:
            extents = shapes.get(node.output[0], ())
            tokens = extents[-1].dim_value if extents else 0
            dtype = TYPES.get(stored.get(reader.input[2], 0), "")
            yield QuantizedAttention(softmax=node.name, dtype=dtype, tokens=tokens or None)


def require_tokens(attention: Sequence[QuantizedAttention], profiles: Sequence[Profile], manifest: Manifest) -> None:
    """Refuse profiles whose numbers of tokens no builder fuses.

    Args:
        attention: of the graph.
        profiles: with the numbers of visible patches filled in.
        manifest: of the graph.

    Raises:
        InputError: naming the profile, and what would fit.
    """
    prefix = manifest.patches.prefix_tokens
    for block in attention:
        for profile in profiles:
            fewest, most = (
                (block.tokens, block.tokens)
                if block.tokens is not None
                else (prefix + profile.keep.minimum, prefix + profile.keep.maximum)
                if profile.keep is not None
                else (prefix + manifest.patches.count, prefix + manifest.patches.count)
            )
            limit, least = MOST_TOKENS.get(block.dtype, most), LEAST_TOKENS.get(block.dtype, 0)
            if most > limit or fewest < least:
                bound = f"at most {limit}" if most > limit else f"at least {least}"
                raise InputError(
                    f"profile {profile} gives attention {fewest} to {most} tokens ({prefix} before the patches); "
                    f"{block.dtype} attention is fused with {bound}. Narrow --keep, or quantize with --preset linear"
                )


def fallbacks(attention: Sequence[QuantizedAttention], found: Mapping[str, int], profiles: int) -> Iterator[str]:
    """Sentences on fused attention that runs in another type than the graph asks.

    Args:
        attention: of the graph.
        found: fused attention kernels that take inputs of a data type, by data type.
        profiles: of the engine.
    """
    for dtype in sorted({block.dtype for block in attention}):
        wanted = profiles * sum(block.dtype == dtype for block in attention)
        if found.get(dtype, 0) < wanted:
            yield f"{wanted - found.get(dtype, 0)} of {wanted} attention blocks do not run in {dtype} as the graph asks"
