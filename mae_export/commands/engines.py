"""Commands that write engines: `build`. Steps are imported inside, so that --help stays light."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Literal

import typer

from mae_export.commands.arguments import Force, Json
from mae_export.export.plan import EnginePlan, parse_profile, parse_size
from mae_export.files import require_place


def build_command(
    graph: Annotated[Path, typer.Argument(help="A graph; the engine has its precision.")],
    out: Annotated[Path, typer.Option("--output", "-o", help="The engine to write, ending in .engine.")],
    backend: Annotated[
        Literal["auto", "tensorrt", "rtx"], typer.Option(help="TensorRT, or TensorRT-RTX, which builds without a GPU.")
    ] = EnginePlan.backend,
    batch: Annotated[str, typer.Option(metavar="MIN:TYPICAL:MAX", help="Images per run.")] = "1:8:64",
    keep: Annotated[
        str | None, typer.Option(metavar="MIN:TYPICAL:MAX", help="Visible patches; 1 to all when left out.")
    ] = None,
    profile: Annotated[
        list[str] | None, typer.Option(help="A further profile, such as batch=1:1:1,keep=49:49:49.")
    ] = None,
    target: Annotated[str, typer.Option(help="GPUs such as sm86,sm89, or this.")] = "",
    workspace: Annotated[str | None, typer.Option(help="Limit of scratch memory, such as 4GiB.")] = None,
    timing_cache: Annotated[Path | None, typer.Option(help="File that makes later builds faster.")] = None,
    level: Annotated[int | None, typer.Option(help="0 builds fast, 5 runs fast.")] = None,
    low_memory: Annotated[bool, typer.Option("--low-memory", help="Preset for boards with 8 GB.")] = False,
    strict: Annotated[bool, typer.Option("--strict", help="Refuse an engine that falls back.")] = False,
    force: Force = False,
    as_json: Json = False,
) -> None:
    """Build a TensorRT engine from a typed graph; its plan and a sidecar that says everything about it."""
    from mae_export.report import console, summaries

    profiles = (parse_profile(f"batch={batch}" + (f",keep={keep}" if keep else "")), *map(parse_profile, profile or []))
    plan = EnginePlan(
        profiles=profiles,
        backend=backend,
        targets=tuple(name for name in target.split(",") if name),
        workspace=None if workspace is None else parse_size(workspace),
        timing_cache=timing_cache,
        level=level,
        low_memory=low_memory,
        strict=strict,
        force=force,
    )
    require_place(out, suffix=".engine", force=force)
    from mae_export.export.engine import build, estimate

    console.remark(f"{estimate(graph, plan)}")
    with console.steps() as progress:
        sidecar = build(graph, out, plan=plan, progress=progress)
    if as_json:
        console.show_json(asdict(sidecar))
    else:
        summaries.show_engine(out, sidecar)
