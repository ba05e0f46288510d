"""An ONNX file as an artefact: what is broken is refused, and writing a manifest or a name changes nothing else."""

import dataclasses
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper, numpy_helper

from mae_export import graph
from mae_export.errors import GraphError, InputError
from mae_export.manifest import METADATA_KEY, Manifest, Patches
from mae_export.spec import ImageSpec

MANIFEST = Manifest(
    family="mae",
    encoder={},
    image=ImageSpec(size=(8, 8)),
    patches=Patches(patch=(1, 4, 4), grid=(1, 2, 2), prefix_tokens=1),
    mask_mode="none",
    ragged=False,
    inputs=(),
    outputs=(),
    precision="fp32",
    made_from=(),
)
WEIGHTS = np.random.default_rng(0).standard_normal((300, 2)).astype(np.float32)


def model(operator: str = "MatMul", width: int = 300) -> onnx.ModelProto:
    """y = x @ w, with metadata of others and a documentation string."""
    nodes = [helper.make_node(operator, ["x", "w"], ["y"], name="only")]
    given = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", width])
    result = helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", 2])
    made = helper.make_graph(nodes, "g", [given], [result], [numpy_helper.from_array(WEIGHTS, "w")])
    built = helper.make_model(made, opset_imports=[helper.make_opsetid("", 20)], ir_version=10, doc_string="kept")
    built.metadata_props.add(key="author", value="someone")
    return built


def saved(path: Path, *, external: bool = False) -> Path:
    onnx.save_model(
        model(), path, save_as_external_data=external, location=f"{path.name}.data", size_threshold=0
    )  # fmt: skip
    assert path.with_name(f"{path.name}.data").exists() is external
    return path


def product(path: Path, x: np.ndarray) -> np.ndarray:
    session = ort.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    return session.run(None, {"x": x})[0]


def metadata(path: Path) -> dict[str, str]:
    return {entry.key: entry.value for entry in onnx.load(path, load_external_data=False).metadata_props}


def broken_files(folder: Path) -> dict[str, Path]:
    good = model().SerializeToString()
    contents = {
        "empty": b"",
        "text": b"hello world, no graph",
        "truncated": good[:-40],
        "0xff": b"\xff" * 100,
        "unknown operator": model("MatMool").SerializeToString(),
        "shapes": model(width=299).SerializeToString(),
    }
    for name, content in contents.items():
        (folder / f"{name}.onnx").write_bytes(content)
    (folder / "folder.onnx").mkdir()
    lost = saved(folder / "lost data.onnx", external=True)
    (folder / "lost data.onnx.data").unlink()
    return {path.stem: path for path in [*folder.glob("*.onnx"), folder / "missing.onnx", lost]}


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("empty", "The model does not have an ir_version set properly"),
        ("text", "The model does not have an ir_version set properly"),
        ("truncated", "Unable to parse proto from file"),
        ("0xff", "Unable to parse proto from file"),
        ("unknown operator", "No Op registered for MatMool with domain_version of 20"),
        ("shapes", "Incompatible dimensions for matrix multiplication"),
        ("folder", "Is a directory"),
        ("missing", "Unable to open proto file"),
        ("lost data", "lost data.onnx.data"),
    ],
)
def test_the_check_refuses_broken_graphs_with_the_checkers_words(tmp_path: Path, name: str, words: str) -> None:
    path = broken_files(tmp_path)[name]
    with pytest.raises(GraphError) as caught:
        graph.check(path)
    assert str(caught.value).startswith(f"{path} is no valid ONNX model: ")
    assert words in str(caught.value)


@pytest.mark.parametrize("external", [False, True])
def test_the_check_passes_good_graphs_and_leaves_them_as_they_are(tmp_path: Path, external: bool) -> None:
    path = saved(tmp_path / "g.onnx", external=external)
    before = {file.name: file.read_bytes() for file in tmp_path.iterdir()}
    graph.check(path)
    assert {file.name: file.read_bytes() for file in tmp_path.iterdir()} == before


@pytest.mark.parametrize("name", ["text", "truncated", "0xff", "folder", "missing"])
def test_a_manifest_is_not_looked_for_in_what_is_no_model(tmp_path: Path, name: str) -> None:
    path = broken_files(tmp_path)[name]
    for action in (graph.read_manifest, lambda path: graph.write_manifest(path, MANIFEST)):
        with pytest.raises(GraphError) as caught:
            action(path)
        assert str(caught.value).startswith(f"{path} cannot be read as an ONNX model: ")


