"""How far a model may be from its reference, for each precision: the one table, with its reasons.

Whoever changes a number changes what the project calls correct.

- `fp32`: two runtimes differ in the order of sums only. Over 12 and 32 blocks that is at most 1.4e-6 (error), 3e-11
  (1 - cosine) and 110 dB after subtracting the mean; 102 dB with activations of 300 in a few channels. 97 dB is what
  shows an eps of 1e-5 instead of 1e-6, the faintest of the faults in `benchmarks/faults.py`.
- `fp16`: cosine 0.9999, and 0.9995 at the first percentile, is the usual bar for half-precision embeddings; 37 dB is
  the same as 0.9999 for the set as a whole. Not yet measured on a GPU.
- `bf16`: 3 bits fewer than fp16, so 8 times the noise and 64 times the 1 - cosine; the limits allow about a third.
- `int8`: 0.995, and 0.98 at the first percentile, with 20 dB. Products with weights leave a small trained encoder
  0.9998 and 39 dB at the median, random ViT-B, with and without channels 60 times the rest, 0.999 and 28 dB;
  with attention as well 0.998 and 26 dB. The rest is room for real outliers.
- `fp8`: three bits of mantissa leave every product 28 dB, whatever the scale: random encoders keep 0.994 and 20 dB at
  the median, the trained one 0.9997 and 31 dB.

The minimum is a limit of its own because one token in a hundred may hide below a first percentile. Errors of single
values are bounded loosely in the lower precisions: their use is to refuse what is not finite. What a model owes itself
(`consistency`) is tighter: another batch may only change the order of sums. Golden values are compared on other
machines, whose kernels round differently and where Q/DQ turns a last-bit difference into a whole step.

A conversion to half precision is judged more strictly than any machine that runs the result (`CONVERSION`): both graphs
run in one runtime, where nothing but rounding differs. In 8-bit graphs that is enough to move stored integers by one,
again in every block, until both differ by about as much as either from float32.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Limits:
    """What one precision must keep.

    Attributes:
        error: largest max |a - b| / max(1, max |b|).
        minimum: smallest cosine of any vector, raw and after subtracting the mean over images.
        first_percentile: smallest first percentile of those cosines.
        median: smallest median of those cosines.
        sqnr: smallest signal over noise in dB, centred.
        neighbours: smallest share of the 10 nearest images that stay the same.
        consistency: like `error`, between runs of the same model.
        golden: largest |a - b| / max(1, |b|) of the golden values on any machine.
    """

    error: float
    minimum: float
    first_percentile: float
    median: float
    sqnr: float
    neighbours: float
    consistency: float
    golden: float


LIMITS = {
    "fp32": Limits(
        error=1e-4, minimum=1 - 1e-6, first_percentile=1 - 1e-7, median=1 - 1e-8, sqnr=97.0, neighbours=0.99,
        consistency=1e-5, golden=1e-3,
    ),
    "fp16": Limits(
        error=5e-2, minimum=0.999, first_percentile=0.9995, median=0.9999, sqnr=37.0, neighbours=0.95,
        consistency=1e-2, golden=2e-2,
    ),
    "bf16": Limits(
        error=2e-1, minimum=0.99, first_percentile=0.995, median=0.998, sqnr=24.0, neighbours=0.9,
        consistency=5e-2, golden=1e-1,
    ),
    "int8": Limits(
        error=5e-1, minimum=0.95, first_percentile=0.98, median=0.995, sqnr=20.0, neighbours=0.9,
        consistency=5e-2, golden=1e-1,
    ),
    "fp8": Limits(
        error=5e-1, minimum=0.95, first_percentile=0.97, median=0.99, sqnr=17.0, neighbours=0.85,
        consistency=5e-2, golden=1e-1,
    ),
}  # fmt: skip

# Smallest cosine of any vector, after subtracting the mean over images.
CONVERSION = {"fp16": 0.9999, "bf16": 0.999, "int8": 0.98, "fp8": 0.97}


def limits_of(precision: str) -> Limits:
    """The limits of a manifest's precision; what has no line of its own is some 8-bit kind."""
    return LIMITS.get(precision, LIMITS["int8"])
