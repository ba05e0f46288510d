"""The command line: one command per verb. Steps are imported inside commands, so that --help stays light."""

from __future__ import annotations

import os
import sys
import traceback
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal, cast

import typer

import mae_export
from mae_export.errors import (
    MachineError,
    MaeExportError,
    QuarantineError,
    ResourceError,
    UsageError,
    VerificationError,
)
from mae_export.export.options import TraceOptions
from mae_export.manifest import Manifest, MaskMode

if TYPE_CHECKING:
    from mae_export.encoders.overrides import Overrides
    from mae_export.runtime.extract import ExtractReport
    from mae_export.runtime.session import Session

BUG = 70
INTERRUPTED = 130
CLOSED_PIPE = 141
EXTRA_OF = {
    "matplotlib": "report",
    "onnx": "export",
    "onnx_ir": "export",
    "onnxruntime": "cpu",
    "onnxscript": "export",
    "pyarrow": "parquet",
    "sklearn": "train",
    "torch": "export",
}

app = typer.Typer(
    name="mae-export",
    help="Masked-image-modelling checkpoints to masking-aware ONNX graphs and batched features.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)

Settings = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="State a fact that the tensors do not say, such as heads=12."),
]
Json = Annotated[bool, typer.Option("--json", help="Print the result as JSON.")]
Force = Annotated[bool, typer.Option("--force", help="Replace what is already there.")]


def _version(value: bool) -> None:
    if value:
        typer.echo(f"mae-export {mae_export.__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version.")
    ] = False,
) -> None:
    pass


@app.command("export")
def export_command(
    checkpoint: Annotated[Path, typer.Argument(help="A .pth, .pt or .safetensors file, or a Hugging Face folder.")],
    out: Annotated[Path, typer.Option("--output", "-o", help="The graph to write, ending in .onnx.")],
    family: Annotated[str | None, typer.Option(help="Family of the checkpoint; recognised when left out.")] = None,
    settings: Settings = None,
    mask: Annotated[
        MaskMode, typer.Option(help="none: every patch; keep: images and ids_keep; patches: visible patches only.")
    ] = TraceOptions.mask,
    ragged: Annotated[
        bool, typer.Option("--ragged", help="Let rows keep different numbers of patches.")
    ] = TraceOptions.ragged,
    features: Annotated[
        str,
        typer.Option(
            help="Outputs, comma separated: class_token, pooled, mean_patch, patch_tokens, dense, layer_<i>, "
            "attention_<i>, reconstruction."
        ),
    ] = ",".join(TraceOptions.features),
    image_size: Annotated[str | None, typer.Option(metavar="N|HxW", help="Another image size in pixels.")] = None,
    opset: Annotated[int, typer.Option(help="ONNX operator set.")] = TraceOptions.opset,
    force: Force = False,
    as_json: Json = False,
) -> None:
    """Turn a checkpoint into an ONNX graph, proven against PyTorch before it is written."""
    from mae_export.encoders.load import load_encoder
    from mae_export.encoders.overrides import parse_overrides, parse_size
    from mae_export.export.trace import export_graph
    from mae_export.report import console, summaries

    overrides = parse_overrides(settings or [])
    options = TraceOptions(
        mask=mask,
        ragged=ragged,
        features=tuple(name.strip() for name in features.split(",")),
        image_size=None if image_size is None else parse_size(image_size),
        opset=opset,
        force=force,
    )
    with console.phases() as tell:
        tell("loading")
        encoder, report = load_encoder(checkpoint, family=family, overrides=overrides)
        manifest = export_graph(encoder, report, out, options=options, progress=tell)
    if as_json:
        console.show_json({"path": out, "load": asdict(report), "manifest": asdict(manifest)})
    else:
        summaries.show_load(report)
        summaries.show_graph(out, manifest)


