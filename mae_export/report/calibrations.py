"""What calibration tells people and scripts: what was observed, on what, and at what cost."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mae_export.files import put_in_place, staging
from mae_export.report import console

if TYPE_CHECKING:
    from mae_export.calibration.budget import Plan
    from mae_export.calibration.observe import Observation
    from mae_export.calibration.payoff import Payoff
    from mae_export.calibration.sensitivity import Fidelity, Sensitivity

BESIDE = {
    True: "the graph beside the table",
    False: "the graph of that name beside the table is ANOTHER one",
    None: "no graph of that name beside the table",
}


def summary(path: Path, observation: Observation) -> dict[str, Any]:
    """An observation without its ranges, which are in the table, for scripts."""
    table = observation.table
    return {
        "path": path,
        "graph": table.graph_name,
        "graph_sha256": table.graph,
        "method": table.method,
        "visible": table.visible,
        "tensors": len(table.ranges),
        "samples": table.samples,
        "listed": observation.listed,
        "failures": observation.failures,
        "repeated": observation.repeated,
        "passes": observation.passes,
        "seconds": observation.seconds,
        "images_per_second": observation.images_per_second,
        "fetched_bytes": observation.fetched_bytes,
        "peak_bytes": observation.peak_bytes,
    }


def show_observation(path: Path, observation: Observation) -> None:
    """A table that was written."""
    table = observation.table
    method = f"percentile {table.percentile:g}" if table.method == "percentile" else table.method
    console.say(f"{path}: {len(table.ranges)} activations of {table.graph_name}, {method}, visible {table.visible}")
    console.say(f"  {table.samples} of {observation.listed} images used")
    for reason, count in sorted(observation.failures.items()):
        console.say(f"    passed over {count}: {reason}")
    if observation.repeated:
        console.say(f"    passed over {observation.repeated}: same pixels as another image")
    clipped = sum(entry.high < entry.reach for entry in table.ranges.values())
    console.say(f"  {clipped} activations are clipped below the largest value seen")
    passes = "" if observation.passes == 1 else f" in {observation.passes} passes"
    memory = "" if observation.peak_bytes is None else f", at most {observation.peak_bytes / 1e9:.2f} GB of memory"
    console.say(f"  {observation.images_per_second:,.1f} images/s{passes}{memory}")


def show_table(described: dict[str, Any]) -> None:
    """A calibration table as `report.inspection.inspect` describes it."""
    method = described["method"] + ("" if described["percentile"] is None else f" {described['percentile']:g}")
    console.say(f"{described['path']}: {described['tensors']} activations of {described['graph']}, {method}")
    console.say(f"  visible {described['visible']}; {described['samples']} images, drawn with seed {described['seed']}")
    console.say(f"  graph sha256 {described['graph_sha256']} ({BESIDE[described['graph_matches']]})")
    console.say(f"  {described['clipped']} activations are clipped below the largest value seen")
    console.say(f"  written by {', '.join(f'{name} {version}' for name, version in described['tools'].items())}")
    rows = [
        (name, f"{found['low']:.4g} to {found['high']:.4g}", f"{found['minimum']:.4g} to {found['maximum']:.4g}")
        for name, found in described["widest"].items()
    ]
    console.table(rows, header=("widest ranges", "represented", "seen"))


def findings(sensitivity: Sensitivity, plan: Plan | None) -> dict[str, Any]:
    """A sensitivity and the plan made from it, if any, for scripts."""
    return {"sensitivity": asdict(sensitivity), "plan": None if plan is None else asdict(plan)}


def write_sensitivity(
    path: Path, sensitivity: Sensitivity, plan: Plan | None, *, draw: Callable[[Sensitivity, Path], None]
) -> None:
    """Write the findings as JSON, and their picture, which `draw` makes, under the same name ending in .png."""
    with staging(path) as folder:
        staged = folder / path.name
        staged.write_text(json.dumps(findings(sensitivity, plan), indent=1) + "\n", encoding="utf-8")
        put_in_place(staged, path)
    draw(sensitivity, path.with_suffix(".png"))


def show_sensitivity(path: Path, sensitivity: Sensitivity, plan: Plan | None) -> None:
    """What each part loses in 8 bits, the worst first, and what to keep."""
    console.say(
        f"{path} and {path.with_suffix('.png').name}: {sensitivity.graph_name}, {sensitivity.precision} "
        f"{sensitivity.preset}, judged by {sensitivity.feature} of {sensitivity.images} images, visible "
        f"{sensitivity.visible}"
    )
    if sensitivity.grouped:
        console.say(f"  {sensitivity.grouped}")
    losses = sorted(sensitivity.losses, key=lambda loss: loss.fidelity.cosine)
    rows = [(loss.part.block, loss.part.kind, f"{loss.part.share:.1%}", *_told(loss.fidelity)) for loss in losses]
    rows.append(("all of them", "", f"{sensitivity.payoff[0].share:.1%}", *_told(sensitivity.everything)))
    console.table(rows, header=("in 8 bits", "layer", "of the work", "1 - cosine", "same neighbours"))
    _show_payoff(sensitivity.payoff)
    if plan is not None:
        show_plan(plan)


def show_plan(plan: Plan) -> None:
    """Mixed precision within a budget: what it keeps in float32, and what that can gain."""
    cosine, neighbours = _told(plan.fidelity)
    asked = f"cosine={plan.budget.cosine:g},knn={plan.budget.neighbours:g}"
    console.say(f"within {asked}: {plan.share:.1%} of the work in 8 bits, 1 - cosine {cosine}, {neighbours} neighbours")
    console.say(f"  --keep {','.join(plan.keep)}" if plan.keep else "  nothing has to be kept in float32")
    _show_payoff(plan.payoff)


def _told(fidelity: Fidelity) -> tuple[str, str]:
    neighbours = "unknown" if fidelity.neighbours is None else f"{fidelity.neighbours:.1%}"
    return f"{1 - fidelity.cosine:.2e}", neighbours


def _show_payoff(payoffs: Iterable[Payoff]) -> None:
    for payoff in payoffs:
        verdict = f"cannot pay: {payoff.reason}" if payoff.reason else "may pay"
        console.say(
            f"  batch {payoff.batch}: products predicted {payoff.speed_up:.2f}x of fp16's speed on a GPU, {verdict}"
        )
