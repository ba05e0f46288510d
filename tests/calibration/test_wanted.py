"""What may be asked of a quantization."""

import pytest

from mae_export.calibration.wanted import QuantizeOptions
from mae_export.errors import UsageError


def test_defaults_are_the_safe_ones():
    options = QuantizeOptions(precision="int8")
    assert (options.preset, options.smooth, options.correct_bias, options.lower) == ("linear", True, True, False)


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"precision": "int4"}, "precision 'int4' is not known; expected int8 or fp8"),
        ({"preset": "some"}, "preset 'some' is not known; expected linear or full"),
        ({"precision": "fp8", "lower": True}, "the form for CPUs exists of int8 linear, not of fp8 linear"),
        ({"preset": "full", "lower": True}, "the form for CPUs exists of int8 linear, not of int8 full"),
    ],
)
def test_impossible_wishes(changes, text):
    with pytest.raises(UsageError, match=text):
        QuantizeOptions(**({"precision": "int8"} | changes))
