"""Exported graphs against numbers that others computed: MAE's authors' code, and transformers' ViTMAE.

Errors are max |a - b| / max(1, max |b|) per output, and must stay under 1e-4.
"""

from pathlib import Path

import numpy as np
import pytest
import torch

from mae_export.encoders.load import load_encoder
from mae_export.encoders.overrides import Overrides
from mae_export.export.options import TraceOptions
from mae_export.export.trace import export_graph
from mae_export.runtime.metrics import relative_error
from mae_export.runtime.patchify import patchify
from mae_export.runtime.session import open_session

LIMIT = 1e-4
TOKENS = ("class_token", "pooled", "patch_tokens", "mean_patch", "layer_0", "layer_1")


def arrays(folder: Path, name: str) -> dict[str, np.ndarray]:
    with np.load(folder / f"{name}.npz", allow_pickle=False) as file:
        return dict(file)


def assert_close(found: np.ndarray, expected: np.ndarray) -> None:
    assert relative_error(found, expected) <= LIMIT


@pytest.mark.parametrize("file", ["mae/checkpoint.pth", "mae/checkpoint_release.pth", "mae_linprobe/checkpoint.pth"])
def test_full_image_matches_the_authors(exported, fixture_dir, file):
    folder = (fixture_dir / file).parent
    given, expected = arrays(folder, "input"), arrays(folder, "expected")
    with open_session(exported(file, TraceOptions(features=(*TOKENS, "dense")))) as session:
        found = session.run({"images": given["images"]})
    tokens = expected["tokens_full"]
    assert_close(found["class_token"], tokens[:, 0])
    assert_close(found["patch_tokens"], tokens[:, 1:])
    assert_close(found["mean_patch"], tokens[:, 1:].mean(axis=1))
    assert_close(found["dense"], tokens[:, 1:].reshape(2, 8, 8, 48).transpose(0, 3, 1, 2))
    assert_close(found["layer_0"], expected["layer_0"])
    assert_close(found["layer_1"], expected["tokens_prenorm"])
    assert_close(found["pooled"], expected["feature"])


@pytest.mark.parametrize("file", ["mae_finetune/checkpoint.pth", "mae_finetune/checkpoint_release.pth"])
def test_fine_tuned_pooling_matches_the_authors(exported, fixture_dir, file):
    folder = (fixture_dir / file).parent
    given, expected = arrays(folder, "input"), arrays(folder, "expected")
    with open_session(exported(file, TraceOptions(features=TOKENS))) as session:
        found = session.run({"images": given["images"]})
    assert_close(found["pooled"], expected["feature"])
    assert_close(found["layer_0"], expected["layer_0"])
    assert_close(found["layer_1"], expected["tokens_prenorm"])
    assert_close(found["patch_tokens"], expected["tokens_prenorm"][:, 1:])
    # The two ways to get this wrong: no norm after the mean, or the norm before it.
    assert relative_error(found["mean_patch"], expected["feature"]) > 100 * LIMIT


@pytest.mark.parametrize("mask", ["keep", "patches"])
@pytest.mark.parametrize("ragged", [False, True])
def test_kept_patches_match_the_authors(exported, fixture_dir, mask, ragged):
    folder = fixture_dir / "mae"
    given, expected = arrays(folder, "input"), arrays(folder, "expected")
    options = TraceOptions(mask=mask, ragged=ragged, features=(*TOKENS, "reconstruction"))
    with open_session(exported("mae/checkpoint.pth", options)) as session:
        feeds = {"images": given["images"], "ids_keep": given["ids_keep"]}
        if mask == "patches":
            cells = patchify(given["images"], session.manifest.patches)
            rows = np.take_along_axis(cells, given["ids_keep"][:, :, None], axis=1)
            feeds = {"patches": rows, "ids_keep": given["ids_keep"]}
        if ragged:
            feeds["num_keep"] = np.full(2, given["ids_keep"].shape[1], np.int32)
        found = session.run(feeds)
    assert_close(found["patch_tokens"], expected["tokens_keep"][:, 1:])  # in the order of ids_keep
    assert_close(found["class_token"], expected["tokens_keep"][:, 0])
    assert_close(found["reconstruction"], expected["reconstruction"])


