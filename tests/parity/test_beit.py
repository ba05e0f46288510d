"""BEiT's kind of encoder against transformers' Beit and Data2VecVision, in shapes that no small checkpoint has.

transformers resizes tables in its own way and only squares, so sizes are those of training; resizing is compared with
SciPy in `tests/encoders/test_relative.py`. Weights in float64 leave wrong constants no rounding to hide in.
"""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from mae_export.encoders.load import load_encoder
from mae_export.encoders.overrides import Overrides
from mae_export.encoders.vit import ViT
from mae_export.export.options import TraceOptions
from mae_export.export.trace import export_graph
from mae_export.runtime.metrics import relative_error
from mae_export.runtime.session import open_session
from tests.parity.cases import class_rows_exchanged, eps_times_ten, offsets_turned
from tests.parity.test_families import LIMIT, arrays

SHARED = {"use_shared_relative_position_bias": True}
OWN = {"use_relative_position_bias": True}
ABSOLUTE = {"use_absolute_position_embeddings": True}
CASES = {  # class of transformers, settings, image size
    "shared table, heads of 16": ("BeitForMaskedImageModeling", SHARED | {"use_mask_token": True}, 40),
    "tables of blocks, no LayerScale": ("BeitForImageClassification", OWN | {"layer_scale_init_value": 0.0}, 48),
    "class token pooled": ("BeitModel", OWN | {"use_mean_pooling": False, "num_attention_heads": 12}, 40),
    "absolute positions": ("BeitForMaskedImageModeling", ABSOLUTE | {"use_mask_token": True}, 24),
    "data2vec": ("Data2VecVisionModel", SHARED | {"use_mask_token": True, "use_mean_pooling": False}, 40),
    "data2vec, fine-tuned": ("Data2VecVisionForImageClassification", OWN | {"num_attention_heads": 1}, 56),
}


def saved(folder: Path, name: str, *, renamed: bool = False):
    """A random model of transformers in a folder as its users save it, or with the names that it has in memory."""
    import transformers

    kind, settings, size = CASES[name]
    values = {"hidden_size": 48, "num_attention_heads": 3, "num_hidden_layers": 2, "intermediate_size": 120}
    values |= {"layer_norm_eps": 1e-6, "patch_size": 8, "image_size": size, "initializer_range": 0.3, "vocab_size": 11}
    config = getattr(transformers, "BeitConfig" if kind.startswith("Beit") else "Data2VecVisionConfig")
    torch.manual_seed(3)
    model = getattr(transformers, kind)(config(**values | settings, attn_implementation="sdpa")).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.3)
    model.save_pretrained(folder)
    if renamed:
        state = {key: value.contiguous() for key, value in model.state_dict().items()}
        save_file(state, folder / "model.safetensors", {"format": "pt"})
    return model


