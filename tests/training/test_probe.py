import numpy as np
import pytest
from sklearn.datasets import load_digits, load_iris

from mae_export.errors import InputError
from mae_export.training.probe import probe_accuracy, wilson_interval


def test_published_interval() -> None:
    # Newcombe, Statistics in Medicine 17 (1998), table I, method 3: 81 of 263, 15 of 148, 0 of 20
    assert wilson_interval(81, 263) == pytest.approx((0.2553, 0.3662), abs=5e-5)
    assert wilson_interval(15, 148) == pytest.approx((0.0624, 0.1605), abs=5e-5)
    assert wilson_interval(0, 20) == pytest.approx((0, 0.1611), abs=5e-5)


def test_raw_digits() -> None:
    digits = load_digits()
    probe = probe_accuracy(digits.data[:600], digits.target[:600])
    assert 0.92 < probe.accuracy < 0.99
    assert probe.correct.shape == (600,)
    assert probe.correct.dtype == np.bool_
    assert probe.accuracy == probe.correct.mean()
    assert probe.interval[0] < probe.accuracy < probe.interval[1]


def test_noise_is_at_chance() -> None:
    generator = np.random.default_rng(0)
    probe = probe_accuracy(generator.normal(size=(300, 8)), np.arange(300) % 3)
    assert abs(probe.accuracy - 1 / 3) < 4 * np.sqrt(2 / 9 / 300)


def test_the_scale_of_a_feature_does_not_matter() -> None:
    iris = load_iris()
    scaled = iris.data.astype(np.float32) * np.array([1, 1e4, 1e-4, 1], np.float32)
    np.testing.assert_array_equal(
        probe_accuracy(scaled, iris.target).correct, probe_accuracy(iris.data, iris.target).correct
    )


def test_bad_input() -> None:
    features, labels = np.zeros((12, 2)), np.arange(12) % 2
    with pytest.raises(InputError, match=r"features are \[12, 2\] and labels \[11\]; expected \[n, D\] and \[n\]"):
        probe_accuracy(features, labels[:11])
    with pytest.raises(InputError, match="a feature is not finite"):
        probe_accuracy(np.where(np.arange(24).reshape(12, 2) == 3, np.nan, 0), labels)
    with pytest.raises(InputError, match="7 folds of 2 classes, the smallest with 6 samples"):
        probe_accuracy(features, labels, folds=7)
    with pytest.raises(InputError, match="5 folds of 1 classes"):
        probe_accuracy(features, np.zeros(12, int))
    with pytest.raises(InputError, match="5 folds of 0 classes"):
        probe_accuracy(np.zeros((0, 2)), np.zeros(0, int))
