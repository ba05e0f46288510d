"""`inspect` on each kind of artefact, and on what is none."""

import hashlib
import json
import shutil
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from mae_export.calibration.table import Table, TensorRange
from mae_export.encoders.load import LoadReport
from mae_export.encoders.overrides import Overrides
from mae_export.errors import CheckpointError, GraphError, InputError, LayoutError
from mae_export.graph import read_manifest
from mae_export.report.inspection import inspect
from mae_export.runtime.extract import ExtractOptions, extract
from mae_export.runtime.session import open_session

STATED = Overrides(heads=4, decoder_heads=4)


def digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def test_a_checkpoint_that_loads(fixture_dir: Path) -> None:
    path = fixture_dir / "mae_finetune" / "checkpoint.pth"
    found = inspect(path, STATED)
    first = found.pop("first_tensors")
    assert list(first.items())[:3] == [
        ("cls_token", [1, 1, 48]),
        ("pos_embed", [1, 65, 48]),
        ("patch_embed.proj.weight", [48, 3, 8, 8]),
    ]
    assert len(first) == 12
    encoder = found.pop("encoder")
    assert (encoder["dim"], encoder["heads"], encoder["norm"], encoder["image"]["size"]) == (48, 4, "pooled", (64, 64))
    assert found == {
        "kind": "checkpoint",
        "path": str(path),
        "sha256": digest(path),
        "format": "torch",
        "container": "model",
        "stripped": [],
        "family": "mae: MAE: Masked Autoencoders Are Scalable Vision Learners (CVPR 2022)",
        "layout": "facebookresearch/mae",
        "licence_of_published_weights": "CC-BY-NC-4.0",
        "repository": "https://github.com/facebookresearch/mae",
        "tensors": 32,
        "parameters": 69_562,
        "dtypes": ["float32"],
        "loads": True,
        "used": 30,
        "ignored": {
            "head.weight": "classifier, not part of the encoder",
            "head.bias": "classifier, not part of the encoder",
        },
        "missing": [],
        "notes": [
            "not used: 'optimizer', 'epoch', 'scaler'",
            "files of dbot, hpm, lut, imae, eva_l name their tensors in the same way; if this is one of them, pass "
            "--family NAME for its preprocessing, licence and feature",
        ],
    }


def test_a_checkpoint_that_does_not_load_is_described_all_the_same(fixture_dir: Path) -> None:
    found = inspect(fixture_dir / "mae" / "checkpoint.pth", Overrides())
    assert (found["layout"], found["tensors"]) == ("facebookresearch/mae", 50)
    assert found["loads"] is False
    assert found["because"].startswith("the number of attention heads cannot be told from a width of 48")
    assert not {"encoder", "used", "ignored", "missing"} & set(found)


def test_a_family_can_be_stated_where_layouts_are_shared(fixture_dir: Path) -> None:
    found = inspect(fixture_dir / "dbot" / "checkpoint_teacher.pth", STATED, family="dbot")
    assert found["family"].startswith("dbot: dBOT")
    assert found["layout"] == "encoder of liuxingbin/dbot"
    assert found["encoder"]["pooled"] == "fresh_norm_of_mean"
    assert found["notes"] == []


def test_wrappers_and_precisions_are_shown(tmp_path: Path, fixture_dir: Path) -> None:
    release = torch.load(fixture_dir / "mae" / "checkpoint_release.pth", weights_only=True)["model"]
    wrapped = {f"module.{name}": tensor.half() for name, tensor in release.items()}
    wrapped["module.cls_token"] = wrapped["module.cls_token"].double()
    torch.save(wrapped, tmp_path / "c.pth")
    found = inspect(tmp_path / "c.pth", STATED)
    assert found["container"] == "top level"
    assert found["stripped"] == ["module."]
    assert found["dtypes"] == ["float16", "float64"]
    assert set(found["notes"][1:]) == {"29 float16 tensors cast to float32", "1 float64 tensors cast to float32"}


def test_a_graph(graph: tuple[Path, LoadReport]) -> None:
    path, report = graph
    manifest = read_manifest(path)
    found = inspect(path, Overrides())
    assert found["manifest"] == asdict(manifest)
    assert (found["kind"], found["path"], found["sha256"]) == ("graph", str(path), digest(path))
    assert found["bytes"] == path.stat().st_size
    assert found["runtime"].startswith("ONNX Runtime 1.")
    assert found["manifest"]["made_from"][0]["sha256"] == report.sha256
    json.dumps(found, allow_nan=False)


def test_a_graph_without_manifest_or_of_nothing(tmp_path: Path) -> None:
    (tmp_path / "text.onnx").write_text("no graph")
    with pytest.raises(GraphError, match=r"/text\.onnx is no graph that ONNX Runtime can load"):
        inspect(tmp_path / "text.onnx", Overrides())
    (tmp_path / "folder.onnx").mkdir()
    with pytest.raises(InputError, match=r"there is no model at .*/folder\.onnx; expected an \.onnx file"):
        inspect(tmp_path / "folder.onnx", Overrides())


