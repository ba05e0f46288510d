"""Commands that write bundles: `bundle`. Steps are imported inside, so that --help stays light."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from mae_export.commands.arguments import Force, Json


def bundle_command(
    models: Annotated[list[Path], typer.Argument(metavar="MODEL...", help="Graphs and engines of one encoder.")],
    out: Annotated[Path, typer.Option("--output", "-o", help="Folder to write.")],
    force: Force = False,
    as_json: Json = False,
) -> None:
    """Pack graphs and engines of one encoder with checksums, a golden check and an app that needs no torch."""
    from mae_export.report import console, summaries
    from mae_export.runtime.bundle_writer import write_bundle

    with console.phases() as tell:
        tell("checking and copying")
        bundle = write_bundle(models, out, force=force)
    for model in bundle.unproven:
        console.remark(
            f"unproven: nothing was compared with {model.file}; where it runs, its golden check decides. To prove it: "
            f"mae-export verify {model.file} GRAPH.onnx on such a machine"
        )
    if not bundle.anywhere:
        console.remark(
            "no graph of this bundle runs on every machine; name a plain one as well, as the last: in float32, fp16, "
            "INT8 or FP8, and not lowered"
        )
    if as_json:
        console.show_json(asdict(bundle))
    else:
        summaries.show_bundle(out, bundle)
