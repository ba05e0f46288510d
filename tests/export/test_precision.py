"""Whole encoders to half precision: what is written, what is refused, and a model made to overflow."""

import subprocess
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from mae_export import graph
from mae_export.calibration.lower import lower
from mae_export.calibration.wanted import QuantizeOptions
from mae_export.encoders.load import load_encoder
from mae_export.encoders.overrides import Overrides
from mae_export.encoders.vit import ViT
from mae_export.errors import GraphError, InputError, UsageError, VerificationError
from mae_export.export import precision
from mae_export.export.options import ConvertOptions, TraceOptions
from mae_export.export.precision import convert
from mae_export.export.trace import export_graph
from mae_export.files import sha256_files
from mae_export.runtime.golden import check_golden
from mae_export.runtime.session import open_session

FP16, BF16 = ConvertOptions(precision="fp16"), ConvertOptions(precision="bf16")
KEEP = TraceOptions(mask="keep", features=("pooled", "mean_patch", "patch_tokens", "layer_1"))
RAGGED = TraceOptions(
    mask="patches",
    ragged=True,
    features=("pooled", "class_token", "mean_patch", "patch_tokens", "layer_0", "attention_0", "reconstruction"),
)
NONE = TraceOptions(features=("pooled", "mean_patch", "dense"))
WRITES_RESIDUAL = ("patch_embed", "pos_embed", "cls_token", ".attn.proj.", ".mlp.fc2.")


def float_casts(model):
    return [n for n in model.graph if n.op_type == "Cast" and n.inputs[0].dtype.is_floating_point()]


@pytest.mark.parametrize(
    ("options", "reasons", "casts"),
    [
        (NONE, {"embeds raw pixels": 2, "stands between float32 nodes": 4, "sums over tokens": 1}, 4),
        (KEEP, {"embeds raw pixels": 2, "stands between float32 nodes": 5, "sums over tokens": 1}, 4),
        (RAGGED, {"embeds raw pixels": 2, "stands between float32 nodes": 2, "sums over tokens": 3}, 8),
    ],
    ids=["none", "keep", "patches ragged"],
)
@pytest.mark.parametrize("half", ["fp16", "bf16"])
def test_types_and_islands(exported, tmp_path, options, reasons, casts, half):
    source, out = exported("mae/checkpoint.pth", options), tmp_path / "h.onnx"
    manifest = convert(source, out, options=ConvertOptions(precision=half))
    assert list(tmp_path.iterdir()) == [out]
    before, after = ir.load(source), ir.load(out)
    assert Counter(manifest.fp32_nodes.values()) == reasons
    # Beside the casts, the nodes are those of the source; attention and normalisation stay whole.
    count = Counter(node.op_type for node in after.graph)
    assert count["LayerNormalization"] == Counter(node.op_type for node in before.graph)["LayerNormalization"]
    assert len(float_casts(after)) == casts
    assert all(node.inputs[0].producer().op_type != "Cast" for node in float_casts(after))
    dtype = {"fp16": ir.DataType.FLOAT16, "bf16": ir.DataType.BFLOAT16}[half]
    for node in after.graph:
        types = {v.dtype for v in (*node.inputs, *node.outputs) if v is not None and v.dtype.is_floating_point()}
        if types and node.op_type not in ("Cast", "Shape"):
            assert types == {ir.DataType.FLOAT if node.name in manifest.fp32_nodes else dtype}, node.name
        if node.op_type == "LayerNormalization":
            assert node.attributes["stash_type"].as_int() == 1  # float32 inside
    assert {value.dtype for value in after.graph.outputs} == {ir.DataType.FLOAT}
    assert [value.name for value in after.graph.inputs] == [value.name for value in before.graph.inputs]
    assert [value.name for value in after.graph.outputs] == list(options.features)
    assert out.stat().st_size < 0.75 * source.stat().st_size


