"""INT8 graphs agree with float32 better than ONNX Runtime's quantizer makes them; in the everyday run, small ones."""

import statistics

import pytest

from benchmarks.hardware import write_result
from benchmarks.quantized import JUDGED, SCALES, best_of, paired, prove, rows


@pytest.mark.parametrize("scale", ["tiny", pytest.param("full", marks=pytest.mark.soak)])
def test_our_graphs_agree_better_than_the_best_of_others(scale, tmp_path):
    result = prove(SCALES[scale], tmp_path)
    encoders = (result["trained"], *result["wide"])
    for encoder in encoders:
        graphs = encoder["graphs"]
        for visible in JUDGED:
            assert graphs["float32"][visible]["cosine"] == pytest.approx(1)
            assert graphs["ours"][visible]["cosine"] > graphs[best_of(graphs)][visible]["cosine"] - 1e-5
            assert graphs["ours, for CPUs"][visible]["cosine"] == pytest.approx(
                graphs["ours"][visible]["cosine"], abs=1e-4
            )
    outliers = result["wide"][0]["graphs"]
    assert outliers["ours"]["all"]["cosine"] > 0.995 > outliers[best_of(outliers)]["all"]["cosine"]
    assert len(list(rows(result))) == 6 * (1 + len(result["wide"]))
    assert result["wide"][0]["calibration"]["peak_gb"] < 4
    if scale == "full":
        assert all(found["graphs"]["ours"][visible]["cosine"] >= 0.995 for found in encoders for visible in JUDGED)
        probes = [result["trained"]["graphs"]["ours"][visible]["probe_against_float32"] for visible in JUDGED]
        assert statistics.fmean(probe["difference"] for probe in probes) >= -0.003
        assert all(found["speed"]["8 bits and 25 % over float32 and all"] > 1 for found in result["wide"])
        write_result("quantized", result)


def test_a_paired_interval_is_that_of_its_definition():
    import numpy as np

    a = np.array([True] * 60 + [False] * 40)
    b = np.array([True] * 55 + [False] * 45)  # five more right, none wrong instead
    found = paired(a, b)
    assert found["difference"] == pytest.approx(0.05)
    low, high = found["interval"]
    assert high - low == pytest.approx(2 * 1.96 * np.sqrt(0.05 * 0.95 / 99), rel=1e-3)
