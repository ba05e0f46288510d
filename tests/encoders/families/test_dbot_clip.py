"""dBOT with a CLIP teacher: BEiT's encoder under dBOT's name, and only when asked for."""

import dataclasses

import torch

from mae_export.decoder_spec import HeadSpec
from mae_export.encoders.beit import BEiT
from mae_export.encoders.families import FAMILIES, Facts
from mae_export.encoders.families.dbot_clip import LAYOUT, recognised, spec
from mae_export.encoders.load import load_encoder
from mae_export.encoders.overrides import Overrides
from mae_export.spec import StoredTable
from tests.encoders.families.test_beit import IMAGENET, SIZED, TUNED, named, unilm


def facts(shapes: dict[str, tuple[int, ...]]) -> Facts:
    return Facts(shapes=shapes, metadata={}, overrides=Overrides())


def test_the_spec_is_beits_with_imagenets_mean() -> None:
    image = dataclasses.replace(SIZED.image, mean=IMAGENET, std=(0.229, 0.224, 0.225))
    expected = dataclasses.replace(TUNED, family="dbot", image=image)
    assert spec(facts(named(TUNED))) == (expected, ())
    head = spec(facts(named(dataclasses.replace(SIZED, decoder=HeadSpec(target="token-logits", values=512)))))[
        0
    ].decoder
    assert head == HeadSpec(target="teacher-features", values=512)


def test_the_two_kinds_of_dbot_are_told_apart_by_their_positions() -> None:
    from mae_export.encoders.vit import ViT

    assert recognised(facts(named(TUNED)))
    assert recognised(facts(named(SIZED)))
    absolute = dataclasses.replace(SIZED, position=StoredTable(grid=(14, 14)), decoder=None, mask_token=False)
    assert not recognised(facts(named(absolute, ViT)))


def test_it_must_be_asked_for() -> None:
    assert (LAYOUT.asked, LAYOUT.encoder) == (True, BEiT)
    assert LAYOUT.matched(frozenset(unilm("own", "fc_norm.weight")), None) == 1.0
    assert LAYOUT in FAMILIES["dbot"].layouts


def test_a_file_is_loaded_through_its_family(fixture_dir) -> None:
    encoder, report = load_encoder(fixture_dir / "beit2_finetune" / "checkpoint_release.pth", family="dbot")
    assert (report.layout, type(encoder)) == (LAYOUT.name, BEiT)
    told = FAMILIES["dbot"].outputs(report.spec)
    assert told["pooled"].startswith("fine-tuning feature: fc_norm of the mean")
    beit = load_encoder(fixture_dir / "beit2_finetune" / "checkpoint_release.pth", family="beitv2")[0]
    assert all(torch.equal(value, beit.state_dict()[name]) for name, value in encoder.state_dict().items())
