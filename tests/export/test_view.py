"""The export view against the long way: normalise, convolve, embed everything, then keep tokens."""

import numpy as np
import pytest
import torch

from mae_export.encoders.load import load_encoder
from mae_export.encoders.overrides import Overrides
from mae_export.export.view import ExportView, folded_embedding

STATED = Overrides(heads=4, decoder_heads=4, mean=(0.2, 0.5, 0.7), std=(0.1, 0.2, 0.4))


@pytest.fixture(scope="module")
def encoder(fixture_dir):
    return load_encoder(fixture_dir / "mae/checkpoint.pth", overrides=STATED)[0]


@pytest.fixture(scope="module")
def images():
    return torch.from_numpy(np.random.default_rng(0).integers(0, 256, (3, 64, 64, 3), dtype=np.uint8))


def convolved(encoder, images):
    pixels = (images.double() / 255 - torch.tensor(STATED.mean).double()) / torch.tensor(STATED.std).double()
    proj = encoder.patch_embed.proj
    out = torch.nn.functional.conv2d(pixels.permute(0, 3, 1, 2), proj.weight.double(), proj.bias.double(), stride=8)
    return out.flatten(2).transpose(1, 2)


def test_folded_embedding_equals_normalising_and_convolving(encoder, images):
    weight, bias = folded_embedding(encoder)
    view = ExportView(encoder, "none", ragged=False, features=("pooled",))
    found = view.cut(images.double(), None) @ weight.double() + bias.double()
    expected = convolved(encoder, images)
    assert float((found - expected).abs().max() / expected.abs().max()) < 1e-6


def test_folded_embedding_without_convolution_bias(encoder):
    proj = encoder.patch_embed.proj
    kept, proj.bias = proj.bias, None
    try:
        weight, bias = folded_embedding(encoder)
    finally:
        proj.bias = kept
    mean, std = (torch.tensor(values).repeat(64) for values in (STATED.mean, STATED.std))
    assert torch.allclose(bias, -(mean / std) @ (weight * 255 * std[:, None]), atol=1e-5)


def test_cut_takes_patches_of_each_image_in_the_given_order(encoder, images):
    view = ExportView(encoder, "keep", ragged=False, features=("pooled",))
    ids = torch.tensor([[63, 0], [9, 8], [7, 56]])
    cells = view.cut(images.float(), ids).reshape(3, 2, 8, 8, 3)
    for row, (first, second) in enumerate(ids.tolist()):
        for place, index in enumerate((first, second)):
            top, left = index // 8 * 8, index % 8 * 8
            assert torch.equal(cells[row, place], images[row, top : top + 8, left : left + 8].float())


def test_only_what_is_requested_is_computed(encoder, images):
    view = ExportView(encoder, "none", ragged=False, features=("attention_1", "layer_0"))
    with torch.inference_mode():
        attention, layer = view(images)
    assert attention.shape == (3, 4, 65, 65)
    assert torch.allclose(attention.sum(-1), torch.ones(3, 4, 65), atol=1e-5)
    assert layer.shape == (3, 65, 48)


def test_mean_patch_counts_real_patches_only(encoder, images):
    view = ExportView(encoder, "keep", ragged=True, features=("mean_patch", "patch_tokens"))
    ids = torch.arange(6).expand(3, 6)
    num = torch.tensor([6, 4, 1], dtype=torch.int32)
    with torch.inference_mode():
        mean, tokens = view(images, ids, num)
    for row, count in enumerate(num.tolist()):
        assert torch.allclose(mean[row], tokens[row, :count].mean(0), atol=1e-6)
        assert not tokens[row, count:].any()
