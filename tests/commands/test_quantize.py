"""The command that writes 8-bit graphs, as its users meet it."""

import json
import shutil
from hashlib import sha256

import pytest
from PIL import Image

from mae_export.calibration.table import Table
from mae_export.graph import read_manifest
from mae_export.runtime.probes import PHOTOS, probe_photos


@pytest.fixture(scope="module")
def pictures(model, tmp_path_factory):
    """16 pictures as files: the photographs and their negatives."""
    folder = tmp_path_factory.mktemp("pictures")
    for name, pixels in zip(PHOTOS, probe_photos(read_manifest(model).image), strict=True):
        Image.fromarray(pixels).save(folder / f"{name}.png")
        Image.fromarray(255 - pixels).save(folder / f"{name}-negative.png")
    return folder


@pytest.fixture
def table(run, model, pictures, tmp_path):
    out = tmp_path / "vit.calib.json"
    code, _, _ = run("calibrate", model, pictures, "-o", out, "--samples", 12, "--visible", "random:0.25..1.0")
    assert code == 0
    return out


def test_quantize_tells_what_it_proved(run, model, table, tmp_path):
    out = tmp_path / "int8.onnx"
    code, text, _ = run("quantize", model, table, "-o", out, "--precision", "int8")
    assert code == 0
    assert "int8, mask mode keep" in text
    assert "proven against vit.onnx in float32" in text
    assert "cosines after subtracting the mean over images" in text
    code, text, _ = run("verify", out, model)
    assert code == 0
    assert "ok" in text
    code, text, _ = run("convert", out, "-o", tmp_path / "half.onnx", "--precision", "fp16")
    assert code == 0
    assert read_manifest(tmp_path / "half.onnx").precision == "int8"


def test_quantize_json_on_pictures_that_were_not_used(run, model, pictures, table, tmp_path):
    code, text, _ = run(
        "quantize", model, table, "-o", tmp_path / "fp8.onnx", "--precision", "fp8", "--preset", "full",
        "--keep", "blocks.0.mlp", "--images", pictures, "--json",
    )  # fmt: skip
    assert code == 0
    result = json.loads(text)
    assert result["manifest"]["precision"] == "fp8"
    assert list(result["manifest"]["fp32_nodes"].values()).count("kept on request") == 2
    measured = [found for found in result["comparison"]["measured"] if found["output"] == "pooled"]
    assert {found["agreement"]["vectors"] for found in measured} == {16 - 12 + 3}


def test_pictures_that_were_all_used_prove_nothing(run, model, pictures, table, tmp_path):
    folder = tmp_path / "used"
    folder.mkdir()
    used = set(Table.read(table).images)
    for path in pictures.iterdir():
        if sha256(path.read_bytes()).hexdigest() in used:
            shutil.copy(path, folder)
    code, _, error = run("quantize", model, table, "-o", tmp_path / "q.onnx", "--precision", "int8", "--images", folder)
    assert code == 3
    assert "were used for calibration; expected some that were not" in error


@pytest.mark.parametrize(
    ("arguments", "code", "text"),
    [
        (("--precision", "int8", "--lower", "--preset", "full"), 2, "the form for CPUs exists of int8 linear"),
        (("--precision", "int8", "--keep", "blocks.9"), 2, "no module 'blocks.9' to keep in float32"),
        (("--precision", "int8", "--preset", "full"), 3, "heads of width 16, 32, 64, and this one of 12"),
    ],
)
def test_refusals(run, model, table, tmp_path, arguments, code, text):
    found, _, error = run("quantize", model, table, "-o", tmp_path / "q.onnx", *arguments)
    assert found == code
    assert text in error
    assert not (tmp_path / "q.onnx").exists()
