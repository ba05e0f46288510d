"""The command line as its users meet it: output, exit codes, and no traceback for anything they can do wrong."""

import json
import os
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from mae_export import __version__, cli
from mae_export.runtime.features import read_features

HEADS = ("--set", "heads=4", "--set", "decoder_heads=4")


@pytest.fixture
def run(monkeypatch, capsys):
    """Run `mae-export ARGUMENTS` in this process; returns (exit code, standard output, standard error)."""

    def call(*arguments):
        monkeypatch.setattr(sys, "argv", ["mae-export", *map(str, arguments)])
        with pytest.raises(SystemExit) as stop:
            cli.main()
        captured = capsys.readouterr()
        assert "Traceback" not in captured.err
        return stop.value.code, captured.out, captured.err

    return call


@pytest.fixture(scope="module")
def model(tmp_path_factory, fixture_dir):
    """A graph of the small checkpoint, written by the command itself."""
    out = tmp_path_factory.mktemp("cli") / "vit.onnx"
    argv = ["mae-export", "export", str(fixture_dir / "mae/checkpoint.pth"), "-o", str(out), *HEADS]
    with pytest.MonkeyPatch.context() as m:
        m.setattr(sys, "argv", [*argv, "--mask", "keep", "--features", "pooled, patch_tokens"])
        with pytest.raises(SystemExit) as stop:
            cli.main()
    assert stop.value.code == 0
    return out


