"""The command line: one command per verb, and the one place where errors become exit codes."""

from __future__ import annotations

import os
import sys
import traceback
from collections.abc import Callable
from typing import Annotated

import typer

import mae_export
from mae_export.commands.bench import bench_command
from mae_export.commands.bundles import bundle_command
from mae_export.commands.calibration import calibrate_command, sensitivity_command
from mae_export.commands.checks import doctor_command, inspect_command, verify_command
from mae_export.commands.engines import build_command
from mae_export.commands.families import families_command
from mae_export.commands.features import extract_command
from mae_export.commands.graphs import convert_command, export_command
from mae_export.commands.prepare import prepare_command
from mae_export.commands.quantize import quantize_command
from mae_export.errors import MachineError, MaeExportError, ResourceError, UsageError
from mae_export.files import DISK_FULL

COMMANDS: dict[str, Callable[..., None]] = {
    "export": export_command,
    "convert": convert_command,
    "calibrate": calibrate_command,
    "sensitivity": sensitivity_command,
    "quantize": quantize_command,
    "build": build_command,
    "prepare": prepare_command,
    "verify": verify_command,
    "inspect": inspect_command,
    "extract": extract_command,
    "bundle": bundle_command,
    "families": families_command,
    "bench": bench_command,
    "doctor": doctor_command,
}
BUG = 70
INTERRUPTED = 130
CLOSED_PIPE = 141
EXTRA_OF = {
    "matplotlib": "report",
    "onnx": "export",
    "onnx_ir": "export",
    "onnxruntime": "cpu",
    "onnxscript": "export",
    "openvino": "openvino",
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


for _verb, _command in COMMANDS.items():
    app.command(_verb)(_command)


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
