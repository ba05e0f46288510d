"""From graph and table to a proven 8-bit graph, and everything that is refused on the way."""

from dataclasses import replace

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from mae_export import graph as graphs
from mae_export.calibration.observe import observe
from mae_export.calibration.options import ObserveOptions
from mae_export.calibration.quantize import quantize, quantize_model
from mae_export.calibration.sites import sites_of
from mae_export.calibration.table import Table
from mae_export.calibration.wanted import QuantizeOptions
from mae_export.errors import GraphError, InputError, UsageError, VerificationError
from mae_export.export.options import TraceOptions
from mae_export.files import sha256_files
from mae_export.runtime.golden import check_golden
from mae_export.runtime.session import open_session

INT8 = QuantizeOptions(precision="int8")


@pytest.fixture(scope="module")
def table(graph, images, tmp_path_factory):
    out = tmp_path_factory.mktemp("table") / "vit.calib.json"
    observe(graph, [images], out, options=ObserveOptions(samples=16, visible="random:0.25"))
    return out


def left(folder):
    return sorted(path.name for path in folder.iterdir())


@pytest.mark.parametrize(
    ("options", "least", "kinds"),
    [
        (INT8, 0.998, {"QuantizeLinear": 8, "DequantizeLinear": 16, "MatMulIntegerToFloat": 0}),
        (replace(INT8, lower=True), 0.998, {"QuantizeLinear": 8, "DequantizeLinear": 0, "MatMulIntegerToFloat": 8}),
        (replace(INT8, keep=("blocks.0",)), 0.999, {"QuantizeLinear": 4, "DequantizeLinear": 8}),
        (replace(INT8, precision="fp8"), 0.99, {"QuantizeLinear": 8, "DequantizeLinear": 16}),
        (replace(INT8, precision="fp8", preset="full"), 0.99, {"QuantizeLinear": 16, "DequantizeLinear": 24}),
    ],
    ids=["linear", "lowered", "a block kept", "fp8", "fp8 full"],
)
def test_a_proven_graph(graph, table, tmp_path, options, least, kinds):
    out = tmp_path / "q.onnx"
    manifest, report = quantize(graph, table, out, options=options)
    assert left(tmp_path) == ["q.onnx"]
    assert report.passed
    assert min(found.agreement.centred_cosine.median for found in report.measured) > least
    found = [node.op_type for node in onnx.load(out).graph.node]
    assert {kind: found.count(kind) for kind in kinds} == kinds
    assert manifest.precision == options.precision
    assert manifest == graphs.read_manifest(out)
    assert [parent.kind for parent in manifest.made_from] == ["checkpoint", "graph", "table"]
    assert [parent.sha256 for parent in manifest.made_from[1:]] == [sha256_files(graph), sha256_files(table)]
    assert manifest.verification.reference.startswith(f"{graph.name} in float32, ")
    assert manifest.verification.checks == len(report.checks)
    assert manifest.golden != graphs.read_manifest(graph).golden
    with open_session(out) as session:
        check_golden(session)
    assert set(manifest.fp32_nodes.values()) == {"embeds raw pixels", *(["kept on request"] if options.keep else [])}


def test_the_comparison_uses_the_pictures_given(graph, table, tmp_path, shown):
    _, report = quantize(graph, table, tmp_path / "q.onnx", options=INT8, images=shown)
    assert {found.agreement.vectors for found in report.measured} == {len(shown)}


def test_smoothing_and_correction_are_in_the_graph(graph, table, tmp_path):
    plain = QuantizeOptions(precision="int8", smooth=False, correct_bias=False)
    noise = {}
    for options in (INT8, plain):
        _, report = quantize(graph, table, tmp_path / "q.onnx", options=replace(options, force=True))
        noise[options] = min(found.agreement.sqnr for found in report.measured)
        names = set(ir.load(tmp_path / "q.onnx").graph.initializers)
        assert any(name.endswith("_corrected") for name in names) == options.correct_bias
    assert noise[INT8] > noise[plain]


