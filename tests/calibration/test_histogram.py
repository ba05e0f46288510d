"""Histograms against direct counts, and each rule against numpy, published optima or ONNX Runtime's calibrators."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mae_export.calibration.histogram import BINS, STEPS, Histogram, least_error, percentile_of, threshold
from mae_export.errors import InputError

NORMAL = np.random.default_rng(0).normal(0, 1.0, 400_000).astype(np.float32)
LAPLACE = np.random.default_rng(1).laplace(0, 1.0, 400_000).astype(np.float32)


def counted(*parts):
    histogram = Histogram()
    for part in parts:
        histogram.add(part)
    return histogram


def chosen(values, method, percentile=99.99):
    return threshold(counted(values), float(np.abs(values).max()), method=method, percentile=percentile)


def test_counts_are_those_of_numpy():
    histogram = counted(NORMAL)
    expected, _ = np.histogram(np.abs(NORMAL), bins=BINS, range=(0, BINS * histogram.width))
    assert BINS * histogram.width == 8.0  # the power of two above the largest value, 4.8
    np.testing.assert_array_equal(histogram.counts, expected)


@given(st.lists(st.floats(-(2.0**100), 2.0**100, width=32), min_size=1, max_size=40), st.randoms(use_true_random=False))
def test_neither_order_nor_batches_change_the_counts(values, random):
    whole = counted(np.array(values, np.float32))
    random.shuffle(values)
    cut = random.randrange(len(values) + 1)
    parts = counted(np.array(values[:cut], np.float32), np.array(values[cut:], np.float32))
    assert parts.width == whole.width
    np.testing.assert_array_equal(parts.counts, whole.counts)
    assert whole.counts.sum() == len(values)


def test_a_large_value_after_small_ones_keeps_them():
    histogram = counted(np.full(10, 0.5, np.float32), np.array([1000.0], np.float32))
    assert BINS * histogram.width == 1024
    assert histogram.counts[4] == 10  # 0.5 / (1024 / 8192)
    assert histogram.counts[8000] == 1


@pytest.mark.parametrize("values", [[], [0.0, 0.0], [1e-42, 0.0]])
def test_nothing_zeros_and_the_smallest_numbers_can_be_counted(values):
    assert counted(np.array(values, np.float32)).counts[0] == len(values)


def test_minmax_represents_all_that_was_seen():
    assert chosen(NORMAL, "minmax") == np.abs(NORMAL).max()


@pytest.mark.parametrize("percentile", [90.0, 99.0, 99.99])
@pytest.mark.parametrize("values", [NORMAL, LAPLACE])
def test_percentiles_are_those_of_numpy(values, percentile):
    found = chosen(values, "percentile", percentile)
    assert found == pytest.approx(np.percentile(np.abs(values), percentile), rel=2e-3)


def test_the_whole_is_the_largest_value():
    assert chosen(NORMAL, "percentile", 100) == pytest.approx(np.abs(NORMAL).max(), abs=8 / BINS)
    assert percentile_of(np.array([0, 4]), 50) == 1.5  # half of the values of the second bin


def test_percentiles_are_those_of_onnx_runtime():
    from onnxruntime.quantization.calibrate import HistogramCollector

    collector = HistogramCollector(
        method="percentile", symmetric=True, num_bins=2048, num_quantized_bins=128, percentile=99.9, scenario="same"
    )
    collector.collect({"x": [LAPLACE]})
    low, high = map(float, collector.compute_collection_result()["x"][:2])
    assert chosen(LAPLACE, "percentile", 99.9) == pytest.approx(high, rel=2e-2)
    assert low == -high


@pytest.mark.parametrize(("values", "optimum"), [(NORMAL, 3.92), (LAPLACE, 9.89)])
def test_least_error_is_the_published_optimum_for_8_bits(values, optimum):
    # Banner, Nahshan and Soudry, "Post training 4-bit quantization of convolutional networks", 2019: in units of the
    # standard deviation and of the Laplace scale. A sample of this size hardly reaches the tail.
    assert chosen(values, "mse") == pytest.approx(optimum, rel=0.04)


def test_least_error_is_the_least_of_all_thresholds():
    def error(limit):
        step = limit / STEPS
        return float(np.mean((np.clip(np.rint(LAPLACE / step), -STEPS, STEPS) * step - LAPLACE) ** 2))

    limits = np.linspace(2, float(np.abs(LAPLACE).max()), 60)
    assert error(chosen(LAPLACE, "mse")) <= 1.01 * min(map(error, limits))


def test_what_uses_few_values_is_represented_in_full():
    values = np.array([0.0, 0.5, 1.0] * 100, np.float32)
    assert chosen(values, "mse") == 1.0
    assert least_error(np.array([0, 0, 5] + [0] * (BINS - 3))) == pytest.approx(2.5, abs=0.5)


def divergence(values, limit):
    """The rule in plain loops, on 2048 bins."""
    from scipy.stats import entropy

    counts, _ = np.histogram(np.abs(values), bins=2048, range=(0, 2 ** np.ceil(np.log2(np.abs(values).max()))))
    p = counts[:limit].astype(float)
    p[-1] += counts[limit:].sum()
    q = np.zeros(limit)
    for level in np.array_split(np.arange(limit), 128):
        full = [at for at in level if counts[at]]
        for at in full:
            q[at] = sum(counts[other] for other in full) / len(full)
    return entropy(p[p > 0], q[p > 0])


def test_entropy_chooses_the_least_divergence():
    found = chosen(LAPLACE[:20_000], "entropy")
    top = 2 ** np.ceil(np.log2(np.abs(LAPLACE[:20_000]).max()))
    best = divergence(LAPLACE[:20_000], round(found / top * 2048))
    for limit in (256, 512, 768, 1024, 1280):
        assert best <= 1.02 * divergence(LAPLACE[:20_000], limit)


def test_entropy_is_near_that_of_onnx_runtime():
    from onnxruntime.quantization.calibrate import HistogramCollector

    collector = HistogramCollector(
        method="entropy", symmetric=True, num_bins=2048, num_quantized_bins=255, percentile=99.9, scenario="same"
    )
    collector.collect({"x": [NORMAL]})
    _, high = map(float, collector.compute_collection_result()["x"][:2])
    assert chosen(NORMAL, "entropy") == pytest.approx(high, rel=0.25)


@pytest.mark.parametrize("method", ["percentile", "entropy", "mse"])
def test_an_outlier_is_clipped_and_the_range_never_exceeds_what_was_seen(method):
    outlier = np.append(NORMAL, np.float32(20))
    assert 3 < chosen(outlier, method) < 8
    assert chosen(np.full(9, 0.7, np.float32), method) <= np.float32(0.7)


@pytest.mark.parametrize("method", ["minmax", "mse"])
def test_zeros_have_no_range(method):
    with pytest.raises(InputError, match="all values are zero"):
        chosen(np.zeros(5, np.float32), method)
