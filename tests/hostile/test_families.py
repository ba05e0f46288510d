"""Mutilated, mixed and wrapped checkpoints of many families: each gives the right encoder or the right error."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from mae_export.encoders.checkpoint import read_checkpoint
from mae_export.encoders.load import load_encoder
from mae_export.encoders.overrides import Overrides
from mae_export.errors import CheckpointError, LayoutError, MaeExportError

DATA = Path(__file__).parents[1] / "data"
FOUR = Overrides(heads=4, decoder_heads=4)
State = dict[str, torch.Tensor]
Change = Callable[[State], Any]


def stored(file: str, weights: str | None = None) -> State:
    tensors = read_checkpoint(DATA / file, weights=weights).tensors
    return {name: tensor.clone() for name, tensor in tensors.items()}


def without(*prefixes: str) -> Change:
    return lambda state: {name: tensor for name, tensor in state.items() if not name.startswith(prefixes)}


def plus(**extra: torch.Tensor) -> Change:
    return lambda state: state | {name.replace("__", "."): tensor for name, tensor in extra.items()}


def cast(dtype: torch.dtype) -> Change:
    return lambda state: {name: tensor.to(dtype) for name, tensor in state.items()}


def prefixed(prefix: str) -> Change:
    return lambda state: {prefix + name: tensor for name, tensor in state.items()}


def ones(*shape: int) -> torch.Tensor:
    return torch.arange(float(torch.Size(shape).numel())).reshape(shape)


def deepspeed(state: State) -> Any:
    optimizer = {"loss_scaler": None, "base_optimizer_state": {"state": {0: {"exp_avg": ones(2, 2)}}}}
    rest = {"buffer_names": [], "sparse_tensor_module_names": {"a"}, "ds_version": "0.8", "dp_world_size": 8}
    return {"module": state, "optimizer": optimizer, "lr_scheduler": None, "client_state": {"epoch": 3}, **rest}


def batch_normed_projectors(state: State) -> State:
    """LUT's `--head_norm_layer BN`: a norm between two linear layers, which moves the second one."""
    kept = without("head.2", "predictor.2")(state)
    for head in ("head", "predictor"):
        kept |= {
            f"{head}.3.weight": state[f"{head}.2.weight"],
            f"{head}.1.weight": ones(32),
            f"{head}.1.bias": ones(32),
        }
        kept |= {f"{head}.1.running_mean": ones(32), f"{head}.1.num_batches_tracked": torch.tensor(7)}
    return kept


# What still is a checkpoint: (file, change, family that recognises it).
GOOD: dict[str, tuple[str, Change, str]] = {
    "half precision": ("mae/checkpoint.pth", cast(torch.float16), "mae"),
    "bfloat16": ("hpm/checkpoint.pth", cast(torch.bfloat16), "hpm"),
    "module. twice": ("mae/checkpoint.pth", prefixed("module.module."), "mae"),
    "wrapped by torch.compile": ("ijepa/checkpoint.pth", prefixed("_orig_mod.module."), "ijepa"),
    "DeepSpeed": ("eva01/checkpoint.pth", deepspeed, "eva01"),
    "DeepSpeed of another family": ("dbot/checkpoint.pth", deepspeed, "dbot"),
    "two containers deep": ("dbot/checkpoint.pth", lambda s: {"state": {"model": s, "epoch": 1}}, "dbot"),
    "average beside": ("lut/checkpoint.pth", lambda s: {"model": s, "model_ema": cast(torch.float16)(s)}, "lut"),
    "name of the architecture beside": ("hpm/checkpoint.pth", lambda s: {"model": "vit", "state_dict": s}, "hpm"),
    "projectors with batch norm": ("lut/checkpoint.pth", batch_normed_projectors, "lut"),
    "decoder gone": ("hpm/checkpoint.pth", without("decoder", "mask_token"), "mae"),
    "backbone only": ("colormae/checkpoint.pth", without("neck."), "colormae"),
    "data preprocessor": (
        "colormae/checkpoint.pth",
        plus(data_preprocessor__mean=ones(3), data_preprocessor__std=ones(3)),
        "colormae",
    ),
}


def jepa(change: Change) -> Change:
    """I-JEPA's file with another predictor; what comes in is the context encoder's state, predictor included."""

    def apart(state: State) -> Any:
        predictor = {name.removeprefix("predictor."): t for name, t in state.items() if name.startswith("predictor.")}
        return {"encoder": without("predictor.")(state), "predictor": change(predictor)}

    return apart


