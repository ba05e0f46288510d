"""The command that fills this machine's cache: `prepare`. Steps are imported inside, so that --help stays light."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from mae_export.commands.arguments import Json
from mae_export.errors import UsageError


def prepare_command(
    graph: Annotated[Path | None, typer.Argument(help="The graph to prepare; it stays as it is.")] = None,
    force: Annotated[bool, typer.Option("--force", help="Prepare again what is there already.")] = False,
    clear: Annotated[
        bool,
        typer.Option("--clear", help="First remove what was prepared before, of all graphs, but what is being made."),
    ] = False,
    as_json: Json = False,
) -> None:
    """Keep the form of a graph that this machine runs fastest; programs that open the graph then get that one."""
    if graph is None and not clear:
        raise UsageError("there is nothing to prepare; name a graph, or add --clear to remove what was prepared")
    from mae_export.report import console
    from mae_export.runtime import prepared

    if graph is not None and clear:  # a wrong name shall not cost what was prepared
        from mae_export.graph import read_manifest

        read_manifest(graph)
    cleared = prepared.clear() if clear else prepared.Cleared()
    told: dict[str, object] = {"removed": cleared.removed, "busy": cleared.busy}
    rows = [("removed", f"{cleared.removed} prepared before")] if clear else []
    if cleared.busy:
        rows.append(("left", f"{cleared.busy} that other processes are making just now"))
    if graph is not None:
        from mae_export.calibration.lowered import write_lowered
        from mae_export.export.prepare import PrepareOptions, prepare

        with console.steps() as progress:
            made = prepare(graph, options=PrepareOptions(force=force), lower=write_lowered, progress=progress)
        told |= asdict(made)
        rows += [("runs", made.kind), ("because", made.reason)]
        if made.path is not None:
            rows.append(("prepared" if made.fresh else "was there", str(made.path)))
    if as_json:
        console.show_json(told)
    else:
        for name, value in rows:  # no table: it would fold a long path, which is there to be copied
            console.say(f"{name:<9}  {value}")
