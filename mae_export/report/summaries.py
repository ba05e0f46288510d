"""What each verb prints when it is done, for people."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mae_export.files import model_files
from mae_export.manifest import Manifest, read_json
from mae_export.report import console
from mae_export.report.calibrations import show_table
from mae_export.runtime.engine_file import EngineSidecar

if TYPE_CHECKING:
    from mae_export.encoders.load import LoadReport
    from mae_export.runtime.bundle import BundleManifest
    from mae_export.runtime.compare import Measured, Report
    from mae_export.runtime.extract import ExtractReport


def show_load(report: LoadReport) -> None:
    """What became of a checkpoint."""
    spec = report.spec
    console.say(
        f"{report.path.name}: {report.family} ({report.layout}); licence of the authors' weights: {report.licence}"
    )
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
    rows = "ragged" if manifest.ragged else "equal rows"
    console.say(f"{path} ({size / 1e6:,.1f} MB), {manifest.precision}, mask mode {manifest.mask_mode}, {rows}")
    if manifest.fp32_nodes:
        console.say(f"  {len(manifest.fp32_nodes)} nodes stay in float32; the manifest gives the reason of each")
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


def show_engine(path: Path, sidecar: EngineSidecar) -> None:
    """An engine that was built."""
    achieved = sidecar.achieved
    gpus = ", ".join(sidecar.targets) or sidecar.device or "this GPU"
    built = f"{sidecar.manifest.precision}, {sidecar.backend} {sidecar.version}, for {gpus}"
    console.say(f"{path} ({sidecar.size / 1e6:,.1f} MB), {built}")
    for number, profile in enumerate(sidecar.profiles):
        console.say(f"  profile {number}: {profile}")
    activations = ", ".join(f"{size / 1e6:,.0f} MB" for size in achieved.activation_bytes)
    console.say(f"  activations by profile: {activations or 'unknown'}")
    console.say(f"  {achieved.fused} of {achieved.attention} attention blocks fused, {len(achieved.layers)} layers")
    products = ", ".join(f"{count} in {kind}" for kind, count in achieved.gemms.items())
    console.say(f"  matrix products: {products or 'none listed'}")
    for fallback in achieved.fallbacks:
        console.say(f"  falls back: {fallback}")
    for warning in sidecar.warnings:
        console.say(f"  warning: {warning}")
    if not sidecar.proven:
        console.say("  unproven: no GPU compared it with its graph yet")


def show_bundle(path: Path, bundle: BundleManifest) -> None:
    """A bundle that was written."""
    console.say(f"{path}: {bundle.family}, mask mode {bundle.mask_mode}, features {', '.join(bundle.features)}")
    for model in bundle.models:
        form = f"{model.precision} lowered" if model.lowered else model.precision
        console.say(f"  {model.file}: {form}, for {model.where}" + ("" if model.proven else ", UNPROVEN"))
    console.say(f"  {len(bundle.files)} files; to run it: python {path / 'app.py'} PICTURES")


def show_extraction(out: Path, report: ExtractReport) -> None:
    """Features that were written."""
    console.say(f"{out}: {report.rows_in} in = {report.rows_ok} ok + {report.rows_failed} failed")
    console.say(f"  {report.images_per_second:,.1f} images/s over {report.seconds:.1f} s")
    if report.rows_failed:
        console.say(f"  reasons are in {out / 'failures.jsonl'}")


def show_comparison(report: Report) -> None:
    """A comparison: the worst check of each output, and how its vectors agree."""
    console.say(f"candidate {report.candidate}, reference {report.reference}")
    rows = [
        (output, f"{check.error:.3g}", f"{check.limit:g}", "ok" if check.passed else "FAILED", check.name)
        for output, check in report.by_output().items()
    ]
    console.table(rows, header=("output", "worst error", "limit", "", "where"))
    if report.measured:
        console.say("cosines after subtracting the mean over images, where they are smallest:")
        header = ("output", "minimum", "first %", "median", "raw min.", "SQNR", "10 nearest")
        console.table([_agreement(found) for found in report.worst_scenes().values()], header=header)
    failed = sum(not check.passed for check in report.checks)
    console.say(f"{len(report.checks) - failed} of {len(report.checks)} checks passed")


def _agreement(found: Measured) -> tuple[str, ...]:
    figures = found.agreement
    cosines = figures.centred_cosine
    return (
        found.output,
        *(f"{value:.6f}" for value in (cosines.minimum, cosines.first_percentile, cosines.median)),
        f"{figures.cosine.minimum:.6f}",
        f"{figures.sqnr:.1f} dB",
        "-" if figures.neighbours is None else f"{figures.neighbours:.3f}",
    )


def show_inspection(described: dict[str, Any]) -> None:
    """What `report.inspection.inspect` found: a graph as `export` shows it, everything else as a tree."""
    if described["kind"] == "engine":
        shown = {key: value for key, value in described.items() if key != "sidecar"}
        show_engine(Path(described["path"]), read_json(json.dumps(described["sidecar"]), EngineSidecar, "sidecar"))
        show_tree(shown)
        return
    if described["kind"] == "table":
        show_table(described)
        return
    if described["kind"] != "graph":
        show_tree({key: _joined(value) for key, value in described.items()})
        return
    manifest = Manifest.from_json(json.dumps(described["manifest"]))
    show_graph(Path(described["path"]), manifest)
    shown = {"sha256": described["sha256"], "runtime": described["runtime"], "family": manifest.family}
    shown["licence of published weights"] = manifest.licence or None
    made_from = {ancestor.name: f"{ancestor.kind}, sha256 {ancestor.sha256}" for ancestor in manifest.made_from}
    values = {key: _joined(value) for key, value in manifest.encoder.items() if key not in ("image", "family")}
    tools = ", ".join(f"{name} {version}" for name, version in manifest.tools.items())
    image = {key: _joined(value) for key, value in asdict(manifest.image).items()}
    show_tree(shown | {"made from": made_from, "written by": tools, "image": image, "encoder": values})


def _joined(value: Any) -> Any:
    """Shapes as 48 x 3 x 8 x 8, so that they cannot be taken for lists of things."""
    if isinstance(value, dict):
        return {key: _joined(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)) and value and all(isinstance(item, int) for item in value):
        return " x ".join(map(str, value))
    return value


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
        elif isinstance(item, (list, tuple)) and any(", " in str(part) for part in item):  # sentences
            yield f"{indent}{key}:"
            yield from (f"{indent}  {part}" for part in item)
        elif isinstance(item, (list, tuple)):
            yield f"{indent}{key}: {', '.join(map(str, item)) or '-'}"
        else:
            yield f"{indent}{key}: {'-' if item in (None, {}) else item}"