# What is none: (file, change, error, part of its message).
BAD: dict[str, tuple[str, Change, type[MaeExportError], str]] = {
    "first block gone": (
        "mae/checkpoint.pth", without("blocks.0."), LayoutError, "no family recognises",
    ),
    "block gone in a family of relatives": (
        "colormae/checkpoint.pth",
        lambda s: {name.replace("backbone.layers.1.", "backbone.layers.4."): tensor for name, tensor in s.items()},
        CheckpointError,
        "blocks.1 is missing among the 2 blocks that the file holds; it is incomplete",
    ),
    "block of the decoder gone": (
        "dbot/checkpoint.pth", without("decoder_blocks."), CheckpointError, "decoder.blocks.0 is missing among the 0",
    ),
    "half of a block gone": (
        "lut/checkpoint.pth", without("blocks.1.mlp.fc2"), CheckpointError, "lacks 2 tensors of the encoder",
    ),
    "tensors of nobody": (
        "hpm/checkpoint.pth", plus(rotary__freqs=ones(2, 2)), LayoutError,
        "1 tensors that hpm does not have: rotary.freqs",
    ),
    "scales of another family": (
        "mae/checkpoint.pth", plus(blocks__0__gamma_1=ones(48)), LayoutError, "no family recognises",
    ),
    "two decoder heads": (
        "dbot/checkpoint.pth",
        plus(decoder_pred__weight=ones(768, 24)),
        LayoutError,
        "are both the encoder's decoder.pred.weight; pass --set ignore=PREFIX",
    ),
    "both norms": (
        "mae/checkpoint_release.pth",
        plus(fc_norm__weight=ones(48), fc_norm__bias=ones(48)),
        LayoutError,
        "2 tensors that no part of the encoder takes: norm.bias, norm.weight",
    ),
    "bias of the query only": (
        "eva01/checkpoint.pth", without("blocks.0.attn.v_bias"), CheckpointError,
        "lacks 1 tensors of the encoder: blocks.0.attn.qkv.bias",
    ),
    "projection of another width": (
        "ijepa/checkpoint.pth", lambda s: s | {"blocks.0.attn.qkv.weight": ones(24, 24)}, CheckpointError, "expected [",
    ),
    "patches of a video": (
        "mae/checkpoint.pth",
        plus(patch_embed__proj__weight=ones(48, 3, 2, 8, 8)),
        CheckpointError,
        "patch_embed.proj.weight has shape [48, 3, 2, 8, 8]; expected 4 dimensions above 0",
    ),
    "no positions": ("mae/checkpoint.pth", without("pos_embed"), LayoutError, "no family recognises"),
    "whole numbers": ("hpm/checkpoint.pth", cast(torch.int32), CheckpointError, "is int32; expected floating-point"),
    "zeros": (
        "dbot/checkpoint.pth",
        lambda s: {name: torch.zeros_like(tensor) for name, tensor in s.items()},
        CheckpointError,
        "weight matrices hold one single value throughout",
    ),
    "not finite": (
        "lut/checkpoint.pth",
        lambda s: s | {"norm.bias": torch.full((40,), float("inf"))},
        CheckpointError,
        "1 tensors hold NaN or infinite values: 'norm.bias' (40 of 40)",
    ),
    "names joined by a line break": (
        "mae/checkpoint_release.pth",
        lambda s: without("norm.")(s) | {"norm.weight\nnorm.bias": ones(48)},
        LayoutError,
        "1 tensors that mae does not have: norm.weight",
    ),
    "two encoders side by side": (
        "mae/checkpoint.pth", lambda s: {"student": s, "teacher": cast(torch.float16)(s)}, LayoutError,
        "holds 2 sets of weights: 'student' (50 entries), 'teacher' (50 entries). Choose one with --set weights=NAME",
    ),
    "target encoder gone": (
        "ijepa/checkpoint.pth", lambda s: {"encoder": s, "predictor": without("norm")(s)}, LayoutError,
        "holds 2 sets of weights: 'encoder'",
    ),
    "names in another alphabet": (
        "mae/checkpoint.pth", lambda s: {name.upper(): tensor for name, tensor in s.items()}, LayoutError,
        "BLOCKS.0.ATTN",
    ),
}  # fmt: skip


