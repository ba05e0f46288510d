"""Mixed precision within a budget: which parts stay in float32 so that features keep what was asked, at least work.

Parts are given up in the order of what they lose for the work they save; the shortest such list that holds the budget
is found by bisection. Then each part of it, the one with most work first, gets 8 bits back if the budget still holds.
Every combination that decides is measured, and so is the one that is returned: losses of parts do not simply add up.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from mae_export.calibration.payoff import Payoff
from mae_export.calibration.sensitivity import Fidelity, Part, Sensitivity, Trial, measure, payoffs, prepare
from mae_export.calibration.table import Table
from mae_export.calibration.wanted import QuantizeOptions
from mae_export.errors import UsageError, VerificationError
from mae_export.runtime.metrics import ENOUGH_IMAGES

SECOND_TRIES = 8  # parts that may get 8 bits back; each costs one measurement


@dataclass(frozen=True, kw_only=True)
class Budget:
    """What 8 bits must keep of the float32 graph's features, on held-out images.

    Attributes:
        cosine: smallest mean cosine, after subtracting the mean over images.
        neighbours: smallest mean share of the 10 nearest images that stay the same; 0: not asked.

    Raises:
        UsageError: when a number is out of range, or nothing is asked.
    """

    cosine: float = 0.0
    neighbours: float = 0.0

    def __post_init__(self) -> None:
        if not (0 <= self.cosine < 1 and 0 <= self.neighbours < 1 and max(self.cosine, self.neighbours) > 0):
            raise UsageError(
                f"the budget is cosine={self.cosine:g},knn={self.neighbours:g}; expected numbers below 1, one of them "
                "above 0, such as cosine=0.995,knn=0.98"
            )

    @classmethod
    def parse(cls, text: str) -> Budget:
        """Read `cosine=0.995,knn=0.98`, or either of the two.

        Raises:
            UsageError: when the text is not that.
        """
        found: dict[str, float] = {}
        for item in text.split(","):
            name, _, number = (part.strip() for part in item.partition("="))
            try:
                value = float(number)
            except ValueError:
                value = -1.0
            if name not in ("cosine", "knn") or name in found or not 0 <= value < 1:
                raise UsageError(
                    f"--budget {text!r} is no budget: expected cosine or knn, each once and at least 0 and under 1, "
                    "such as cosine=0.995,knn=0.98"
                )
            found[name] = value
        return cls(cosine=found.get("cosine", 0.0), neighbours=found.get("knn", 0.0))

    def holds(self, fidelity: Fidelity) -> bool:
        """Whether features agree as well as was asked."""
        return fidelity.cosine >= self.cosine and (fidelity.neighbours or 0.0) >= self.neighbours


@dataclass(frozen=True, kw_only=True)
class Plan:
    """A combination that was measured to hold its budget.

    Attributes:
        budget: what was asked.
        keep: modules that stay in float32, for `QuantizeOptions.keep`.
        fidelity: measured with exactly these kept.
        share: of the multiply-adds that run in 8 bits.
        measured: combinations that were tried.
        payoff: what it can gain on a GPU, for each of `BATCHES`.
    """

    budget: Budget
    keep: tuple[str, ...]
    fidelity: Fidelity
    share: float
    measured: int
    payoff: tuple[Payoff, ...]


def plan(
    trial: Trial,
    sensitivity: Sensitivity,
    budget: Budget,
    *,
    progress: Callable[[str, int, int], object] | None = None,
) -> Plan:
    """Find the parts that stay in float32.

    Args:
        trial: that the sensitivity was measured with.
        sensitivity: of its parts.
        budget: what to keep.
        progress: told the phase, how many combinations were measured, and how many may be.

    Raises:
        UsageError: when neighbours are asked of too few images.
        VerificationError: when no part may run in 8 bits.
    """
    if budget.neighbours and sensitivity.images < ENOUGH_IMAGES:
        raise UsageError(
            f"{sensitivity.images} held-out images are too few to ask for neighbours; expected {ENOUGH_IMAGES} or "
            "more: give more images, or leave knn out of the budget"
        )
    limit = len(sensitivity.losses).bit_length() + SECOND_TRIES
    search = _Search(trial=trial, budget=budget, limit=limit, tell=progress or (lambda *_: None))
    search.known[()] = sensitivity.everything
    ordered = [
        loss.part
        for loss in sorted(
            sensitivity.losses, key=lambda loss: (1 - loss.fidelity.cosine) / max(loss.part.share, 1e-9), reverse=True
        )
    ]
    kept = search.give_back(search.shortest(ordered))
    keep = tuple(name for part in kept for name in part.modules)
    payoff = payoffs(trial, sensitivity.products, keep)
    return Plan(
        budget=budget,
        keep=keep,
        fidelity=search.judge(kept),
        share=payoff[0].share,
        measured=len(search.known) - 1,
        payoff=payoff,
    )


def plan_for(
    source: Path,
    table: Path,
    images: Sequence[str | Path],
    *,
    options: QuantizeOptions,
    budget: Budget,
    progress: Callable[[str, int, int], object] | None = None,
) -> Plan:
    """Measure a graph's sensitivity on images and plan within a budget; see `prepare`, `measure` and `plan`.

    Raises:
        UsageError, InputError, GraphError, VerificationError: as these do.
    """
    with tempfile.TemporaryDirectory(prefix="mae-export-") as folder:
        trial = prepare(source, Table.read(table), images, options=options, folder=Path(folder))
        return plan(trial, measure(trial, progress=progress), budget, progress=progress)


@dataclass
class _Search:
    """Combinations that were measured, so that none is measured twice."""

    trial: Trial
    budget: Budget
    limit: int
    tell: Callable[[str, int, int], object]
    known: dict[tuple[str, ...], Fidelity] = field(default_factory=dict)

    def judge(self, kept: Sequence[Part]) -> Fidelity:
        """With these in float32."""
        key = tuple(sorted(name for part in kept for name in part.modules))
        if key not in self.known:
            self.tell(f"{len(kept)} parts in float32", min(len(self.known), self.limit), self.limit)
            self.known[key] = self.trial.judge(kept)
        return self.known[key]

    def shortest(self, ordered: list[Part]) -> list[Part]:
        """The shortest beginning of a list whose parts have to stay in float32."""
        if self.budget.holds(self.judge([])):
            return []
        low, high = 1, len(ordered)  # all of them would hold: nothing is quantized then
        while low < high:
            middle = (low + high) // 2
            if self.budget.holds(self.judge(ordered[:middle])):
                high = middle
            else:
                low = middle + 1
        if low == len(ordered):
            raise VerificationError(
                f"no part of {self.trial.source.name} can run in 8 bits within cosine={self.budget.cosine:g},"
                f"knn={self.budget.neighbours:g}: even {ordered[-1].block} {ordered[-1].kind} alone exceeds it. "
                "Lower the budget, calibrate on more images, or stay with half precision"
            )
        return ordered[:low]

    def give_back(self, kept: list[Part]) -> list[Part]:
        """Without the parts that can have 8 bits after all."""
        for part in sorted(kept, key=lambda part: part.share, reverse=True)[:SECOND_TRIES]:
            rest = [other for other in kept if other is not part]
            if self.budget.holds(self.judge(rest)):
                kept = rest
        return kept