def test_manifest_tells_the_whole_story(exported, tmp_path):
    source, told = exported("mae/checkpoint.pth", KEEP), []
    manifest = convert(source, tmp_path / "h.onnx", options=FP16, progress=told.append)
    before = graph.read_manifest(source)
    assert graph.read_manifest(tmp_path / "h.onnx") == manifest
    assert manifest.precision == "fp16"
    assert manifest.made_from[:-1] == before.made_from
    assert (manifest.made_from[-1].kind, manifest.made_from[-1].sha256) == ("graph", sha256_files(source))
    assert (manifest.inputs, manifest.outputs) == (before.inputs, before.outputs)
    assert manifest.verification.error < manifest.verification.limit == 1e-4
    assert manifest.verification.checks == 2 * 2 * 4  # scenes, twin and ONNX Runtime, outputs
    assert manifest.verification.reference.startswith(source.name)
    assert told == ["measuring ranges", "converting", "comparing with the float32 graph"]
    with open_session(tmp_path / "h.onnx") as session:
        check_golden(session)
        half = session.run({"images": np.full((1, 64, 64, 3), 90, np.uint8), "ids_keep": np.arange(9)[None]})
    with open_session(source) as session:
        full = session.run({"images": np.full((1, 64, 64, 3), 90, np.uint8), "ids_keep": np.arange(9)[None]})
    for name, values in half.items():
        assert values.dtype == np.float32
        np.testing.assert_allclose(values, full[name], atol=2e-2)


@pytest.fixture(scope="module")
def overflowing(fixture_dir, tmp_path_factory):
    """Graphs with activations as in giant encoders, from factors on the weights of a small one."""
    encoder, report = load_encoder(fixture_dir / "mae/checkpoint.pth", overrides=Overrides(heads=4, decoder_heads=4))
    folder = tmp_path_factory.mktemp("overflowing")

    def make(name: str) -> Path:
        path = folder / f"{name}.onnx"
        if not path.exists():
            state = {key: value * factor(name, key) for key, value in encoder.state_dict().items()}
            export_graph(ViT.from_state(encoder.spec, state), report, path, options=KEEP)
        return path

    return make


def factor(model: str, key: str) -> float:
    if model == "residual":  # normalised before every use, so that the function stays the same, up to eps
        return 2.0**13 if any(part in key for part in WRITES_RESIDUAL) and not key.startswith("decoder") else 1
    if key.startswith("blocks.1.mlp.fc1"):
        return 2.0**15
    return 2.0**-15 if key == "blocks.1.mlp.fc2.weight" else 1


@pytest.mark.parametrize(
    ("model", "overflows_at", "inside"),
    [
        ("residual", "blocks.0/Add", ("blocks.0/Add", "blocks.1/Add", "blocks.1.norm1/", "blocks.1.norm2/", "norm/")),
        ("mlp", "blocks.1.mlp.fc1/MatMul", ("blocks.1.mlp.fc1/", "blocks.1.mlp/Gelu", "blocks.1.mlp.fc2/MatMul")),
    ],
)
def test_overflow_is_caught_without_islands_and_cured_by_them(
    overflowing, tmp_path, monkeypatch, model, overflows_at, inside
):
    source, out = overflowing(model), tmp_path / "h.onnx"
    with monkeypatch.context() as patch:
        patch.setattr(precision, "choose_fp32", lambda *_, **__: {})
        with pytest.raises(VerificationError, match=rf"output '\w+' has cosine -1.0.*; {overflows_at}_\d+ overflows"):
            convert(source, out, options=FP16)
    assert [path.name for path in tmp_path.iterdir()] == ["h.onnx.rejected"]
    onnx.checker.check_model(str(tmp_path / "h.onnx.rejected"))
    manifest = convert(source, out, options=FP16)
    assert manifest.verification.error <= 1e-4
    for prefix in inside:
        assert any(name.startswith(prefix) and "reaches" in why for name, why in manifest.fp32_nodes.items()), prefix
    # Attention is left to be fused, and nothing but the two kinds of shore is cast.
    assert not [name for name in manifest.fp32_nodes if "/Softmax" in name or ".attn.qkv/" in name]
    assert len(manifest.fp32_nodes) == {"residual": 31, "mlp": 12}[model]
    assert len(float_casts(ir.load(out))) == {"residual": 8, "mlp": 6}[model]


def test_the_overflowing_function_is_the_same_function(exported, overflowing):
    """So the failure above is the type's alone."""
    feeds = {"images": np.random.default_rng(0).integers(0, 256, (2, 64, 64, 3), dtype=np.uint8)}
    feeds["ids_keep"] = np.tile(np.arange(20), (2, 1))
    found = []
    for path in (exported("mae/checkpoint.pth", KEEP), overflowing("residual")):
        with open_session(path) as session:
            found.append(session.run(feeds, ["pooled", "patch_tokens"]))
    for name, values in found[0].items():
        np.testing.assert_allclose(found[1][name], values, atol=1e-4)


