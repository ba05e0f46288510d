"""ViT-H from a random checkpoint to a proven graph within its memory; in the everyday run, a tiny one."""

import pytest

from benchmarks.hardware import write_result
from benchmarks.huge import prove

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
