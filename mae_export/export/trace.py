"""Encoder to graph: trace, check, load, compare with PyTorch, and only then put the file in place."""

from __future__ import annotations

import ast
import difflib
import json
import logging
import platform
import re
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path

import onnx
import onnx_ir
import torch
from torch import Tensor

from mae_export import __version__, graph
from mae_export.encoders.encoder import Encoder
from mae_export.encoders.families.installed import families
from mae_export.encoders.load import LoadReport
from mae_export.errors import GraphError, UsageError
from mae_export.export.options import TraceOptions
from mae_export.export.verify import TorchSession, verify
from mae_export.export.view import PREDICTIONS, ExportView
from mae_export.files import put_in_place, require_place, staging
from mae_export.manifest import Ancestor, Manifest, MaskMode, Patches, TensorSpec
from mae_export.runtime.compare import require
from mae_export.runtime.golden import golden_of
from mae_export.runtime.probes import golden_feeds
from mae_export.runtime.session import open_as_is
from mae_export.spec import EncoderSpec, predicts_pixels

_SCOPES = "pkg.torch.onnx.name_scopes"  # where torch.onnx notes the module that a node came from
FEATURES = (
    "class_token",
    "pooled",
    "mean_patch",
    "patch_tokens",
    "dense",
    "layer_<i>",
    "attention_<i>",
    "reconstruction",
    "prediction",
)
_TRAINED: dict[MaskMode, str] = {  # what an input's note adds when it is not how the family was trained
    "keep": "trained by dropping masked patches, not by replacing them",
    "mask-token": "trained by replacing masked patches with a learned token, never by dropping them",
    "none": "trained on all patches, none of them masked",
}
Progress = Callable[[str], None]


def export_graph(
    encoder: Encoder,
    report: LoadReport,
    out: Path,
    *,
    options: TraceOptions | None = None,
    progress: Progress | None = None,
) -> Manifest:
    """Write a graph that was checked, loaded and compared with PyTorch; otherwise leave `OUT.rejected`.

    Args:
        encoder: as loaded.
        report: of its loading; the graph records where it came from.
        out: ends in .onnx.
        options: what graph is wanted; None means the defaults.
        progress: told the name of each phase as it begins.

    Returns:
        The manifest inside the graph.

    Raises:
        UsageError: when `out` exists and `force` is not set, or a feature or the mask token does not exist.
        InputError: when the image size does not fit the patch.
        GraphError: when the traced graph is invalid or ONNX Runtime refuses it.
        VerificationError: when the graph disagrees with PyTorch.
    """
    options = options or TraceOptions()
    tell = progress or (lambda _: None)
    require_place(out, suffix=".onnx", force=options.force)
    _require_mask(encoder.spec, options)
    _require_features(encoder.spec, options)
    if options.image_size is not None:
        encoder = encoder.resized(options.image_size)
    manifest = _manifest(encoder, report, options)
    with staging(out) as folder:
        staged = folder / out.name
        tell("tracing")
        _trace(encoder, manifest, options.opset, staged)
        graph.write_manifest(staged, manifest)
        with graph.judging(staged, out):
            tell("checking")
            graph.check(staged)
            tell("comparing with PyTorch")
            manifest = _prove(staged, encoder, manifest, report.sha256)
        graph.write_manifest(staged, manifest)
        put_in_place(staged, out)
    return manifest


def _require_mask(spec: EncoderSpec, options: TraceOptions) -> None:
    if options.mask == "mask-token" and not spec.mask_token:
        raise UsageError(
            f"--mask mask-token needs a learned mask token, which this {spec.family} checkpoint does not hold; "
            "choose --mask none, keep or patches"
        )


