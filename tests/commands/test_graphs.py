"""Commands that write graphs, as their users meet them."""

import json

HEADS = ("--set", "heads=4", "--set", "decoder_heads=4")


def test_export_tells_what_it_loaded_and_proved(run, fixture_dir, tmp_path):
    out = tmp_path / "ft.onnx"
    code, text, _ = run("export", fixture_dir / "mae_finetune/checkpoint.pth", "-o", out, "--set", "heads=4")
    assert code == 0
    assert "checkpoint.pth: mae (facebookresearch/mae); licence of the authors' weights: CC-BY-NC-4.0" in text
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


def test_a_prediction_of_i_jepa_from_request_to_proof(run, fixture_dir, tmp_path):
    out, checkpoint = tmp_path / "p.onnx", fixture_dir / "ijepa/checkpoint.pth"
    wanted = ("-o", out, "--features", "prediction", *HEADS[:2])
    code, _, err = run("export", checkpoint, *wanted, "--mask", "keep")
    assert (code, "--set weights=encoder takes them" in err) == (2, True)
    context = ("--set", "weights=encoder")
    code, _, err = run("export", checkpoint, *wanted, *context)
    assert (code, "--mask none drops none: use --mask keep or --mask patches" in err) == (2, True)
    assert not out.exists()
    code, text, _ = run("export", checkpoint, *wanted, *context, "--mask", "patches", "--ragged")
    assert code == 0
    assert "used 49 tensors, ignored 0, missing 0" in text
    assert "of all hidden patches at once, zero where a patch is visible; target: teacher-features" in text
    code, _, err = run("verify", out, checkpoint)
    assert (code, "the graph gives a prediction, but" in err) == (3, True)
    code, text, _ = run("verify", out, checkpoint, *context)
    assert (code, "45 of 45 checks passed" in text) == (0, True)
