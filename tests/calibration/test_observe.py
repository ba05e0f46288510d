"""Observing real graphs, against numpy on all activations at once and against ONNX Runtime's calibrators."""

import dataclasses
import json
import shutil

import numpy as np
import onnx
import pytest
from PIL import Image

from mae_export.calibration import observe as module
from mae_export.calibration.observe import observe
from mae_export.calibration.options import ObserveOptions
from mae_export.calibration.sites import sites_of
from mae_export.calibration.table import Table
from mae_export.calibration.visibility import parse_visibility
from mae_export.errors import GraphError, InputError, MaskError, UsageError
from mae_export.export.options import TraceOptions
from mae_export.files import sha256_files
from mae_export.graph import read_manifest

MINMAX = ObserveOptions(method="minmax")


@pytest.fixture
def table_of(tmp_path, images):
    """Observe a graph; the table and the observation."""

    def make(graph, **changes):
        return observe(graph, [images], tmp_path / "t.calib.json", options=ObserveOptions(force=True, **changes)).table

    return make


def activations(graph, feeds, names):
    """Activations as plain ONNX Runtime gives them when they are made outputs."""
    import onnxruntime as ort

    model = onnx.load_model(graph)
    present = {output.name for output in model.graph.output}
    model.graph.output.extend(onnx.ValueInfoProto(name=name) for name in names if name not in present)
    session = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    return dict(zip(names, session.run(names, feeds), strict=True))


def everything(graph, shown):
    """All activations of all 24 pictures."""
    names = [name for site in sites_of(graph) for name in site.inputs]
    ids = np.tile(np.arange(64), (len(shown), 1))
    return activations(graph, {"images": shown, "ids_keep": ids}, names)


def test_minmax_is_what_numpy_sees(graph, shown, table_of):
    table = table_of(graph, method="minmax")
    found = everything(graph, shown)
    assert set(table.ranges) == set(found)
    for name, values in found.items():
        entry = table.ranges[name]
        reach = np.abs(values).max()
        assert (entry.minimum, entry.maximum) == pytest.approx((values.min(), values.max()), rel=1e-4, abs=1e-5)
        assert (entry.low, entry.high) == pytest.approx((-reach, reach), rel=1e-4)


def test_channels_and_means_are_those_of_inputs_of_weights_only(graph, shown, table_of):
    table = table_of(graph, method="minmax")
    found = everything(graph, shown)
    for site in sites_of(graph):
        for name in site.inputs:
            rows = found[name].reshape(-1, found[name].shape[-1]).astype(np.float64)
            wanted = (np.abs(rows).max(axis=0), rows.mean(axis=0)) if site.weight else ([], [])
            np.testing.assert_allclose(table.ranges[name].channels, wanted[0], rtol=1e-4, atol=1e-5)
            np.testing.assert_allclose(table.ranges[name].means, wanted[1], rtol=1e-3, atol=1e-4)


def test_percentiles_are_those_of_numpy(graph, shown, table_of):
    table = table_of(graph, method="percentile", percentile=99.0)
    for name, values in everything(graph, shown).items():
        assert table.ranges[name].high == pytest.approx(np.percentile(np.abs(values), 99.0), rel=5e-3)


@pytest.mark.parametrize(("ours", "theirs"), [("minmax", "MinMax"), ("percentile", "Percentile")])
def test_ranges_are_those_of_onnx_runtime(graph, shown, table_of, tmp_path, ours, theirs):
    from onnxruntime.quantization.calibrate import CalibrationDataReader, CalibrationMethod, create_calibrator

    class Reader(CalibrationDataReader):
        def __init__(self):
            ids = np.arange(64)[None]
            self.feeds = iter([{"images": image[None], "ids_keep": ids} for image in shown])

        def get_next(self):
            return next(self.feeds, None)

    options = {"symmetric": True} | ({"percentile": 99.9} if theirs == "Percentile" else {})
    calibrator = create_calibrator(
        graph, ["MatMul"], str(tmp_path / "x.onnx"), CalibrationMethod[theirs], extra_options=options
    )
    calibrator.collect_data(Reader())
    expected = calibrator.compute_data().data
    table = table_of(graph, method=ours, percentile=99.9)
    for site in sites_of(graph):
        for name in site.inputs:
            high = float(np.max(np.abs([np.ravel(v)[0] for v in expected[name].range_value])))
            assert table.ranges[name].high == pytest.approx(high, rel=1e-4 if ours == "minmax" else 2e-2), name


