"""The command that writes 8-bit graphs: `quantize`. Steps are imported inside, so that --help stays light."""

from __future__ import annotations

from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from mae_export.calibration.table import Table
from mae_export.calibration.wanted import Eight, Preset, QuantizeOptions
from mae_export.commands.arguments import Force, Json
from mae_export.errors import UsageError
from mae_export.files import require_place

if TYPE_CHECKING:
    from mae_export.calibration.budget import Plan


def quantize_command(
    source: Annotated[Path, typer.Argument(metavar="GRAPH", help="A float32 graph written by `mae-export export`.")],
    table: Annotated[
        Path, typer.Argument(metavar="TABLE", help="Its calibration table, written by `mae-export calibrate`.")
    ],
    out: Annotated[Path, typer.Option("--output", "-o", help="The graph to write, ending in .onnx.")],
    precision: Annotated[Eight, typer.Option(help="Of the products in 8 bits.")],
    preset: Annotated[
        Preset, typer.Option(help="linear: products with weights; full: attention between them as well.")
    ] = QuantizeOptions.preset,
    keep: Annotated[
        str, typer.Option(metavar="NAMES", help="Modules that stay in float32, as blocks.0,blocks.11.mlp.fc2.")
    ] = "",
    smooth: Annotated[bool, typer.Option(help="Move outlier channels into the weights.")] = QuantizeOptions.smooth,
    correct_bias: Annotated[
        bool, typer.Option(help="Take the mean error of rounded weights out of the biases.")
    ] = QuantizeOptions.correct_bias,
    lower: Annotated[
        bool, typer.Option("--lower", help="Write the form that ONNX Runtime computes fastest on a CPU.")
    ] = QuantizeOptions.lower,
    images: Annotated[
        Path | None, typer.Option(help="Folder, .txt list or .tar of pictures to judge on, besides calibration's.")
    ] = None,
    budget: Annotated[
        str | None, typer.Option(metavar="cosine=C,knn=N", help="Keep in float32 what this takes, on --images.")
    ] = None,
    force: Force = False,
    as_json: Json = False,
) -> None:
    """Turn a float32 graph and its calibration table into an 8-bit graph, proven on pictures not calibrated on."""
    from mae_export.report import calibrations, console, summaries

    options = QuantizeOptions(
        precision=precision,
        preset=preset,
        keep=tuple(name.strip() for name in keep.split(",") if name.strip()),
        smooth=smooth,
        correct_bias=correct_bias,
        lower=lower,
        force=force,
    )
    require_place(out, suffix=".onnx", force=force)
    plan = None if budget is None else _plan(source, table, images, options=options, budget=budget)
    options = options if plan is None else replace(options, keep=(*options.keep, *plan.keep))
    from mae_export import graph
    from mae_export.calibration.quantize import quantize
    from mae_export.runtime.probes import verification_images

    with console.phases() as tell:
        tell("reading")
        spec, used = graph.read_manifest(source).image, frozenset(Table.read(table).images)
        shown = None if images is None else verification_images(spec, images, without=used)
        manifest, report = quantize(source, table, out, options=options, images=shown, progress=tell)
    if as_json:
        result = {"manifest": asdict(manifest), "comparison": asdict(report), "plan": plan and asdict(plan)}
        console.show_json({"path": out, **result})
        return
    if plan is not None:
        calibrations.show_plan(plan)
    summaries.show_graph(out, manifest)
    summaries.show_comparison(report)


def _plan(source: Path, table: Path, images: Path | None, *, options: QuantizeOptions, budget: str) -> Plan:
    """What to keep in float32 so that the budget holds on the images."""
    from mae_export.calibration.budget import Budget, plan_for
    from mae_export.report import console

    wanted = Budget.parse(budget)
    if images is None:
        raise UsageError("--budget is measured on pictures; give some that calibration did not use with --images")
    with console.steps() as tell:
        return plan_for(source, table, [images], options=options, budget=wanted, progress=tell)
