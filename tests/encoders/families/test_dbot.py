"""dBOT's three kinds of file, told apart."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from mae_export.decoder_spec import DecoderSpec
from mae_export.encoders.beit import BEiT
from mae_export.encoders.checkpoint import read_checkpoint
from mae_export.encoders.families.dbot import FAMILY, outputs
from mae_export.encoders.load import load_encoder
from mae_export.encoders.overrides import Overrides
from mae_export.encoders.vit import ViT
from mae_export.errors import LayoutError
from mae_export.spec import RelativeBias, StoredTable

FOUR = Overrides(heads=4, decoder_heads=4)


def test_the_student_predicts_features_as_wide_as_the_teacher(fixture_dir: Path) -> None:
    encoder, report = load_encoder(fixture_dir / "dbot" / "checkpoint.pth", overrides=FOUR)
    assert (report.family, report.layout, len(report.used)) == ("dbot", "liuxingbin/dbot", 50)
    assert report.spec.decoder == DecoderSpec(
        dim=24, depth=1, heads=4, mlp_hidden=96, target="teacher-features", values=64
    )
    stored = read_checkpoint(fixture_dir / "dbot" / "checkpoint.pth").tensors["decoder_predp.weight"]
    assert torch.equal(encoder.state_dict()["decoder.pred.weight"], stored)
    assert "stands in" in outputs(report.spec)["pooled"]


def test_the_teacher_must_be_asked_for(fixture_dir: Path) -> None:
    path = fixture_dir / "dbot" / "checkpoint_teacher.pth"
    assert load_encoder(path, overrides=FOUR)[1].family == "mae"
    encoder, report = load_encoder(path, family="dbot", overrides=FOUR)
    assert (report.layout, report.licence) == ("encoder of liuxingbin/dbot", FAMILY.licence)
    assert isinstance(encoder, ViT)
    assert isinstance(report.spec.position, StoredTable)


def test_a_teacher_has_no_decoder(fixture_dir: Path) -> None:
    with pytest.raises(LayoutError, match=r"^dbot does not recognise .*checkpoint\.pth"):
        load_encoder(fixture_dir / "mae" / "checkpoint.pth", family="dbot", overrides=FOUR)


def test_a_student_of_clip_is_another_encoder(fixture_dir: Path) -> None:
    encoder, report = load_encoder(fixture_dir / "beit2_plain" / "checkpoint.pth", family="dbot")
    assert isinstance(encoder, BEiT)
    assert isinstance(report.spec.position, RelativeBias)
    assert (report.spec.family, report.layout) == ("dbot", "liuxingbin/dbot, CLIP teacher")
    assert outputs(report.spec) != outputs(load_encoder(fixture_dir / "dbot/checkpoint.pth", overrides=FOUR)[1].spec)