def test_overflow_that_no_output_shows_is_refused(exported, tmp_path, monkeypatch):
    monkeypatch.setattr(precision.Ranges, "first_infinite", lambda _: "layer_norm")
    text = r"; expected at least 0.9999. 0 of 6 checks failed .*; blocks.0.norm1/LayerNormalization_\d+ overflows first"
    with pytest.raises(VerificationError, match=text):
        convert(exported("mae/checkpoint.pth", NONE), tmp_path / "h.onnx", options=FP16)
    assert [path.name for path in tmp_path.iterdir()] == ["h.onnx.rejected"]


def test_bf16_has_the_range(overflowing, tmp_path):
    manifest = convert(overflowing("mlp"), tmp_path / "h.onnx", options=BF16)
    assert not [why for why in manifest.fp32_nodes.values() if "reaches" in why]
    assert manifest.verification.limit == 1e-3
    assert manifest.verification.checks == 2 * 4  # the twin alone


def test_given_images_are_measured_too(exported, tmp_path, monkeypatch):
    seen = []
    real = precision.measure
    monkeypatch.setattr(
        precision, "measure", lambda model, path, feeds: seen.append(list(feeds)) or real(model, path, seen[-1])
    )
    images = np.full((2, 64, 64, 3), 7, np.uint8)
    convert(exported("mae/checkpoint.pth", KEEP), tmp_path / "h.onnx", options=FP16, images=images)
    every, quarter = seen[0]
    for scene in (every, quarter):
        np.testing.assert_array_equal(scene["images"][-2:], images)
        assert scene["images"].shape[0] == scene["ids_keep"].shape[0] == 8 + 3 + 2
    assert quarter["ids_keep"].shape[1] == 16


@pytest.mark.parametrize(
    ("images", "text"),
    [
        (np.zeros((1, 32, 64, 3), np.uint8), r"images are uint8 \[1, 32, 64, 3\]; expected uint8 \[n, 64, 64, 3\]"),
        (np.zeros((1, 64, 64, 3), np.float32), "images are float32"),
        (np.zeros((64, 64, 3), np.uint8), r"images are uint8 \[64, 64, 3\]"),
    ],
)
def test_images_must_fit(exported, tmp_path, images, text):
    with pytest.raises(InputError, match=text):
        convert(exported("mae/checkpoint.pth", NONE), tmp_path / "h.onnx", options=FP16, images=images)
    assert not list(tmp_path.iterdir())


def test_other_sources_are_refused(exported, tmp_path):
    source, half, out = exported("mae/checkpoint.pth", NONE), tmp_path / "half.onnx", tmp_path / "h.onnx"
    convert(source, half, options=FP16)
    with pytest.raises(GraphError, match=r"half\.onnx is fp16 already; expected fp32"):
        convert(half, out, options=BF16)
    bare = onnx.load(source)
    quantized = onnx.load(source)
    node = onnx.helper.make_node("DequantizeLinear", ["q", "scale"], ["unused"], name="fc1/DequantizeLinear_9")
    quantized.graph.node.append(node)
    quantized.graph.initializer.append(onnx.numpy_helper.from_array(np.zeros(2, np.int8), "q"))
    quantized.graph.initializer.append(onnx.numpy_helper.from_array(np.float32(1), "scale"))
    onnx.save(quantized, tmp_path / "q.onnx")
    with pytest.raises(GraphError, match=r"q\.onnx is quantized \(node 'fc1/DequantizeLinear_9'\); expected fp32"):
        convert(tmp_path / "q.onnx", out, options=FP16)
    del bare.metadata_props[:]
    onnx.save(bare, tmp_path / "bare.onnx")
    with pytest.raises(GraphError, match=r"bare\.onnx carries no manifest"):
        convert(tmp_path / "bare.onnx", out, options=FP16)
    with pytest.raises(GraphError, match="cannot be read as an ONNX model"):
        convert(tmp_path / "missing.onnx", out, options=FP16)
    with pytest.raises(UsageError, match=r"half\.onnx exists; add --force to replace it"):
        convert(source, half, options=FP16)
    with pytest.raises(UsageError, match=r"'h\.engine' must end in \.onnx"):
        convert(source, tmp_path / "h.engine", options=FP16)
    assert not list(tmp_path.glob("h.*"))


