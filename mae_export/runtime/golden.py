"""The golden check: a model must still give, on this machine, the first values that were stored when it was made."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from mae_export.errors import VerificationError
from mae_export.manifest import Golden
from mae_export.runtime.compare import Check
from mae_export.runtime.probes import GOLDEN_RECIPE, golden_feeds
from mae_export.runtime.session import Session
from mae_export.runtime.thresholds import limits_of

STORED_VALUES = 8  # of each output


def golden_of(outputs: Mapping[str, npt.NDArray[Any]]) -> Golden:
    """What a manifest stores of the outputs for the golden feeds."""
    first = {name: tuple(float(v) for v in array.reshape(-1)[:STORED_VALUES]) for name, array in outputs.items()}
    return Golden(recipe=GOLDEN_RECIPE, values=first)


def check_golden(session: Session) -> Check | None:
    """Run the manifest's golden image and compare; does nothing when the manifest has none.

    A value may differ by `limit * max(1, |stored value|)`, with the limit of `thresholds.py`.

    Returns:
        The output with the largest error, or None without golden values.

    Raises:
        VerificationError: when an output differs or is not finite.
    """
    golden = session.manifest.golden
    if golden is None:
        return None
    found = session.run(golden_feeds(session.manifest), list(golden.values))
    limit = limits_of(session.manifest.precision).golden
    checks = []
    for name, values in golden.values.items():
        expected = np.asarray(values, dtype=np.float64)
        first = np.asarray(found[name], dtype=np.float64).ravel()[: expected.size]
        if first.shape != expected.shape:
            raise VerificationError(
                f"output {name!r} gives {first.size} values for the golden image; expected at least {expected.size}. "
                "The file does not match its manifest: export it again"
            )
        errors = np.abs(first - expected) / np.maximum(1.0, np.abs(expected))
        wrong = ~(errors <= limit)  # NaN is wrong too
        if wrong.any():
            at = int(np.argmax(wrong))
            raise VerificationError(
                f"{session.description} gives {first[at]:.6g} for value {at} of output {name!r} on the golden image; "
                f"expected {expected[at]:.6g} within {limit:g}. Do not use features from it: try another provider or "
                "version, or export the model again"
            )
        checks.append(Check(name="golden image", output=name, error=float(errors.max()), limit=limit))
    return max(checks, key=lambda check: check.error, default=None)
