import pytest

from mae_export.errors import UsageError
from mae_export.export.options import OPSETS, TraceOptions


def test_defaults_are_the_documented_graph():
    options = TraceOptions()
    assert (options.mask, options.ragged, options.features, options.opset) == ("none", False, ("pooled",), 20)
    assert options.opset in OPSETS


@pytest.mark.parametrize(
    ("values", "text"),
    [
        ({"mask": "half"}, "mask mode 'half' is not known; expected none, keep or patches"),
        ({"ragged": True}, "--ragged needs a mask input"),
        ({"opset": 17}, "opset 17 is not supported; expected 18 to 22"),
        ({"opset": 999}, "opset 999 is not supported"),
        ({"features": ()}, r"features \(none\) must name each output once"),
        ({"features": ("pooled", "")}, "must name each output once"),
        ({"features": ("pooled", "pooled")}, "features pooled, pooled must name each output once"),
        ({"mask": "keep", "features": ("dense",)}, "'dense' needs every patch"),
    ],
)
def test_options_that_exclude_each_other_are_refused(values, text):
    with pytest.raises(UsageError, match=text):
        TraceOptions(**values)
