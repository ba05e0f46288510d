"""Plans: the bisection against trying everything on closed forms, and on a real graph the budget it was given."""

import dataclasses
import itertools
from types import SimpleNamespace

import pytest

from mae_export.calibration.budget import Budget, plan, plan_for
from mae_export.calibration.observe import observe
from mae_export.calibration.options import ObserveOptions
from mae_export.calibration.sensitivity import Fidelity, Loss, Part, Sensitivity, measure, prepare
from mae_export.calibration.wanted import QuantizeOptions
from mae_export.errors import UsageError, VerificationError


def part(index, share):
    return Part(block=f"blocks.{index}", kind="fc1", modules=(f"blocks.{index}.mlp.fc1",), share=share)


class AddingTrial:
    """Losses that add up, as those of independent parts do."""

    source = SimpleNamespace(name="vit.onnx")

    def __init__(self, losses, shares, neighbours=None):
        self.losses = dict(enumerate(losses))
        self.parts = [part(index, share) for index, share in enumerate(shares)]
        self.neighbours = neighbours
        self.judged = []

    def judge(self, kept):
        names = {other.block for other in kept}
        self.judged.append(names)
        lost = sum(loss for index, loss in self.losses.items() if f"blocks.{index}" not in names)
        return Fidelity(cosine=1 - lost, first_percentile=1 - 2 * lost, neighbours=self.neighbours)

    def placed(self, keep):
        return [SimpleNamespace(node=other.block) for other in self.parts if other.modules[0] not in keep]

    def sensitivity(self, images=64):
        every = [
            Loss(part=one, fidelity=self.judge([other for other in self.parts if other is not one]))
            for one in self.parts
        ]
        facts = dict.fromkeys(("graph", "graph_name", "precision", "preset", "feature", "visible", "grouped"), "")
        products = [
            SimpleNamespace(
                node=one.block, work=one.share, rows=1, inner=1, columns=1, seconds=lambda batch, quantized: 1.0
            )
            for one in self.parts
        ]
        return Sensitivity(
            **facts, images=images, losses=tuple(every), everything=self.judge([]), payoff=(), products=tuple(products)
        )


LOSSES = (1e-5, 4e-3, 2e-4, 3e-3, 1e-4, 5e-5, 2e-3)
SHARES = (0.1, 0.2, 0.1, 0.05, 0.3, 0.15, 0.1)


@pytest.mark.parametrize("cosine", [0.98, 0.995, 0.998, 0.9995, 0.99995])
def test_the_budget_holds_at_nearly_the_least_work(cosine):
    trial = AddingTrial(LOSSES, SHARES)
    found = plan(trial, trial.sensitivity(), Budget(cosine=cosine))
    assert found.fidelity.cosine >= cosine
    best = max(
        1 - sum(SHARES[index] for index in kept)
        for size in range(7)
        for kept in itertools.combinations(range(7), size)
        if 1 - sum(loss for index, loss in enumerate(LOSSES) if index not in kept) >= cosine
    )
    assert found.share >= best - 0.11
    lost = sum(loss for index, loss in enumerate(LOSSES) if f"blocks.{index}.mlp.fc1" not in found.keep)
    assert found.fidelity.cosine == pytest.approx(1 - lost)


def test_no_combination_is_measured_twice_and_few_are():
    trial = AddingTrial(LOSSES, SHARES)
    sensitivity = trial.sensitivity()
    trial.judged.clear()
    found = plan(trial, sensitivity, Budget(cosine=0.9995))
    assert len({tuple(sorted(names)) for names in trial.judged}) == len(trial.judged) == found.measured
    assert found.measured <= 3 + len(found.keep) + 1


def test_nothing_is_kept_when_everything_holds():
    trial = AddingTrial(LOSSES, SHARES)
    found = plan(trial, trial.sensitivity(), Budget(cosine=0.9))
    assert (found.keep, found.measured, found.share) == ((), 0, pytest.approx(1.0))


def test_an_impossible_budget_is_refused_with_the_best_part():
    trial = AddingTrial((0.1, 0.2), (0.5, 0.5))
    with pytest.raises(
        VerificationError, match=r"no part of vit.onnx can run in 8 bits within cosine=0.95,knn=0: even"
    ):
        plan(trial, trial.sensitivity(), Budget(cosine=0.95))


def test_neighbours_are_part_of_the_budget():
    trial = AddingTrial(LOSSES, SHARES, neighbours=0.9)
    with pytest.raises(VerificationError, match="no part"):
        plan(trial, trial.sensitivity(), Budget(neighbours=0.95))
    assert plan(trial, trial.sensitivity(), Budget(neighbours=0.85)).keep == ()
    with pytest.raises(UsageError, match="20 held-out images are too few to ask for neighbours; expected 30"):
        plan(trial, trial.sensitivity(images=20), Budget(neighbours=0.5))


def test_the_plan_of_a_real_graph_holds_when_it_is_followed(graph, images, tmp_path):
    table = observe(graph, [images], tmp_path / "t.json", options=ObserveOptions(samples=8)).table
    trial = prepare(graph, table, [images], options=QuantizeOptions(precision="int8"), folder=tmp_path)
    sensitivity = measure(trial)
    asked = Budget(cosine=(sensitivity.everything.cosine + 3) / 4)  # a quarter of the loss with everything
    told = []
    found = plan(trial, sensitivity, asked, progress=lambda *step: told.append(step))
    assert found.keep
    assert told
    options = dataclasses.replace(trial.options, keep=found.keep)
    again = prepare(graph, table, [images], options=options, folder=tmp_path).judge([])
    assert again == found.fidelity
    assert plan_for(graph, tmp_path / "t.json", [images], options=trial.options, budget=asked) == found
    assert again.cosine >= asked.cosine > sensitivity.everything.cosine
    assert 0 < found.share < sensitivity.payoff[0].share
    assert all(payoff.reason for payoff in found.payoff)  # an encoder of width 48 cannot gain


@pytest.mark.parametrize(
    ("text", "budget"),
    [
        ("cosine=0.995,knn=0.98", Budget(cosine=0.995, neighbours=0.98)),
        (" knn = 0.9 ", Budget(neighbours=0.9)),
        ("cosine=.99", Budget(cosine=0.99)),
    ],
)
def test_budgets_are_read(text, budget):
    assert Budget.parse(text) == budget


@pytest.mark.parametrize(
    "text", ["", "0.99", "cosine=1", "cosine=x", "cosin=0.9", "cosine=0.9,cosine=0.8", "cosine=-1", "knn=nan", "knn="]
)
def test_what_is_no_budget_is_refused(text):
    with pytest.raises(UsageError, match="is no budget: expected cosine or knn"):
        Budget.parse(text)


def test_an_empty_budget_is_refused():
    with pytest.raises(UsageError, match="one of them above 0"):
        Budget.parse("cosine=0,knn=0")
