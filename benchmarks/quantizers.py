"""The same float32 graph in INT8 by several quantizers, from the same images and masks: ours, and what users have.

ONNX Runtime's `quantize_static` in each of its methods, with the options that keep the same products in 8 bits: per
channel, symmetric, no quantized outputs, weights as Q/DQ pairs, embedding and attention left out. NVIDIA's Model
Optimizer with the same products, where an interpreter that has it is named (modelopt_graph.py says how to make one).
"""

from __future__ import annotations

import contextlib
import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir
from onnxruntime.quantization import CalibrationDataReader, CalibrationMethod, QuantFormat, QuantType, quantize_static

from benchmarks.huge import measured
from mae_export import graph
from mae_export.calibration.lower import lower
from mae_export.calibration.observe import observe
from mae_export.calibration.options import ObserveOptions
from mae_export.calibration.quantize import quantize_model
from mae_export.calibration.sites import sites_of
from mae_export.calibration.table import Table
from mae_export.calibration.visibility import parse_visibility
from mae_export.calibration.wanted import QuantizeOptions
from mae_export.files import sha256_files
from mae_export.manifest import METADATA_KEY
from mae_export.runtime.batching import Batch, Batcher
from mae_export.runtime.images import prepare

Array = npt.NDArray[Any]

METHODS = ("MinMax", "Percentile", "Entropy")
MODELOPT = Path(__file__).with_name("modelopt_graph.py")
MODELOPT_METHODS = ("entropy", "max")
OBSERVED = "all"
BATCH = 8


class Reader(CalibrationDataReader):
    """Rows of batches, one by one."""

    def __init__(self, batches: Sequence[Batch]) -> None:
        self._rows = iter([batch.row(at).feeds for batch in batches for at in range(len(batch))])

    def get_next(self) -> dict[str, Array] | None:
        return next(self._rows, None)


def batches_of(source: Path, images: Sequence[Path], visible: str) -> list[Batch]:
    """Images with the patches that calibration would show of them."""
    manifest, plan = graph.read_manifest(source), parse_visibility(visible)
    batcher, found = Batcher(manifest, BATCH), []
    for index, path in enumerate(images):
        ids_keep = plan.ids_keep(index, sha256_files(path), manifest.patches.count)
        pixels = prepare(path.read_bytes(), manifest.image)
        full = batcher.add(index=index, item_id=path.name, pixels=pixels, ids_keep=ids_keep)
        found += [full] if full else []
    return [*found, *batcher.rest()]


def ours(source: Path, table: Table, folder: Path) -> dict[str, Path]:
    """The Q/DQ graph, and the form that a CPU computes fastest."""
    made = {}
    for name in ("ours", "ours, for CPUs"):
        model = ir.load(source)
        quantize_model(model, table.ranges, QuantizeOptions(precision="int8"))
        if name != "ours":
            lower(model)
        made[name] = folder / f"{source.stem} {name}.onnx"
        graph.save(model, made[name])
    return made


def theirs(source: Path, batches: Sequence[Batch], folder: Path) -> dict[str, Path]:
    """ONNX Runtime's graph for each of its methods."""
    left_out, made = not_quantized(source), {}
    for method in METHODS:
        path = folder / f"{source.stem} {method}.onnx"
        with contextlib.redirect_stdout(io.StringIO()):
            quantize_static(
                str(source),
                str(path),
                Reader(batches),
                quant_format=QuantFormat.QDQ,
                activation_type=QuantType.QInt8,
                weight_type=QuantType.QInt8,
                per_channel=True,
                op_types_to_quantize=["MatMul"],
                nodes_to_exclude=left_out,
                calibrate_method=CalibrationMethod[method],
                extra_options={
                    "ActivationSymmetric": True,
                    "WeightSymmetric": True,
                    "QuantizeBias": False,
                    "AddQDQPairToWeight": True,
                    "OpTypesToExcludeOutputQuantization": ["MatMul", "Gemm", "Conv"],
                },
            )
        made[f"ONNX Runtime, {method}"] = with_manifest(path, source)
    return made


def modelopts(python: str, source: Path, batches: Sequence[Batch], folder: Path) -> dict[str, Path]:
    """Model Optimizer's graph for each of its methods, made by another interpreter."""
    feeds, made = folder / f"{source.stem}.npz", {}
    np.savez(feeds, **{name: np.concatenate([batch.feeds[name] for batch in batches]) for name in batches[0].feeds})
    for method in MODELOPT_METHODS:
        path = folder / f"{source.stem} modelopt {method}.onnx"
        files = (str(source), str(feeds), str(path))
        # -I keeps this folder, whose modules have common names, out of the other interpreter's path
        measured(python, "-I", str(MODELOPT), *files, "--method", method, "--leave-out", *not_quantized(source))
        made[f"modelopt, {method}"] = with_manifest(path, source)
    return made


def not_quantized(source: Path) -> list[str]:
    """The products that stay float32 in our graphs: embedding and attention."""
    return [site.node for site in sites_of(source) if not site.weight or site.kind == "patch_embed"]


def with_manifest(path: Path, source: Path) -> Path:
    """The graph at `path`, with the source's manifest where its maker dropped it."""
    if not any(entry.key == METADATA_KEY for entry in ir.to_proto(ir.load(path)).metadata_props):
        graph.write_manifest(path, graph.read_manifest(source))
    return path


def contenders(source: Path, images: Sequence[Path], samples: int, modelopt: str) -> tuple[dict[str, Path], set[str]]:
    """All graphs, beside their source, and the digests of the images they were calibrated on."""
    folder = source.parent
    out = folder / f"{source.stem}.calib.json"
    options = ObserveOptions(samples=samples, visible=OBSERVED, batch=BATCH)
    table = observe(source, [path.parent for path in images[:1]], out, options=options).table
    batches = batches_of(source, [path for path in images if sha256_files(path) in table.images], OBSERVED)
    return {
        "float32": source,
        **ours(source, table, folder),
        **theirs(source, batches, folder),
        **(modelopts(modelopt, source, batches, folder) if modelopt else {}),
    }, set(table.images)
