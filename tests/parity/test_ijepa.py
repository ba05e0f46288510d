"""I-JEPA's context encoder, and the Hugging Face layout against transformers on shapes that no fixture has."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from mae_export.encoders.load import load_encoder
from mae_export.encoders.overrides import Overrides
from mae_export.export.options import TraceOptions
from mae_export.export.trace import export_graph
from mae_export.runtime.metrics import relative_error
from mae_export.runtime.session import open_session

LIMIT = 1e-4
SHAPES = {
    "ten heads of 8, patch 14": {"hidden_size": 80, "num_attention_heads": 10, "patch_size": 14, "image_size": 70},
    "two heads of 64, patch 16": {"hidden_size": 128, "num_attention_heads": 2, "patch_size": 16, "image_size": 48},
    "MLP ratio 3.5": {"hidden_size": 64, "intermediate_size": 224, "num_attention_heads": 1, "image_size": 64},
}
NEW_NAMES = (  # of transformers v5, where its files carry those of v4
    ("encoder.layer.", "layers."),
    ("attention.attention.query", "attention.q_proj"),
    ("attention.attention.key", "attention.k_proj"),
    ("attention.attention.value", "attention.v_proj"),
    ("attention.output.dense", "attention.o_proj"),
    ("intermediate.dense", "mlp.fc1"),
    ("output.dense", "mlp.fc2"),
)


def test_the_context_encoder_is_there_on_request(fixture_dir, tmp_path):
    chosen = Overrides(heads=4, weights="encoder")
    encoder, report = load_encoder(fixture_dir / "ijepa/checkpoint.pth", overrides=chosen)
    export_graph(encoder, report, tmp_path / "g.onnx", options=TraceOptions(mask="keep", features=("patch_tokens",)))
    with np.load(fixture_dir / "ijepa/input.npz") as given, np.load(fixture_dir / "ijepa/expected.npz") as expected:
        with open_session(tmp_path / "g.onnx") as session:
            some = session.run({"images": given["images"], "ids_keep": given["ids_keep"]})["patch_tokens"]
            all_ids = np.arange(16)[None].repeat(2, axis=0)
            full = session.run({"images": given["images"], "ids_keep": all_ids})["patch_tokens"]
        assert relative_error(some, expected["context_tokens_keep"]) <= LIMIT
        assert relative_error(full, expected["context_tokens_full"]) <= LIMIT
        assert relative_error(full, expected["tokens_full"]) > 100 * LIMIT  # the target encoder is another one


def hugging_face(folder, settings):
    """A random IJepa saved as its users save it, with positions and biases that are not zero."""
    import transformers

    torch.manual_seed(3)
    values = {"num_hidden_layers": 3, "layer_norm_eps": 1e-6, "initializer_range": 0.1} | settings
    values.setdefault("intermediate_size", 4 * values["hidden_size"])
    model = transformers.IJepaModel(transformers.IJepaConfig(**values, attn_implementation="sdpa")).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("bias") or "position" in name:
                parameter.normal_(std=0.1)
    model.save_pretrained(folder)
    return model


def rename(folder, pairs=NEW_NAMES, prefix=""):
    """Give the tensors of a folder other names."""
    tensors = load_file(folder / "model.safetensors")
    for old, new in pairs:
        tensors = {name.replace(old, new): tensor for name, tensor in tensors.items()}
    save_file({prefix + name: tensor for name, tensor in tensors.items()}, folder / "model.safetensors")


def encoded(encoder, pixels):
    patches = encoder.patch_embed.proj(pixels).flatten(2).transpose(1, 2)
    return encoder.finish(encoder.encode_tokens(patches).tokens)


@pytest.mark.parametrize("names", ["v4", "v5"])
@pytest.mark.parametrize("shape", SHAPES)
def test_float64_agrees_with_transformers_to_1e_10(tmp_path, shape, names):
    """In float64 a wrong constant (eps, scale, GELU) cannot hide below rounding; one wrong on purpose shows."""
    settings = SHAPES[shape]
    model = hugging_face(tmp_path, settings).double()
    if names == "v5":
        rename(tmp_path, prefix="ijepa.")
    encoder, report = load_encoder(tmp_path)
    encoder = encoder.double()
    assert (report.family, report.layout) == ("ijepa", "Hugging Face IJepa")
    size = settings["image_size"]
    pixels = torch.randn(2, 3, size, size, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        expected = model(pixels).last_hidden_state
        assert float((encoded(encoder, pixels) - expected).abs().max()) < 1e-10
        for module in encoder.modules():
            if isinstance(module, torch.nn.LayerNorm):
                module.eps *= 10
        assert float((encoded(encoder, pixels) - expected).abs().max()) > 1e-8


def test_graphs_of_another_size_match_transformers(tmp_path):
    """The authors' code takes no other size; the port resamples bicubically, as we do."""
    size = (48, 80)
    model = hugging_face(tmp_path / "hf", SHAPES["two heads of 64, patch 16"])
    encoder, report = load_encoder(tmp_path / "hf")
    options = TraceOptions(features=("patch_tokens", "pooled", "layer_0"), image_size=size)
    export_graph(encoder, report, tmp_path / "g.onnx", options=options)
    images = np.random.default_rng(1).integers(0, 256, (2, *size, 3), dtype=np.uint8)
    mean, std = np.array(report.spec.image.mean), np.array(report.spec.image.std)
    pixels = torch.from_numpy(((images / 255 - mean) / std).astype(np.float32)).permute(0, 3, 1, 2)
    with torch.inference_mode():
        found = model(pixels, interpolate_pos_encoding=True, output_hidden_states=True)
    expected = found.last_hidden_state.numpy()
    with open_session(tmp_path / "g.onnx") as session:
        outputs = session.run({"images": images})
    assert relative_error(outputs["patch_tokens"], expected) <= LIMIT
    assert relative_error(outputs["pooled"], expected.mean(axis=1)) <= LIMIT
    assert relative_error(outputs["layer_0"], found.hidden_states[1].numpy()) <= LIMIT


def test_the_default_eps_of_the_port_is_not_the_authors(tmp_path):
    model = hugging_face(tmp_path, SHAPES["two heads of 64, patch 16"] | {"layer_norm_eps": 1e-12})
    assert json.loads((tmp_path / "config.json").read_text())["layer_norm_eps"] == model.layernorm.eps == 1e-12
    encoder, report = load_encoder(tmp_path)
    assert encoder.norm.eps == 1e-6
    assert any(note.startswith("config.json says layer_norm_eps=1e-12, the library's default") for note in report.notes)


def test_a_classifier_of_the_port_gives_its_encoder(tmp_path):
    import transformers

    config = transformers.IJepaConfig(
        hidden_size=64, num_hidden_layers=1, num_attention_heads=1, intermediate_size=96, image_size=32, num_labels=3
    )
    model = transformers.IJepaForImageClassification(config)
    model.save_pretrained(tmp_path)
    encoder, report = load_encoder(tmp_path)
    assert {name for name, _ in report.ignored} == {"classifier.weight", "classifier.bias"}
    assert torch.equal(encoder.norm.weight, model.ijepa.layernorm.weight)
