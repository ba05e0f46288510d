"""DMT-JEPA's files cannot be told from I-JEPA's: they load as either, and say so."""

import dataclasses

import torch

from mae_export.encoders.families import dmtjepa, ijepa
from mae_export.encoders.load import load_encoder
from mae_export.encoders.overrides import Overrides

FOUR = Overrides(heads=4)


def test_files_are_recognised_as_i_jepa_with_a_note(fixture_dir) -> None:
    _, report = load_encoder(fixture_dir / "dmtjepa/checkpoint.pth", overrides=FOUR)
    assert (report.family, report.licence) == ("ijepa", "CC-BY-NC-4.0")
    assert any("dmtjepa" in note and "pass --family NAME" in note for note in report.notes)


def test_asked_for_they_are_the_same_encoder_under_their_own_name(fixture_dir) -> None:
    path = fixture_dir / "dmtjepa/checkpoint.pth"
    asked, report = load_encoder(path, family="dmtjepa", overrides=FOUR)
    taken, other = load_encoder(path, overrides=FOUR)
    assert (report.family, report.layout) == ("dmtjepa", "DMTJEPA/DMTJEPA")
    assert report.spec == dataclasses.replace(other.spec, family="dmtjepa")
    found, expected = asked.state_dict(), taken.state_dict()
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in found)
    assert dmtjepa.FAMILY.outputs(report.spec) == ijepa.FAMILY.outputs(other.spec)


def test_the_predictor_is_said_to_be_alone(fixture_dir) -> None:
    """LocalAggHead, which training puts before it, is in no file."""
    overrides = Overrides(heads=4, weights="encoder")
    _, report = load_encoder(fixture_dir / "dmtjepa/checkpoint.pth", family="dmtjepa", overrides=overrides)
    told = dmtjepa.FAMILY.outputs(report.spec)["prediction"]
    assert told.startswith(ijepa.PREDICTED)
    assert told.endswith("the predictor alone, for files do not hold the LocalAggHead that training puts before it")
    assert "LocalAggHead" not in ijepa.FAMILY.outputs(report.spec)["prediction"]
