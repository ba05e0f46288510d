"""Graph to graph: half precision with named float32 islands, accepted only when rounding for real changes nothing.

Ranges are measured, islands chosen (`islands.py`), types written (`retype.py`), and the verdict comes from the twin
(`rounding.py`): its features and the float32 graph's must agree, or the result stays at `OUT.rejected`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnx_ir as ir
import onnxruntime as ort

from mae_export import __version__, graph
from mae_export.encoders.encoder import Encoder
from mae_export.encoders.load import LoadReport
from mae_export.errors import GraphError, InputError, VerificationError
from mae_export.export.islands import choose_fp32
from mae_export.export.options import ConvertOptions, Half, TraceOptions
from mae_export.export.ranges import Ranges, measure
from mae_export.export.retype import TYPES, retype
from mae_export.export.rounding import make_twin
from mae_export.export.trace import export_graph
from mae_export.files import model_files, put_in_place, require_place, sha256_files, staging
from mae_export.manifest import Ancestor, Manifest
from mae_export.runtime.compare import Check, Report, feeds_of, scenes, summary_of
from mae_export.runtime.golden import golden_of
from mae_export.runtime.metrics import agreement, feature_vectors
from mae_export.runtime.probes import adversarial_images, golden_feeds, probe_photos
from mae_export.runtime.session import Session, open_as_is
from mae_export.runtime.thresholds import CONVERSION

Array = npt.NDArray[Any]
Feeds = dict[str, Array]
Outputs = dict[str, Array]
BATCH = 8
FLOAT32, EIGHT = "fp32", ("int8", "fp8")


def convert(
    source: Path,
    out: Path,
    *,
    options: ConvertOptions,
    images: npt.NDArray[np.uint8] | None = None,
    progress: Callable[[str], None] | None = None,
) -> Manifest:
    """Write a half-precision graph that was proven against its float32 source; otherwise leave `OUT.rejected`.

    Args:
        source: a float32 graph written by `mae-export export`, or one of `mae-export quantize`, whose products stay in
            8 bits.
        out: ends in .onnx.
        options: what is wanted.
        images: uint8 [n, H, W, C], prepared for the graph, shown to it besides the probe images.
        progress: told the name of each phase as it begins.

    Returns:
        The manifest inside the new graph. Outputs stay float32.

    Raises:
        UsageError: when `out` exists and `force` is not set.
        InputError: when the images do not fit the graph.
        GraphError: when the source is no such graph, or ONNX Runtime refuses the result.
        VerificationError: when the result disagrees with the source.
    """
    tell = progress or (lambda _: None)
    require_place(out, suffix=".onnx", force=options.force)
    manifest = _source_manifest(source, options.precision)
    feeds = dict(_scenes(manifest, images))
    with staging(out) as folder:
        staged = folder / out.name
        tell("measuring ranges")
        ranges, expected = measure(ir.load(source), folder / "measured.onnx", list(feeds.values()))
        tell("converting")
        fp32_nodes = _write(source, staged, ranges, options)
        precision = options.precision if manifest.precision == "fp32" else manifest.precision
        manifest = replace(
            _descendant(manifest, source), precision=precision, fp32_nodes=manifest.fp32_nodes | fp32_nodes
        )
        graph.write_manifest(staged, manifest)
        with graph.judging(staged, out):
            tell("comparing with the float32 graph")
            graph.check(staged)
            manifest = _prove(staged, manifest, feeds, expected)
        graph.write_manifest(staged, manifest)
        put_in_place(staged, out)
    return manifest


def export_half(
    encoder: Encoder,
    report: LoadReport,
    out: Path,
    *,
    trace: TraceOptions,
    half: ConvertOptions,
    progress: Callable[[str], None] | None = None,
) -> Manifest:
    """Export in float32 to a private place, prove it, and convert it; see `export_graph` and `convert`."""
    require_place(out, suffix=".onnx", force=half.force)
    with staging(out) as folder:
        source = folder / out.name
        try:
            export_graph(encoder, report, source, options=trace, progress=progress)
        except Exception:
            rejected = source.with_name(source.name + ".rejected")
            if rejected.exists():
                put_in_place(rejected, out.with_name(rejected.name))
            raise
        return convert(source, out, options=half, progress=progress)


def _write(source: Path, staged: Path, ranges: Ranges, options: ConvertOptions) -> dict[str, str]:
    model = ir.load(source)
    fp32_nodes = choose_fp32(model, ranges, half=options.precision, headroom=options.headroom)
    retype(model, options.precision, fp32_nodes)
    graph.save(model, staged)
    return fp32_nodes


def _source_manifest(source: Path, half: Half) -> Manifest:
    manifest = graph.read_manifest(source)
    if manifest.precision not in (FLOAT32, *EIGHT):
        raise GraphError(
            f"{source} is {manifest.precision} already; expected fp32, int8 or fp8: convert the graph it was made from"
        )
    graph.check(source)
    model = ir.load(source)
    quantized = next((node for node in model.graph if node.op_type in ("QuantizeLinear", "DequantizeLinear")), None)
    if quantized is not None and manifest.precision == FLOAT32:
        raise GraphError(
            f"{source} is quantized (node {quantized.name!r}); expected fp32, or a graph of `mae-export quantize`"
        )
    lowered = next((node for node in model.graph if node.domain), None)
    if lowered is not None:
        raise GraphError(
            f"{source} is lowered for ONNX Runtime (node {lowered.name!r}), which nothing else reads; expected Q/DQ: "
            "quantize without --lower, and convert that"
        )
    typed = next((v for v in model.graph.initializers.values() if v.dtype in TYPES.values()), None)
    if typed is not None:
        raise GraphError(
            f"{source} holds {typed.dtype} (tensor {typed.name!r}) already; expected float32 beside the 8 bits: "
            "convert the graph it was made from"
        )
    if half == "bf16" and manifest.precision != FLOAT32:
        raise GraphError(f"{source} is {manifest.precision}; the rest of it can be fp16 only: use --precision fp16")
    return manifest


def _scenes(manifest: Manifest, images: npt.NDArray[np.uint8] | None) -> Iterator[tuple[str, Feeds]]:
    """What the graphs are shown, by name: every image with all patches, and where there is a mask with some."""
    shown = np.concatenate([probe_photos(manifest.image), adversarial_images(manifest.image)])
    if images is not None:
        wanted = (*manifest.image.size, manifest.image.channels)
        if images.dtype != np.uint8 or images.shape[1:] != wanted or images.ndim != 4:
            raise InputError(
                f"images are {images.dtype} {list(images.shape)}; expected uint8 [n, {', '.join(map(str, wanted))}]"
            )
        shown = np.concatenate([shown, images])
    for scene in scenes(manifest, shown):
        yield scene.name, feeds_of(scene, manifest)


def _descendant(manifest: Manifest, source: Path) -> Manifest:
    parent = Ancestor(kind="graph", name=source.name, sha256=sha256_files(*model_files(source)))
    tools = {"mae-export": __version__, "onnx": onnx.__version__, "onnxruntime": ort.__version__}
    return replace(manifest, made_from=(*manifest.made_from, parent), tools=manifest.tools | tools)


def _prove(staged: Path, manifest: Manifest, feeds: dict[str, Feeds], reference: Iterable[Outputs]) -> Manifest:
    """Judge the staged graph by its twin, and as it runs in ONNX Runtime where that has the kernels."""
    nodes = {value.name: node.name for node in ir.load(staged).graph for value in node.outputs}
    twin = staged.with_name("twin.onnx")
    ranges, found = measure(make_twin(ir.load(staged)), twin, [*feeds.values(), golden_feeds(manifest)])
    golden = found.pop()
    checks = [check for case in zip(feeds, found, reference, strict=True) for check in _checks(manifest, *case)]
    if manifest.precision != "bf16":  # the CPU provider has no bfloat16 kernels
        with open_as_is(staged) as session:
            names = (f"{name}, in ONNX Runtime" for name in feeds)
            found = [_run(session, scene) for scene in feeds.values()]
        checks += [check for case in zip(names, found, reference, strict=True) for check in _checks(manifest, *case)]
    report = Report(candidate=staged.name, reference=manifest.made_from[-1].name, checks=tuple(checks))
    _require(report, nodes.get(ranges.first_infinite()))
    verification = summary_of(
        report, f"{report.reference} in float32; error is 1 - cosine after subtracting the mean over images"
    )
    return replace(manifest, verification=verification, golden=golden_of(golden))


def _run(session: Session, feeds: Feeds) -> Outputs:
    total = len(next(iter(feeds.values())))
    parts = [
        session.run({name: array[first : first + BATCH] for name, array in feeds.items()})
        for first in range(0, total, BATCH)
    ]
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def _checks(manifest: Manifest, scene: str, found: Outputs, expected: Outputs) -> Iterator[Check]:
    limit = round(1 - CONVERSION[manifest.precision], 6)
    for name, values in found.items():
        agreed = agreement(feature_vectors(name, values), feature_vectors(name, expected[name]))
        yield Check(name=scene, output=name, error=max(0.0, 1 - agreed.centred_cosine.minimum), limit=limit)


def _require(report: Report, overflowing: str | None) -> None:
    if report.passed and overflowing is None:  # an infinity may vanish on the way on these images, but not on others
        return
    worst = report.worst
    failed = sum(not check.passed for check in report.checks)
    overflow = f"; {overflowing} overflows first" if overflowing else ""
    raise VerificationError(
        f"output {worst.output!r} has cosine {1 - worst.error:.6f} with the float32 graph after subtracting the mean "
        f"over images, with {worst.name}; expected at least {1 - worst.limit:g}. "
        f"{failed} of {len(report.checks)} checks failed against {report.reference}{overflow}. "
        f"The graph was not written; see {report.candidate}.rejected next to where it would be. Try bf16, or fp32"
    )
