"""Commands that write graphs, as their users meet them."""

import json

HEADS = ("--set", "heads=4", "--set", "decoder_heads=4")


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
