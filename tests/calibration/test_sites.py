"""Sites: found by structure on exported encoders, and on small graphs of architectures that are built otherwise."""

import numpy as np
import onnx_ir as ir
import pytest
from onnx import TensorProto, helper, numpy_helper
from onnx.shape_inference import infer_shapes

from mae_export.calibration.sites import Site, sites_of
from mae_export.errors import GraphError
from mae_export.export.options import ConvertOptions, TraceOptions
from mae_export.export.precision import convert

MATRIX = np.eye(8, dtype=np.float32)


def model(*nodes, weights=None, inputs=("x",), dtype=TensorProto.FLOAT):
    """A model from (name, operator, inputs, output); inputs are [2, 5, 8] float, every `w*` is an 8 x 8 matrix."""
    made = [helper.make_node(op, ins.split(), [out], name=name) for name, op, ins, out in nodes]
    used = {name for _, _, ins, _ in nodes for name in ins.split()}
    arrays = {name: MATRIX for name in used if name.startswith("w")} | (weights or {})
    entries = [helper.make_tensor_value_info(name, dtype, [2, 5, 8]) for name in inputs]
    outputs = [helper.make_tensor_value_info(nodes[-1][-1], dtype, None)]
    initializers = [numpy_helper.from_array(array, name) for name, array in arrays.items()]
    graph = helper.make_graph(made, "small", entries, outputs, initializers)
    return ir.from_proto(infer_shapes(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)])))


def kinds(graph):
    return {site.node: site.kind for site in sites_of(graph)}


def norm(name, source, out):
    return (name, "LayerNormalization", f"{source} g", out)


GAIN = {"g": np.ones(8, np.float32)}
ATTENTION = (
    ("scores", "MatMul", "q kt", "s"),
    ("softmax", "Softmax", "s", "a"),
    ("mix", "MatMul", "a v", "m"),
    ("proj", "MatMul", "m wo", "o"),
)


@pytest.mark.parametrize("options", [TraceOptions(), TraceOptions(mask="patches", ragged=True)])
def test_structure_agrees_with_the_names_of_the_encoder(graph_of, options):
    sites = sites_of(graph_of(options))
    assert [site.kind for site in sites] == ["patch_embed", *("qkv", "scores", "mix", "proj", "fc1", "fc2") * 2]
    for site in sites[1:]:
        assert site.name.endswith(site.kind) or (site.name.endswith("attn") and site.kind in ("scores", "mix"))
    assert [site.block for site in sites] == ["view", *["blocks.0"] * 6, *["blocks.1"] * 6]
    assert [len(site.inputs) for site in sites] == [1, *(1, 2, 2, 1, 1, 1) * 2]
    assert all(bool(site.weight) != (site.kind in ("scores", "mix")) for site in sites)


def test_decoders_count_and_one_hot_products_and_attention_maps_do_not(graph_of):
    path = graph_of(TraceOptions(mask="keep", features=("reconstruction", "attention_0")))
    found = {site.node: site for site in sites_of(path)}
    products = {node.name: node.op_type for node in ir.load(path).graph if node.op_type == "MatMul"}
    left_out = [name for name in products if name not in found]
    assert [name.partition("/")[0] for name in left_out] == ["view", "decoder"]  # the attention map, the one-hot matrix
    decoder = [site for site in found.values() if site.name.startswith("decoder")]
    assert [site.kind for site in decoder] == ["other", "qkv", "scores", "mix", "proj", "fc1", "fc2", "other"]
    assert {site.block for site in decoder} == {"decoder.embed", "decoder.blocks.0", "decoder.pred"}


def test_separate_projections_with_rotary_embeddings_and_norms_of_query_and_key():
    graph = model(
        ("embed", "MatMul", "x we", "e"),
        ("first", "Add", "e e2", "h"),
        ("other", "MatMul", "x wx", "e2"),
        norm("norm", "h", "n"),
        ("q", "MatMul", "n wq", "q0"),
        norm("q_norm", "q0", "q1"),
        ("q_cos", "Mul", "q1 cos", "q2"),
        ("q_sin", "Mul", "q1 sin", "q3"),
        ("q_rotated", "Add", "q2 q3", "q"),
        ("k", "MatMul", "n wk", "k0"),
        ("k_cos", "Mul", "k0 cos", "k1"),
        ("k_sin", "Mul", "k0 sin", "k2"),
        ("k_rotated", "Add", "k1 k2", "k"),
        ("turn", "Transpose", "k", "kt"),
        ("v", "MatMul", "n wv", "v"),
        *ATTENTION,
        ("residual", "Add", "h o", "y"),
        weights=GAIN | {"cos": np.ones(8, np.float32), "sin": np.ones(8, np.float32)},
    )
    found = kinds(graph)
    assert {name for name, kind in found.items() if kind == "qkv"} == {"q", "k", "v"}
    assert found["proj"] == "proj"
    assert found["embed"] == found["other"] == "patch_embed"


