"""What each verb prints when it is done, for people."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mae_export.files import model_files
from mae_export.manifest import Manifest
from mae_export.report import console

if TYPE_CHECKING:
    from mae_export.encoders.load import LoadReport
    from mae_export.runtime.compare import Report
    from mae_export.runtime.extract import ExtractReport


def show_load(report: LoadReport) -> None:
    """What became of a checkpoint."""
    spec = report.spec
    heading = (
        f"{report.path.name}: {report.family} ({report.layout}), licence of the published weights {report.licence}"
    )
    console.say(heading)
    console.say(
        f"  {spec.depth} blocks of width {spec.dim} with {spec.heads} heads, eps {spec.eps:g}, patch "
        f"{spec.patch[1]}x{spec.patch[2]}, images {spec.image.size[0]}x{spec.image.size[1]}"
    )
    console.say(f"  used {len(report.used)} tensors, ignored {len(report.ignored)}, missing {len(report.missing)}")
    for name, reason in report.ignored:
        console.say(f"    ignored {name}: {reason}")
    for note in report.notes:
        console.say(f"  note: {note}")


def show_graph(path: Path, manifest: Manifest) -> None:
    """A graph that was written."""
    size = sum(file.stat().st_size for file in model_files(path))
    console.say(f"{path} ({size / 1e6:,.1f} MB), mask mode {manifest.mask_mode}{', ragged' if manifest.ragged else ''}")
    for kind, specs in (("in ", manifest.inputs), ("out", manifest.outputs)):
        for spec in specs:
            shape = ", ".join(map(str, spec.shape))
            console.say(f"  {kind} {spec.name}: {spec.dtype} [{shape}]" + (f" - {spec.note}" if spec.note else ""))
    if manifest.verification:
        proof = manifest.verification
        console.say(
            f"  proven against {proof.reference}: {proof.checks} checks, worst {proof.worst_output} "
            f"{proof.error:.2g} (limit {proof.limit:g})"
        )


def show_extraction(out: Path, report: ExtractReport) -> None:
    """Features that were written."""
    console.say(f"{out}: {report.rows_in} in = {report.rows_ok} ok + {report.rows_failed} failed")
    console.say(f"  {report.images_per_second:,.1f} images/s over {report.seconds:.1f} s")
    if report.rows_failed:
        console.say(f"  reasons are in {out / 'failures.jsonl'}")


def show_comparison(report: Report) -> None:
    """A comparison, one line for each output."""
    console.say(f"candidate {report.candidate}, reference {report.reference}")
    rows = [
        (output, f"{check.error:.3g}", f"{check.limit:g}", "ok" if check.passed else "FAILED", check.name)
        for output, check in report.by_output().items()
    ]
    console.table(rows, header=("output", "worst error", "limit", "", "where"))
    failed = sum(not check.passed for check in report.checks)
    console.say(f"{len(report.checks) - failed} of {len(report.checks)} checks passed")


def show_tree(value: dict[str, Any]) -> None:
    """Nested plain data as indented lines."""
    for line in _lines(value, ""):
        console.say(line)


def _lines(value: dict[str, Any], indent: str) -> Iterator[str]:
    for key, item in value.items():
        if isinstance(item, dict) and item:
            yield f"{indent}{key}:"
            yield from _lines(item, indent + "  ")
        elif isinstance(item, (list, tuple)) and item and isinstance(item[0], dict):
            yield f"{indent}{key}:"
            for part in item:
                yield from _lines(part, indent + "  ")
        elif isinstance(item, (list, tuple)):
            yield f"{indent}{key}: {', '.join(map(str, item)) or '-'}"
        else:
            yield f"{indent}{key}: {'-' if item in (None, {}) else item}"
