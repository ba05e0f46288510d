"""MFM's facts: its one size, names with and without prefix, and a decoder that a pixel shuffle follows."""

import pytest
import torch
import torch.nn.functional as F  # noqa: N812 (torch's own spelling)

from mae_export.decoder_spec import HeadSpec
from mae_export.encoders.families.mfm import FAMILY, VIT, order_pixels, outputs
from mae_export.encoders.vit import ViT
from mae_export.errors import CheckpointError
from mae_export.spec import EncoderSpec, ImageSpec, StoredTable
from tests.encoders.families.published import derived, parameters_of, reasons, renamed, shapes_of

BASE = EncoderSpec(
    family="mfm",
    image=ImageSpec(size=(224, 224), crop_fraction=0.875),
    patch=(1, 16, 16),
    dim=768,
    depth=12,
    heads=12,
    mlp_hidden=3072,
    eps=1e-6,
    position=StoredTable(grid=(14, 14)),
    pooled="fresh_norm_of_mean",
    decoder=HeadSpec(target="image-normalised", values=768),
)
ENCODER = {
    "cls_token",
    "pos_embed",
    "patch_embed.proj.weight",
    "blocks.0.attn.q_bias",
    "blocks.0.attn.qkv.weight",
    "norm.weight",
}
PRETRAINED_FILE = {f"encoder.{name}" for name in ENCODER} | {"decoder.0.weight", "decoder.0.bias"}
FINE_TUNED_FILE = (ENCODER - {"norm.weight"}) | {"fc_norm.weight", "head.weight"}


def test_the_published_size() -> None:
    assert derived(FAMILY, shapes_of(BASE, ViT)) == BASE
    assert parameters_of(BASE, ViT) == FAMILY.variants[0].parameters
    assert (FAMILY.image, FAMILY.feature) == (BASE.image, BASE.pooled)


def test_names_of_the_authors() -> None:
    found = renamed(PRETRAINED_FILE, VIT)
    assert found["decoder.0.weight"] == "decoder.pred.weight"
    assert {new for new in found.values() if not new.startswith("decoder.")} == ENCODER
    assert reasons(FINE_TUNED_FILE, VIT) == {"head.weight": "classifier, not part of the encoder"}


@pytest.mark.parametrize(
    ("names", "recognised"),
    [
        (PRETRAINED_FILE, True),
        (ENCODER, True),  # the encoder alone: its prefix was taken off with all names
        (FINE_TUNED_FILE, True),
        (PRETRAINED_FILE | {"encoder.mask_token"}, False),  # SimMIM
        (PRETRAINED_FILE | {"encoder.blocks.0.gamma_1"}, False),  # CAE
        (PRETRAINED_FILE | {"encoder.rel_pos_bias.relative_position_bias_table"}, False),
        (ENCODER | {"mask_token"}, False),  # EVA-01
        (ENCODER | {"blocks.0.mlp.w3.weight"}, False),  # EVA-02
        (ENCODER - {"pos_embed"}, False),
    ],
)
def test_what_is_recognised(names, recognised) -> None:
    assert (VIT.matched(frozenset(names), None) == 1.0) is recognised


def test_pixels_come_in_the_order_of_patches() -> None:
    """The decoder is a 1x1 convolution and a pixel shuffle; the layer that replaces them predicts (y, x, c)."""
    weight, bias = torch.randn(3 * 4 * 4, 10, 1, 1), torch.randn(3 * 4 * 4)
    maps = torch.randn(2, 10, 3, 5)
    image = F.pixel_shuffle(F.conv2d(maps, weight, bias), 4)
    tensors = {"patch_embed.proj.weight": torch.zeros(10, 3, 4, 4), "decoder.pred.weight": weight}
    tensors["decoder.pred.bias"] = bias
    order_pixels(tensors)
    patches = F.linear(maps.flatten(2).transpose(1, 2), tensors["decoder.pred.weight"], tensors["decoder.pred.bias"])
    found = patches.reshape(2, 3, 5, 4, 4, 3).permute(0, 5, 1, 3, 2, 4).reshape(2, 3, 12, 20)
    assert torch.allclose(found, image, atol=1e-5)


def test_files_without_decoder_stay_as_they_are() -> None:
    tensors = {"patch_embed.proj.weight": torch.zeros(10, 3, 4, 4)}
    order_pixels(tensors)
    assert set(tensors) == {"patch_embed.proj.weight"}


@pytest.mark.parametrize(
    ("name", "shape"), [("weight", (768, 10, 1, 1)), ("bias", (768,)), ("bias", ()), ("weight", (0, 10, 1, 1))]
)
def test_a_decoder_of_another_patch_is_refused(name, shape) -> None:
    tensors = {"patch_embed.proj.weight": torch.zeros(10, 3, 8, 8), f"decoder.pred.{name}": torch.zeros(shape)}
    with pytest.raises(CheckpointError, match=r"; expected 192 values for patches of 8x8 pixels and 3 channels"):
        order_pixels(tensors)


def test_outputs_say_what_they_hold() -> None:
    assert "(y, x, c) order" in outputs(BASE)["reconstruction"]
    assert "a norm without weights" in outputs(BASE)["pooled"]
    assert FAMILY.trained == "none"
