"""Commands that write calibration tables, as their users meet them."""

import json

import numpy as np
import pytest
from PIL import Image

from mae_export.calibration.table import Table
from mae_export.graph import read_manifest


@pytest.fixture
def pictures(tmp_path):
    folder = tmp_path / "pictures"
    folder.mkdir()
    for index in range(12):
        pixels = np.random.default_rng(index).integers(0, 256, (80, 90, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{index}.png")
    (folder / "broken.jpg").write_bytes(b"no picture")
    return folder


def test_calibrate_tells_what_was_observed_on_what(run, model, pictures, tmp_path):
    out = tmp_path / "vit.calib.json"
    code, text, progress = run("calibrate", model, pictures, "-o", out, "--method", "percentile")
    assert code == 0
    assert f"{out}: 17 activations of vit.onnx, percentile 99.99, visible all" in text
    assert "12 of 13 images used" in text
    assert "passed over 1: not-an-image" in text
    assert "images/s" in text
    assert "observing" in progress
    Table.read(out).require_for(model)


def test_calibrate_json_has_speed_and_memory_but_no_ranges(run, model, pictures, tmp_path):
    out = tmp_path / "vit.calib.json"
    arguments = ("calibrate", model, pictures, "-o", out, "--samples", 8, "--visible", "random:0.25..1.0", "--json")
    code, text, _ = run(*arguments)
    result = json.loads(text)
    assert code == 0
    assert (result["samples"], result["method"], result["visible"]) == (8, "mse", "random:0.25..1.0:0")
    assert result["images_per_second"] > 0
    assert "ranges" not in result
    first = out.read_bytes()
    assert run(*arguments, "--force")[0] == 0
    assert out.read_bytes() == first


def test_inspect_shows_the_table(run, model, pictures, tmp_path):
    out = tmp_path / "vit.calib.json"
    arguments = ("calibrate", model, pictures, "-o", out, "--samples", 9, "--seed", 3, "--visible", "random:0.5:7")
    assert run(*arguments)[0] == 0
    table = Table.read(out)
    code, text, _ = run("inspect", out)
    assert code == 0
    assert text.splitlines()[:3] == [
        f"{out}: 17 activations of vit.onnx, mse",
        "  visible random:0.5:7; 9 images, drawn with seed 3",
        f"  graph sha256 {table.graph} (no graph of that name beside the table)",
    ]
    code, text, _ = run("inspect", out, "--json")
    described = json.loads(text)
    assert (code, described["kind"], described["images"]) == (0, "table", list(table.images))
    widest = max(table.ranges.values(), key=lambda found: found.high)
    assert next(iter(described["widest"].values()))["high"] == widest.high


def test_calibrate_exit_codes(run, model, pictures, tmp_path):
    out = tmp_path / "vit.calib.json"
    assert run("calibrate", model, pictures, "-o", out, "--samples", "3")[0] == 2
    assert run("calibrate", model, pictures, "-o", tmp_path / "table", "--samples", "8")[0] == 2
    assert run("calibrate", model, pictures / "1.png", "-o", out)[0] == 3
    code, _, error = run("calibrate", pictures / "1.png", pictures, "-o", out)
    assert (code, "cannot be read as an ONNX model" in error) == (3, True)
    assert not out.exists()


def test_sensitivity_names_what_to_keep(run, model, pictures, tmp_path):
    table, out = tmp_path / "vit.calib.json", tmp_path / "vit.sensitivity.json"
    assert (
        run("calibrate", model, pictures / "1.png", *(pictures / f"{n}.png" for n in range(2, 9)), "-o", table)[0] == 0
    )
    more = tmp_path / "more"
    more.mkdir()
    for index in range(9):
        pixels = np.random.default_rng(100 + index).integers(0, 256, (80, 80, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(more / f"{index}.png")
    arguments = ("sensitivity", model, table, more, pictures, "-o", out, "--most", 2)
    code, text, _ = run(*arguments)
    assert code == 0
    assert "judged by pooled of 13 images" in text  # 9, and 12 less the 8 of the table
    assert "measured by block" in text
    assert "cannot pay" in text
    assert out.with_suffix(".png").is_file()
    everything = json.loads(out.read_text())["sensitivity"]["everything"]["cosine"]
    code, text, _ = run(*arguments, "--budget", f"cosine={(1 + everything) / 2}", "--force", "--json")
    assert code == 0
    plan = json.loads(text)["plan"]
    assert plan["keep"]
    assert plan["fidelity"]["cosine"] >= (1 + everything) / 2
    assert run(*arguments)[0] == 2  # exists
    out.unlink()
    figure = out.with_suffix(".png").read_bytes()
    code, _, error = run(*arguments)
    assert (code, f"{out.with_suffix('.png')} exists; add --force" in error, out.exists()) == (2, True, False)
    assert out.with_suffix(".png").read_bytes() == figure
    assert run(*arguments, "--force", "--budget", "cosine=2")[0] == 2
    assert run(*arguments, "--force", "--budget", "cosine=0.99999999999")[0] == 5


def test_quantize_keeps_what_the_budget_needs(run, model, pictures, tmp_path):
    table, out, more = tmp_path / "vit.calib.json", tmp_path / "int8.onnx", tmp_path / "more"
    assert run("calibrate", model, pictures, "-o", table, "--samples", 8)[0] == 0
    more.mkdir()
    for index in range(10):
        pixels = np.random.default_rng(200 + index).integers(0, 256, (80, 80, 3), dtype=np.uint8)
        Image.fromarray(pixels // (1 + index % 3)).save(more / f"{index}.png")
    arguments = ("quantize", model, table, "-o", out, "--precision", "int8", "--budget", "cosine=0.9999")
    code, _, error = run(*arguments)
    assert (code, "give some that calibration did not use with --images" in error) == (2, True)
    code, text, error = run(*arguments, "--images", more)
    assert code == 0, error
    assert "within cosine=0.9999,knn=0: " in text
    kept = read_manifest(out).fp32_nodes
    assert any(reason == "kept on request" for reason in kept.values())