@pytest.fixture
def images(tmp_path):
    folder = tmp_path / "images"
    (folder / "deep").mkdir(parents=True)
    for index in range(5):
        pixels = np.random.default_rng(index).integers(0, 256, (80, 90, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / ("deep" if index % 2 else ".") / f"{index}.png")
    return folder


def test_version_and_help(run):
    assert run("--version") == (0, f"mae-export {__version__}\n", "")
    code, out, _ = run("--help")
    assert code == 0
    for verb in ("export", "extract", "inspect", "verify", "doctor"):
        assert f" {verb} " in out


def test_export_tells_what_it_loaded_and_proved(run, fixture_dir, tmp_path):
    out = tmp_path / "ft.onnx"
    code, text, _ = run("export", fixture_dir / "mae_finetune/checkpoint.pth", "-o", out, "--set", "heads=4")
    assert code == 0
    assert "checkpoint.pth: mae (facebookresearch/mae); the authors' own weights are CC-BY-NC-4.0" in text
    assert "2 blocks of width 48 with 4 heads, eps 1e-06, patch 8x8, images 64x64" in text
    assert "used 30 tensors, ignored 2, missing 0" in text
    assert "ignored head.weight: classifier, not part of the encoder" in text
    assert "pooled: float32 [batch, 48] - fine-tuned feature: fc_norm of the mean" in text
    assert "proven against PyTorch" in text
    assert out.is_file()


def test_export_json(run, fixture_dir, tmp_path):
    out = tmp_path / "g.onnx"
    code, text, _ = run(
        "export", fixture_dir / "mae/checkpoint.pth", "-o", out, *HEADS, "--json", "--image-size", "32x64"
    )
    assert code == 0
    result = json.loads(text)
    assert result["manifest"]["image"]["size"] == [32, 64]
    assert result["load"]["spec"]["heads"] == 4
    assert result["manifest"]["verification"]["error"] < 1e-4


@pytest.mark.parametrize("format_", ["npy", "parquet"])
def test_extract_writes_what_read_features_reads(run, model, images, tmp_path, format_):
    out = tmp_path / "features"
    code, text, _ = run(
        "extract", model, images, "-o", out, "--format", format_, "--features", "pooled", "--visible", "random:0.25:7"
    )
    assert code == 0
    assert "5 in = 5 ok + 0 failed" in text
    assert "images/s" in text
    features = read_features(out)
    assert sorted(features.ids) == ["0.png", "2.png", "4.png", "deep/1.png", "deep/3.png"]
    assert features.arrays["pooled"].shape == (5, 48)


def test_a_bad_image_costs_nothing_else(run, model, images, tmp_path):
    (images / "bad.jpg").write_bytes(b"<html>not found</html>")
    out = tmp_path / "features"
    code, text, err = run("extract", model, images, "-o", out, "--json")
    assert code == 7
    report = json.loads(text)
    assert (report["rows_in"], report["rows_ok"], report["rows_failed"]) == (6, 5, 1)
    assert "1 of 6 images failed (1 not-an-image)" in err
    failures = [json.loads(line) for line in (out / "failures.jsonl").read_text().splitlines()]
    assert [(failure["id"], failure["reason"]) for failure in failures] == [("bad.jpg", "not-an-image")]
    code, text, err = run("extract", model, images, "-o", out, "--force", "--error-budget", "0.5")
    assert (code, "error" in err) == (0, False)
    assert "6 in = 5 ok + 1 failed" in text


def test_inspect_shows_checkpoints_graphs_and_features(run, model, images, fixture_dir, tmp_path):
    code, text, _ = run("inspect", fixture_dir / "mae/checkpoint.pth", *HEADS)
    assert code == 0
    assert "family: mae: MAE: Masked Autoencoders" in text
    assert "loads: True" in text
    code, text, _ = run("inspect", fixture_dir / "mae/checkpoint.pth")
    assert code == 0
    assert "because: the number of attention heads cannot be told from a width of 48" in text
    code, text, _ = run("inspect", model, "--json")
    described = json.loads(text)
    assert (code, described["kind"], described["manifest"]["mask_mode"]) == (0, "graph", "keep")
    run("extract", model, images, "-o", tmp_path / "features")
    code, text, _ = run("inspect", tmp_path / "features", "--json")
    assert (code, json.loads(text)["rows_ok"]) == (0, 5)


def test_verify_agrees_disagrees_and_says_so(run, model, fixture_dir, tmp_path):
    code, text, _ = run("verify", model, fixture_dir / "mae/checkpoint.pth")
    assert code == 0
    assert "checks passed" in text
    assert "FAILED" not in text
    code, text, err = run("verify", model, fixture_dir / "mae/checkpoint.pth", "--set", "heads=2")
    assert code == 5
    assert "FAILED" in text
    assert "disagrees with" in err
    code, text, _ = run("verify", model, model, "--json")
    assert (code, json.loads(text)["passed"]) == (0, True)
    assert not list(tmp_path.iterdir())


def test_verify_shows_ones_own_images_and_writes_the_worst(run, model, images, tmp_path):
    worst = tmp_path / "worst"
    code, text, _ = run("verify", model, model, "--images", images, "--worst", worst, "--json")
    result = json.loads(text)
    assert code == 0
    assert sorted(map(str, worst.iterdir())) == sorted(result["worst_images"])
    assert {found["output"] for found in result["measured"]} == {
        path.name.rpartition("_")[0] for path in worst.iterdir()
    }
    assert {found["agreement"]["vectors"] for found in result["measured"] if found["output"] == "pooled"} == {5 + 3}
    assert run("verify", model, model, "--images", tmp_path / "nothing")[0] == 3
    code, text, _ = run("verify", model, model, "--limit", "1e-9", "--json")
    assert {check["limit"] for check in json.loads(text)["checks"] if check["name"].endswith("values")} == {1e-9}


def test_doctor(run):
    code, text, _ = run("doctor")
    assert code == 0
    assert "CPUExecutionProvider" in text
    code, text, _ = run("doctor", "--json")
    assert "CPUExecutionProvider" in json.loads(text)["providers"]


@pytest.mark.parametrize(
    ("arguments", "code", "text"),
    [
        (["exprt"], 2, "Did you mean 'export'?"),
        (["export", "x.pth"], 2, "Missing option '--output'"),
        (["export", "nothing.pth", "-o", "g.onnx"], 3, "nothing.pth"),
        (["export", "x.pth", "-o", "g.onnx", "--mask", "half"], 2, "'half' is not one of 'none', 'keep', 'patches'"),
        (["export", "x.pth", "-o", "g.onnx", "--ragged"], 2, "--ragged needs a mask input"),
        (["export", "x.pth", "-o", "g.onnx", "--opset", "999"], 2, "opset 999 is not supported"),
        (["export", "x.pth", "-o", "g.onnx", "--image-size", "0x5"], 2, "image size '0x5' is neither N nor HxW"),
        (["export", "x.pth", "-o", "g.onnx", "--set", "heds=4"], 2, "did you mean 'heads'?"),
        (["export", "x.pth", "-o", "g.onnx", "--set", "heads"], 2, "is not KEY=VALUE"),
        (["export", "x.pth", "-o", "g.onnx", "--set", "heads=many"], 2, "--set heads='many' cannot be read"),
        (["export", "x.pth", "-o", "g.onnx", "--features", ","], 2, "must name each output once"),
        (["extract", "g.onnx", "images", "-o", "out", "--batch", "0"], 2, "--batch"),
        (["extract", "g.onnx", "images", "-o", "out", "--batch", "abc"], 2, "--batch"),
        (["extract", "g.onnx", "images", "-o", "out", "--format", "csv"], 2, "'csv' is not one of 'npy', 'parquet'"),
        (["extract", "g.onnx", "images", "-o", "out"], 3, "there is no model at g.onnx"),
        (["inspect", "nothing"], 3, "there is nothing at nothing"),
        (["inspect", "."], 3, "holds neither config.json"),
        (["verify", "a.onnx", "b.onnx"], 3, "there is no model at a.onnx"),
        (["verify", "a.onnx", "b.onnx", "--limit", "-1"], 2, "--limit"),
    ],
)
def test_wrong_calls(run, tmp_path, monkeypatch, arguments, code, text):
    monkeypatch.chdir(tmp_path)
    found, _, err = run(*arguments)
    assert (found, text in " ".join(err.split())) == (code, True), err
    assert not list(tmp_path.iterdir())


class Evil:
    """What unpickling without care would run."""

    def __init__(self, canary):
        self.canary = canary

    def __reduce__(self):
        return os.system, (f"touch {self.canary}",)


@pytest.mark.parametrize("verb", ["export", "inspect"])
def test_a_checkpoint_that_wants_to_run_code_is_refused_by_name(run, tmp_path, verb):
    path, canary = tmp_path / "evil.pth", tmp_path / "canary"
    torch.save({"model": {"w": torch.zeros(2)}, "args": Evil(canary)}, path)
    code, _, err = run(verb, path, *(["-o", tmp_path / "g.onnx"] if verb == "export" else []))
    assert code == 4
    assert "system" in err
    assert sorted(found.name for found in tmp_path.iterdir()) == ["evil.pth"]


@pytest.mark.parametrize(
    ("arguments", "code", "text"),
    [
        (["--visible", "random:2"], 3, "expected 0 < fraction <= 1"),
        (["--visible", "some"], 2, "'some'"),
        (["--features", "dense"], 2, "there is no output 'dense'"),
        (["--visible", "file:nothing.npy"], 3, "nothing.npy"),
    ],
)
def test_wrong_extractions_write_nothing(run, model, images, tmp_path, arguments, code, text):
    found, _, err = run("extract", model, images, "-o", tmp_path / "out", *arguments)
    assert (found, text in err) == (code, True), err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(("module", "extra"), [("torch", "export"), ("onnx", "export")])
def test_missing_packages_name_their_extra(run, fixture_dir, tmp_path, monkeypatch, module, extra):
    for name in [name for name in sys.modules if name.startswith(("mae_export.encoders", "mae_export.export."))]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.delitem(sys.modules, "mae_export.graph", raising=False)
    monkeypatch.setitem(sys.modules, module, None)
    code, _, err = run("export", fixture_dir / "mae/checkpoint.pth", "-o", tmp_path / "g.onnx", *HEADS)
    assert code == 6
    assert f"{module} is not installed; run: pip install 'mae-export[{extra}]'" in err


@pytest.mark.parametrize(
    ("error", "code", "text"),
    [
        (MemoryError(), 8, "memory ran out"),
        (KeyboardInterrupt(), 130, "interrupted"),
        (PermissionError(13, "Permission denied", "there"), 2, "there: Permission denied"),
    ],
)
def test_other_ends(run, monkeypatch, error, code, text):
    def fail(*_):
        raise error

    monkeypatch.setattr("mae_export.runtime.doctor.doctor", fail)
    found, _, err = run("doctor")
    assert (found, text in err) == (code, True)


def test_a_bug_is_called_a_bug(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["mae-export", "doctor"])
    monkeypatch.setattr("mae_export.runtime.doctor.doctor", lambda: 1 / 0)
    with pytest.raises(SystemExit) as stop:
        cli.main()
    assert stop.value.code == 70
    assert "This is a bug in mae-export; please report it" in capsys.readouterr().err


def test_paths_are_shown_as_they_are(run, tmp_path):
    odd = Path(tmp_path, "a [red]b[/red] -- ü.onnx")
    code, _, err = run("verify", odd, odd)
    assert code == 3
    assert str(odd) in err