@app.command("extract")
def extract_command(
    model: Annotated[Path, typer.Argument(help="A graph written by `mae-export export`.")],
    inputs: Annotated[list[str], typer.Argument(help="Folders, image files, .txt lists of paths, or .tar files.")],
    out: Annotated[Path, typer.Option("--output", "-o", help="Folder to write the features into.")],
    format_: Annotated[Literal["npy", "parquet"], typer.Option("--format", help="File format of the shards.")] = "npy",
    features: Annotated[str | None, typer.Option(help="Outputs to keep, comma separated; all when left out.")] = None,
    visible: Annotated[str, typer.Option(help="all, random:R[:seed] with R the fraction kept, or file:X.npy.")] = "all",
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
    with open_session(model) as session, console.images_progress("extracting") as progress:
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


@app.command("inspect")
def inspect_command(
    path: Annotated[Path, typer.Argument(help="A checkpoint, an .onnx graph or a features folder.")],
    settings: Settings = None,
    as_json: Json = False,
) -> None:
    """Show what a checkpoint, a graph or a features folder is and holds."""
    from mae_export.encoders.overrides import parse_overrides
    from mae_export.report import console, summaries
    from mae_export.report.inspection import inspect

    described = inspect(path, parse_overrides(settings or []))
    if as_json:
        console.show_json(described)
    else:
        summaries.show_tree(described)


@app.command("verify")
def verify_command(
    candidate: Annotated[Path, typer.Argument(help="The graph to judge.")],
    reference: Annotated[Path, typer.Argument(help="The graph or checkpoint to trust.")],
    settings: Settings = None,
    limit: Annotated[float, typer.Option(min=1e-9, help="Largest error relative to max(1, max|reference|).")] = 1e-4,
    as_json: Json = False,
) -> None:
    """Compare a graph with the checkpoint or graph it came from; exit code 5 when they disagree."""
    from mae_export.encoders.overrides import parse_overrides
    from mae_export.report import console, summaries
    from mae_export.runtime.compare import compare
    from mae_export.runtime.session import open_session

    overrides = parse_overrides(settings or [])
    with console.phases() as tell, open_session(candidate) as session:
        tell("loading the reference")
        with _reference(reference, session.manifest, overrides) as trusted:
            tell("comparing")
            report = compare(session, trusted, limit=limit)
    if as_json:
        console.show_json({**asdict(report), "passed": report.passed})
    else:
        summaries.show_comparison(report)
    if not report.passed:
        raise VerificationError(f"{candidate} disagrees with {reference}: worst is {report.worst.output!r}")


def _reference(path: Path, manifest: Manifest, overrides: Overrides) -> Session:
    """A graph runs as it is; anything else is a checkpoint, for which PyTorch is needed."""
    from mae_export.runtime.session import open_session

    if path.suffix == ".onnx":
        return open_session(path)
    from mae_export.export.verify import checkpoint_reference

    return checkpoint_reference(path, manifest, overrides)


@app.command("doctor")
def doctor_command(as_json: Json = False) -> None:
    """Say what this machine can run, what is wrong, and how to fix it."""
    from mae_export.report import console
    from mae_export.runtime.doctor import doctor

    diagnosis = doctor()
    if as_json:
        console.show_json(asdict(diagnosis))
    else:
        console.table(diagnosis.rows(), header=("what", "found", "advice"))
    if not diagnosis.runs_graphs:
        raise MachineError("no runtime can run graphs here; run: pip install 'mae-export[cpu]'")


def _translated(error: BaseException) -> MaeExportError | None:
    """Errors of other libraries that are no bugs of ours."""
    if isinstance(error, ModuleNotFoundError):
        module = (error.name or "").split(".")[0]
        if module in EXTRA_OF:
            extra = EXTRA_OF[module]
            return MachineError(f"{module} is not installed; run: pip install 'mae-export[{extra}]'")
    if isinstance(error, MemoryError):
        return ResourceError("memory ran out; use a smaller --batch, or a machine with more")
    if isinstance(error, PermissionError):
        return UsageError(f"{error.filename}: {error.strerror}; choose a place that can be read and written")
    return None


def _interrupted() -> int:
    typer.echo("interrupted", err=True)
    return INTERRUPTED


def _exit_code(error: BaseException) -> int:
    """Show an error and return its exit code."""
    if isinstance(error, (KeyboardInterrupt, typer.Abort)):
        return _interrupted()
    if isinstance(error, BrokenPipeError):  # the reader of our output has gone, as with `| head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return CLOSED_PIPE
    show = getattr(error, "show", None)  # usage errors of the command-line parser show themselves
    known = error if isinstance(error, MaeExportError) else _translated(error)
    if show is not None:
        show()
    elif known is not None:
        typer.echo(f"error: {known}", err=True)
    else:
        traceback.print_exception(error)
        typer.echo("This is a bug in mae-export; please report it with the lines above.", err=True)
    return int(getattr(known or error, "exit_code", BUG))


def main() -> None:
    """Run the command line and exit with the code of the error's class."""
    try:
        result = app(prog_name="mae-export", standalone_mode=False)
        sys.stdout.flush()
    except (Exception, KeyboardInterrupt) as error:  # noqa: BLE001 (the one place where errors become exit codes)
        sys.exit(_exit_code(error))
    # typer itself turns Ctrl-C inside a command into this code, without a word
    sys.exit(_interrupted() if result == INTERRUPTED else result or 0)