def test_padding_of_ragged_rows_changes_nothing(exported, fixture_dir):
    given = arrays(fixture_dir / "mae", "input")
    features = (*TOKENS, "reconstruction")
    with open_session(exported("mae/checkpoint.pth", TraceOptions(mask="keep", features=features))) as session:
        short = session.run({"images": given["images"], "ids_keep": given["ids_keep"][:, :5]})
    with open_session(
        exported("mae/checkpoint.pth", TraceOptions(mask="keep", ragged=True, features=features))
    ) as session:
        padded = given["ids_keep"].copy()
        padded[:, 5:] = padded[:, :1]  # padding may repeat any valid index
        feeds = {"images": given["images"], "ids_keep": padded, "num_keep": np.array([5, 5], np.int32)}
        long = session.run(feeds)
    for name in ("class_token", "pooled", "mean_patch", "reconstruction"):
        assert relative_error(long[name], short[name]) <= 1e-5, name
    assert relative_error(long["patch_tokens"][:, :5], short["patch_tokens"]) <= 1e-5
    assert not long["patch_tokens"][:, 5:].any()
    assert not long["layer_1"][:, 6:].any()


def test_another_image_size_matches_the_authors(exported, fixture_dir):
    given, expected = arrays(fixture_dir / "mae", "input"), arrays(fixture_dir / "mae", "expected")
    options = TraceOptions(features=("class_token", "pooled", "patch_tokens"), image_size=(96, 96))
    with open_session(exported("mae/checkpoint_release.pth", options)) as session:
        found = session.run({"images": given["images_hr"]})
    assert_close(found["patch_tokens"], expected["tokens_hr"][:, 1:])
    assert_close(found["class_token"], expected["tokens_hr"][:, 0])
    assert_close(found["pooled"], expected["feature_hr"])


def test_eps_is_the_authors_number(fixture_dir):
    # 1e-5 instead of 1e-6 moves outputs by less than LIMIT, so that parity alone would not show it.
    encoder, report = load_encoder(fixture_dir / "mae/checkpoint.pth", overrides=Overrides(heads=4, decoder_heads=4))
    assert report.spec.eps == 1e-6
    eps = {module.eps for module in encoder.modules() if isinstance(module, torch.nn.LayerNorm)}
    assert eps == {1e-6}
    assert encoder.decoder is not None


SHAPES = {  # shapes that no fixture has: (config of ViTMAE, image size of the graph)
    "ten heads of 8, patch 14, 70 px": ({"hidden_size": 80, "num_attention_heads": 10, "patch_size": 14}, 70),
    "three heads of 64, patch 16, 48 px": ({"hidden_size": 192, "num_attention_heads": 3, "patch_size": 16}, 48),
    "one channel, patch 4, 20 px": (
        {"hidden_size": 24, "num_attention_heads": 2, "patch_size": 4, "num_channels": 1},
        20,
    ),
    "MLP ratio 3.5": ({"hidden_size": 64, "intermediate_size": 224, "num_attention_heads": 1, "patch_size": 8}, 32),
    "base": ({"hidden_size": 768, "num_attention_heads": 12, "patch_size": 16, "num_hidden_layers": 12}, 224),
}


def hugging_face(folder: Path, settings: dict[str, int], size: int, attention: str = "eager"):
    """A random ViTMAE saved as its users save it, with a position table and biases that are not zero."""
    import transformers

    torch.manual_seed(3)
    values = {"num_hidden_layers": 3, "decoder_num_hidden_layers": 1, "layer_norm_eps": 1e-6, "image_size": size}
    values |= {"decoder_hidden_size": 32, "decoder_num_attention_heads": 4, "decoder_intermediate_size": 96}
    values |= {"intermediate_size": 4 * settings["hidden_size"], "initializer_range": 0.1} | settings
    config = transformers.ViTMAEConfig(**values, attn_implementation=attention)
    model = transformers.ViTMAEForPreTraining(config).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("bias") or "position" in name or "pos_embed" in name or "mask_token" in name:
                parameter.normal_(std=0.1)
    model.save_pretrained(folder)
    return model