def test_features(tmp_path: Path, graph: tuple[Path, LoadReport]) -> None:
    path, _ = graph
    images, out = tmp_path / "images", tmp_path / "features"
    images.mkdir()
    for number in range(3):
        pixels = np.random.default_rng(number).integers(0, 256, (64, 64, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(images / f"{number}.png")
    (images / "3.png").write_bytes(b"no image")
    options = ExtractOptions(features=("pooled",), visible="random:0.5:7", error_budget=1)
    with open_session(path) as session:
        extract(session, [str(images)], out, options=options)
    found = inspect(out, Overrides())
    assert (found["kind"], found["path"], found["family"]) == ("features", str(out), "mae")
    assert (found["rows_in"], found["rows_ok"], found["rows_failed"]) == (4, 3, 1)
    assert (found["visible"], found["model_sha256"]) == ("random:0.5:7", digest(path))
    assert [(spec["name"], spec["dtype"], spec["shape"]) for spec in found["features"]] == [
        ("pooled", "float32", (48,))
    ]
    (out / "manifest.json").write_text("{")
    with pytest.raises(InputError, match=r"manifest\.json is not valid JSON"):
        inspect(out, Overrides())


def test_a_hugging_face_folder_is_a_checkpoint(tmp_path: Path, fixture_dir: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "vit"}')
    with pytest.raises(CheckpointError, match="holds no weights; expected one of model"):
        inspect(tmp_path, Overrides())
    shutil.copy(fixture_dir / "mae" / "checkpoint_release.pth", tmp_path / "pytorch_model.bin")
    with pytest.raises(LayoutError, match=r"no family recognises .*\. config\.json says model_type='vit'\."):
        inspect(tmp_path, Overrides())


def test_a_table_with_its_widest_ranges_first(tmp_path: Path) -> None:
    def of(high: float, reach: float) -> TensorRange:
        return TensorRange(low=-high, high=high, minimum=-reach, maximum=0.5)

    graph = tmp_path / "vit.onnx"
    ranges = {f"t{index}": of(float(index), 15.0) for index in range(1, 21)}
    table = Table(
        graph=hashlib.sha256(b"graph").hexdigest(),
        graph_name=graph.name,
        method="percentile",
        percentile=99.9,
        seed=5,
        visible="random:0.25:0",
        samples=2,
        images=("ab", "cd"),
        ranges=ranges,
        tools={"onnxruntime": "1.31"},
    )
    path = tmp_path / "vit.calib.json"
    path.write_text(table.to_json())
    found = inspect(path, Overrides())
    assert (found["kind"], found["sha256"], found["graph"]) == ("table", digest(path), "vit.onnx")
    assert (found["method"], found["percentile"], found["visible"], found["seed"]) == (
        *("percentile", 99.9),
        *("random:0.25:0", 5),
    )
    assert (found["samples"], found["images"], found["tensors"], found["clipped"]) == (2, ["ab", "cd"], 20, 14)
    assert list(found["widest"]) == [f"t{index}" for index in range(20, 8, -1)]
    assert found["widest"]["t20"] == {"low": -20.0, "high": 20.0, "minimum": -15.0, "maximum": 0.5}
    json.dumps(found, allow_nan=False)
    assert found["graph_matches"] is None
    for content, matches in ((b"graph", True), (b"other", False)):
        graph.write_bytes(content)
        assert inspect(path, Overrides())["graph_matches"] is matches
    path.write_text(table.to_json()[:-3])
    with pytest.raises(InputError, match="calibration table is not valid JSON"):
        inspect(path, Overrides())


@pytest.mark.parametrize(
    ("content", "what"),
    [
        ({"achieved": {}, "backend": "rtx", "manifest": {}}, "the sidecar of an engine"),
        ({"sensitivity": {}, "plan": None}, "a finding of `mae-export sensitivity`"),
        ({}, "a JSON file"),
    ],
)
def test_other_files_of_ours_are_named(tmp_path: Path, content: dict[str, object], what: str) -> None:
    (tmp_path / "some.json").write_text(json.dumps(content))
    with pytest.raises(InputError, match=f"some.json is {what}, which `inspect` does not show; give a checkpoint, an"):
        inspect(tmp_path / "some.json", Overrides())


def test_what_is_none_of_these(tmp_path: Path) -> None:
    with pytest.raises(InputError) as caught:
        inspect(tmp_path / "gone", Overrides())
    assert str(caught.value) == (
        f"there is nothing at {tmp_path}/gone; give a checkpoint, an .onnx graph, an engine, a calibration table, a "
        "bundle or a features folder"
    )
    with pytest.raises(InputError) as caught:
        inspect(tmp_path, Overrides())
    assert str(caught.value) == (
        f"{tmp_path} holds neither config.json (a Hugging Face folder) nor manifest.json (finished features); give a "
        "checkpoint, an .onnx graph, an engine, a calibration table, a bundle or a features folder"
    )
    (tmp_path / "notes.txt").write_text("hello, this is text")
    with pytest.raises(CheckpointError, match="starts with b'hello, t', which is neither a PyTorch nor a safetensors"):
        inspect(tmp_path / "notes.txt", Overrides())