# Damaged predictors, regressers and convolutions: (file, change, error, part of its message).
BAD_PREDICTIONS: dict[str, tuple[str, Change, type[MaeExportError], str]] = {
    "predictor without its blocks": (
        "ijepa/checkpoint.pth", jepa(without("predictor_blocks.")), CheckpointError,
        "decoder.blocks.0 is missing among the 0 blocks",
    ),
    "predictor without queries": (
        "ijepa/checkpoint.pth", jepa(without("mask_token")), CheckpointError,
        "lacks 1 tensors of the encoder: decoder.mask_token",
    ),
    "predictor for another encoder": (
        "ijepa/checkpoint.pth", jepa(plus(predictor_embed__weight=ones(24, 32))), CheckpointError,
        "decoder.embed.weight is [24, 32], expected [24, 40]",
    ),
    "predictor for another grid": (
        "ijepa/checkpoint.pth", jepa(plus(predictor_pos_embed=ones(1, 25, 24))), CheckpointError,
        "decoder.pos_embed is [1, 25, 24], expected [1, 16, 24]",
    ),
    "predictor without its last layer": (
        "ijepa/checkpoint.pth", jepa(without("predictor_proj")), CheckpointError, "lacks decoder.pred.weight",
    ),
    "predictor of something else": (
        "ijepa/checkpoint.pth", jepa(lambda _: {"action.weight": ones(4, 4)}), LayoutError,
        "1 tensors that ijepa does not have: predictor.action.weight",
    ),
    "predictor that is not finite": (
        "ijepa/checkpoint.pth", jepa(plus(predictor_norm__bias=torch.full((24,), float("nan")))), CheckpointError,
        "'decoder.norm.bias' (24 of 24)",
    ),
    "regresser without its decoder": (
        "cae/checkpoint.pth", without("decoder.decoder_blocks."), LayoutError, "no family recognises",
    ),
    "decoder without its first block": (
        "cae/checkpoint.pth",
        lambda s: {name.replace("decoder_blocks.0.", "decoder_blocks.1."): tensor for name, tensor in s.items()},
        CheckpointError,
        "decoder.blocks.0 is missing among the 1 blocks",
    ),
    "regresser without query bias": (
        "cae/checkpoint.pth", without("regresser.regressor_blocks.0.cross_attn.q_bias"), CheckpointError,
        "lacks 1 tensors of the encoder: decoder.regressor_blocks.0.cross_attn.query.bias",
    ),
    "regresser without queries": (
        "cae/checkpoint.pth", without("mask_token"), CheckpointError, "of the encoder: decoder.mask_token",
    ),
    "regresser of another width": (
        "cae/checkpoint.pth",
        plus(regresser__regressor_blocks__0__cross_attn__q__weight=ones(40, 48)),
        CheckpointError,
        "4 heads in a regresser of width 48 are 48 wide together, but its queries are 40 wide",
    ),
    "regresser whose values are wider than its queries": (
        "caev2/checkpoint.pth",
        plus(regresser__regressor_blocks__0__cross_attn__v__weight=ones(48, 32)),
        CheckpointError,
        "cross_attn.value.weight is [48, 32], expected [32, 32]",
    ),
    "regresser without the way to it": (
        "caev2/checkpoint.pth", without("encoder_to_regresser."), CheckpointError,
        "lacks 2 tensors of the encoder: decoder.embed.bias, decoder.embed.weight",
    ),
    "head gone": ("caev2/checkpoint.pth", without("decoder.head"), CheckpointError, "lacks decoder.pred.weight"),
    "tensors of no regresser": (
        "caev2/checkpoint.pth", plus(regresser__pooler__weight=ones(4, 4)), LayoutError,
        "1 tensors that cae does not have: regresser.pooler.weight",
    ),
    "convolution gone": (
        "data2vec2/checkpoint.pth", without("modality_encoders.IMAGE.decoder.blocks.0."), CheckpointError,
        "decoder.blocks.0 is missing among the 1 blocks",
    ),
    "convolution of vectors": (
        "data2vec2/checkpoint.pth",
        plus(modality_encoders__IMAGE__decoder__blocks__0__0__weight=ones(16, 12)),
        CheckpointError,
        "decoder.blocks.0.weight has shape [16, 12]; expected 4 dimensions above 0",
    ),
    "convolution that is not square": (
        "data2vec2/checkpoint.pth",
        plus(modality_encoders__IMAGE__decoder__blocks__0__0__weight=ones(16, 12, 3, 1)),
        CheckpointError,
        "decoder.blocks.0.weight is [16, 12, 3, 1], expected [16, 12, 3, 3]",
    ),
    "convolutions of other groups": (
        "data2vec2/checkpoint.pth",
        plus(modality_encoders__IMAGE__decoder__blocks__0__0__weight=ones(16, 7, 3, 3)),
        CheckpointError,
        "decoder.blocks.0.weight takes 7 channels per group; expected a divisor of 48",
    ),
    "convolutions without an end": (
        "data2vec2/checkpoint.pth", without("modality_encoders.IMAGE.decoder.proj"), CheckpointError,
        "lacks decoder.pred.weight",
    ),
}  # fmt: skip


