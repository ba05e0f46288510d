"""Options of observing: what cannot mean anything is refused before any work."""

import pytest

from mae_export.calibration.options import LEAST, ObserveOptions
from mae_export.errors import UsageError


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"method": "magic"}, "'magic'; expected minmax, percentile, entropy or mse"),
        ({"percentile": 50.0}, "more than 50 and at most 100"),
        ({"percentile": 100.1}, "the percentile is 100.1"),
        ({"percentile": float("nan")}, "the percentile is nan"),
        ({"samples": LEAST - 1}, f"7 samples are too few; expected at least {LEAST}"),
        ({"batch": 0}, "batch is 0"),
        ({"threads": -1}, "threads -1"),
        ({"seed": -1}, "seed -1"),
    ],
)
def test_what_cannot_be_meant_is_refused(change, message):
    with pytest.raises(UsageError, match=message):
        ObserveOptions(**change)


def test_limits_themselves_are_allowed():
    assert ObserveOptions(samples=LEAST, percentile=100.0, batch=1).method == "mse"
