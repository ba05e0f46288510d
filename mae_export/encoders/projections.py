"""Query, key and value as one projection, however a checkpoint stores them."""

from __future__ import annotations

import torch
from torch import Tensor

from mae_export.errors import CheckpointError


def join_projections(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Join separate query, key and value projections (rows q, k, v), releasing each as it is copied.

    `X.attn.q.*`, `X.attn.k.*` and `X.attn.v.*` become `X.attn.qkv.*`; `X.attn.q_bias` and `X.attn.v_bias` become
    `X.attn.qkv.bias` with zeros for the key, which has no bias in BEiT and its descendants.

    Args:
        tensors: by the encoder's names; changed in place.

    Raises:
        CheckpointError: when the parts differ in shape or dtype.
    """
    for name in [name for name in tensors if ".attn.q." in name]:
        parts = [name.replace(".attn.q.", f".attn.{part}.") for part in "qkv"]
        joined = name.replace(".attn.q.", ".attn.qkv.")
        if joined in tensors or not all(part in tensors for part in parts):
            continue  # an incomplete or doubled projection is reported with all other names that do not fit
        kinds = [(list(tensors[part].shape), str(tensors[part].dtype)) for part in parts]
        if len(kinds[0][0]) == 0 or kinds != kinds[:1] * 3:
            shown = ", ".join(f"{shape} {dtype.removeprefix('torch.')}" for shape, dtype in kinds)
            raise CheckpointError(f"query, key and value of {joined} are {shown}; expected three alike")
        tensors[joined] = torch.cat([tensors.pop(part) for part in parts])
    for name in [name for name in tensors if name.endswith(".attn.q_bias")]:
        other, joined = name.replace(".q_bias", ".v_bias"), name.replace(".q_bias", ".qkv.bias")
        if joined in tensors or other not in tensors:
            continue
        query, value = tensors[name], tensors[other]
        if query.ndim != 1 or query.shape != value.shape or query.dtype != value.dtype:
            raise CheckpointError(
                f"{name} is {list(query.shape)} and {other} is {list(value.shape)}; expected two vectors alike"
            )
        tensors[joined] = torch.cat([tensors.pop(name), torch.zeros_like(query), tensors.pop(other)])
    return tensors
