"""EVA-02 (Fang et al., 2023), as baaivision/EVA publishes it in EVA-02/asuka.

Tiny and small keep query, key and value in one tensor and gate and value of the MLP in another; base and large split
both and norm inside the MLP. The tables of rotations that files hold were rounded to half precision by training; they
are computed anew instead, which moves the tokens of small random encoders by up to 2e-3.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from mae_export.encoders.eva02 import EVA02, NormedEVA02
from mae_export.encoders.families import eva01
from mae_export.encoders.families.family import Facts, Family, Layout, Variant
from mae_export.encoders.families.naming import CLASSIFIER
from mae_export.errors import CheckpointError
from mae_export.spec import EncoderSpec, Rotary, StoredTable

PRETRAINED_GRID = (16, 16)  # of every published size: 224 pixels in patches of 14
CONVERTED_GRID = (14, 14)  # of the same files converted to patches of 16


def spec(facts: Facts) -> tuple[EncoderSpec, tuple[str, ...]]:
    """Derive the spec from shapes, metadata and overrides.

    Raises:
        CheckpointError: when a fact cannot be told and was not given.
        InputError: when facts contradict each other.
    """
    base, notes = eva01.clip_student_spec(facts, "eva02")
    _, rows, columns = base.grid
    table, trained = StoredTable(grid=(rows, columns)), (rows, columns)
    if trained == CONVERTED_GRID or (base.norm == "pooled" and min(trained) > min(PRETRAINED_GRID)):
        trained = PRETRAINED_GRID
        notes += (
            f"rotary coordinates of the {rows}x{columns} grid are scaled to the {trained[0]}x{trained[1]} grid of the "
            "published pre-training",
        )
    return replace(base, position=Rotary(table=table, trained_grid=trained)), notes


def join_gates(tensors: dict[str, Tensor]) -> None:
    """Join separate gate and value layers of MLPs, releasing each as it is copied: `w1` and `w2` become `w12`.

    Args:
        tensors: by the encoder's names; changed in place.

    Raises:
        CheckpointError: when the two differ in shape or dtype.
    """
    for name in [name for name in tensors if ".mlp.w1." in name]:
        other, joined = name.replace(".w1.", ".w2."), name.replace(".w1.", ".w12.")
        if joined in tensors or other not in tensors:
            continue  # an incomplete or doubled layer is reported with all other names that do not fit
        gate, value = tensors[name], tensors[other]
        if gate.ndim == 0 or gate.shape != value.shape or gate.dtype != value.dtype:
            kinds = [f"{list(part.shape)} {str(part.dtype).removeprefix('torch.')}" for part in (gate, value)]
            raise CheckpointError(f"{name} is {kinds[0]} and {other} is {kinds[1]}; expected two tensors alike")
        tensors[joined] = torch.cat([tensors.pop(name), tensors.pop(other)])


_RENAMES = (
    (r"lm_head\.(.*)", r"decoder.pred.\1"),
    (r"blocks\.(\d+)\.attn\.([qkv])_proj\.(.*)", r"blocks.\1.attn.\2.\3"),
    (r"(cls_token|mask_token|pos_embed|(?:patch_embed|norm|fc_norm)\..*)", r"\1"),
    (r"(blocks\.\d+\.(?!attn\.rope\.).*)", r"\1"),
)
_IGNORED = (
    CLASSIFIER,
    (r"(?:blocks\.\d+\.attn\.)?rope\.freqs_(?:cos|sin)", "rotations, computed anew rather than rounded as stored"),
)
_REQUIRED = (*eva01.COMMON, r"(?:fc_)?norm\.weight")

SMALL = Layout(
    name="baaivision/EVA, EVA-02 tiny and small",
    required=(*_REQUIRED, r"blocks\.0\.mlp\.w3\.weight"),
    forbidden=(r"blocks\.0\.mlp\.ffn_ln\.weight", r"blocks\.0\.attn\.inner_attn_ln\.weight"),
    renames=_RENAMES,
    ignored=_IGNORED,
    adapt=join_gates,
)
LARGE = Layout(
    name="baaivision/EVA, EVA-02 base and large",
    required=(*_REQUIRED, r"blocks\.0\.mlp\.ffn_ln\.weight"),
    forbidden=(r"blocks\.0\.attn\.inner_attn_ln\.weight",),  # EVA-CLIP
    renames=_RENAMES,
    ignored=_IGNORED,
    adapt=join_gates,
    encoder=NormedEVA02,
)

FAMILY = Family(
    name="eva02",
    title="EVA-02: A Visual Representation for Neon Genesis (Image and Vision Computing 2024)",
    repository="https://github.com/baaivision/EVA",
    licence="MIT",
    layouts=(SMALL, LARGE),
    spec=spec,
    outputs=eva01.outputs,
    encoder=lambda _: EVA02,
    trained="mask-token",
    feature="fresh_norm_of_mean",
    image=eva01.IMAGE,
    variants=(
        Variant(name="Ti/14", dim=192, depth=12, heads=3, patch=14, parameters=5_504_640, mlp_hidden=512),
        Variant(name="S/14", dim=384, depth=12, heads=6, patch=14, parameters=21_626_112, mlp_hidden=1024),
        Variant(name="B/14", dim=768, depth=12, heads=12, patch=14, parameters=85_768_704, mlp_hidden=2048),
        Variant(name="L/14", dim=1024, depth=24, heads=16, patch=14, parameters=303_294_400, mlp_hidden=2730),
    ),
    checked=(
        "tokens, blocks, features, masked patches, prediction and another image size of both layouts against the "
        "authors' code on random weights; the rotations against complex numbers in float64"
    ),
)
