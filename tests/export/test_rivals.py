import dataclasses

import numpy as np
import pytest
import torch

from mae_export.encoders.overrides import Overrides
from mae_export.errors import InputError, MachineError, UsageError
from mae_export.export import rivals
from mae_export.export.options import TraceOptions
from mae_export.export.rivals import gemm_of_torch, gemm_on_gpu, random_encoder, rival_maker
from mae_export.graph import read_manifest
from mae_export.runtime.bench import bench_feeds

OUTPUTS = ("pooled", "patch_tokens")
MODES = [
    TraceOptions(mask="none", features=OUTPUTS),
    TraceOptions(mask="keep", features=OUTPUTS),
    TraceOptions(mask="patches", ragged=True, features=OUTPUTS),
    TraceOptions(mask="keep", features=("reconstruction",)),
]


@pytest.fixture
def manifest_of(exported):
    return lambda options: read_manifest(exported("mae/checkpoint.pth", options))


def shapes(manifest, batch, kept):
    sizes = {"batch": batch, "kept": kept}
    return [tuple(sizes.get(dim, dim) for dim in output.shape) for output in manifest.outputs]


@pytest.mark.parametrize("options", MODES, ids=lambda options: f"{options.mask}-{options.features[0]}")
@pytest.mark.parametrize("rival", ["torch", "torch-bf16"])
def test_it_computes_every_output_of_the_graph(manifest_of, options, rival):
    manifest = manifest_of(options)
    kept = manifest.patches.count if options.mask == "none" else 5
    found = rival_maker(manifest, rival)(bench_feeds(manifest, 2, kept))()
    assert [tuple(value.shape) for value in found] == shapes(manifest, 2, kept)
    assert all(torch.isfinite(value).all() for value in found)


@pytest.mark.parametrize("folder", ["ijepa", "cae", "caev2", "data2vec2"])
def test_whatever_predicts_is_made_again_from_the_manifest(exported, folder):
    stated = Overrides(heads=4, decoder_heads=4, weights="encoder" if folder == "ijepa" else None)
    options = TraceOptions(mask="keep", features=("prediction",))
    manifest = read_manifest(exported(f"{folder}/checkpoint.pth", options, overrides=stated))
    assert dataclasses.asdict(random_encoder(manifest).spec)["decoder"] == manifest.encoder["decoder"]
    (found,) = rival_maker(manifest, "torch-bf16")(bench_feeds(manifest, 2, 5))()
    assert [tuple(found.shape)] == shapes(manifest, 2, 5)
    assert torch.isfinite(found).all()


def test_bf16_rounds_what_eager_computes(manifest_of):
    manifest = manifest_of(MODES[1])
    feeds = bench_feeds(manifest, 2, 9)
    (exact, _), (rounded, _) = (rival_maker(manifest, rival)(feeds)() for rival in ("torch", "torch-bf16"))
    assert 1e-5 < (exact - rounded.float()).abs().max() / exact.abs().max() < 0.05


def test_hidden_patches_change_nothing(manifest_of):
    manifest = manifest_of(MODES[1])
    feeds = bench_feeds(manifest, 1, 4)
    before = rival_maker(manifest, "torch")(feeds)()[0]
    row, column = divmod(
        next(n for n in range(manifest.patches.count) if n not in feeds["ids_keep"]), manifest.patches.grid[2]
    )
    size = manifest.patches.patch[1]
    feeds["images"][0, row * size : (row + 1) * size, column * size : (column + 1) * size] = 255
    np.testing.assert_array_equal(before, rival_maker(manifest, "torch")(feeds)()[0])


def test_compile_is_asked_for_fixed_shapes(manifest_of, monkeypatch):
    asked = []
    monkeypatch.setattr(torch, "compile", lambda view, **options: asked.append(options) or view)
    manifest = manifest_of(MODES[1])
    rival_maker(manifest, "compile")(bench_feeds(manifest, 1, 3))()
    assert asked == [{"dynamic": False, "fullgraph": True, "mode": "default"}]