def test_a_position_bias_and_a_mask_may_stand_between_scores_and_softmax():
    graph = model(
        ("q", "MatMul", "x wq", "q"),
        ("k", "MatMul", "x wk", "k"),
        ("turn", "Transpose", "k", "kt"),
        ("v", "MatMul", "x wv", "v"),
        ("scores", "MatMul", "q kt", "s0"),
        ("scaled", "Mul", "s0 scale", "s1"),
        ("bias", "Add", "s1 table", "s2"),
        ("windows", "Reshape", "s2 shape", "s3"),
        ("masked", "Where", "mask s3 low", "s"),
        *ATTENTION[1:],
        weights={
            "scale": np.float32(0.3),
            "low": np.float32(-3e4),
            "table": np.zeros((8, 8), np.float32),
            "mask": np.ones((8, 8), bool),
            "shape": np.array([-1, 8, 8]),
        },
    )
    found = kinds(graph)
    assert found["scores"] == "scores"
    assert found["mix"] == "mix"


@pytest.mark.parametrize("last_norm", [False, True])
def test_gated_mlps_have_two_first_layers(last_norm):
    graph = model(
        ("embed", "MatMul", "x we", "h"),
        norm("norm", "h", "n"),
        ("w1", "MatMul", "n wa", "a"),
        ("w2", "MatMul", "n wb", "b"),
        ("sigmoid", "Sigmoid", "a", "s"),
        ("swish", "Mul", "a s", "t"),
        ("gated", "Mul", "t b", "u"),
        norm("sub", "u", "z") if last_norm else ("sub", "Identity", "u", "z"),
        ("w3", "MatMul", "z wc", "o"),
        ("residual", "Add", "h o", "r"),
        norm("last", "r", "l"),
        ("head", "MatMul", "l wd", "y"),
        weights=GAIN,
    )
    assert kinds(graph) == {"embed": "patch_embed", "w1": "fc1", "w2": "fc1", "w3": "fc2", "head": "other"}


def test_an_activation_written_as_a_sum_is_one():
    """GELU by tanh: 0.5 x (1 + tanh(c (x + d x^3)))."""
    graph = model(
        norm("norm", "x", "n"),
        ("fc1", "MatMul", "n wa", "h"),
        ("cube", "Mul", "h h", "h2"),
        ("inner", "Add", "h h2", "i"),
        ("tanh", "Tanh", "i", "t"),
        ("one", "Add", "t c", "t1"),
        ("gelu", "Mul", "h t1", "u"),
        ("fc2", "MatMul", "u wb", "y"),
        weights=GAIN | {"c": np.float32(1)},
    )
    assert kinds(graph) == {"fc1": "fc1", "fc2": "fc2"}


def test_convolutions_are_embeddings_or_part_of_what_they_stand_in():
    kernel = np.ones((4, 5, 1), np.float32)
    graph = model(
        ("patch", "Conv", "x wk", "h"), ("fc1", "MatMul", "h w1", "u"), ("act", "Relu", "u", "r"),
        ("fc2", "MatMul", "r w2", "y"), weights={"wk": kernel},
    )  # fmt: skip
    assert kinds(graph) == {"patch": "patch_embed", "fc1": "fc1", "fc2": "fc2"}


@pytest.mark.parametrize(
    ("name", "block"),
    [
        ("blocks.7.mlp.fc2", "blocks.7"),
        ("layers.2.blocks.11.attn", "layers.2.blocks.11"),
        ("decoder.blocks.0", "decoder.blocks.0"),
        ("stages.1.3.mlp.0", "stages.1.3"),
        ("encoder.layer.3.mlp.0", "encoder.layer.3"),
        ("head", "head"),
        ("stage3x.fc", "stage3x.fc"),
    ],
)
def test_a_site_knows_its_block(name, block):
    assert Site(node="n", op="MatMul", name=name, kind="fc2", inputs=("x",)).block == block


def test_other_precisions_and_quantized_graphs_are_refused(graph, tmp_path):
    half = tmp_path / "half.onnx"
    convert(graph, half, options=ConvertOptions(precision="fp16"))
    with pytest.raises(GraphError, match=r"is FLOAT16; expected a float32 graph: .* convert afterwards"):
        sites_of(half)
    quantized = model(("q", "QuantizeLinear", "x scale", "y"), weights={"scale": np.float32(1)})
    with pytest.raises(GraphError, match=r"quantized already \(node 'q'\)"):
        sites_of(quantized)


def test_what_is_no_model_is_refused(tmp_path):
    path = tmp_path / "vit.onnx"
    for content in (None, b"not a model"):
        if content:
            path.write_bytes(content)
        with pytest.raises(GraphError, match="cannot be read as an ONNX model"):
            sites_of(path)
