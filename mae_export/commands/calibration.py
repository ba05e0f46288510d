"""Commands that observe graphs: `calibrate`, `sensitivity`. Steps are imported inside, so that --help stays light."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from mae_export.calibration.options import JUDGED_IMAGES, MOST_PARTS, ObserveOptions
from mae_export.calibration.table import Method, Table
from mae_export.calibration.wanted import Eight, Preset, QuantizeOptions
from mae_export.commands.arguments import Force, Json
from mae_export.files import require_place, staging


def calibrate_command(
    source: Annotated[Path, typer.Argument(metavar="GRAPH", help="A float32 graph written by `mae-export export`.")],
    images: Annotated[list[str], typer.Argument(help="Folders, image files, .txt lists of paths, or .tar files.")],
    out: Annotated[Path, typer.Option("--output", "-o", help="The table to write, such as vit.calib.json.")],
    method: Annotated[Method, typer.Option(help="How much of what was seen is represented.")] = ObserveOptions.method,
    percentile: Annotated[
        float, typer.Option(help="Share of the values to represent, for the method of that name.")
    ] = ObserveOptions.percentile,
    samples: Annotated[int, typer.Option(help="Images to use, if there are as many.")] = ObserveOptions.samples,
    visible: Annotated[
        str, typer.Option(help="As the graph will be used: all, random:R[:seed], random:R1..R2[:seed] or file:X.npy.")
    ] = ObserveOptions.visible,
    seed: Annotated[int, typer.Option(help="Of the choice of images.")] = ObserveOptions.seed,
    batch: Annotated[int, typer.Option(help="Most images per run; fewer where memory asks for it.")] = (
        ObserveOptions.batch
    ),
    threads: Annotated[int, typer.Option(min=0, help="Threads that decode and resize; 0 chooses.")] = (
        ObserveOptions.threads
    ),
    force: Force = False,
    as_json: Json = False,
) -> None:
    """Observe the ranges of a graph's activations on images, for `quantize`."""
    options = ObserveOptions(
        method=method,
        percentile=percentile,
        samples=samples,
        visible=visible,
        seed=seed,
        batch=batch,
        threads=threads,
        force=force,
    )
    from mae_export.calibration.observe import observe
    from mae_export.report import calibrations, console

    with console.images_progress("observing") as progress:
        observation = observe(source, images, out, options=options, progress=progress)
    if as_json:
        console.show_json(calibrations.summary(out, observation))
    else:
        calibrations.show_observation(out, observation)


def sensitivity_command(
    source: Annotated[Path, typer.Argument(metavar="GRAPH", help="A float32 graph written by `mae-export export`.")],
    table: Annotated[Path, typer.Argument(help="Its calibration table, written by `mae-export calibrate`.")],
    images: Annotated[list[str], typer.Argument(help="Images to judge on; those of the table are passed over.")],
    out: Annotated[
        Path, typer.Option("--output", "-o", help="What was found, ending in .json; a .png goes beside it.")
    ],
    precision: Annotated[Eight, typer.Option(help="Of the products in 8 bits.")] = "int8",
    preset: Annotated[
        Preset, typer.Option(help="linear: products with weights; full: attention between them as well.")
    ] = QuantizeOptions.preset,
    budget: Annotated[
        str | None, typer.Option(metavar="cosine=C,knn=N", help="Find what to keep in float32 to hold this.")
    ] = None,
    samples: Annotated[int, typer.Option(help="Images to judge on, if there are as many.")] = JUDGED_IMAGES,
    most: Annotated[int, typer.Option(help="Parts to measure; with more of them, blocks are measured whole.")] = (
        MOST_PARTS
    ),
    force: Force = False,
    as_json: Json = False,
) -> None:
    """Measure what each block and kind of layer loses in 8 bits, and plan mixed precision within a budget."""
    options = QuantizeOptions(precision=precision, preset=preset)
    require_place(out, suffix=".json", force=force)
    require_place(out.with_suffix(".png"), suffix=".png", force=force)
    from mae_export.calibration.budget import Budget, plan
    from mae_export.calibration.sensitivity import measure, prepare
    from mae_export.report import calibrations, console
    from mae_export.report.sensitivity_figure import sensitivity_figure  # a missing package is told before the work

    wanted = None if budget is None else Budget.parse(budget)
    with staging(out) as folder, console.steps() as tell:
        tell("reading images", 0, 1)
        trial = prepare(source, Table.read(table), images, options=options, folder=folder, most_images=samples)
        sensitivity = measure(trial, most=most, progress=tell)
        found = None if wanted is None else plan(trial, sensitivity, wanted, progress=tell)
    calibrations.write_sensitivity(out, sensitivity, found, draw=sensitivity_figure)
    if as_json:
        console.show_json({"path": out, **calibrations.findings(sensitivity, found)})
    else:
        calibrations.show_sensitivity(out, sensitivity, found)
