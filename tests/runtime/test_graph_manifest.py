import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from mae_export.errors import InputError
from mae_export.manifest import METADATA_KEY
from mae_export.runtime.graph_manifest import read_manifest


@pytest.fixture
def write(tmp_path, make_manifest):
    """A model of every kind of top-level field, with these entries of metadata."""

    def write(entries, *, weight=5):
        values = onnx.numpy_helper.from_array(np.arange(weight, dtype=np.float32), "w")
        node = helper.make_node("Add", ["x", "w"], ["y"])
        infos = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [weight]) for name in "xy"]
        graph = helper.make_graph([node], "g", infos[:1], infos[1:], [values])
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], producer_name="a" * 300)
        model.model_version = 2**40
        helper.set_model_props(model, entries)
        path = tmp_path / "model.onnx"
        onnx.save(model, path)
        return path

    return write


def test_it_is_found_among_other_entries(write, make_manifest):
    manifest = make_manifest("patches", ragged=True)
    path = write({"before": "x" * 1000, METADATA_KEY: manifest.to_json(), "after": "y"}, weight=100_000)
    assert read_manifest(path) == manifest
    assert onnx.load(path).metadata_props[1].value == manifest.to_json()


def test_a_model_without_one(write):
    assert read_manifest(write({})) is None
    assert read_manifest(write({"other": "{}"})) is None


def test_a_manifest_of_another_version_is_not_skipped(write):
    with pytest.raises(InputError, match="schema 99, this version reads 1"):
        read_manifest(write({METADATA_KEY: '{"schema": 99}'}))


def test_a_cut_file_holds_none_wherever_it_is_cut(write, make_manifest):
    path = write({METADATA_KEY: make_manifest().to_json()})
    content = path.read_bytes()
    for end in range(0, len(content) - 20, 97):
        path.write_bytes(content[:end])
        assert read_manifest(path) is None


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\xff" * 50,  # a number that never ends
        b"\x72\xff\xff\xff\xff\xff\xff\xff\xff\x7fabc",  # an entry longer than the file
        b"\x72\x04\x0a\xff\x01a",  # a key longer than its entry
        b"\x72\x02\x08\x01",  # a key that is a number
        b"\x77\x00",  # no kind of field
        b"<html>404</html>",
    ],
)
def test_what_is_no_model_holds_none(tmp_path, content):
    path = tmp_path / "bad.onnx"
    path.write_bytes(content)
    assert read_manifest(path) is None


def test_a_missing_file_and_a_folder_hold_none(tmp_path):
    assert read_manifest(tmp_path / "nothing.onnx") is None
    assert read_manifest(tmp_path) is None
