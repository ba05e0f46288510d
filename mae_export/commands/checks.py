"""Commands that write nothing: `inspect`, `verify` and `doctor`. Steps are imported inside: --help stays light."""

from __future__ import annotations

import itertools
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from mae_export.artefacts import NAMES, kind_of
from mae_export.commands.arguments import FamilyName, Force, Json, Settings
from mae_export.errors import InputError, MachineError, VerificationError
from mae_export.manifest import Manifest

if TYPE_CHECKING:
    from mae_export.encoders.overrides import Overrides
    from mae_export.runtime.session import Session


def inspect_command(
    path: Annotated[
        Path, typer.Argument(help="A checkpoint, graph, engine, calibration table, bundle or features folder.")
    ],
    family: FamilyName = None,
    settings: Settings = None,
    as_json: Json = False,
) -> None:
    """Show what a checkpoint, graph, engine, calibration table, bundle or features folder is and holds."""
    from mae_export.encoders.overrides import parse_overrides
    from mae_export.report import console, summaries
    from mae_export.report.inspection import inspect

    described = inspect(path, parse_overrides(settings or []), family=family)
    if as_json:
        console.show_json(described)
    else:
        summaries.show_inspection(described)


def verify_command(
    candidate: Annotated[Path, typer.Argument(help="The graph to judge.")],
    reference: Annotated[Path, typer.Argument(help="The graph or checkpoint to trust.")],
    settings: Settings = None,
    images: Annotated[
        Path | None, typer.Option(help="Folder, .txt list or .tar of pictures to show instead of the shipped ones.")
    ] = None,
    worst: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Write the image on which each output agrees least there.")
    ] = None,
    limit: Annotated[
        float | None,
        typer.Option(min=1e-9, help="Largest error relative to max(1, max|reference|), instead of the precision's."),
    ] = None,
    force: Force = False,
    as_json: Json = False,
) -> None:
    """Compare a graph with the checkpoint or graph it came from; exit code 5 when they disagree."""
    from mae_export.encoders.overrides import parse_overrides
    from mae_export.report import console, summaries, worst_images
    from mae_export.runtime.compare import compare
    from mae_export.runtime.probes import verification_images
    from mae_export.runtime.session import open_to_judge
    from mae_export.runtime.thresholds import limits_of

    overrides = parse_overrides(settings or [])
    if worst is not None:
        worst_images.require_folder(worst, force=force)
    with console.phases() as tell, open_to_judge(candidate) as session:
        shown = verification_images(session.manifest.image, images)
        limits = limits_of(session.manifest.precision)
        tell("loading the reference")
        with _reference(reference, session.manifest, overrides) as trusted:
            tell("comparing")
            limits = limits if limit is None else replace(limits, error=limit)
            report = compare(session, trusted, images=shown, limits=limits)
    written = [] if worst is None else worst_images.save_worst(report, shown, worst)
    if as_json:
        console.show_json({**asdict(report), "passed": report.passed, "worst_images": written})
    else:
        summaries.show_comparison(report)
    if not report.passed:
        raise VerificationError(f"{candidate} disagrees with {reference}: worst is {report.worst.output!r}")


def _reference(path: Path, manifest: Manifest, overrides: Overrides) -> Session:
    """A graph runs as it is, a checkpoint in PyTorch; nothing else is a reference."""
    from mae_export.runtime.session import open_as_is

    kind = kind_of(path)
    if kind == "graph":
        return open_as_is(path)
    if kind not in (None, "checkpoint"):
        raise InputError(f"{path} is {NAMES[kind]}; the reference is the graph or the checkpoint to trust")
    from mae_export.export.verify import checkpoint_reference

    return checkpoint_reference(path, manifest, overrides)


def doctor_command(as_json: Json = False) -> None:
    """Say what this machine can run, what is wrong, and how to fix it."""
    from mae_export.report import console
    from mae_export.runtime.doctor import doctor

    diagnosis = doctor()
    if as_json:
        console.show_json(asdict(diagnosis))
    else:
        console.say("What runs a model here, with the name for --backend in brackets:")
        for line in itertools.chain(*(ability.lines for ability in diagnosis.abilities)):
            console.say(line)
        console.say("")
        console.table(diagnosis.rows(), header=("what", "found", "advice"))
    if not diagnosis.runs_graphs:
        raise MachineError("no runtime can run graphs here; run: pip install 'mae-export[cpu]'")
