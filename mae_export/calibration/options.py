"""How graphs are observed: plain values with their defaults, free of onnx so that the command line reads them too."""

from __future__ import annotations

from dataclasses import dataclass

from mae_export.calibration.table import Method
from mae_export.errors import UsageError

JUDGED_IMAGES = 64  # on which sensitivity is measured, unless asked otherwise
MOST_PARTS = 64  # of an encoder that are measured one by one; each costs a graph and a pass over the images
LEAST = 8  # different images; fewer say more about the images than about the encoder


@dataclass(frozen=True, kw_only=True)
class ObserveOptions:
    """How to observe.

    Attributes:
        method: how ranges are chosen; see `mae_export.calibration.histogram`.
        percentile: of |x| to represent, for the method of that name.
        samples: images to use, at least 8.
        visible: plan of visible patches; see `mae_export.calibration.visibility`.
        seed: of the choice of images.
        batch: most images per run.
        threads: that decode images; 0 chooses.
        force: replace an existing table.

    Raises:
        UsageError: when a value is out of range.
    """

    method: Method = "mse"
    percentile: float = 99.99
    samples: int = 512
    visible: str = "all"
    seed: int = 0
    batch: int = 8
    threads: int = 0
    force: bool = False

    def __post_init__(self) -> None:
        if self.method not in ("minmax", "percentile", "entropy", "mse"):
            raise UsageError(f"the method is {self.method!r}; expected minmax, percentile, entropy or mse")
        if not 50 < self.percentile <= 100:
            raise UsageError(f"the percentile is {self.percentile}; expected more than 50 and at most 100, as 99.99")
        if self.samples < LEAST:
            raise UsageError(f"{self.samples} samples are too few; expected at least {LEAST}. Some hundred are usual")
        if self.batch < 1 or self.threads < 0 or self.seed < 0:
            raise UsageError(
                f"batch is {self.batch}, threads {self.threads}, seed {self.seed}; expected batch >= 1, others >= 0"
            )
