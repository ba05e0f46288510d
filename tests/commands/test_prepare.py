"""The command that fills this machine's cache, as its users meet it."""

import json

import pytest

from mae_export.calibration.wanted import QuantizeOptions
from mae_export.export import prepare as module
from mae_export.runtime import private_folder
from mae_export.runtime.doctor import Cpu


@pytest.fixture(autouse=True)
def cache(monkeypatch, tmp_path):
    monkeypatch.setenv("MAE_EXPORT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(module, "nvidia_gpus", lambda: ())
    monkeypatch.setattr(module, "read_cpu", lambda: Cpu(model="CPU", cores=1, quota=None, flags=("avx_vnni",)))
    return tmp_path / "cache"


@pytest.fixture
def int8(model, eight_bit, tmp_path):
    return eight_bit(model, tmp_path / "int8.onnx", QuantizeOptions(precision="int8"))


def test_prepare_says_what_runs_and_why(run, int8, cache):
    code, text, _ = run("prepare", int8)
    assert (code, text.split()[:4]) == (0, ["runs", "lowered", "because", "ONNX"])
    code, text, _ = run("prepare", int8, "--json")
    told = json.loads(text)
    assert (told["kind"], told["fresh"], told["removed"]) == ("lowered", False, 0)
    code, text, _ = run("prepare", int8, "--force", "--json")
    assert json.loads(text)["fresh"]
    code, text, _ = run("inspect", int8, "--json")
    assert json.loads(text)["manifest"]["tools"].get("lowered") is None, "what is inspected is the graph itself"
    code, text, _ = run("prepare", "--clear")
    assert (code, text.split()) == (0, ["removed", "1", "prepared", "before"])
    private_folder.location().joinpath(f".{'0' * 64}.a.tmp").mkdir()
    with private_folder.locked("0" * 64):
        code, text, _ = run("prepare", "--clear")
        assert (code, "left" in text, "1 that other processes are making just now" in text) == (0, True, True)
    code, text, _ = run("prepare", int8, "--clear", "--json")
    assert (json.loads(text)["removed"], json.loads(text)["fresh"]) == (0, True)


def test_nothing_is_written_where_nothing_helps(run, model, cache):
    code, text, _ = run("prepare", model)
    assert code == 0
    assert "as it is" in text
    assert not cache.exists()


def test_a_wrong_name_clears_nothing(run, int8, tmp_path):
    assert run("prepare", int8)[0] == 0
    (tmp_path / "vit.pth").write_bytes(b"")
    for name, said in (
        ("nothing.onnx", "cannot be read as an ONNX model"),
        ("vit.pth", "is a checkpoint, not a graph"),
    ):
        code, _, error = run("prepare", tmp_path / name, "--clear")
        assert (code, said in error) == (3, True)
    assert json.loads(run("prepare", "--clear", "--json")[1])["removed"] == 1


@pytest.mark.parametrize(
    ("arguments", "code", "text"),
    [([], 2, "name a graph, or add --clear"), (["nothing.onnx"], 3, "nothing.onnx cannot be read as an ONNX model")],
)
def test_wrong_calls(run, arguments, code, text):
    found, _, error = run("prepare", *arguments)
    assert (found, text in error) == (code, True), error