@pytest.mark.parametrize("method", ["percentile", "entropy", "mse"])
def test_ranges_are_symmetric_and_within_what_was_seen(graph, table_of, method):
    for entry in table_of(graph, method=method).ranges.values():
        assert 0 < entry.high == -entry.low <= entry.reach


def test_the_table_says_what_it_was_made_of(graph, images, tmp_path):
    out = tmp_path / "vit.calib.json"
    done = observe(graph, [images], out, options=ObserveOptions(method="minmax", samples=9, seed=4))
    assert Table.read(out) == done.table
    done.table.require_for(graph)
    assert (done.table.graph_name, done.table.samples, done.table.seed) == (graph.name, 9, 4)
    assert set(done.table.images) <= {sha256_files(path) for path in images.iterdir()}
    assert done.images_per_second == pytest.approx(9 / done.seconds)
    assert (done.listed, done.failures, done.repeated, done.passes) == (24, {}, 0, 1)
    assert [path.name for path in tmp_path.iterdir()] == [out.name]


def test_the_same_seed_gives_the_same_table_however_the_work_is_cut(graph, table_of, monkeypatch):
    whole = table_of(graph, samples=12, threads=1, batch=8)
    assert whole == table_of(graph, samples=12, threads=2, batch=8)
    monkeypatch.setattr(module, "FETCHED_BYTES", 100_000)  # of the 220 KB that one image has
    cut = table_of(graph, samples=12)
    for name, entry in whole.ranges.items():
        assert dataclasses.astuple(cut.ranges[name])[:4] == pytest.approx(dataclasses.astuple(entry)[:4], rel=1e-3)
    assert whole.ranges != table_of(graph, samples=12, seed=1).ranges


