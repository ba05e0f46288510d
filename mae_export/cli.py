"""The command line: one command per verb. Steps are imported inside commands, so that --help stays light."""

from __future__ import annotations

import os
import sys
import traceback
from dataclasses import asdict, replace
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
from mae_export.export.options import ConvertOptions, Half, TraceOptions
from mae_export.export.plan import EnginePlan, parse_profile, parse_size
from mae_export.files import DISK_FULL, require_place
from mae_export.manifest import Manifest, MaskMode

if TYPE_CHECKING:
    from mae_export.encoders.overrides import Overrides
    from mae_export.runtime.extract import ExtractReport
    from mae_export.runtime.session import Session

Precision = Literal["fp32", "fp16", "bf16"]
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
    precision: Annotated[Precision, typer.Option(help="Of weights and activations; as `convert` does it.")] = "fp32",
    force: Force = False,
    as_json: Json = False,
) -> None:
    """Turn a checkpoint into an ONNX graph, proven against PyTorch before it is written."""
    from mae_export.encoders.overrides import parse_image_size, parse_overrides
    from mae_export.report import console, summaries

    overrides = parse_overrides(settings or [])
    options = TraceOptions(
        mask=mask,
        ragged=ragged,
        features=tuple(name.strip() for name in features.split(",")),
        image_size=None if image_size is None else parse_image_size(image_size),
        opset=opset,
        force=force,
    )
    require_place(out, suffix=".onnx", force=force)
    from mae_export.encoders.load import load_encoder
    from mae_export.export.precision import export_half
    from mae_export.export.trace import export_graph  # torch takes seconds: wrong calls are refused before it

    with console.phases() as tell:
        tell("loading")
        encoder, report = load_encoder(checkpoint, family=family, overrides=overrides)
        if precision == "fp32":
            manifest = export_graph(encoder, report, out, options=options, progress=tell)
        else:
            half = ConvertOptions(precision=precision, force=force)
            manifest = export_half(encoder, report, out, trace=options, half=half, progress=tell)
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


@app.command("convert")
def convert_command(
    source: Annotated[Path, typer.Argument(metavar="GRAPH", help="A float32 graph written by `mae-export export`.")],
    out: Annotated[Path, typer.Option("--output", "-o", help="The graph to write, ending in .onnx.")],
    precision: Annotated[Half, typer.Option(help="Of weights and activations.")],
    images: Annotated[
        Path | None, typer.Option(help="Folder, .txt list or .tar of pictures to measure ranges on, besides ours.")
    ] = None,
    headroom: Annotated[
        float, typer.Option(help="Room left above measured values before a node stays in float32.")
    ] = ConvertOptions.headroom,
    force: Force = False,
    as_json: Json = False,
) -> None:
    """Turn a graph into half precision with float32 islands where ranges demand it, proven by rounding for real."""
    from mae_export.report import console, summaries

    options = ConvertOptions(precision=precision, headroom=headroom, force=force)
    require_place(out, suffix=".onnx", force=force)
    from mae_export import graph
    from mae_export.export.precision import convert
    from mae_export.runtime.probes import verification_images

    with console.phases() as tell:
        tell("reading")
        shown = None if images is None else verification_images(graph.read_manifest(source).image, images)
        manifest = convert(source, out, options=options, images=shown, progress=tell)
    if as_json:
        console.show_json({"path": out, "manifest": asdict(manifest)})
    else:
        summaries.show_graph(out, manifest)


@app.command("build")
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
        summaries.show_inspection(described)


@app.command("verify")
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
    as_json: Json = False,
) -> None:
    """Compare a graph with the checkpoint or graph it came from; exit code 5 when they disagree."""
    from mae_export.encoders.overrides import parse_overrides
    from mae_export.report import console, summaries, worst_images
    from mae_export.runtime.compare import compare
    from mae_export.runtime.probes import verification_images
    from mae_export.runtime.session import open_session
    from mae_export.runtime.thresholds import limits_of

    overrides = parse_overrides(settings or [])
    with console.phases() as tell, open_session(candidate) as session:
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
    if isinstance(error, OSError) and error.errno in DISK_FULL:
        return ResourceError(f"cannot write the result: {error.strerror}; free space or choose another place")
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
