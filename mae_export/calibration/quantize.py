"""Graph and table to an 8-bit graph: place, smooth, scale, insert, and accept only what agrees with the float32 graph.

The result is compared with the float32 graph on pictures that the table was not made from; what disagrees stays at
`OUT.rejected`. Outlier channels are moved into weights first, then scales are chosen, then biases take the mean error
of the rounded weights; none of this costs anything at run time.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnx_ir as ir
import onnxruntime as ort

from mae_export import __version__, graph
from mae_export.calibration.bias import correct_bias
from mae_export.calibration.insert import insert, output_axis, stored
from mae_export.calibration.lower import lower
from mae_export.calibration.placement import Placement, place
from mae_export.calibration.scales import GRIDS, Grid, activation_scale, half_scale, weight_scales
from mae_export.calibration.sites import sites_of
from mae_export.calibration.smooth import smooth
from mae_export.calibration.table import Table, TensorRange
from mae_export.calibration.wanted import QuantizeOptions
from mae_export.errors import GraphError, InputError
from mae_export.files import model_files, put_in_place, require_place, sha256_files, staging
from mae_export.manifest import Ancestor, Manifest
from mae_export.runtime.compare import Report, compare, require, summary_of
from mae_export.runtime.golden import golden_of
from mae_export.runtime.probes import golden_feeds, verification_images
from mae_export.runtime.session import open_session, open_to_judge

Array = npt.NDArray[Any]
ADVICE = "Show more pictures to `mae-export calibrate`, try another --method, or keep sensitive modules with --keep"
HEADROOM = 2.0  # of attention probabilities in INT8; those of FP8 are fine near 0 and take all the range
OPSET = 19  # the first whose scales may be float16, as engines want them, and whose integers may be FP8


def quantize(
    source: Path,
    table_path: Path,
    out: Path,
    *,
    options: QuantizeOptions,
    images: npt.NDArray[np.uint8] | None = None,
    progress: Callable[[str], None] | None = None,
) -> tuple[Manifest, Report]:
    """Write an 8-bit graph that was proven against its float32 source; otherwise leave `OUT.rejected`.

    Args:
        source: a float32 graph written by `mae-export export`.
        table_path: of that graph, written by `mae-export calibrate`.
        out: ends in .onnx.
        options: what is wanted.
        images: uint8 [n, H, W, C], prepared for the graph and not used for the table; None means the photographs that
            come with the package.
        progress: told the name of each phase as it begins.

    Returns:
        The manifest inside the new graph, and the comparison.

    Raises:
        UsageError: when `out` exists and `force` is not set, or `keep` names nothing.
        InputError: when the table is damaged, or belongs to another graph, or lacks a tensor.
        GraphError: when the source is no float32 graph of ours, or cannot be quantized as wanted.
        VerificationError: when the result disagrees with the source.
    """
    tell = progress or (lambda _: None)
    require_place(out, suffix=".onnx", force=options.force)
    manifest, table = _source_manifest(source), Table.read(table_path)
    table.require_for(source)
    with staging(out) as folder:
        staged = folder / out.name
        tell("quantizing")
        model = ir.load(source)
        _require_opset(model, source)
        placement = quantize_model(model, table.ranges, options)
        if options.lower:
            lower(model)
        graph.save(model, staged)
        del model  # its weights would be in memory beside two sessions'
        manifest = replace(_descendant(manifest, source, table_path, options), fp32_nodes=placement.left_out)
        graph.write_manifest(staged, manifest)
        with graph.judging(staged, out):
            tell("comparing with the float32 graph")
            graph.check(staged)
            manifest, report = _prove(staged, source, manifest, images)
        graph.write_manifest(staged, manifest)
        put_in_place(staged, out)
    return manifest, report


def quantize_model(model: ir.Model, ranges: dict[str, TensorRange], options: QuantizeOptions) -> Placement:
    """Turn a float32 model into a Q/DQ model in place; returns what runs in 8 bits.

    Args:
        model: as `mae-export export` writes it.
        ranges: of its activations, by name.
        options: what is wanted; `lower` is not looked at.

    Raises:
        UsageError: when `keep` names nothing.
        InputError: when the ranges lack a tensor.
        GraphError: when the model cannot be quantized as wanted.
    """
    grid = GRIDS[options.precision]
    placement = place(model, sites_of(model), options)
    missing = [name for site in placement.sites for name in site.inputs if name not in ranges]
    if missing:
        raise InputError(
            f"the table has no range of {missing[0]!r} and {len(missing) - 1} other tensors; expected all that are "
            "quantized: calibrate again"
        )
    if options.smooth and options.precision == "int8":
        ranges = smooth(model, placement.sites, ranges)
    nodes = {node.name: node for node in model.graph}
    weights = {site.node: _weight_scales(nodes[site.node], grid) for site in placement.sites if site.weight}
    if options.correct_bias:
        for name, site in ((site.inputs[0], site) for site in placement.sites if site.weight):
            _correct_bias(model, nodes[site.node], grid, scale=weights[site.node], means=ranges[name].means)
    activations = {
        name: _activation_scale(ranges[name], grid, probabilities=site.kind == "mix" and index == 0)
        for site in placement.sites
        for index, name in enumerate(site.inputs)
    }
    insert(model, placement.sites, grid, activations=activations, weights=weights)
    return placement


def _weight_scales(node: ir.Node, grid: Grid) -> Array:
    return weight_scales(stored(node, 1), output_axis(node), grid)


def _activation_scale(found: TensorRange, grid: Grid, *, probabilities: bool) -> Array:
    """As for any activation, but attention probabilities are never clipped: fewer tokens than were seen double them."""
    if not probabilities:
        return activation_scale(found, grid)
    largest = min(1.0, HEADROOM * found.reach) if grid.dtype == ir.DataType.INT8 else 1.0
    return half_scale(largest / grid.largest)


def _correct_bias(model: ir.Model, node: ir.Node, grid: Grid, *, scale: Array, means: tuple[float, ...]) -> None:
    weight, axis = stored(node, 1), output_axis(node)
    if means and weight.ndim == 2:
        lost = weight - grid.rounded(weight, scale[:, None] if axis == 0 else scale)
        correct_bias(model, node, np.asarray(means) @ (lost.T if axis == 0 else lost))


def _source_manifest(source: Path) -> Manifest:
    manifest = graph.read_manifest(source)
    if manifest.precision != "fp32":
        raise GraphError(
            f"{source} is {manifest.precision} already; expected fp32: quantize the graph it was made from"
        )
    return manifest


def _require_opset(model: ir.Model, source: Path) -> None:
    opset = model.opset_imports.get("", 0)
    if opset < OPSET:
        raise GraphError(f"{source} has opset {opset}; expected {OPSET} or more: export it again with --opset 20")


def _descendant(manifest: Manifest, source: Path, table: Path, options: QuantizeOptions) -> Manifest:
    parents = (
        Ancestor(kind="graph", name=source.name, sha256=sha256_files(*model_files(source))),
        Ancestor(kind="table", name=table.name, sha256=sha256_files(table)),
    )
    tools = {"mae-export": __version__, "onnx": onnx.__version__, "onnxruntime": ort.__version__}
    if options.lower:
        tools["lowered"] = "ONNX Runtime, CPU"
    return replace(
        manifest,
        precision=options.precision,
        made_from=(*manifest.made_from, *parents),
        tools=manifest.tools | tools,
    )


def _prove(
    staged: Path, source: Path, manifest: Manifest, images: npt.NDArray[np.uint8] | None
) -> tuple[Manifest, Report]:
    shown = verification_images(manifest.image) if images is None else images
    with open_to_judge(staged) as candidate, open_session(source, backend="cpu") as reference:
        report = compare(candidate, reference, images=shown)
        golden = golden_of(candidate.run(golden_feeds(manifest)))
    require(report, f"The graph was not written; see {staged.name}.rejected next to where it would be. {ADVICE}")
    verification = summary_of(report, f"{source.name} in float32, {report.worst.name}")
    return replace(manifest, verification=verification, golden=golden), report
