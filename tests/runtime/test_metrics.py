"""Metrics against closed forms."""

import numpy as np
import pytest

from mae_export.errors import InputError
from mae_export.runtime.metrics import agreement, feature_vectors, neighbour_overlap, relative_error


@pytest.fixture
def draws():
    return np.random.default_rng(0)


@pytest.mark.parametrize(
    ("found", "expected", "error"),
    [
        ([1.0, 2.0], [1.0, 2.0], 0.0),
        ([1.0, 2.5], [1.0, 2.0], 0.25),  # relative to max|expected| = 2
        ([0.1, 0.2], [0.1, 0.1], 0.1),  # below 1 the error is absolute
        ([[1.0]], [1.0], np.inf),
        ([np.nan], [1.0], np.inf),
        ([1.0], [np.nan], np.inf),
        ([np.inf], [np.inf], np.inf),
        ([], [], 0.0),
    ],
)
def test_relative_error(found, expected, error):
    assert relative_error(np.array(found), np.array(expected)) == pytest.approx(error)


def test_equal_features_agree_wholly(draws):
    values = draws.normal(size=(40, 8)).astype(np.float32)
    result = agreement(values, values)
    assert (result.max_error, result.sqnr, result.neighbours, result.vectors) == (0.0, np.inf, 1.0, 40)
    assert result.centred_cosine.minimum == pytest.approx(1.0)


def test_centring_shows_what_a_common_vector_hides(draws):
    """Features that share one large vector and differ at random: raw cosine near 1, centred cosine near 0."""
    common = 1000 * draws.normal(size=64)
    a, b = (common + draws.normal(size=(50, 64)) for _ in range(2))
    result = agreement(a, b)
    assert result.cosine.minimum > 0.99999
    assert abs(result.centred_cosine.median) < 0.3
    assert result.neighbours is not None
    assert result.neighbours < 0.5


def test_cosine_of_a_known_angle():
    """Vectors turned by 60 degrees have cosine 1/2; pairs of opposite vectors are centred already."""
    turn = np.array([[0.5, -np.sqrt(0.75)], [np.sqrt(0.75), 0.5]])
    vectors = np.array([[3.0, 1.0], [-3.0, -1.0], [0.5, 2.0], [-0.5, -2.0]])
    result = agreement(vectors @ turn.T, vectors)
    for quantiles in (result.cosine, result.centred_cosine):
        assert quantiles.minimum == pytest.approx(0.5)
        assert quantiles.median == pytest.approx(0.5)


def test_sqnr_of_known_noise(draws):
    signal = draws.normal(size=(2000, 16))
    noisy = signal + draws.normal(size=signal.shape) / 10  # power 1 / 100 of the signal's
    assert agreement(noisy, signal).sqnr == pytest.approx(20.0, abs=0.2)


def test_tokens_are_compared_one_by_one(draws):
    tokens = draws.normal(size=(5, 7, 8))
    turned = tokens.copy()
    turned[3, 2] = -turned[3, 2]
    result = agreement(turned, tokens)
    assert (result.vectors, result.worst_image, result.neighbours) == (35, 3, None)
    assert result.cosine.minimum == pytest.approx(-1.0)
    assert result.cosine.median == pytest.approx(1.0)


def test_what_is_not_finite_counts_as_opposite(draws):
    values = draws.normal(size=(4, 3))
    bad = values.copy()
    bad[1, 0] = np.nan
    result = agreement(bad, values)
    assert (result.max_error, result.sqnr, result.worst_image) == (np.inf, -np.inf, 1)
    assert result.cosine.minimum == -1.0


def test_zero_vectors():
    zeros = np.zeros((2, 3))
    assert agreement(zeros, zeros).cosine.minimum == 1.0
    assert agreement(np.array([[1.0, 0, 0], [0, 0, 0]]), zeros).cosine.minimum == 0.0


def test_neighbour_overlap_of_known_neighbours():
    angles = np.deg2rad([0, 1, 2, 90, 91, 92])
    circle = np.stack([np.cos(angles), np.sin(angles)], axis=1)
    assert neighbour_overlap(circle, circle, count=2) == 1.0
    swapped = circle[[3, 1, 2, 0, 4, 5]]  # rows 0 and 3 change places: each finds none of its neighbours
    # rows 1, 2 share one of two neighbours, as do rows 4, 5; rows 0 and 3 share none
    assert neighbour_overlap(swapped, circle, count=2) == pytest.approx((0 + 0.5 + 0.5) * 2 / 6)


@pytest.mark.parametrize("shape", [(3, 5), (3,), (0, 4)])
def test_shapes_that_cannot_be_compared(shape):
    with pytest.raises(InputError, match="cannot be compared; give equal shapes"):
        agreement(np.zeros(shape), np.zeros((3, 4) if shape == (3, 5) else shape))


def test_vectors_lie_along_the_last_axis():
    dense = np.arange(2 * 3 * 4 * 5).reshape(2, 3, 4, 5)
    np.testing.assert_array_equal(feature_vectors("dense", dense)[1, 2, 4], dense[1, :, 2, 4])
    for name in ("attention_1", "reconstruction"):
        np.testing.assert_array_equal(feature_vectors(name, dense)[1], dense[1].ravel())
    assert feature_vectors("patch_tokens", dense) is dense


def test_what_is_not_finite_is_nobodys_neighbour():
    found = np.random.default_rng(0).normal(size=(40, 4))
    expected = found.copy()
    found[3] = np.inf
    assert 0 < neighbour_overlap(found, expected) < 1
