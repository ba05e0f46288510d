"""Commands that write features, as their users meet them."""

import json

import pytest

from mae_export.runtime.features import read_features


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


def test_the_backend_that_runs_it_is_stored_with_the_features(run, model, images, tmp_path):
    pytest.importorskip("openvino")
    code, _, _ = run("extract", model, images, "-o", tmp_path / "out", "--backend", "openvino")
    assert code == 0
    assert read_features(tmp_path / "out").manifest.runtime.startswith("OpenVINO ")
    code, _, err = run("extract", model, images, "-o", tmp_path / "gpu", "--backend", "cuda")
    assert code == 6
    assert "has no CUDAExecutionProvider" in err
    assert not (tmp_path / "gpu").exists()