def stale(table, tmp_path, **changes):
    out = tmp_path / "stale.calib.json"
    out.write_text(replace(Table.read(table), **changes).to_json())
    return out


def test_a_table_of_another_graph_is_refused(graph_of, table, tmp_path):
    other = graph_of(TraceOptions(features=("class_token",)))
    with pytest.raises(InputError, match="Ranges hold for one graph only"):
        quantize(other, table, tmp_path / "q.onnx", options=INT8)
    assert left(tmp_path) == []


def test_a_table_that_lacks_a_tensor_is_refused(graph, table, tmp_path):
    ranges = dict(list(Table.read(table).ranges.items())[:3])
    with pytest.raises(InputError, match=r"has no range of '\w+' and \d+ other tensors"):
        quantize(graph, stale(table, tmp_path, ranges=ranges), tmp_path / "q.onnx", options=INT8)


def test_wrong_ranges_leave_a_rejected_graph(graph, table, tmp_path):
    """The table says it belongs to this graph; only the numbers show that it does not."""
    ranges = {
        name: replace(found, low=-found.high / 8, high=found.high / 8, channels=(), means=())
        for name, found in Table.read(table).ranges.items()
    }
    with pytest.raises(VerificationError, match=r"is off by .* see q\.onnx\.rejected .*or keep sensitive modules"):
        quantize(graph, stale(table, tmp_path, ranges=ranges), tmp_path / "q.onnx", options=INT8)
    assert left(tmp_path) == ["q.onnx.rejected", "stale.calib.json"]
    graphs.check(tmp_path / "q.onnx.rejected")


def test_refused_sources(graph, table, tmp_path):
    out = tmp_path / "q.onnx"
    quantize(graph, table, out, options=INT8)
    with pytest.raises(UsageError, match=r"q\.onnx exists; add --force"):
        quantize(graph, table, out, options=INT8)
    with pytest.raises(GraphError, match="is int8 already; expected fp32"):
        quantize(out, table, tmp_path / "again.onnx", options=INT8)


def test_opset_18_has_no_half_precision_scales(graph_of, images, tmp_path):
    old = graph_of(TraceOptions(opset=18))
    observe(old, [images], tmp_path / "t.calib.json", options=ObserveOptions(samples=8))
    with pytest.raises(GraphError, match=r"has opset 18; expected 19 or more: export it again with --opset 20"):
        quantize(old, tmp_path / "t.calib.json", tmp_path / "q.onnx", options=INT8)


def test_probabilities_are_not_clipped(graph, table):
    """The table saw a quarter of the patches, whose probabilities are the largest; its own range may clip them."""
    ranges = {
        name: replace(found, low=-0.1, high=0.1) if found.minimum >= 0 and found.maximum <= 1 else found
        for name, found in Table.read(table).ranges.items()
    }
    model = ir.load(graph)
    softmaxes = {site.inputs[0]: site for site in sites_of(model) if site.kind == "mix"}
    quantize_model(model, ranges, QuantizeOptions(precision="fp8", preset="full"))
    scales = [
        float(node.inputs[1].const_value.numpy())
        for node in model.graph
        if node.op_type == "QuantizeLinear" and node.inputs[0].name in softmaxes
    ]
    assert scales == pytest.approx([1 / 448] * 2, rel=1e-3)


def test_an_encoder_with_everything(graph_of, images, shown, tmp_path):
    """Padding, a decoder, attention maps: what is quantized around them agrees as well."""
    features = ("pooled", "patch_tokens", "layer_1", "attention_0", "reconstruction")
    source = graph_of(TraceOptions(mask="patches", ragged=True, features=features))
    observe(source, [images], tmp_path / "t.calib.json", options=ObserveOptions(samples=8, visible="random:0.25"))
    _, report = quantize(source, tmp_path / "t.calib.json", tmp_path / "q.onnx", options=INT8, images=shown[:8])
    assert {found.output for found in report.measured} == set(features)
    assert np.median([found.agreement.centred_cosine.median for found in report.measured]) > 0.998