def test_interruption_leaves_nothing(exported, tmp_path, monkeypatch):
    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(precision, "make_twin", interrupted)
    with pytest.raises(KeyboardInterrupt):
        convert(exported("mae/checkpoint.pth", NONE), tmp_path / "h.onnx", options=FP16)
    assert not list(tmp_path.iterdir())


PARSE = """
import sys
import tensorrt_rtx_bindings as trt
builder = trt.Builder(trt.Logger(trt.Logger.ERROR))
network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
parser = trt.OnnxParser(network, trt.Logger(trt.Logger.ERROR))
assert parser.parse_from_file(sys.argv[1]), [parser.get_error(i).desc() for i in range(parser.num_errors)]
assert {network.get_output(i).dtype for i in range(network.num_outputs)} == {trt.float32}
print("parsed", network.num_layers)
"""


@pytest.mark.parametrize("options", [FP16, BF16], ids=["fp16", "bf16"])
@pytest.mark.parametrize("features", [KEEP, RAGGED], ids=["keep", "patches ragged"])
def test_the_strongly_typed_parser_takes_it(exported, overflowing, tmp_path, options, features):
    """In a process of its own, because a process has one TensorRT logger for good."""
    pytest.importorskip("tensorrt_rtx_bindings")
    sources = [exported("mae/checkpoint.pth", features), *([overflowing("residual")] if features is KEEP else [])]
    for index, source in enumerate(sources):
        out = tmp_path / f"{index}.onnx"
        convert(source, out, options=options)
        done = subprocess.run([sys.executable, "-c", PARSE, str(out)], capture_output=True, text=True, check=False)
        assert done.stdout.startswith("parsed "), done.stderr


@pytest.fixture
def quantized(exported, eight_bit, tmp_path):
    """The small encoder with its products in 8 bits and the rest in float32."""

    def make(wanted, then=None):
        source = exported("mae/checkpoint.pth", KEEP)
        return eight_bit(source, tmp_path / "eight.onnx", QuantizeOptions(precision=wanted), then)

    return make


@pytest.mark.parametrize("wanted", ["int8", "fp8"])
def test_the_rest_of_an_8_bit_graph(quantized, tmp_path, wanted):
    source, out = quantized(wanted), tmp_path / "half.onnx"
    manifest = convert(source, out, options=FP16)
    assert manifest.precision == wanted
    assert manifest.made_from[-1].name == "eight.onnx"
    assert (manifest.verification.limit, manifest.verification.checks) == ({"int8": 0.02, "fp8": 0.03}[wanted], 16)
    before, after = ir.load(source).graph, ir.load(out).graph
    for kind in ("QuantizeLinear", "DequantizeLinear"):
        assert sum(node.op_type == kind for node in before) == sum(node.op_type == kind for node in after)
    for node in after:
        if node.op_type == "DequantizeLinear":
            assert node.outputs[0].dtype == ir.DataType.FLOAT16
            assert not any(user.op_type == "Cast" for user in node.outputs[0].consumers()), "builders would not fuse it"
    stored = {name: value for name, value in before.initializers.items() if name.endswith(("/weight", "_scale"))}
    assert len(stored) == 3 * 8
    for name, value in stored.items():
        found = after.initializers[name if name.endswith("/weight") else f"{name}_fp16"].const_value.numpy()
        np.testing.assert_array_equal(found.astype(np.float32), value.const_value.numpy().astype(np.float32))
    with open_session(out) as session:
        check_golden(session)


def test_8_bit_graphs_that_cannot_be_converted(quantized, tmp_path):
    with pytest.raises(GraphError, match=r"eight\.onnx is int8; the rest of it can be fp16 only"):
        convert(quantized("int8"), tmp_path / "h.onnx", options=BF16)
    with pytest.raises(GraphError, match=r"is lowered for ONNX Runtime \(node 'blocks\.0\.attn\.qkv/MatMul_\d+'\)"):
        convert(quantized("int8", lower), tmp_path / "h.onnx", options=FP16)
    convert(quantized("int8"), tmp_path / "h.onnx", options=FP16)
    with pytest.raises(GraphError, match=r"holds FLOAT16 \(tensor '.*'\) already; expected float32 beside"):
        convert(tmp_path / "h.onnx", tmp_path / "again.onnx", options=FP16)
