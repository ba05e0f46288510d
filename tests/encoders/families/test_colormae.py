"""mmpretrain's names: pre-trained, fine-tuned, backbone alone, and what the training configuration says."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from mae_export.decoder_spec import DecoderSpec
from mae_export.encoders.checkpoint import read_checkpoint
from mae_export.encoders.encoder import Encoder
from mae_export.encoders.load import LoadReport, load_encoder
from mae_export.encoders.overrides import Overrides
from mae_export.errors import LayoutError

FOUR = Overrides(heads=4, decoder_heads=4)
State = dict[str, torch.Tensor]
Load = Callable[[Any], tuple[Encoder, LoadReport]]


@pytest.fixture
def stored(fixture_dir: Path) -> State:
    tensors = read_checkpoint(fixture_dir / "colormae" / "checkpoint_release.pth").tensors
    return {name: tensor.clone() for name, tensor in tensors.items()}


@pytest.fixture
def load(tmp_path: Path) -> Load:
    def saved(content: Any) -> tuple[Encoder, LoadReport]:
        torch.save(content, tmp_path / "c.pth")
        return load_encoder(tmp_path / "c.pth", overrides=FOUR)

    return saved


def fine_tuned(stored: State) -> State:
    """What fine-tuning leaves: `ln2` after averaging in place of `ln1`, a classifier, no decoder."""
    state = {name: tensor for name, tensor in stored.items() if not name.startswith("neck.")}
    renamed = {name.replace("backbone.ln1", "backbone.ln2"): tensor for name, tensor in state.items()}
    return renamed | {"head.fc.weight": torch.ones(5, 48), "head.fc.bias": torch.ones(5)}


def test_norms_inside_blocks_are_told_from_the_last_one(stored: State, load: Load) -> None:
    encoder, report = load(stored)
    state = encoder.state_dict()
    for ours, theirs in {
        "norm.weight": "backbone.ln1.weight",
        "blocks.1.norm1.bias": "backbone.layers.1.ln1.bias",
        "blocks.1.norm2.weight": "backbone.layers.1.ln2.weight",
        "blocks.0.mlp.fc1.weight": "backbone.layers.0.ffn.layers.0.0.weight",
        "blocks.0.mlp.fc2.bias": "backbone.layers.0.ffn.layers.1.bias",
        "decoder.norm.weight": "neck.ln1.weight",
        "decoder.blocks.0.norm1.weight": "neck.decoder_blocks.0.ln1.weight",
        "decoder.mask_token": "neck.mask_token",
    }.items():
        assert torch.equal(state[ours], stored[theirs]), ours
    assert (report.family, report.layout, len(report.used)) == ("colormae", "mmpretrain", 50)
    assert report.notes == (
        "the names are mmpretrain's: a plain MAE that was trained with mmpretrain cannot be told from ColorMAE",
    )
    assert report.spec.pooled == "fresh_norm_of_mean"


def test_fine_tuned_files_norm_the_mean(stored: State, load: Load) -> None:
    encoder, report = load({"state_dict": fine_tuned(stored), "meta": {"epoch": 100}})
    assert (report.spec.norm, report.spec.pooled, report.spec.decoder) == ("pooled", "mean_patch", None)
    assert [name for name, _ in report.ignored] == ["head.fc.weight", "head.fc.bias"]
    assert torch.equal(encoder.state_dict()["fc_norm.weight"], stored["backbone.ln1.weight"])


def test_a_backbone_alone_has_no_prefix(stored: State, load: Load) -> None:
    alone = {name: tensor for name, tensor in stored.items() if name.startswith("backbone.")}
    report = load({"state_dict": alone})[1]
    assert (report.family, len(report.used), report.spec.decoder) == ("colormae", 30, None)


@pytest.mark.parametrize(
    ("meta", "target"),
    [
        ({"cfg": "head=dict(norm_pix=True, patch_size=8)"}, "patch-normalised"),
        ({"cfg": "head=dict(norm_pix=False)"}, "image-normalised"),
        ({"cfg": "head=dict(unnorm_pix=True)"}, "unknown"),
        ({"cfg": 3}, "unknown"),
        ({"epoch": 3}, "unknown"),
        (3, "unknown"),
    ],
)
def test_the_training_configuration_says_what_is_predicted(stored: State, load: Load, meta: Any, target: str) -> None:
    decoder = load({"state_dict": stored, "meta": meta})[1].spec.decoder
    assert isinstance(decoder, DecoderSpec)
    assert (decoder.target, decoder.values) == (target, None)


@pytest.mark.parametrize("extra", ["backbone.layers.0.ls1.gamma", "backbone.layers.0.gamma_1.weight"])
def test_blocks_with_scales_are_another_encoder(stored: State, load: Load, extra: str) -> None:
    with pytest.raises(LayoutError, match="no family recognises"):
        load(stored | {extra: torch.ones(48)})
