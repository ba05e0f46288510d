"""How much features know: a logistic regression on frozen features, judged by cross-validation."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import StratifiedKFold, cross_val_predict
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from mae_export.errors import InputError

Z95 = 1.959963984540054  # two-sided 95 % point of the normal distribution
MAX_ITERATIONS = 5000


@dataclass(frozen=True, kw_only=True)
class Probe:
    """Result of a probe.

    Attributes:
        accuracy: share of samples whose class was predicted while they were held out.
        interval: 95 % confidence interval of the accuracy over samples (Wilson's).
        correct: bool [n], per sample, so that two probes of the same samples can be compared pair by pair.
    """

    accuracy: float
    interval: tuple[float, float]
    correct: npt.NDArray[np.bool_]


def probe_accuracy(
    features: npt.NDArray[np.floating], labels: npt.NDArray[np.integer], *, folds: int = 5, seed: int = 0
) -> Probe:
    """Predict each sample's class from its features by a model that was fitted without it.

    Features are standardised per fold, then classified by a multinomial logistic regression with unit L2 penalty.

    Args:
        features: float [n, D].
        labels: integers [n], a class each.
        folds: stratified parts of the data, each held out once.
        seed: of the assignment to folds; the same for two probes that are to be compared.

    Raises:
        InputError: when shapes disagree, a feature is not finite, there are fewer than two classes, or a class has
            fewer samples than there are folds.
    """
    _check(features, labels, folds)
    model = make_pipeline(StandardScaler(), LogisticRegression(max_iter=MAX_ITERATIONS))
    split = StratifiedKFold(folds, shuffle=True, random_state=seed)
    predicted = cross_val_predict(model, np.asarray(features, dtype=np.float64), labels, cv=split)
    correct = np.asarray(predicted == labels)
    return Probe(
        accuracy=float(correct.mean()), interval=wilson_interval(int(correct.sum()), correct.size), correct=correct
    )


def wilson_interval(successes: int, trials: int) -> tuple[float, float]:
    """95 % score interval (Wilson 1927) of a share of `trials` >= 1."""
    share, z2 = successes / trials, Z95**2 / trials
    centre = (share + z2 / 2) / (1 + z2)
    half = Z95 * math.sqrt(share * (1 - share) / trials + z2 / (4 * trials)) / (1 + z2)
    return max(0.0, centre - half), min(1.0, centre + half)


def _check(features: npt.NDArray[np.floating], labels: npt.NDArray[np.integer], folds: int) -> None:
    if features.ndim != 2 or labels.shape != features.shape[:1]:
        raise InputError(
            f"features are {list(features.shape)} and labels {list(labels.shape)}; expected [n, D] and [n]"
        )
    if not np.isfinite(features).all():
        raise InputError("a feature is not finite; extract them again from a graph that passes `mae-export verify`")
    classes, counts = np.unique(labels, return_counts=True)
    if folds < 2 or len(classes) < 2 or counts.min() < folds:
        raise InputError(
            f"{folds} folds of {len(classes)} classes, the smallest with {counts.min(initial=len(labels))} samples; "
            "expected at least 2 folds, 2 classes, and as many samples of each class as folds"
        )
