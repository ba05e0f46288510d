"""Tables: what is written is read back, and nothing damaged, foreign or empty passes for one."""

import dataclasses
import json
import math

import pytest

from mae_export.calibration.table import Table, TensorRange
from mae_export.errors import InputError
from mae_export.files import sha256_files

RANGE = TensorRange(low=-2.0, high=2.0, minimum=-1.5, maximum=3.0, channels=(3.0, 0.0), means=(0.25, 0.0))
TABLE = Table(
    graph="ab" * 32,
    graph_name="vit.onnx",
    method="mse",
    percentile=99.99,
    seed=3,
    visible="all",
    samples=2,
    images=("cd" * 32, "ef" * 32),
    ranges={"layer_norm": RANGE},
    tools={"onnxruntime": "1.0"},
)


def test_what_is_written_is_read_back(tmp_path):
    path = tmp_path / "vit.calib.json"
    path.write_text(TABLE.to_json())
    assert Table.read(path) == TABLE
    assert Table.read(path).to_json() == TABLE.to_json()


def test_reach_is_of_what_was_seen_not_of_what_is_represented():
    assert RANGE.reach == 3.0
    assert dataclasses.replace(RANGE, minimum=-4.0).reach == 4.0


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"low": math.nan}, "NaN or infinity"),
        ({"maximum": math.inf}, "NaN or infinity"),
        ({"channels": (math.nan, 0.0)}, "NaN or infinity"),
        ({"low": 0.0, "high": 0.0}, r"0\.\.0 .* is empty"),
        ({"low": 1.0, "high": -1.0}, "expected low < high"),
        ({"minimum": 4.0}, "minimum <= maximum"),
        ({"channels": (9.0, 0.0)}, "largest .* of a channel is 9, of the whole tensor 3"),
        ({"channels": (-1.0, 3.0)}, "the table is damaged"),
        ({"means": (0.0,)}, "1 means for 2 channels"),
    ],
)
def test_bad_ranges_cannot_exist(change, message):
    with pytest.raises(InputError, match=message):
        dataclasses.replace(RANGE, **change)


@pytest.mark.parametrize("change", [{"ranges": {}}, {"samples": 3}, {"images": ()}])
def test_a_table_names_as_many_images_as_it_used_and_some_tensor(change):
    with pytest.raises(InputError, match="expected some tensors and one image for each sample"):
        dataclasses.replace(TABLE, **change)


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda text: text.replace("-1.5", "NaN"), "NaN is no finite number"),
        (lambda text: text.replace('"mse"', '"magic"'), "expected one of 'minmax', 'percentile', 'entropy', 'mse'"),
        (lambda text: text.replace('"seed": 3', '"seeds": 3'), "unknown key 'seeds'; did you mean 'seed'"),
        (lambda text: text.replace('"schema": 1', '"schema": 2'), "schema 2, this version reads 1"),
        (lambda text: text.replace("-2.0", "2.5"), "expected low < high"),
        (lambda text: text[:-9], "calibration table is not valid JSON"),
        (lambda text: json.dumps({"calib": 1}), "unknown key 'calib'"),
    ],
)
def test_damaged_files_are_refused(tmp_path, edit, message):
    path = tmp_path / "vit.calib.json"
    path.write_text(edit(TABLE.to_json()))
    with pytest.raises(InputError, match=message):
        Table.read(path)


@pytest.mark.parametrize("content", [None, b"\xff\xfe\x00"])
def test_what_cannot_be_read_is_said(tmp_path, content):
    path = tmp_path / "vit.calib.json"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(InputError, match=r"cannot be read as a calibration table .*mae-export calibrate"):
        Table.read(path)


def test_a_table_holds_for_one_graph_with_its_data_file(tmp_path):
    graph, data = tmp_path / "vit.onnx", tmp_path / "vit.onnx.data"
    graph.write_bytes(b"structure")
    data.write_bytes(b"weights")
    table = dataclasses.replace(TABLE, graph=sha256_files(graph, data))
    table.require_for(graph)
    data.write_bytes(b"other weights")
    with pytest.raises(InputError, match=f"SHA-256 {table.graph}; .* has {sha256_files(graph, data)}"):
        table.require_for(graph)
