"""Commands that write nothing, as their users meet them."""

import json

HEADS = ("--set", "heads=4", "--set", "decoder_heads=4")


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


def test_only_graphs_and_checkpoints_are_references(run, model, tmp_path):
    for name, content, what in (("vit.engine", "", "an engine"), ("list.json", "{}", "a JSON file")):
        (tmp_path / name).write_text(content)
        code, _, err = run("verify", model, tmp_path / name)
        assert code == 3
        assert f"{name} is {what}; the reference is the graph or the checkpoint to trust" in err


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
    code, out, err = run("verify", model, model, "--worst", worst)
    assert (code, out) == (2, "")
    assert "worst is not empty; add --force" in err
    assert run("verify", model, model, "--images", images, "--worst", worst, "--force")[0] == 0
    assert run("verify", model, model, "--images", tmp_path / "nothing")[0] == 3
    code, text, _ = run("verify", model, model, "--limit", "1e-9", "--json")
    assert {check["limit"] for check in json.loads(text)["checks"] if check["name"].endswith("values")} == {1e-9}


def test_doctor(run):
    code, text, _ = run("doctor")
    assert code == 0
    assert "CPUExecutionProvider" in text
    assert text.startswith(
        "What runs a model here, with the name for --backend in brackets:\nyes  ONNX Runtime, CPU (cpu): "
    )
    code, text, _ = run("doctor", "--json")
    told = json.loads(text)
    assert "CPUExecutionProvider" in told["providers"]
    assert told["abilities"][0]["runs"] is True