def saved(content: Any, folder: Path) -> Path:
    torch.save(content, folder / "c.pth")
    return folder / "c.pth"


@pytest.mark.parametrize("name", GOOD)
def test_what_is_still_a_checkpoint_loads_as_before(tmp_path: Path, name: str) -> None:
    file, change, family = GOOD[name]
    state = stored(file)
    encoder, report = load_encoder(saved(change(state), tmp_path), overrides=FOUR)
    assert report.family == family
    asked = family if family == "mae" and not file.startswith("mae") else None
    original = load_encoder(DATA / file, overrides=FOUR)[0].state_dict()
    found = encoder.state_dict()
    assert set(found) <= set(original)
    tolerance = 1e-2 if name in ("half precision", "bfloat16") else 0.0
    for key, tensor in found.items():
        assert torch.allclose(tensor, original[key], rtol=tolerance, atol=tolerance / 10), key
    assert asked is None or len(found) < len(original)


@pytest.mark.parametrize("name", BAD)
def test_what_is_none_is_refused_in_words(tmp_path: Path, name: str) -> None:
    file, change, error, text = BAD[name]
    path = saved(change(stored(file)), tmp_path)
    with pytest.raises(error) as caught:
        load_encoder(path, overrides=FOUR)
    assert type(caught.value) is error
    assert text in str(caught.value)


@pytest.mark.parametrize("name", BAD_PREDICTIONS)
def test_what_predicts_nothing_is_refused_in_words(tmp_path: Path, name: str) -> None:
    file, change, error, text = BAD_PREDICTIONS[name]
    weights = "encoder" if file.startswith("ijepa") else None
    path = saved(change(stored(file, weights)), tmp_path)
    with pytest.raises(error) as caught:
        load_encoder(path, overrides=Overrides(heads=4, decoder_heads=4, weights=weights))
    assert type(caught.value) is error
    assert text in str(caught.value)


@pytest.mark.parametrize(
    ("file", "gone", "weights"),
    [
        ("cae/checkpoint.pth", ("regresser.", "decoder.", "mask_token", "rd_pos_embed"), None),
        ("cae/checkpoint.pth", ("regresser.",), None),
        ("caev2/checkpoint.pth", ("regresser.", "encoder_to_regresser"), None),
        ("data2vec2/checkpoint.pth", ("modality_encoders.IMAGE.decoder.",), None),
        ("ijepa/checkpoint.pth", ("predictor.",), "encoder"),
    ],
)
def test_without_what_predicts_the_encoder_is_the_same(
    tmp_path: Path, file: str, gone: tuple[str, ...], weights: str | None
) -> None:
    encoder, report = load_encoder(saved(without(*gone)(stored(file, weights)), tmp_path), overrides=FOUR)
    stated = Overrides(heads=4, decoder_heads=4, weights=weights)
    whole = load_encoder(DATA / file, overrides=stated)[0].state_dict()
    assert report.spec.decoder is None
    assert set(encoder.state_dict()) == {name for name in whole if not name.startswith("decoder.")}
    assert all(torch.equal(tensor, whole[name]) for name, tensor in encoder.state_dict().items())


@pytest.mark.parametrize(
    ("file", "taken", "other"),
    [
        ("hpm/checkpoint.pth", "state_dict", "ema_state_dict"),
        ("lut/checkpoint.pth", "model", "model_ema"),
        ("data2vec2/checkpoint.pth", "model", "model/_ema"),
        ("ijepa/checkpoint.pth", "target_encoder", "encoder"),
        ("beit2_finetune/checkpoint.pth", "model", "model_ema"),
    ],
)
def test_the_branch_that_the_authors_use_is_taken_and_the_other_can_be_had(file: str, taken: str, other: str) -> None:
    checkpoint = read_checkpoint(DATA / file)
    assert checkpoint.container == taken
    assert f"{other!r}" in checkpoint.notes[0]
    assert "--set weights=NAME" in checkpoint.notes[0]
    average = read_checkpoint(DATA / file, weights=other)
    assert average.container == other
    shared = set(checkpoint.tensors) & set(average.tensors)
    assert any(not torch.equal(checkpoint.tensors[name], average.tensors[name]) for name in shared)


def test_a_file_of_one_family_is_not_forced_into_another() -> None:
    for file, family in (
        ("hpm/checkpoint.pth", "mae"),
        ("mae/checkpoint.pth", "ijepa"),
        ("colormae/checkpoint.pth", "mae"),
    ):
        with pytest.raises(LayoutError, match=rf"^{family} does not recognise .* Nearest: "):
            load_encoder(DATA / file, family=family, overrides=FOUR)
