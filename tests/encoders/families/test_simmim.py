"""SimMIM's facts: names, the order of its head's pixels, and fine-tuned files that look like BEiT's."""

import re

import numpy as np
import pytest
import torch

from mae_export.decoder_spec import HeadSpec
from mae_export.encoders.beit import BEiT
from mae_export.encoders.checkpoint import read_checkpoint
from mae_export.encoders.families import FAMILIES
from mae_export.encoders.families.simmim import FAMILY, PRETRAINED
from mae_export.encoders.load import load_encoder
from mae_export.errors import CheckpointError
from mae_export.spec import RelativeBias


def test_a_pre_training_file_is_recognised_and_read(fixture_dir) -> None:
    encoder, report = load_encoder(fixture_dir / "simmim_vit" / "checkpoint.pth")
    spec = report.spec
    assert (report.family, report.layout, type(encoder)) == ("simmim", "microsoft/SimMIM ViT", BEiT)
    assert (spec.heads, spec.position) == (3, RelativeBias(grid=(8, 8), shared=True))
    assert (spec.norm, spec.pooled, spec.mask_token) == ("tokens", "fresh_norm_of_mean", True)
    assert spec.decoder == HeadSpec(target="image-normalised", values=192)
    assert (spec.image.mean, spec.image.std) == ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    assert [name for name, _ in report.ignored] == ["encoder.rel_pos_bias.relative_position_index"]
    assert len(report.used) == len(read_checkpoint(report.path).tensors) - 1


def test_no_other_family_takes_it(fixture_dir) -> None:
    names = frozenset(read_checkpoint(fixture_dir / "simmim_vit" / "checkpoint.pth").tensors)
    fitting = [
        (family.name, layout.name)
        for family in FAMILIES.values()
        for layout in family.layouts
        if layout.matched(names, None) == 1.0
    ]
    assert fitting == [("simmim", PRETRAINED.name)]


def test_the_head_is_the_convolution_with_its_pixel_shuffle(fixture_dir) -> None:
    file = fixture_dir / "simmim_vit" / "checkpoint.pth"
    tensors, encoder = read_checkpoint(file).tensors, load_encoder(file)[0]
    tokens = torch.randn(2, 64, 48, generator=torch.Generator().manual_seed(1))
    grid = tokens.transpose(1, 2).reshape(2, 48, 8, 8)
    image = torch.pixel_shuffle(torch.conv2d(grid, tensors["decoder.0.weight"], tensors["decoder.0.bias"]), 8)
    expected = image.reshape(2, 3, 8, 8, 8, 8).permute(0, 2, 4, 3, 5, 1).reshape(2, 64, 192)
    with torch.inference_mode():
        found = encoder.decoder(torch.nn.functional.pad(tokens, (0, 0, 1, 0)), None)  # after a class token
    np.testing.assert_allclose(found.numpy(), expected.numpy(), rtol=0, atol=1e-5)


def test_a_head_of_another_stride_is_refused(fixture_dir, tmp_path) -> None:
    content = dict(read_checkpoint(fixture_dir / "simmim_vit" / "checkpoint.pth").tensors)
    content["decoder.0.weight"] = torch.randn(768, 48, 1, 1)
    torch.save({"model": content}, tmp_path / "c.pth")
    with pytest.raises(CheckpointError, match=r"decoder\.pred\.weight is \[768, 48, 1, 1\]; expected 192 values"):
        load_encoder(tmp_path / "c.pth")


def test_an_encoder_without_its_head_looks_like_beit(fixture_dir, tmp_path) -> None:
    """The prefix that all names then share is stripped, and what is left are BEiT's names."""
    file = fixture_dir / "simmim_vit" / "checkpoint.pth"
    content = {name: value for name, value in read_checkpoint(file).tensors.items() if name.startswith("encoder.")}
    torch.save({"model": content}, tmp_path / "c.pth")
    assert load_encoder(tmp_path / "c.pth")[1].family == "beit"
    encoder, report = load_encoder(tmp_path / "c.pth", family="simmim")
    assert (report.layout, report.spec.decoder) == ("microsoft/SimMIM ViT, fine-tuned", None)
    whole = load_encoder(file)[0].state_dict()
    assert all(torch.equal(value, whole[name]) for name, value in encoder.state_dict().items())


def test_layouts_name_what_they_need() -> None:
    assert [layout.asked for layout in FAMILY.layouts] == [False, True]
    targets = {re.sub(r"\\\d", "N", target) for _, target in PRETRAINED.renames}
    assert targets == {
        "relative_position_bias_table",
        "blocks.N.relative_position_bias_table",
        "N",
        "decoder.pred.N",
    }
