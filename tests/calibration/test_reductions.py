"""The observed copy: its reductions are those of numpy, and weights in a data file are shared, not copied."""

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from mae_export.calibration.reductions import REDUCTIONS, columns_of, output_name, share_weights, write_observed
from mae_export.calibration.sites import Site, sites_of
from mae_export.graph import read_manifest
from mae_export.runtime.probes import golden_feeds
from mae_export.runtime.session import open_session


def observed(graph, folder, columns):
    manifest = read_manifest(graph)
    path = write_observed(graph, manifest, columns, folder=folder, fetch=True)
    with open_session(path) as session:
        return session.run(golden_feeds(manifest))


def test_reductions_are_those_of_numpy(graph, tmp_path):
    columns = {}
    model = ir.load(graph)
    for site in sites_of(model):
        columns |= dict.fromkeys(site.inputs, columns_of(model, site))
    outputs = observed(graph, tmp_path, columns)
    assert set(columns.values()) == {0, 48, 192}
    for name, count in columns.items():
        values = outputs[name].astype(np.float64)
        rows = values.reshape(-1, count) if count else values.reshape(-1)
        wanted = (rows.min(axis=0), rows.max(axis=0), rows.sum(axis=0), values.size)
        for reduction, expected in zip(REDUCTIONS, wanted, strict=True):
            np.testing.assert_allclose(outputs[output_name(name, reduction)], expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("fetch", [False, True])
def test_the_copy_gives_what_was_asked_and_nothing_else(graph, tmp_path, fetch):
    manifest = read_manifest(graph)
    with open_session(write_observed(graph, manifest, {"gelu": 192}, folder=tmp_path, fetch=fetch)) as session:
        outputs = session.run(golden_feeds(manifest))
    assert list(outputs) == [output_name("gelu", name) for name in REDUCTIONS] + ["gelu"] * fetch


def test_a_data_file_is_shared_and_the_graph_left_as_it_was(graph, tmp_path):
    folder, private = tmp_path / "large", tmp_path / "private"
    folder.mkdir(), private.mkdir()
    large = folder / "large.onnx"
    onnx.save_model(
        onnx.load_model(graph), large, save_as_external_data=True, location="large.onnx.data", size_threshold=1024
    )
    before = large.read_bytes(), (folder / "large.onnx.data").read_bytes()
    plain = observed(graph, private, {"gelu": 192})
    private.joinpath("observed.onnx").unlink()
    shared = observed(large, private, {"gelu": 192})
    np.testing.assert_array_equal(plain["gelu"], shared["gelu"])
    assert (private / "large.onnx.data").samefile(folder / "large.onnx.data")
    assert before == (large.read_bytes(), (folder / "large.onnx.data").read_bytes())


def test_where_links_are_impossible_the_data_file_is_copied(tmp_path, monkeypatch):
    source, folder = tmp_path / "vit.onnx", tmp_path / "private"
    folder.mkdir()
    assert not share_weights(source, folder)
    source.with_name("vit.onnx.data").write_bytes(b"weights")

    def refuse(*_):
        raise OSError(18, "Invalid cross-device link")

    monkeypatch.setattr("os.link", refuse)
    assert share_weights(source, folder)
    assert (folder / "vit.onnx.data").read_bytes() == b"weights"


def test_channels_are_the_rows_of_the_weight():
    weight = onnx.numpy_helper.from_array(np.zeros((3, 5), np.float32), "w")
    nodes = [
        onnx.helper.make_node("Gemm", ["x", "w"], ["a"], name="plain"),
        onnx.helper.make_node("Gemm", ["x", "w"], ["b"], name="turned", transB=1),
        onnx.helper.make_node("Conv", ["x", "w"], ["c"], name="conv"),
    ]
    entry = onnx.helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, None)
    model = ir.from_proto(onnx.helper.make_model(onnx.helper.make_graph(nodes, "g", [entry], [], [weight])))

    def columns(node, weight="w"):
        op = "Conv" if node == "conv" else "Gemm"
        return columns_of(model, Site(node=node, op=op, name="n", kind="other", inputs=("x",), weight=weight))

    assert [columns("plain"), columns("turned"), columns("conv"), columns("plain", "")] == [3, 5, 0, 0]
