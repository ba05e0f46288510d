import pytest

from mae_export.errors import UsageError
from mae_export.export.options import OPSETS, ConvertOptions, TraceOptions


def test_defaults_are_the_documented_graph():
    options = TraceOptions()
    assert (options.mask, options.ragged, options.features, options.opset) == ("none", False, ("pooled",), 20)
    assert options.opset in OPSETS


@pytest.mark.parametrize(
    ("values", "text"),
    [
        ({"mask": "half"}, "mask mode 'half' is not known; expected none, keep, patches, mask-token"),
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


@pytest.mark.parametrize(
    ("values", "text"),
    [
        ({"precision": "fp8"}, "precision 'fp8' is not known; expected fp16 or bf16"),
        ({"precision": "fp16", "headroom": 0.5}, "headroom 0.5 must be a number of at least 1"),
        ({"precision": "fp16", "headroom": float("nan")}, "headroom nan must be"),
        ({"precision": "bf16", "headroom": float("inf")}, "headroom inf must be"),
    ],
)
def test_impossible_precisions_are_refused(values, text):
    with pytest.raises(UsageError, match=text):
        ConvertOptions(**values)