def test_compile_forgets_the_shapes_before(manifest_of, monkeypatch):
    """PyTorch would run the ninth shape uncompiled, and say so in a log only."""
    resets = []
    monkeypatch.setattr(torch.compiler, "reset", lambda: resets.append(1))
    monkeypatch.setattr(torch, "compile", lambda view, **options: view)
    manifest = manifest_of(MODES[1])
    make = rival_maker(manifest, "compile")
    for kept in range(1, 4):
        make(bench_feeds(manifest, 1, kept))()
    assert len(resets) == 3


def test_what_stays_on_the_device_is_not_copied(manifest_of):
    manifest = manifest_of(MODES[1])
    feeds = bench_feeds(manifest, 2, 5)
    apart, there = (rival_maker(manifest, "torch", resident=resident)(feeds)() for resident in (False, True))
    assert all(torch.equal(one, other) for one, other in zip(apart, there, strict=True))


def test_threads_are_those_asked_for(manifest_of, monkeypatch):
    asked = []
    monkeypatch.setattr(torch, "set_num_threads", asked.append)
    rival_maker(manifest_of(MODES[0]), "torch", threads=3)
    rival_maker(manifest_of(MODES[0]), "torch")
    assert asked == [3]


def test_the_encoder_is_the_manifests_without_what_the_graph_leaves_out(manifest_of):
    manifest = manifest_of(MODES[0])
    encoder = random_encoder(manifest)
    assert (encoder.spec.dim, encoder.spec.depth) == (manifest.encoder["dim"], manifest.encoder["depth"])
    assert encoder.decoder is None
    assert random_encoder(manifest_of(MODES[3])).decoder is not None
    assert not encoder.training


def test_what_cannot_be_is_refused(manifest_of, monkeypatch):
    manifest = manifest_of(MODES[0])
    with pytest.raises(UsageError, match="there is no rival 'jax'; expected some of torch, compile, torch-bf16"):
        rival_maker(manifest, "jax")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(MachineError, match="this PyTorch sees no GPU; install one that was built for CUDA"):
        rival_maker(manifest, "torch", device="cuda")
    with pytest.raises(MachineError, match="sees no GPU to measure matrix products on"):
        gemm_on_gpu("fp16")
    other = dataclasses.replace(manifest, encoder={**manifest.encoder, "family": "swin"})
    with pytest.raises(InputError, match="the graph's family is 'swin'; known here: mae"):
        rival_maker(other, "torch")
    with pytest.raises(InputError, match="encoder of the manifest lacks the key 'dim'"):
        random_encoder(dataclasses.replace(manifest, encoder={k: v for k, v in manifest.encoder.items() if k != "dim"}))


def test_the_product_on_the_cpu_is_one():
    product = gemm_of_torch(64)
    assert (product.flops, product.what) == (2 * 64**3, f"float32 with PyTorch {torch.__version__}")
    first = product.run().clone()
    assert (first.shape, first.dtype) == ((64, 64), torch.float32)
    assert torch.equal(product.run(), first)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="PyTorch was not built for CUDA")
def test_rivals_run_on_a_gpu(manifest_of):
    manifest = dataclasses.replace(manifest_of(MODES[1]), precision="fp16")
    found = rival_maker(manifest, "torch", device="cuda")(bench_feeds(manifest, 2, 5))()
    assert [tuple(value.shape) for value in found] == shapes(manifest, 2, 5)
    assert found[0].dtype == torch.float16
    assert rivals.gemm_on_gpu("fp16", 512).run() is None
    feeds = bench_feeds(manifest, 2, 5)
    eager, compiled = (
        rival_maker(manifest, rival, device="cuda", resident=True)(feeds) for rival in ("torch", "compile")
    )
    for _ in range(3):
        found = [[value.cpu() for value in run()] for run in (eager, compiled)]
        for one, other in zip(*found, strict=True):
            torch.testing.assert_close(one, other, rtol=1e-2, atol=1e-2)