def _require_features(spec: EncoderSpec, options: TraceOptions) -> None:
    for name in options.features:
        indexed = re.fullmatch(r"(layer|attention)_(\d+)", name)
        if indexed:
            if int(indexed.group(2)) >= spec.depth:
                raise UsageError(f"there is no {name!r}: blocks are numbered 0 to {spec.depth - 1}")
        elif name not in FEATURES:
            near = difflib.get_close_matches(name, FEATURES, 1)
            hint = f"did you mean {near[0]!r}?" if near else f"known: {', '.join(FEATURES)}"
            raise UsageError(f"there is no output {name!r}; {hint}")
        elif name == "class_token" and not spec.class_token:
            raise UsageError("there is no 'class_token': this encoder has none; 'pooled' is the authors' feature")
        elif name in PREDICTIONS:
            _require_prediction(spec, options, name)


def _require_prediction(spec: EncoderSpec, options: TraceOptions, name: str) -> None:
    if spec.decoder is None:
        raise UsageError(f"there is no {name!r}: {families()[spec.family].undecoded}")
    right = "reconstruction" if predicts_pixels(spec) else "prediction"
    if name != right:
        raise UsageError(f"there is no {name!r}: this checkpoint predicts {spec.decoder.target}; ask for {right!r}")
    drops = options.mask in ("keep", "patches")
    if spec.decoder.hiding == "impossible" and drops:
        raise UsageError(f"{name!r} needs every patch here: use --mask none or --mask mask-token")
    if spec.decoder.hiding == "required" and not drops:
        raise UsageError(
            f"{name!r} is of hidden patches here, and --mask {options.mask} drops none: use --mask keep or "
            "--mask patches"
        )


def _manifest(encoder: Encoder, report: LoadReport, options: TraceOptions) -> Manifest:
    spec = encoder.spec
    return Manifest(
        family=spec.family,
        encoder=json.loads(json.dumps(asdict(spec))),  # plain data, as every reader of the file will see it
        image=spec.image,
        patches=Patches(patch=spec.patch, grid=spec.grid, prefix_tokens=spec.prefix_tokens),
        mask_mode=options.mask,
        ragged=options.ragged,
        inputs=tuple(_inputs(spec, options)),
        outputs=tuple(_output(spec, options, name) for name in options.features),
        precision="fp32",
        made_from=(Ancestor(kind="checkpoint", name=report.path.name, sha256=report.sha256),),
        tools={
            "mae-export": __version__,
            "onnx": onnx.__version__,
            "python": platform.python_version(),
            "torch": torch.__version__,
        },
        licence=report.licence,
    )


def _inputs(spec: EncoderSpec, options: TraceOptions) -> Iterator[TensorSpec]:
    if options.mask == "patches":
        note = "visible patches, RGB as decoded, values in (t, y, x, c) order"
        yield TensorSpec(name="patches", dtype="uint8", shape=("batch", "kept", spec.patch_values), note=note)
    else:
        shape = ("batch", *spec.image.size, spec.image.channels)
        yield TensorSpec(name="images", dtype="uint8", shape=shape, note="RGB as decoded")
    trained = families()[spec.family].trained
    if options.mask == "mask-token":
        note = "True where the learned mask token replaces the patch, in raster order"
        if trained != "mask-token":
            note += f"; this family was {_TRAINED[trained]}"
        yield TensorSpec(name="mask", dtype="bool", shape=("batch", spec.patches), note=note)
    elif options.mask != "none":
        note = "raster index of each visible patch, each at most once per row"
        if trained != "keep":
            note += f"; this family was {_TRAINED[trained]}"
        yield TensorSpec(name="ids_keep", dtype="int64", shape=("batch", "kept"), note=note)
    if options.ragged:
        note = "how many of ids_keep are real; the rest is padding with any valid index"
        yield TensorSpec(name="num_keep", dtype="int32", shape=("batch",), note=note)


