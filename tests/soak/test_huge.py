"""ViT-H from a random checkpoint to a proven graph within its memory; in the everyday run, a tiny one."""

import sys

import pytest

from benchmarks.hardware import write_result
from benchmarks.huge import measured, prove

GIB = 1 << 30


@pytest.mark.parametrize("size", ["tiny", pytest.param("huge", marks=pytest.mark.soak)])
def test_a_published_size_exports_within_its_memory(size, tmp_path):
    result = prove(size, tmp_path)
    assert result["verification"]["error"] <= result["verification"]["limit"] == 1e-4
    assert result["export_peak_gb"] < 12
    files = result["files"]
    if size == "huge":
        assert result["parameters"] > 630e6
        assert result["load_peak_over_file"] < 2.2
        assert files["vit_huge.onnx.data"] > 2 * GIB
        assert files["vit_huge.onnx"] < 10_000_000
        write_result("huge", result)
    else:
        assert list(files) == ["vit_tiny.onnx"]


def test_a_commands_peak_is_its_own():
    ours = bytearray(b"x" * (512 << 20))
    text, _, peak = measured(sys.executable, "-c", "held = bytearray(b'x' * (128 << 20)); print(len(held))")
    assert int(text) == 128 << 20
    assert 128 << 20 < peak < len(ours), "what this process holds does not count"
    with pytest.raises(RuntimeError, match="ended with 3"):
        measured(sys.executable, "-c", "raise SystemExit(3)")