def test_a_graph_without_a_manifest_is_not_ours(tmp_path: Path) -> None:
    path = saved(tmp_path / "g.onnx")
    with pytest.raises(GraphError) as caught:
        graph.read_manifest(path)
    assert str(caught.value) == f"{path} carries no manifest; expected a graph written by `mae-export export`"


def test_a_damaged_manifest_is_an_error_of_the_manifest(tmp_path: Path) -> None:
    built = model()
    built.metadata_props.add(key=METADATA_KEY, value="{")
    onnx.save_model(built, tmp_path / "g.onnx")
    with pytest.raises(InputError, match="the manifest is not valid JSON"):
        graph.read_manifest(tmp_path / "g.onnx")


@pytest.mark.parametrize("external", [False, True])
def test_a_manifest_is_written_and_replaced_and_nothing_else_changes(tmp_path: Path, external: bool) -> None:
    path = saved(tmp_path / "g.onnx", external=external)
    before = onnx.load(path, load_external_data=False)
    data = (tmp_path / "g.onnx.data").read_bytes() if external else b""
    x = np.random.default_rng(1).standard_normal((3, 300)).astype(np.float32)
    for manifest in (MANIFEST, dataclasses.replace(MANIFEST, family="Übung", precision="fp16")):
        graph.write_manifest(path, manifest)
        assert graph.read_manifest(path) == manifest
        assert metadata(path) == {"author": "someone", METADATA_KEY: manifest.to_json()}
    after = onnx.load(path, load_external_data=False)
    del after.metadata_props[1:]
    assert after == before
    assert after.doc_string == "kept"
    assert sorted(file.name for file in tmp_path.iterdir()) == (["g.onnx", "g.onnx.data"] if external else ["g.onnx"])
    if external:
        assert (tmp_path / "g.onnx.data").read_bytes() == data
    np.testing.assert_allclose(product(path, x), x @ WEIGHTS, rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("external", [False, True])
def test_a_renamed_graph_still_finds_its_weights(tmp_path: Path, external: bool) -> None:
    path = saved(tmp_path / "g.onnx", external=external)
    graph.write_manifest(path, MANIFEST)
    target = graph.rename(path, tmp_path / "h.onnx.rejected")
    assert target == tmp_path / "h.onnx.rejected"
    names = ["h.onnx.rejected", "h.onnx.rejected.data"] if external else ["h.onnx.rejected"]
    assert sorted(file.name for file in tmp_path.iterdir()) == names
    stored = onnx.load(target, load_external_data=False, format="protobuf").graph.initializer[0].external_data
    locations = [entry.value for entry in stored if entry.key == "location"]
    assert locations == (["h.onnx.rejected.data"] if external else [])
    assert graph.read_manifest(target) == MANIFEST
    x = np.random.default_rng(1).standard_normal((3, 300)).astype(np.float32)
    np.testing.assert_allclose(product(target, x), x @ WEIGHTS, rtol=1e-5, atol=1e-4)


def test_weights_move_out_above_the_limit(tmp_path):
    weights = np.arange(300, dtype=np.float32)
    table = ir.Value(
        name="w", type=ir.TensorType(ir.DataType.FLOAT), shape=ir.Shape([300]), const_value=ir.tensor(weights)
    )
    node = ir.node("Identity", [table])
    node.outputs[0].name, node.outputs[0].dtype, node.outputs[0].shape = "y", ir.DataType.FLOAT, ir.Shape([300])
    made = ir.Graph([], node.outputs, nodes=[node], initializers=[table], opset_imports={"": 20}, name="g")
    for name, limit, files in (("in.onnx", 1200, {"in.onnx"}), ("out.onnx", 1199, {"out.onnx", "out.onnx.data"})):
        graph.save(ir.Model(made, ir_version=10), tmp_path / name, embedded=limit)
        assert {path.name for path in tmp_path.glob(name + "*")} == files
        loaded = onnx.load(tmp_path / name)
        np.testing.assert_array_equal(onnx.numpy_helper.to_array(loaded.graph.initializer[0]), weights)