@pytest.mark.parametrize("name", SHAPES)
def test_shapes_without_fixture_match_transformers(tmp_path, name):
    settings, size = SHAPES[name]
    model = hugging_face(tmp_path / "hf", settings, size)
    channels = settings.get("num_channels", 3)
    stated = Overrides() if channels == 3 else Overrides(mean=(0.5,), std=(0.25,))
    encoder, report = load_encoder(tmp_path / "hf", overrides=stated)
    depth = len(encoder.blocks)
    features = ("class_token", "patch_tokens", "layer_0", f"layer_{depth - 1}", "attention_1", "reconstruction")
    export_graph(encoder, report, tmp_path / "g.onnx", options=TraceOptions(mask="keep", features=features))

    grid = size // settings["patch_size"]
    draws = np.random.default_rng(5)
    images = draws.integers(0, 256, (2, size, size, channels), dtype=np.uint8)
    kept = int(grid * grid * 0.25)
    noise = torch.from_numpy(draws.random((2, grid * grid), dtype=np.float32))
    ids = noise.argsort(dim=1)[:, :kept]
    mean, std = np.array(report.spec.image.mean), np.array(report.spec.image.std)
    pixels = torch.from_numpy(((images / 255 - mean) / std).astype(np.float32)).permute(0, 3, 1, 2)
    with torch.inference_mode():
        encoded = model.vit(pixels, noise=noise, output_hidden_states=True, output_attentions=True)
        decoded = model(pixels, noise=noise).logits
    with open_session(tmp_path / "g.onnx") as session:
        found = session.run({"images": images, "ids_keep": ids.numpy()})
    assert_close(found["class_token"], encoded.last_hidden_state[:, 0].numpy())
    assert_close(found["patch_tokens"], encoded.last_hidden_state[:, 1:].numpy())
    assert_close(found["layer_0"], encoded.hidden_states[1].numpy())
    assert_close(found["attention_1"], encoded.attentions[1].numpy())
    assert_close(found["reconstruction"], decoded.numpy())


@pytest.mark.parametrize("size", [(64, 64), (48, 80), (32, 96)])
def test_other_image_sizes_match_transformers(tmp_path, size):
    model = hugging_face(tmp_path / "hf", *SHAPES["three heads of 64, patch 16, 48 px"])
    encoder, report = load_encoder(tmp_path / "hf")
    options = TraceOptions(features=("class_token", "patch_tokens"), image_size=size)
    export_graph(encoder, report, tmp_path / "g.onnx", options=options)
    images = np.random.default_rng(1).integers(0, 256, (2, *size, 3), dtype=np.uint8)
    mean, std = np.array(report.spec.image.mean), np.array(report.spec.image.std)
    pixels = torch.from_numpy(((images / 255 - mean) / std).astype(np.float32)).permute(0, 3, 1, 2)
    count = size[0] * size[1] // 256
    for part in (model.config, model.vit.config, model.vit.embeddings.config):
        part.mask_ratio = 0.0
    with torch.inference_mode():
        noise = torch.arange(count).expand(2, count).float()  # ordered noise keeps raster order
        expected = model.vit(pixels, noise=noise, interpolate_pos_encoding=True).last_hidden_state.numpy()
    with open_session(tmp_path / "g.onnx") as session:
        found = session.run({"images": images})
    assert_close(found["class_token"], expected[:, 0])
    assert_close(found["patch_tokens"], expected[:, 1:])


def test_weights_in_float64_match_transformers_to_1e_10(tmp_path):
    """In fp64 a wrong constant (eps, scale, GELU) cannot hide below rounding."""
    shape = SHAPES["three heads of 64, patch 16, 48 px"]
    model = hugging_face(tmp_path / "hf", *shape, attention="sdpa").double()  # "eager" returns to float32 inside
    encoder, _ = load_encoder(tmp_path / "hf")
    encoder = encoder.double()
    pixels = torch.randn(2, 3, 48, 48, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    noise = torch.arange(9).expand(2, 9).double()  # ordered noise keeps raster order
    model.config.mask_ratio = model.vit.config.mask_ratio = model.vit.embeddings.config.mask_ratio = 0.0
    with torch.inference_mode():
        expected = model.vit(pixels, noise=noise).last_hidden_state
        patches = encoder.patch_embed.proj(pixels).flatten(2).transpose(1, 2)
        found = encoder.finish(encoder.encode_tokens(patches).tokens)
    assert float((found - expected).abs().max()) < 1e-10
