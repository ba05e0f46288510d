"""Smoothing changes no bit of what a float32 graph computes, and all of what 8 bits keep of it."""

import numpy as np
import onnx_ir as ir
import onnxruntime as ort
import pytest

from mae_export.calibration.insert import constant, stored
from mae_export.calibration.quantize import quantize_model
from mae_export.calibration.sites import sites_of
from mae_export.calibration.smooth import best_factors, reach_of, smooth
from mae_export.calibration.table import TensorRange
from mae_export.calibration.wanted import QuantizeOptions
from mae_export.graph import read_manifest
from mae_export.runtime.compare import feeds_of, scenes

DRAWS = np.random.default_rng(0)
OUTLIERS = (3, 11)


def with_outliers(path):
    """The graph with two channels of every norm in the blocks 64 times as large, and weights that make up for it."""
    model = ir.load(path)
    for norm in [node for node in model.graph if node.op_type == "LayerNormalization" and ".norm" in node.name]:
        for index in (1, 2):
            array = stored(norm, index).copy()
            array[list(OUTLIERS)] *= 64
            norm.replace_input_with(index, constant(model, f"{norm.name}_{index}", array))
        for user in norm.outputs[0].consumers():
            weight = stored(user, 1).copy()
            weight[list(OUTLIERS)] /= 64
            user.replace_input_with(1, constant(model, f"{user.name}_outliers", weight))
    return model


def run(model, feeds, names):
    options = ort.SessionOptions()
    options.log_severity_level = 3
    options.intra_op_num_threads = 1
    session = ort.InferenceSession(ir.to_proto(model).SerializeToString(), options, providers=["CPUExecutionProvider"])
    return session.run(names, feeds)


def observed(model, feeds):
    """Ranges of every activation, by numpy."""
    names = list(dict.fromkeys(name for site in sites_of(model) for name in site.inputs))
    copy = ir.from_proto(ir.to_proto(model))
    inner = {value.name: value for node in copy.graph for value in node.outputs}
    copy.graph.outputs.extend(inner[name] for name in names)
    found = {}
    for name, array in zip(names, run(copy, feeds, names), strict=True):
        rows = np.abs(array.reshape(-1, array.shape[-1]))
        most = float(rows.max())
        channels = tuple(map(float, rows.max(axis=0)))
        found[name] = TensorRange(low=-most, high=most, minimum=-most, maximum=most, channels=channels)
    return found


@pytest.fixture(scope="module")
def shown_to(graph):
    manifest = read_manifest(graph)
    return feeds_of(next(scenes(manifest)), manifest)


def test_a_float32_graph_does_not_change_by_a_bit(graph, shown_to):
    model = with_outliers(graph)
    before = run(model, shown_to, ["pooled"])[0]
    ranges = observed(model, shown_to)
    changed = smooth(model, sites_of(model), ranges)
    np.testing.assert_array_equal(run(model, shown_to, ["pooled"])[0], before)
    after = observed(model, shown_to)
    moved = [name for name in ranges if changed[name] is not ranges[name]]
    assert len(moved) == 4, "both norms of both blocks"
    for name in moved:
        assert changed[name].channels == after[name].channels, "the ranges are those of the changed graph"
        assert changed[name].high < ranges[name].high / 8


def test_it_saves_what_outliers_cost(graph, shown_to):
    exact = run(with_outliers(graph), shown_to, ["pooled"])[0]
    ranges = observed(with_outliers(graph), shown_to)
    noise = {}
    for wanted in (True, False):
        model = with_outliers(graph)
        quantize_model(model, ranges, QuantizeOptions(precision="int8", smooth=wanted))
        noise[wanted] = np.linalg.norm(run(model, shown_to, ["pooled"])[0] - exact)
    assert noise[True] < noise[False] / 8


def test_factors_are_powers_of_two_and_only_where_they_help():
    weight = DRAWS.standard_normal((32, 64)).astype(np.float32)
    seen = np.full(32, 4.0)
    assert best_factors(seen, weight, clip=4.0) is None
    seen[5] = 400.0
    factors = best_factors(seen, weight, clip=400.0)
    assert (np.exp2(np.rint(np.log2(factors))) == factors).all()
    assert factors.argmax() == 5
    assert (seen / factors).max() < 40
    assert best_factors(np.zeros(32), weight, clip=1.0) is None
    assert best_factors(seen, np.zeros((32, 4), np.float32), clip=1.0) is None


def test_clipping_outliers_is_no_way_out():
    """Three channels of 100 clipped to 4 would cost more than their share: the search sees it."""
    weight = DRAWS.standard_normal((64, 32)).astype(np.float32)
    seen = np.full(64, 4.0)
    seen[:3] = 100.0
    assert best_factors(seen, weight, clip=4.0) is not None


NORM = '["n/LayerNormalization"] h = LayerNormalization<axis = -1>(x, s, b)'
USES = {
    "one product": ('["a/MatMul"] y = MatMul(h, w)', 1),
    "two products": ('["a/MatMul"] p = MatMul(h, w)  ["c/MatMul"] q = MatMul(h, w)  ["c/Add"] y = Add(p, q)', 2),
    "moved": (
        '["m/Reshape"] r = Reshape(h, to)  ["m/Transpose"] t = Transpose<perm = [1, 0, 2]>(r)'
        '["a/MatMul"] y = MatMul(t, w)',
        1,
    ),
    "its extent": ('["m/Shape"] e = Shape(h)  ["m/Expand"] z = Expand(one, e)  ["a/MatMul"] y = MatMul(h, w)', 1),
    "sliced along the channels": ('["m/Slice"] t = Slice(h, zero, four, last)  ["a/MatMul"] y = MatMul(t, half)', 0),
    "channels turned": ('["m/Transpose"] t = Transpose<perm = [0, 2, 1]>(h)  ["a/MatMul"] y = MatMul(t, w)', 0),
    "a residual": ('["a/MatMul"] p = MatMul(h, square)  ["m/Add"] y = Add(p, h)', 0),
    "joined with another": (
        '["m/Concat"] t = Concat<axis = 1>(h, x)  ["a/MatMul"] y = MatMul(t, w)',
        0,
    ),
    "an activation": ('["m/Relu"] t = Relu(h)  ["a/MatMul"] y = MatMul(t, w)', 0),
    "the weight's side": ('["a/MatMul"] y = MatMul(other, h)', 0),
    "no product": ('["m/Identity"] y = Identity(h)', 0),
}


@pytest.mark.parametrize("use", USES)
def test_what_may_stand_behind_a_norm(written, use):
    nodes, products = USES[use]
    weights = {
        "s": np.ones(8, np.float32),
        "b": np.zeros(8, np.float32),
        "w": np.ones((8, 3), np.float32),
        "half": np.ones((4, 3), np.float32),
        "square": np.ones((8, 8), np.float32),
        "other": np.ones((2, 3, 8), np.float32),
        "one": np.ones(1, np.float32),
        "to": np.array([4, 4, 8]),
        "zero": np.array([0]),
        "four": np.array([4]),
        "last": np.array([-1]),
    }
    model = written(f"g (float[2, 8, 8] x) => (float[A, B, C] y) {{ {NORM} {nodes} }}", weights)
    found = reach_of(model.graph[0])
    assert (0 if found is None else len(found.products)) == products
    if use == "moved":
        assert set(found.values) == {"h", "r", "t"}
