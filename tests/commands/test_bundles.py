"""Commands that write bundles, as their users meet them."""

import json
import shutil

import pytest

pytest.importorskip("torch", reason="the graph is exported here")


def test_bundle_and_inspect_tell_the_same(run, model, tmp_path):
    code, text, err = run("bundle", model, "-o", tmp_path / "out")
    assert (code, err) == (0, "")
    assert f"{tmp_path / 'out'}: mae, mask mode keep, features pooled, patch_tokens" in text
    assert "vit.onnx: fp32, for any machine\n" in text
    assert f"python {tmp_path / 'out' / 'app.py'} PICTURES" in text
    code, text, _ = run("inspect", tmp_path / "out", "--json")
    described = json.loads(text)
    assert (code, described["kind"], described["bytes_match"], described["changed"]) == (0, "bundle", True, {})
    (tmp_path / "out/vit.onnx").write_bytes(b"other")
    code, text, _ = run("inspect", tmp_path / "out")
    assert code == 0
    assert "bytes_match: False" in text
    assert "vit.onnx: SHA-256 d9298a10d1b0..., expected " in text  # of b"other"


def test_graphs_that_do_not_run_everywhere_are_named_with_what_runs_them(run, model, tmp_path):
    pytest.importorskip("openvino")
    half, out = tmp_path / "bf16.onnx", tmp_path / "out"
    assert run("convert", model, "-o", half, "--precision", "bf16")[0] == 0
    code, text, err = run("bundle", half, "-o", out)
    assert code == 0
    assert "bf16.onnx: bf16, for CPUs with OpenVINO, NVIDIA GPUs with ONNX Runtime's CUDA provider\n" in text
    assert "no graph of this bundle runs on every machine; name a plain one as well, as the last" in err
    code, text, err = run("bundle", half, model, "-o", out, "--force")
    assert (code, err) == (0, "")
    assert "vit.onnx: fp32, for any machine\n" in text


def test_what_is_unproven_is_said(run, model, tmp_path):
    pytest.importorskip("tensorrt_rtx_bindings")
    engine = tmp_path / "vit.engine"
    assert run("build", model, "-o", engine, "--backend", "rtx", "--target", "sm89", "--batch", "1:2:4")[0] == 0
    code, text, err = run("bundle", model, engine, "-o", tmp_path / "out")
    assert code == 0
    assert "vit.engine: fp32, for sm89 with rtx 1." in text
    assert "UNPROVEN" in text
    assert "unproven: nothing was compared with vit.engine; where it runs, its golden check decides" in err
    code, text, err = run("bundle", model, engine, "-o", tmp_path / "out", "--force", "--json")
    assert [one["proven"] for one in json.loads(text)["models"]] == [False, True]


@pytest.mark.parametrize(
    ("arguments", "code", "text"),
    [
        (["-o", "out"], 2, "Missing argument"),
        (["MODEL"], 2, "Missing option '--output'"),
        (["MODEL", "MODEL", "-o", "out"], 2, "two of the models have one name"),
        (["MODEL", "-o", "no/out"], 2, "is no folder; create it"),
        (["gone.onnx", "-o", "out"], 3, "there is no model at gone.onnx"),
        (["gone.engine", "-o", "out"], 3, "gone.engine has no gone.engine.json beside it"),
    ],
)
def test_wrong_bundles_write_nothing(run, model, tmp_path, monkeypatch, arguments, code, text):
    monkeypatch.chdir(tmp_path)
    shutil.copyfile(model, tmp_path / "vit.onnx")
    found, _, err = run("bundle", *("vit.onnx" if argument == "MODEL" else argument for argument in arguments))
    assert (found, text in " ".join(err.split())) == (code, True), err
    assert [path.name for path in tmp_path.iterdir()] == ["vit.onnx"]
