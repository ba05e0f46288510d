"""The command line as its users meet it: output, exit codes, and no traceback for anything they can do wrong."""

import os
import shutil
import sys
from pathlib import Path

import pytest
import torch

from mae_export import __version__, cli
from mae_export.calibration.table import Table, TensorRange

HEADS = ("--set", "heads=4", "--set", "decoder_heads=4")


def test_version_and_help(run):
    assert run("--version") == (0, f"mae-export {__version__}\n", "")
    code, out, _ = run("--help")
    assert code == 0
    for verb in ("export", "extract", "inspect", "verify", "doctor"):
        assert f" {verb} " in out


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


GRAPH_EXPECTED = [
    ("convert", "GIVEN", "-o", "out.onnx", "--precision", "fp16"),
    ("calibrate", "GIVEN", "photos", "-o", "out.calib.json"),
    ("quantize", "GIVEN", "vit.calib.json", "-o", "out.onnx", "--precision", "int8"),
    ("quantize", "GIVEN", "vit.calib.json", "-o", "out.onnx", "--precision", "int8", "--budget", "cosine=0.9",
     "--images", "photos"),
    ("sensitivity", "GIVEN", "vit.calib.json", "photos", "-o", "out.json"),
    ("build", "GIVEN", "-o", "out.engine", "--target", "sm89"),
    ("prepare", "GIVEN"),
    ("verify", "GIVEN", "checkpoint.pth"),
    ("bundle", "GIVEN", "-o", "out"),
    ("bench", "GIVEN"),
    ("extract", "GIVEN", "photos", "-o", "out"),
]  # fmt: skip
ENGINES_ALLOWED = ("verify", "bundle", "bench", "extract")


@pytest.mark.parametrize("arguments", GRAPH_EXPECTED, ids=" ".join)
def test_what_is_given_in_the_place_of_a_graph_is_named(run, tmp_path, monkeypatch, fixture_dir, arguments):
    monkeypatch.chdir(tmp_path)
    shutil.copy(fixture_dir / "mae/checkpoint.pth", "checkpoint.pth")
    folder = Path("hugging-face")
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    entry = TensorRange(low=-1.0, high=1.0, minimum=-1.0, maximum=1.0)
    table = Table(
        **{"graph": "ab", "graph_name": "vit.onnx", "method": "mse", "percentile": 99.0, "seed": 0, "visible": "all"},
        **{"samples": 1, "images": ("cd",), "ranges": {"a": entry}, "tools": {}},
    )
    Path("vit.calib.json").write_text(table.to_json())
    Path("vit.engine").write_bytes(b"ftrt")
    Path("photos").mkdir()
    before = sorted(Path().rglob("*"))
    first = "is a checkpoint, not a graph; run first: mae-export export"
    expected = {
        "checkpoint.pth": f"{first} checkpoint.pth -o checkpoint.onnx",
        "hugging-face": f"{first} hugging-face -o hugging-face.onnx",
        "vit.calib.json": "is a calibration table, not a graph; give vit.onnx, which it was observed on",
        "vit.engine": "is an engine, not a graph; give the .onnx file that it was built from",
    }
    for given, said in expected.items():
        if given == "vit.engine" and arguments[0] in ENGINES_ALLOWED:
            continue
        code, out, err = run(*(given if one == "GIVEN" else one for one in arguments))
        assert (code, out) == (3, "")
        assert err.startswith(f"error: {given} {said}"), err
    assert sorted(Path().rglob("*")) == before


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
