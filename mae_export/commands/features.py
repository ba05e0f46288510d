"""Commands that write features: `extract`. Steps are imported inside, so that --help stays light."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal, cast

import typer

from mae_export.commands.arguments import Force, Json
from mae_export.errors import QuarantineError
from mae_export.runtime.providers import Backend

if TYPE_CHECKING:
    from mae_export.runtime.extract import ExtractReport


def extract_command(
    model: Annotated[Path, typer.Argument(help="A graph written by `mae-export export`.")],
    inputs: Annotated[list[str], typer.Argument(help="Folders, image files, .txt lists of paths, or .tar files.")],
    out: Annotated[Path, typer.Option("--output", "-o", help="Folder to write the features into.")],
    format_: Annotated[Literal["npy", "parquet"], typer.Option("--format", help="File format of the shards.")] = "npy",
    features: Annotated[str | None, typer.Option(help="Outputs to keep, comma separated; all when left out.")] = None,
    visible: Annotated[str, typer.Option(help="all, random:R[:seed] with R the fraction kept, or file:X.npy.")] = "all",
    backend: Annotated[Backend, typer.Option(help="What runs a graph; auto chooses.")] = "auto",
    batch: Annotated[int, typer.Option(min=1, help="Images per run of the model.")] = 8,
    threads: Annotated[int, typer.Option(min=0, help="Threads that decode and resize; 0 chooses.")] = 0,
    error_budget: Annotated[
        float, typer.Option(min=0, max=1, help="Share of inputs that may fail before the exit code is 7.")
    ] = 0.001,
    force: Force = False,
    as_json: Json = False,
) -> None:
    """Extract features of images, in batches; a bad image is recorded and costs nothing else."""
    from mae_export.report import console, summaries
    from mae_export.runtime.extract import ExtractOptions, extract
    from mae_export.runtime.session import open_session

    options = ExtractOptions(
        features=None if features is None else tuple(name.strip() for name in features.split(",")),
        visible=visible,
        format=format_,
        batch=batch,
        threads=threads,
        force=force,
        error_budget=error_budget,
    )
    failure: QuarantineError | None = None
    with open_session(model, backend=backend) as session, console.images_progress("extracting") as progress:
        try:
            report = extract(session, inputs, out, options=options, progress=progress)
        except QuarantineError as error:  # everything is written all the same
            failure, report = error, cast("ExtractReport", error.report)
    if as_json:
        console.show_json(asdict(report))
    else:
        summaries.show_extraction(out, report)
    if failure is not None:
        raise failure
