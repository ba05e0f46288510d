"""EVA-01 g from a random checkpoint to one image through a proven graph; in the everyday run, a small one."""

import pytest

from benchmarks.giant import prove
from benchmarks.hardware import write_result

MOST_GB = 20
GIB = 1 << 30


@pytest.mark.parametrize("size", ["small", pytest.param("giant", marks=pytest.mark.soak)])
def test_the_largest_plain_encoder_exports_and_runs_within_its_memory(size, tmp_path):
    result = prove(size, tmp_path)
    assert result["verification"]["error"] <= result["verification"]["limit"] == 1e-4
    assert max(result["export_peak_gb"], result["run_peak_gb"]) < MOST_GB
    assert result["finite"]
    if size == "giant":
        assert result["parameters"] == 1_011_203_840
        assert result["width"] == 1408
        assert result["files"]["eva_giant.onnx.data"] > 3 * GIB
        write_result("giant", result)
    else:
        assert result["width"] == 192
        assert list(result["files"]) == ["eva_small.onnx"]
