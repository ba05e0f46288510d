import math
import time
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch

from mae_export.decoder_spec import Target
from mae_export.errors import InputError, MaskError, UsageError
from mae_export.spec import EncoderSpec, ImageSpec
from mae_export.training.pretrain import PretrainOptions, normalised_patches, pretrain, reconstruct

OPTIONS = PretrainOptions(steps=150, batch=16, base_lr=0.06, warmup=0.1, seed=1)


@pytest.fixture(scope="module")
def images() -> list[np.ndarray]:
    """Smooth gradients in all directions and colours: hidden patches follow from visible ones."""
    generator = np.random.default_rng(0)
    row, column = np.mgrid[-1:1:48j, -1:1:48j]
    pictures = []
    for _ in range(40):
        angle, colour = generator.uniform(0, 2 * np.pi), generator.uniform(0.2, 0.5, 3)
        slope = np.cos(angle) * row + np.sin(angle) * column
        pictures.append(np.clip(128 + 255 * slope[..., None] * colour, 0, 255).astype(np.uint8))
    return pictures


def hidden_error(model: torch.nn.Module, patches: torch.Tensor) -> float:
    ids_keep = torch.arange(0, 16, 4).expand(len(patches), -1)  # one column
    hidden = torch.ones(16, dtype=torch.bool)
    hidden[ids_keep[0]] = False
    return (reconstruct(model, patches, ids_keep) - patches)[:, hidden].square().mean().item()


def test_it_learns_more_than_the_mean(spec: EncoderSpec, images: list[np.ndarray]) -> None:
    shares: list[float] = []
    trained = pretrain(images[:30], spec, options=OPTIONS, progress=lambda done, _: shares.append(done))
    assert len(trained.losses) == 150
    assert shares == [step / 150 for step in range(1, 151)]
    assert np.mean(trained.losses[-5:]) < 0.5 * trained.losses[0]
    unseen = normalised_patches(np.stack([image[8:40, 8:40] for image in images[30:]]), spec)
    image_means = (unseen - unseen.mean(dim=(0, 1), keepdim=True)).square().mean().item()
    assert hidden_error(trained.model, unseen) < 0.5 * image_means
    assert not trained.model.training
    assert not any(parameter.requires_grad for parameter in trained.model.parameters())


def test_the_per_patch_target_is_learnt_too(spec_of: Callable[[Target], EncoderSpec], images: list[np.ndarray]) -> None:
    losses = pretrain(images, spec_of("patch-normalised"), options=OPTIONS).losses
    # predicting nothing costs (values - 1) / values of the unbiased variance, 1
    assert np.mean(losses[-5:]) < 0.8 < losses[0]


def test_equal_seeds_give_equal_weights(spec: EncoderSpec, images: list[np.ndarray]) -> None:
    options = replace(OPTIONS, steps=3)
    torch.manual_seed(1)
    first = pretrain(images, spec, options=options)
    torch.manual_seed(2)  # the global generator has no part in it
    second = pretrain(images, spec, options=options)
    other = pretrain(images, spec, options=replace(options, seed=2))
    assert first.losses == second.losses != other.losses
    for name, tensor in first.model.state_dict().items():
        assert torch.equal(tensor, second.model.state_dict()[name]), name


def test_positions_stay_and_everything_else_moves(spec: EncoderSpec, images: list[np.ndarray]) -> None:
    from mae_export.training.initialise import initialise

    before = initialise(spec, seed=OPTIONS.seed).state_dict()
    after = pretrain(images, spec, options=replace(OPTIONS, steps=3)).model.state_dict()
    still = {name for name in before if torch.equal(before[name], after[name])}
    assert still == {"pos_embed", "decoder.pos_embed"}


def test_a_time_budget_ends_the_training(spec: EncoderSpec, images: list[np.ndarray]) -> None:
    start = time.monotonic()
    shares: list[float] = []
    trained = pretrain(
        images,
        spec,
        options=PretrainOptions(seconds=0.5, batch=2),
        progress=lambda done, _: shares.append(done),
    )
    assert 0.5 <= time.monotonic() - start < 5
    assert len(trained.losses) == len(shares) >= 1
    assert shares == sorted(shares)
    assert shares[-1] == 1.0


def test_patches_are_in_raster_order_and_normalised(spec: EncoderSpec) -> None:
    images = np.random.default_rng(0).integers(0, 256, (2, 32, 32, 3), dtype=np.uint8)
    patches = normalised_patches(images, spec)
    assert patches.shape == (2, 16, 192)
    assert patches.dtype == torch.float32
    # patch 6 is row 1, column 2; value 5 * 24 + 7 * 3 + 1 is its pixel (5, 7), green
    expected = (images[1, 8 + 5, 16 + 7, 1] / 255 - 0.456) / 0.224
    assert patches[1, 6, 5 * 24 + 7 * 3 + 1].item() == pytest.approx(expected, rel=1e-5)


def test_divergence_is_an_error(spec: EncoderSpec, images: list[np.ndarray]) -> None:
    with pytest.raises(InputError, match="the training diverged: the loss is nan at step 1; lower base_lr"):
        pretrain(images, spec, options=replace(OPTIONS, base_lr=1e38, warmup=0.0))


def test_specs_that_cannot_be_trained(spec_of: Callable[[Target], EncoderSpec], images: list[np.ndarray]) -> None:
    spec = spec_of("unknown")
    grey = replace(spec_of("image-normalised"), image=ImageSpec(size=(32, 32), channels=1, mean=(0.5,), std=(0.2,)))
    for wrong in (spec, replace(spec, decoder=None), grey):
        with pytest.raises(UsageError, match="pre-training needs RGB images, and a decoder whose target is"):
            pretrain(images, wrong, options=OPTIONS)
    with pytest.raises(MaskError, match="keeps 0 of 16 patches"):
        pretrain(images, spec_of("image-normalised"), options=replace(OPTIONS, mask_ratio=0.95))


def test_reconstruct_needs_a_decoder(spec: EncoderSpec) -> None:
    from mae_export.training.initialise import initialise

    with pytest.raises(InputError, match="this encoder has no decoder"):
        reconstruct(initialise(replace(spec, decoder=None), seed=0), torch.zeros(1, 16, 192), torch.zeros(1, 4).long())


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("steps", 0),
        ("batch", 0),
        ("base_lr", 0.0),
        ("base_lr", math.nan),
        ("weight_decay", -0.1),
        ("mask_ratio", 1.0),
        ("mask_ratio", 0.0),
        ("warmup", 1.0),
        ("min_area", 0.0),
        ("min_area", 1.5),
        ("seed", -1),
    ],
)
def test_options_out_of_range(name: str, value: float) -> None:
    with pytest.raises(UsageError, match=f"{name} is {value}, which is out of range"):
        replace(OPTIONS, **{name: value})


def test_seconds_out_of_range_and_budgets() -> None:
    with pytest.raises(UsageError, match="seconds is inf"):
        PretrainOptions(seconds=math.inf)
    for both_or_none in ({}, {"steps": 5, "seconds": 5.0}):
        with pytest.raises(UsageError, match="give either steps or seconds, and not both"):
            PretrainOptions(**both_or_none)
