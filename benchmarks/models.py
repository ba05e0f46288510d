"""Graphs of published sizes in every precision, made for measuring speed: their weights are random."""

from __future__ import annotations

from pathlib import Path

from benchmarks.sizes import write_checkpoint
from benchmarks.spine import write_images
from mae_export.calibration.observe import observe
from mae_export.calibration.options import ObserveOptions
from mae_export.calibration.quantize import quantize
from mae_export.calibration.wanted import QuantizeOptions
from mae_export.encoders.load import load_encoder
from mae_export.errors import VerificationError
from mae_export.export.options import ConvertOptions, Half, TraceOptions
from mae_export.export.precision import convert
from mae_export.export.trace import export_graph
from mae_export.files import put_in_place

PICTURES = 16  # to calibrate on; the ranges of random weights are alike on all


def write_graph(size: str, folder: Path) -> Path:
    """The float32 graph of a size: `pooled` of the patches in `ids_keep`."""
    path = folder / f"{size}.onnx"
    encoder, report = load_encoder(write_checkpoint(size, folder / f"{size}.pth"))
    export_graph(encoder, report, path, options=TraceOptions(mask="keep", features=("pooled",)))
    return path


def write_half(graph: Path, precision: Half) -> Path:
    """The same in half precision; what random weights lose to rounding does not matter here either."""
    path = graph.with_name(f"{graph.stem}-{precision}.onnx")
    try:
        convert(graph, path, options=ConvertOptions(precision=precision))
    except VerificationError:
        _accept(path)
    return path


def write_int8(graph: Path, *, lower: bool = False) -> Path:
    """The same in INT8, with Q/DQ nodes or in ONNX Runtime's own operators for CPUs.

    Random weights may lose more to rounding than trained ones; what is refused for that is as fast as what is not.
    """
    table, pictures = graph.with_suffix(".calib.json"), graph.parent / "pictures"
    if not table.exists():
        images = pictures if pictures.exists() else write_images(pictures, PICTURES)
        observe(graph, [images], table, options=ObserveOptions(method="minmax", samples=PICTURES))
    path = graph.with_name(f"{graph.stem}-int8{'-lowered' * lower}.onnx")
    try:
        quantize(graph, table, path, options=QuantizeOptions(precision="int8", lower=lower))
    except VerificationError:
        _accept(path)
    return path


def _accept(path: Path) -> None:
    """Take a file that was rejected, and its data."""
    put_in_place(path.with_name(path.name + ".rejected"), path)