def test_memory_bounds_what_leaves_a_run(graph, images, tmp_path, monkeypatch):
    out, seen = tmp_path / "t.calib.json", []
    options = ObserveOptions(samples=12, force=True)
    whole = observe(graph, [images], out, options=options)
    one = whole.fetched_bytes // 8
    for limit in (3 * one, one // 2):
        monkeypatch.setattr(module, "FETCHED_BYTES", limit)
        done = observe(graph, [images], out, options=options, progress=lambda *_: seen.append(_))
        assert done.fetched_bytes <= limit
    assert done.passes == 3
    assert seen[-1] == (36, 36)
    minmax = observe(graph, [images], out, options=dataclasses.replace(options, method="minmax"))
    assert (minmax.fetched_bytes, minmax.passes) == (0, 1)


def test_fewer_visible_patches_are_what_is_observed(graph, table_of):
    all_, quarter = (table_of(graph, method="minmax", visible=plan) for plan in ("all", "random:0.25"))
    assert quarter.visible == "random:0.25:0"
    probabilities = [site.inputs[0] for site in sites_of(graph) if site.kind == "mix"]
    assert any(quarter.ranges[name].maximum != all_.ranges[name].maximum for name in probabilities)
    # A softmax over 17 tokens cannot be as flat as one over 65.
    assert all(quarter.ranges[name].minimum > all_.ranges[name].minimum for name in probabilities)


def test_masks_follow_the_content_of_the_images(graph, images, tmp_path):
    renamed = tmp_path / "renamed"
    renamed.mkdir()
    for path in images.iterdir():
        shutil.copy(path, renamed / f"a{path.name}")
    options = ObserveOptions(method="minmax", visible="random:0.25..1.0", samples=24, force=True)
    first, second = (observe(graph, [f], tmp_path / "t.json", options=options).table for f in (images, renamed))
    for name, entry in first.ranges.items():
        assert second.ranges[name].high == pytest.approx(entry.high, rel=1e-5)
    kept = {len(parse_visibility(options.visible).ids_keep(0, digest, 64)) for digest in first.images}
    assert len(kept) > 4


@pytest.mark.parametrize("mask", ["none", "patches", "ragged"])
def test_every_kind_of_graph_can_be_observed(graph_of, table_of, mask):
    options = {"none": {}, "patches": {"mask": "patches"}, "ragged": {"mask": "keep", "ragged": True}}[mask]
    table = table_of(graph_of(TraceOptions(**options)), visible="all" if mask == "none" else "random:0.25..1.0")
    assert len(table.ranges) == 1 + 2 * 8
    if mask == "none":
        with pytest.raises(UsageError, match="this graph has no mask input"):
            table_of(graph_of(TraceOptions()), visible="random:0.25")


def test_masks_from_a_file_belong_to_the_listing(graph, table_of, tmp_path):
    masks = np.zeros((24, 64), bool)
    masks[:, :16] = True
    np.save(tmp_path / "masks.npy", masks)
    assert table_of(graph, visible=f"file:{tmp_path / 'masks.npy'}").samples == 24
    np.save(tmp_path / "masks.npy", masks[:9])
    with pytest.raises(MaskError, match="9 rows; expected 24"):
        table_of(graph, visible=f"file:{tmp_path / 'masks.npy'}")


def spoiled(graph, path, change):
    """A copy of a graph with one weight changed."""
    model = onnx.load_model(graph)
    names = {node.name: node.input[1] for node in model.graph.node if node.op_type == "MatMul"}
    weight = next(name for node, name in names.items() if node.startswith("blocks.0.mlp.fc1"))
    for tensor in model.graph.initializer:
        if tensor.name == weight:
            values = change(onnx.numpy_helper.to_array(tensor).copy())
            tensor.CopyFrom(onnx.numpy_helper.from_array(values, tensor.name))
        elif tensor.name.endswith("blocks.0.mlp.fc1.bias"):
            tensor.CopyFrom(onnx.numpy_helper.from_array(np.zeros(192, np.float32), tensor.name))
    onnx.save_model(model, path)
    return path


@pytest.mark.parametrize("method", ["minmax", "mse"])
@pytest.mark.parametrize(("factor", "message"), [(0.0, "is zero on every image"), (np.nan, "holds NaN or infinity on")])
def test_graphs_that_cannot_have_ranges_are_refused(graph, images, tmp_path, factor, message, method):
    broken = spoiled(graph, tmp_path / "broken.onnx", lambda values: values * np.float32(factor))
    out = tmp_path / "t.calib.json"
    with pytest.raises(GraphError, match=rf"'gelu', an input of blocks\.0\.mlp\.fc2/MatMul_\d+, {message}"):
        observe(broken, [images], out, options=ObserveOptions(method=method))
    assert not out.exists()


def test_graphs_without_products_are_refused(graph, images, tmp_path):
    model = onnx.load_model(graph)
    del model.graph.node[:]
    model.graph.node.add(op_type="Cast", input=["images"], output=["pooled"], name="cast").attribute.append(
        onnx.helper.make_attribute("to", onnx.TensorProto.FLOAT)
    )
    del model.graph.value_info[:]
    onnx.save_model(model, tmp_path / "empty.onnx")
    with pytest.raises(GraphError, match="multiplies nothing with weights"):
        observe(tmp_path / "empty.onnx", [images], tmp_path / "t.json", options=MINMAX)


def test_bad_images_and_places_are_refused_before_anything_is_written(graph, images, tmp_path):
    out = tmp_path / "t.calib.json"
    few = tmp_path / "few"
    few.mkdir()
    for index in range(5):
        Image.new("RGB", (70, 70), (index, 0, 0)).save(few / f"{index}.png")
    with pytest.raises(InputError, match="5 of 5 images can be used"):
        observe(graph, [few], out, options=MINMAX)
    with pytest.raises(UsageError, match=r"must end in \.json"):
        observe(graph, [images], tmp_path / "t.calib", options=MINMAX)
    out.write_text("mine")
    with pytest.raises(UsageError, match="add --force to replace it"):
        observe(graph, [images], out, options=MINMAX)
    assert out.read_text() == "mine"


def test_the_table_is_json_that_others_can_read(graph, images, tmp_path):
    out = tmp_path / "t.calib.json"
    observe(graph, [images], out, options=MINMAX)
    content = json.loads(out.read_text())
    assert content["graph"] == sha256_files(graph)
    assert content["ranges"]["gelu"]["minimum"] == pytest.approx(-0.169971, abs=1e-4)  # the least value of GELU
    assert read_manifest(graph).precision == "fp32"
