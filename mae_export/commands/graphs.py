"""Commands that write graphs: `export` and `convert`. Steps are imported inside, so that --help stays light."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Literal

import typer

from mae_export.commands.arguments import FamilyName, Force, Json, Settings
from mae_export.export.options import ConvertOptions, Half, TraceOptions
from mae_export.files import require_place
from mae_export.manifest import MaskMode

Precision = Literal["fp32", "fp16", "bf16"]


def export_command(
    checkpoint: Annotated[Path, typer.Argument(help="A .pth, .pt or .safetensors file, or a Hugging Face folder.")],
    out: Annotated[Path, typer.Option("--output", "-o", help="The graph to write, ending in .onnx.")],
    family: FamilyName = None,
    settings: Settings = None,
    mask: Annotated[
        MaskMode,
        typer.Option(
            help="none: every patch; keep: images and ids_keep; patches: visible patches only; mask-token: images and "
            "mask, for encoders that were trained with a mask token."
        ),
    ] = TraceOptions.mask,
    ragged: Annotated[
        bool, typer.Option("--ragged", help="Let rows keep different numbers of patches.")
    ] = TraceOptions.ragged,
    features: Annotated[
        str,
        typer.Option(
            help="Outputs, comma separated: class_token, pooled, mean_patch, patch_tokens, dense, layer_<i>, "
            "attention_<i>, reconstruction, prediction."
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
