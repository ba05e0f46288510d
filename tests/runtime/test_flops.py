"""The formula against a count of the products in exported graphs, and against published numbers."""

from dataclasses import replace

import numpy as np
import onnx
import onnxruntime
import pytest

from mae_export.encoders.overrides import Overrides
from mae_export.export.options import TraceOptions
from mae_export.graph import read_manifest
from mae_export.manifest import Manifest, Patches, TensorSpec
from mae_export.runtime.flops import flops_per_image
from mae_export.runtime.probes import golden_feeds, golden_ids
from mae_export.spec import ImageSpec


def counted(path, manifest):
    """2 * rows * inner * columns of every product, from the arrays that one run on the golden image really has."""
    model = onnx.load(path)
    products = [node for node in model.graph.node if node.op_type in ("MatMul", "Gemm", "Conv")]
    assert products
    weights = {weight.name: tuple(weight.dims) for weight in model.graph.initializer}
    wanted = {name for node in products for name in (node.input[0], node.output[0])} - set(weights)
    model.graph.output.extend(onnx.ValueInfoProto(name=name) for name in wanted - {v.name for v in model.graph.output})
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    values = session.run(sorted(wanted), golden_feeds(manifest))
    shapes = weights | {name: value.shape for name, value in zip(sorted(wanted), values, strict=True)}
    inner = {  # multiply-adds behind one output value: of a convolution, channels of one group times the kernel
        node.name: np.prod(shapes[node.input[1]][1:]) if node.op_type == "Conv" else shapes[node.input[0]][-1]
        for node in products
    }
    return sum(2 * np.prod(shapes[node.output[0]]) * inner[node.name] for node in products)


@pytest.mark.parametrize("mask", ["keep", "none"])
@pytest.mark.parametrize("folder", ["ijepa", "cae", "caev2", "data2vec2", "data2vec2_huge14"])
def test_predictions_are_counted(exported, folder, mask):
    if mask == "none" and folder in ("ijepa", "cae"):
        pytest.skip("nothing is predicted where nothing is hidden")
    stated = Overrides(heads=4, decoder_heads=4, weights="encoder" if folder == "ijepa" else None)
    options = TraceOptions(mask=mask, features=("prediction", "pooled"))
    path = exported(f"{folder}/checkpoint.pth", options, overrides=stated)
    manifest = read_manifest(path)
    kept = 16 if mask == "none" else len(golden_ids(16))
    assert flops_per_image(manifest, kept) == counted(path, manifest)


def test_decoders_of_older_graphs_are_counted(exported):
    """Older graphs do not say what kind of decoder they have."""
    path = exported("mae/checkpoint.pth", TraceOptions(mask="keep", features=("reconstruction",)))
    manifest = read_manifest(path)
    untold = {key: value for key, value in manifest.encoder["decoder"].items() if key != "kind"}
    older = replace(manifest, encoder={**manifest.encoder, "decoder": untold})
    assert flops_per_image(older, 16) == flops_per_image(manifest, 16)


@pytest.mark.parametrize(
    "options",
    [
        TraceOptions(mask="none", features=("pooled",)),
        TraceOptions(mask="keep", features=("pooled", "patch_tokens")),
        TraceOptions(mask="patches", ragged=True, features=("pooled", "patch_tokens")),
        TraceOptions(mask="none", features=("reconstruction",)),
        TraceOptions(mask="keep", features=("reconstruction",)),
    ],
    ids=lambda options: f"{options.mask}-{options.features[0]}",
)
def test_the_formula_counts_the_products_of_the_graph(exported, options):
    path = exported("mae/checkpoint.pth", options)
    manifest = read_manifest(path)
    count = manifest.patches.count
    kept = count if options.mask == "none" else len(golden_ids(count))
    assert flops_per_image(manifest, kept) == counted(path, manifest)


def published(dim, depth, patch):
    grid = 224 // patch
    spec = {
        **{"dim": dim, "depth": depth, "mlp_hidden": 4 * dim, "class_token": True, "patch": [1, patch, patch]},
        **{"image": {"channels": 3}, "position": {"grid": [grid, grid]}, "decoder": None},
    }
    return Manifest(
        family="mae",
        encoder=spec,
        image=ImageSpec(size=(224, 224)),
        patches=Patches(patch=(1, patch, patch), grid=(1, grid, grid), prefix_tokens=1),
        mask_mode="none",
        ragged=False,
        inputs=(),
        outputs=(TensorSpec(name="pooled", dtype="float32", shape=("B", dim)),),
        precision="fp32",
        made_from=(),
    )


@pytest.mark.parametrize(
    ("sizes", "macs"), [((768, 12, 16), 17.58e9), ((1024, 24, 16), 61.6e9), ((1280, 32, 14), 167.4e9)]
)
def test_published_numbers_of_multiply_adds(sizes, macs):
    manifest = published(*sizes)
    assert flops_per_image(manifest, manifest.patches.count) == pytest.approx(2 * macs, rel=2e-3)


def test_a_gated_mlp_has_three_matrices():
    plain = published(192, 12, 16)
    gated = replace(plain, encoder={**plain.encoder, "position": {"grid": [14, 14], "trained_grid": [14, 14]}})
    more = flops_per_image(gated, 196) - flops_per_image(plain, 196)
    assert more == 12 * 2 * 197 * 192 * 768


def test_an_architecture_of_other_numbers_has_no_count():
    assert flops_per_image(replace(published(192, 12, 16), encoder={"stages": [96, 192]}), 49) is None
