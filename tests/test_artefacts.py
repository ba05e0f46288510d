"""What a file is, told by its bytes, and what is said of each in the place of a graph or a table."""

import json
import os
import pickle
import shutil
import struct

import pytest

from mae_export.artefacts import NAMES, export_command, kind_of, require_graph, require_table
from mae_export.errors import InputError

HEADER = json.dumps({"w": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}}).encode()
SAFETENSORS = struct.pack("<Q", len(HEADER)) + HEADER + bytes(4)
ARCHIVE = b"PK\x03\x04" + bytes(26) + b"archive/data.pkl" + bytes(9)
TABLE = json.dumps({"graph": "ab", "graph_name": "vit.onnx", "ranges": {}, "schema": 1})
CASES = [
    ("vit.pth", ARCHIVE, "checkpoint"),
    ("vit", ARCHIVE, "checkpoint"),
    ("renamed.onnx", ARCHIVE, "checkpoint"),
    ("old.tar", pickle.dumps({"model": 1}, protocol=2), "checkpoint"),
    ("renamed.onnx", SAFETENSORS, "checkpoint"),
    ("empty.ckpt", b"", "checkpoint"),
    ("graph.bin", b"\x08\x0a", None),
    ("vit.ENGINE", b"ftrt", "engine"),
    ("vit.calib.json", TABLE, "table"),
    ("renamed.onnx", "\n " + TABLE, "table"),
    ("vit.engine.json", json.dumps({"achieved": {}, "backend": "rtx", "manifest": {}}), "sidecar"),
    ("found.json", json.dumps({"sensitivity": {}, "plan": None}), "sensitivity"),
    ("damaged.calib.json", TABLE[:-2], "json"),
    ("list.json", "{}", "json"),
    ("vit.onnx", b"\x08\x0a", "graph"),
    ("empty.onnx", b"", "graph"),
    ("photos.zip", b"PK\x03\x04" + bytes(26) + b"1.jpg", None),
    ("notes.txt", "text", None),
]


@pytest.mark.parametrize(("name", "content", "kind"), CASES)
def test_files_are_told_by_their_bytes(tmp_path, name, content, kind):
    path = tmp_path / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    assert kind_of(path) == kind
    for require, expected in ((require_graph, ("graph", None)), (require_table, ("table", "json", None))):
        if kind in expected:
            require(path)
        else:
            with pytest.raises(InputError, match=f"{name} is {NAMES[kind]}, not a "):
                require(path)


@pytest.mark.parametrize("name", ["mae/checkpoint.pth", "mae/checkpoint_release.pth"])
def test_real_checkpoints_are_told_whatever_their_name(tmp_path, fixture_dir, name):
    assert kind_of(shutil.copy(fixture_dir / name, tmp_path / "vit.onnx")) == "checkpoint"


@pytest.mark.parametrize(
    ("files", "kind"),
    [
        ({"config.json": "{}"}, "checkpoint"),
        ({"manifest.json": '{"kind": "bundle"}'}, "bundle"),
        ({"manifest.json": '{"rows_in": 1}'}, "features"),
        ({"manifest.json": "damaged"}, "features"),
        ({"1.jpg": ""}, None),
    ],
)
def test_folders(tmp_path, files, kind):
    for name, content in files.items():
        (tmp_path / name).write_text(content)
    assert kind_of(tmp_path) == kind


def test_what_cannot_be_looked_at_is_nothing(tmp_path):
    os.mkfifo(tmp_path / "fifo.pth")  # opening it would wait for ever
    (tmp_path / "link.pth").symlink_to(tmp_path / "gone")
    for name in ("fifo.pth", "link.pth", "gone.onnx"):
        assert kind_of(tmp_path / name) is None
        require_graph(tmp_path / name)
        require_table(tmp_path / name)


@pytest.mark.parametrize(
    ("name", "content", "advice"),
    [
        ("vit base.pth", ARCHIVE, "run first: mae-export export '{path}' -o 'vit base.onnx'"),
        ("vit.engine", b"", "give the .onnx file that it was built from, which `mae-export inspect {path}` names"),
        ("vit.calib.json", TABLE.encode(), "give vit.onnx, which it was observed on"),
        ("some.json", b"{}", "expected an .onnx file written by `mae-export export`"),
    ],
)
def test_it_is_said_what_to_do(tmp_path, name, content, advice):
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(InputError) as caught:
        require_graph(path)
    assert str(caught.value).endswith(f", not a graph; {advice.format(path=path)}")


def test_a_bundle_names_one_of_its_graphs(tmp_path):
    (tmp_path / "manifest.json").write_text('{"kind": "bundle"}')
    (tmp_path / "b.onnx").touch()
    with pytest.raises(InputError, match=r"is a bundle, not a graph; give one of its models, such as .*/b\.onnx$"):
        require_graph(tmp_path)


def test_folders_and_names_without_suffix_can_be_exported(tmp_path):
    assert export_command(tmp_path / "vit") == f"mae-export export {tmp_path}/vit -o vit.onnx"
    (tmp_path / "vit-mae.v2").mkdir()
    assert export_command(tmp_path / "vit-mae.v2").endswith("-o vit-mae.v2.onnx")