def pixels_of(size: int, channels: int = 3) -> torch.Tensor:
    return torch.randn(2, channels, size, size, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("renamed", [False, True], ids=["v4 names", "v5 names"])
@pytest.mark.parametrize("name", CASES)
def test_weights_in_float64_match_transformers(tmp_path, name, renamed):
    model, size = saved(tmp_path, name, renamed=renamed).double(), CASES[name][2]
    keys = load_file(tmp_path / "model.safetensors")
    assert any(".layers.0.attention.q_proj" in f".{key}" for key in keys) is (renamed and name[:8] != "data2vec")
    encoder = load_encoder(tmp_path)[0].double()
    pixels, spec = pixels_of(size), encoder.spec
    base = getattr(model, "beit", getattr(model, "data2vec_vision", model))
    hidden = torch.rand(2, spec.patches, generator=torch.Generator().manual_seed(1)) < 0.4 if spec.mask_token else None
    with torch.inference_mode():
        theirs = base(pixels, bool_masked_pos=hidden, output_hidden_states=True)
        embedded = encoder.patch_embed.proj(pixels).flatten(2).transpose(1, 2)
        ours = encoder.encode_tokens(embedded, hidden=hidden)
        finished = encoder.finish(ours.tokens)
        for index in range(spec.depth - 1):
            torch.testing.assert_close(ours.layers[index], theirs.hidden_states[index + 1], rtol=0, atol=1e-8)
        if encoder.decoder is None:
            torch.testing.assert_close(finished, theirs.last_hidden_state, rtol=0, atol=1e-8)
        else:
            predicted = model(pixels, bool_masked_pos=hidden).logits
            torch.testing.assert_close(encoder.decoder(finished, None), predicted, rtol=0, atol=1e-8)
        if spec.pooled != "fresh_norm_of_mean":
            pooled = encoder.pool(ours.tokens, finished, lambda tokens: tokens[:, 1:].mean(dim=1))
            torch.testing.assert_close(pooled, theirs.pooler_output, rtol=0, atol=1e-8)


@pytest.mark.parametrize("name", ["shared table, heads of 16", "data2vec"])
@pytest.mark.parametrize("broken", [eps_times_ten, class_rows_exchanged, offsets_turned])
def test_one_wrong_fact_stands_out(tmp_path, name, broken):
    model, size = saved(tmp_path, name).double(), CASES[name][2]
    encoder = load_encoder(tmp_path)[0].double()
    broken(encoder)
    base, pixels = getattr(model, "beit", model), pixels_of(size)
    with torch.inference_mode():
        embedded = encoder.patch_embed.proj(pixels).flatten(2).transpose(1, 2)
        wrong = encoder.encode_tokens(embedded).layers[0] - base(pixels, output_hidden_states=True).hidden_states[1]
    assert float(wrong.abs().max()) > 1e-6  # a hundred times what the right one may differ by


def test_a_library_default_of_eps_is_not_followed(tmp_path):
    model = saved(tmp_path, "shared table, heads of 16")
    model.config.layer_norm_eps = 1e-12
    model.config.save_pretrained(tmp_path)
    _, report = load_encoder(tmp_path)
    assert report.spec.eps == 1e-6
    assert any(note.startswith("config.json says layer_norm_eps=1e-12, the library's default") for note in report.notes)


def test_left_out_patches_are_as_if_they_were_never_there(tmp_path):
    """In a graph: rows of different length, each compared with transformers on a bias cut by hand."""
    name = "tables of blocks, no LayerScale"
    model, size = saved(tmp_path, name), CASES[name][2]
    encoder, report = load_encoder(tmp_path)
    options = TraceOptions(mask="keep", ragged=True, features=("class_token", "patch_tokens", "pooled"))
    export_graph(encoder, report, tmp_path / "g.onnx", options=options)
    draws = np.random.default_rng(1)
    images = draws.integers(0, 256, (2, size, size, 3), dtype=np.uint8)
    ids, count = np.stack([draws.permutation(36)[:20] for _ in range(2)]), np.array([20, 13], np.int32)
    with open_session(tmp_path / "g.onnx") as session:
        found = session.run({"images": images, "ids_keep": ids, "num_keep": count})
    for row in range(2):
        kept = ids[row, : count[row]]
        expected = on_kept(model, torch.from_numpy(images[row]), torch.from_numpy(kept))
        assert relative_error(found["class_token"][row], expected[0]) <= LIMIT
        assert relative_error(found["patch_tokens"][row, : len(kept)], expected[1:]) <= LIMIT
        assert not found["patch_tokens"][row, len(kept) :].any()


def on_kept(model, image: torch.Tensor, kept: torch.Tensor) -> np.ndarray:
    """Tokens of transformers' blocks on the class token and kept patches, with rows and columns of each bias taken."""
    base, tokens = model.beit, torch.cat([torch.zeros(1, dtype=torch.int64), kept + 1])
    with torch.inference_mode():
        pixels = ((image / 255 - 0.5) / 0.5).permute(2, 0, 1)[None]
        x = base.embeddings(pixels)[:, tokens]
        for layer in base.layers:
            bias = layer.relative_position_bias((6, 6))[:, :, tokens][:, :, :, tokens]
            mixed = layer.attention(layer.layernorm_before(x), attention_mask=bias)[0]
            x = x + layer.lambda_1 * mixed
            x = x + layer.lambda_2 * layer.mlp(layer.layernorm_after(x))
    return x[0].numpy()


def test_tokens_are_predicted_as_by_the_authors(exported, fixture_dir):
    given, expected = (arrays(fixture_dir / "beit2", name) for name in ("input", "expected"))
    options = TraceOptions(mask="mask-token", features=("prediction",))
    path = exported("beit2/checkpoint_release.pth", options)
    with open_session(path) as session:
        found = session.run({"images": given["images"], "mask": given["mask"]})["prediction"]
    assert relative_error(found[given["mask"]], expected["logits"]) <= LIMIT
    assert found.shape == (*given["mask"].shape, 24)


@pytest.mark.parametrize("folder", ["cae", "caev2"])
def test_the_norm_of_cae_serves_its_other_feature(fixture_dir, folder):
    """Fine-tuning takes the mean of the patches through the very norm of the file."""
    given, expected = (arrays(fixture_dir / folder, name) for name in ("input", "expected"))
    encoder, _ = load_encoder(fixture_dir / folder / "checkpoint.pth", overrides=Overrides(heads=4, decoder_heads=4))
    encoder.spec = replace(encoder.spec, pooled="norm_of_mean")
    with torch.inference_mode():
        patches = encoder.patch_embed.proj(torch.from_numpy(given["pixel_values"])).flatten(2).transpose(1, 2)
        tokens = encoder.encode_tokens(patches).tokens
        found = encoder.pool(tokens, tokens, lambda tokens: tokens[:, 1:].mean(dim=1))
    assert relative_error(found.numpy(), expected["feature_ft"]) <= LIMIT
    assert relative_error(encoder.finish(tokens)[:, 1:].mean(dim=1).numpy(), expected["feature_ft"]) > 100 * LIMIT


def as_the_authors_name_it(model) -> dict[str, torch.Tensor]:
    """Tensors of a BeitForMaskedImageModeling without LayerScale by the names of microsoft/unilm."""
    embeddings = model.beit.embeddings
    found = {"cls_token": embeddings.cls_token, "mask_token": embeddings.mask_token}
    found["pos_embed"] = embeddings.position_embeddings
    parts = {
        "patch_embed.proj": embeddings.patch_embeddings.projection,
        "norm": model.layernorm,
        "lm_head": model.lm_head,
    }
    for index, layer in enumerate(model.beit.layers):
        attention, block = layer.attention, f"blocks.{index}"
        projections = (attention.q_proj, attention.k_proj, attention.v_proj)
        found[f"{block}.attn.qkv.weight"] = torch.cat([projection.weight for projection in projections])
        found |= {f"{block}.attn.q_bias": attention.q_proj.bias, f"{block}.attn.v_bias": attention.v_proj.bias}
        parts |= {f"{block}.norm1": layer.layernorm_before, f"{block}.norm2": layer.layernorm_after}
        parts |= {f"{block}.attn.proj": attention.o_proj, f"{block}.mlp.fc1": layer.mlp.fc1}
        parts[f"{block}.mlp.fc2"] = layer.mlp.fc2
    for name, module in parts.items():
        found |= {f"{name}.{leaf}": value for leaf, value in module.named_parameters()}
    return {name: value.detach().clone() for name, value in found.items()}


def test_absolute_positions_without_layer_scale_are_a_plain_transformer(tmp_path):
    """beit_base_patch16_224_pt1k_800ep has neither relative positions nor LayerScale."""
    model = saved(tmp_path, "absolute positions")
    for layer in model.beit.layers:
        layer.lambda_1.data.fill_(1.0)
        layer.lambda_2.data.fill_(1.0)
    torch.save({"model": as_the_authors_name_it(model)}, tmp_path / "c.pth")
    encoder, report = load_encoder(tmp_path / "c.pth", family="beit", overrides=Overrides(heads=3))
    assert (type(encoder), report.spec.mask_token, report.ignored) == (ViT, True, ())
    pixels = pixels_of(24)
    with torch.inference_mode():
        embedded = encoder.double().patch_embed.proj(pixels).flatten(2).transpose(1, 2)
        expected = model.double().beit(pixels).last_hidden_state
        torch.testing.assert_close(encoder.encode_tokens(embedded).tokens, expected, rtol=0, atol=1e-8)