def _output(spec: EncoderSpec, options: TraceOptions, name: str) -> TensorSpec:
    prefix = spec.prefix_tokens
    whole = options.mask in ("none", "mask-token")
    kept: int | str = spec.patches if whole else "kept"
    tokens: int | str = spec.patches + prefix if whole else f"kept+{prefix}" if prefix else "kept"
    values = spec.patch_values
    if spec.decoder is not None and spec.decoder.values is not None:
        values = spec.decoder.values
    shapes: dict[str, tuple[int | str, ...]] = {
        "patch_tokens": (kept, spec.dim),
        "dense": (spec.dim, *spec.grid[1:]),
        "reconstruction": (spec.patches, values),
        "prediction": (spec.patches, values),
        "layer": (tokens, spec.dim),
        "attention": (spec.heads, tokens, tokens),
    }
    kind = re.sub(r"_\d+$", "", name)
    note = families()[spec.family].outputs(spec).get(name, "")
    if kind == "layer":
        first = "the class token is token 0, then " if prefix else ""
        note = f"tokens after the block, before any final norm; {first}{kept} patches"
    if options.mask == "mask-token" and kind in ("patch_tokens", "layer"):
        note += "; every patch has its place, masked ones too"
    if kind in PREDICTIONS and spec.decoder is not None:
        note += f"; target: {spec.decoder.target}"
    return TensorSpec(name=name, dtype="float32", shape=("batch", *shapes.get(kind, (spec.dim,))), note=note)


def _trace(encoder: Encoder, manifest: Manifest, opset: int, path: Path) -> None:
    names = tuple(spec.name for spec in manifest.outputs)
    view = ExportView(encoder, manifest.mask_mode, ragged=manifest.ragged, features=names).eval()
    batch, kept = torch.export.Dim("batch", min=1), torch.export.Dim("kept", min=1)
    dims = {"batch": batch, "kept": kept}
    shapes = tuple(
        {axis: dims[extent] for axis, extent in enumerate(spec.shape) if isinstance(extent, str)}
        for spec in manifest.inputs
    )
    with _quiet(), torch.no_grad():
        program = torch.onnx.export(
            view,
            tuple(_examples(manifest)),
            dynamo=True,
            opset_version=opset,
            input_names=[spec.name for spec in manifest.inputs],
            output_names=list(names),
            dynamic_shapes=shapes,
            verbose=False,
        )
    if program is None:
        raise GraphError("torch.onnx.export returned nothing; report this with the checkpoint's layout")
    _name_nodes(program.model)
    graph.save(program.model, path)


def _name_nodes(model: onnx_ir.Model) -> None:
    """Name each node after the encoder's module, and drop the tracer's notes, which hold paths of this machine."""
    values = [*model.graph.inputs, *model.graph.initializers.values()]
    for index, node in enumerate(model.graph):
        scopes = ast.literal_eval(node.metadata_props.get(_SCOPES, "[]"))
        inside = [scope.removeprefix("encoder.") for scope in scopes[:-1] if scope and not scope.startswith("_")]
        node.name = f"{inside[-1] if inside else 'view'}/{node.op_type}_{index}"
        node.metadata_props.clear()
        values += node.outputs
    for value in values:
        value.metadata_props.clear()


def _examples(manifest: Manifest) -> Iterator[Tensor]:
    """Inputs to trace with; batch 2, because a traced extent of 1 would be taken for a constant."""
    extents = {"batch": 2, "kept": max(2, manifest.patches.count // 4)}
    dtypes = {"uint8": torch.uint8, "int64": torch.int64, "int32": torch.int32, "bool": torch.bool}
    for spec in manifest.inputs:
        shape = [extents[extent] if isinstance(extent, str) else extent for extent in spec.shape]
        yield torch.ones(shape, dtype=dtypes[spec.dtype])


@contextmanager
def _quiet() -> Iterator[None]:
    """Silence the exporter's remarks about torchvision and its own deprecations; errors still raise."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)


def _prove(staged: Path, encoder: Encoder, manifest: Manifest, digest: str) -> Manifest:
    with open_as_is(staged) as session, TorchSession(encoder, manifest, digest=digest) as reference:
        report, verification = verify(session, reference)
        require(report, f"The graph was not written; see {staged.name}.rejected next to where it would be")
        return replace(manifest, verification=verification, golden=golden_of(session.run(golden_feeds(manifest))))
