"""Engines compared with their graph before they get their name: on a double of TensorRT, and on a GPU where one is.

The double computes an engine with ONNX Runtime, so a sound engine agrees exactly; `disturb` makes it wrong.
"""

import dataclasses
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from mae_export import graph
from mae_export.errors import MachineError, VerificationError
from mae_export.export import engine, engine_proof
from mae_export.export.engine import NO_GOLDEN, build
from mae_export.export.options import TraceOptions
from mae_export.export.plan import EnginePlan, parse_profile
from mae_export.runtime.engine_file import read_sidecar
from mae_export.runtime.fake import FakeSession
from mae_export.runtime.golden import golden_of
from mae_export.runtime.ort import OrtSession
from mae_export.runtime.probes import golden_feeds, golden_image
from mae_export.runtime.thresholds import limits_of
from mae_export.runtime.trt import EngineSession
from tests.runtime.tensorrt_double import install, plan_bytes

KEEP = TraceOptions(mask="keep", features=("pooled", "patch_tokens"))
PLAN = EnginePlan(backend="tensorrt", profiles=(parse_profile("batch=1:2:8"),))
ONLY_A_HALF = dataclasses.replace(PLAN, profiles=(parse_profile("batch=2:2:4,keep=32"),))


@pytest.fixture
def source(exported):
    """A graph of 64 patches."""
    return exported("mae/checkpoint.pth", KEEP)


@pytest.fixture
def out(tmp_path):
    return tmp_path / "vit.engine"


@pytest.fixture
def behaviour(monkeypatch):
    """TensorRT whose builder makes plans for the double; everything that is taken must be given back."""
    found = install(monkeypatch)

    def compile_plan(job, folder, progress):
        manifest = graph.read_manifest(Path(job.graph))
        profiles = engine.resolve_profiles(found.plan, manifest)
        fake = manifest.precision == "bf16"  # for which ONNX Runtime has no kernels
        Path(job.plan).write_bytes(plan_bytes(manifest, profiles, None if fake else job.graph))
        Path(job.log).write_text("")
        return engine._Told(version="10.13.3.9", warnings=())

    monkeypatch.setattr(engine, "_run", compile_plan)
    found.plan = PLAN
    yield found
    assert found.gpu.leaks() == {}


def left(out):
    return sorted(path.name for path in out.parent.iterdir())


def test_a_sound_engine_is_proven(behaviour, source, out):
    sidecar = build(source, out, plan=PLAN)
    proof = sidecar.manifest.verification
    assert sidecar.proven
    assert sidecar == read_sidecar(out)
    assert sidecar.targets == ("sm89",)
    assert proof.error < 1e-12
    assert proof.reference.startswith(source.name)
    assert "ONNX Runtime" in proof.reference
    assert proof.checks > 50
    assert left(out) == ["vit.engine", "vit.engine.json"]
    behaviour.disturb = lambda outputs: {name: values + 1 for name, values in outputs.items()}
    EngineSession(out).close()  # proven engines are not checked again


@pytest.mark.parametrize(
    "disturb",
    [
        lambda outputs: {name: values * np.nan for name, values in outputs.items()},
        lambda outputs: {name: values + 1e-3 * np.abs(values).max() for name, values in outputs.items()},
        lambda outputs: {name: values[::-1].copy() for name, values in outputs.items()},
    ],
    ids=["not finite", "a little off", "rows exchanged"],
)
def test_a_wrong_engine_is_rejected(behaviour, source, out, disturb):
    behaviour.disturb = disturb
    with pytest.raises(VerificationError, match=r"is off by .* kept as vit\.engine\.rejected and must not be used"):
        build(source, out, plan=PLAN)
    assert left(out) == ["vit.engine.rejected"]


def test_an_old_engine_survives_a_wrong_one(behaviour, source, out):
    build(source, out, plan=PLAN)
    before = out.read_bytes()
    behaviour.disturb = lambda outputs: {name: values * 2 for name, values in outputs.items()}
    with pytest.raises(VerificationError):
        build(source, out, plan=dataclasses.replace(PLAN, force=True))
    assert out.read_bytes() == before
    assert left(out) == ["vit.engine", "vit.engine.json", "vit.engine.rejected"]


def test_profiles_that_hold_neither_all_patches_nor_a_quarter(behaviour, source, out):
    behaviour.plan = ONLY_A_HALF
    sidecar = build(source, out, plan=ONLY_A_HALF)
    assert sidecar.proven
    assert sidecar.manifest.golden is None  # 16 patches, which the engine cannot be shown
    assert sidecar.warnings == (NO_GOLDEN,)
    with EngineSession(out) as session:
        ids = np.tile(np.arange(32), (3, 1))
        images = golden_image(session.manifest.image)[None].repeat(3, 0)
        assert session.run({"images": images, "ids_keep": ids})["patch_tokens"].shape[:2] == (3, 32)


def test_without_a_gpu_of_the_targets_it_stays_unproven(behaviour, source, out, monkeypatch):
    def no_gpu():
        raise MachineError("no GPU")

    monkeypatch.setattr(engine_proof, "open_device", no_gpu)
    monkeypatch.setattr(engine_proof, "EngineSession", pytest.fail)
    assert not build(source, out, plan=PLAN).proven


def test_another_gpu_is_not_asked(behaviour, source, out, monkeypatch):
    monkeypatch.setattr(engine_proof, "EngineSession", pytest.fail)
    monkeypatch.setattr(engine.flavour, "resolve_targets", lambda *_: ("sm86",))
    assert not build(source, out, plan=PLAN).proven


@pytest.mark.parametrize("right", [True, False])
def test_graphs_that_nothing_here_runs_are_judged_by_golden_values(
    behaviour, source, out, tmp_path, monkeypatch, right
):
    manifest = dataclasses.replace(graph.read_manifest(source), precision="bf16")
    manifest = dataclasses.replace(manifest, golden=engine_golden(manifest, 0.0 if right else 1.0))
    half = tmp_path / "bf16.onnx"
    half.write_bytes(source.read_bytes())
    graph.write_manifest(half, manifest)

    def cannot(*_, **__):
        raise MachineError("no bf16 kernels")

    monkeypatch.setattr(engine_proof, "open_as_is", cannot)
    if right:
        proof = build(half, out, plan=PLAN).manifest.verification
        assert (proof.reference, proof.checks, proof.limit) == ("golden values of bf16.onnx", 1, 0.1)
    else:
        with pytest.raises(VerificationError, match="on the golden image"):
            build(half, out, plan=PLAN)
        assert "vit.engine.rejected" in left(out)


def engine_golden(manifest, shift):
    found = FakeSession(manifest).run(golden_feeds(manifest))
    return golden_of({name: values + np.float32(shift) for name, values in found.items()})


# The same questions to the double and to a GPU


@pytest.fixture(params=["double", pytest.param("gpu", marks=pytest.mark.gpu)])
def built(request, source, out):
    """An engine with its graph, made by the double or by the library of this machine for its GPU."""
    if request.param == "double":
        request.getfixturevalue("behaviour")
        build(source, out, plan=PLAN)
    else:
        pytest.importorskip("cuda.bindings.runtime")
        build(source, out, plan=dataclasses.replace(PLAN, backend="auto", targets=("this",)))
    return out, source


def shown(session, batch, keep, seed):
    draws = np.random.default_rng(seed)
    size = (batch, *session.manifest.image.size, 3)
    ids = np.stack([draws.permutation(session.manifest.patches.count)[:keep] for _ in range(batch)])
    return {"images": draws.integers(0, 256, size, dtype=np.uint8), "ids_keep": ids}


def require_agreement(session, trusted, fed):
    found, wanted = session.run(fed), trusted.run(fed)
    for name, values in wanted.items():
        limit = limits_of(session.manifest.precision).error * max(1.0, float(np.abs(values).max()))
        np.testing.assert_allclose(found[name], values, rtol=0, atol=limit)


def test_every_shape_agrees_with_the_graph(built):
    path, source = built
    assert read_sidecar(path).proven
    with EngineSession(path) as session, OrtSession(source) as trusted:
        for turn in range(4):  # plain, captured, and replayed with other values
            for batch, keep in ((1, 16), (8, 64), (3, 5), (11, 16)):
                require_agreement(session, trusted, shown(session, batch, keep, turn))


def test_outputs_that_stay_on_the_gpu_agree_with_the_graph(built, request):
    """Several batches are in flight; on a GPU, PyTorch takes their outputs and works on them before they are there."""
    path, source = built
    torch = pytest.importorskip("torch")
    on_gpu = request.node.callspec.params["built"] == "gpu" and torch.cuda.is_available()

    def take(array):
        return torch.from_dlpack(array).double().cpu().numpy() if on_gpu else array.numpy()

    with EngineSession(path) as session, OrtSession(source) as trusted:
        limit = limits_of(session.manifest.precision).error
        for batch, keep in ((1, 16), (8, 64), (11, 16)):
            fed = [shown(session, batch, keep, seed) for seed in range(6)]
            found = [session.run_on_device(each) for each in fed]
            for each, arrays in zip(fed, found, strict=True):
                for name, values in trusted.run(each).items():
                    scale = max(1.0, float(np.abs(values).max()))
                    np.testing.assert_allclose(take(arrays[name]), values, rtol=0, atol=limit * scale)


def test_streams_of_pytorch_wait_and_memory_is_not_taken_from_them(built, request):
    """Arrays are dropped while PyTorch's kernels, on streams of their own, have not read them yet."""
    torch = pytest.importorskip("torch")
    if request.node.callspec.params["built"] == "double" or not torch.cuda.is_available():
        pytest.skip("no NVIDIA GPU with a PyTorch for it")
    path, _ = built
    side, slow = torch.cuda.Stream(), torch.randn(4096, 4096, device="cuda")
    with EngineSession(path) as session:
        fed = [shown(session, 8, 16, seed) for seed in range(32)]
        wanted = [float(session.run(each, ["pooled"])["pooled"].sum()) for each in fed]
        for stream in (torch.cuda.default_stream(), side):
            sums = []
            with torch.cuda.stream(stream):
                for each in fed:
                    tensor = torch.from_dlpack(session.run_on_device(each, ["pooled"])["pooled"])
                    torch.mm(slow, slow)  # what comes next is late
                    sums.append(tensor.double().sum())
                    del tensor
            found = [float(each) for each in sums]
            np.testing.assert_allclose(found, wanted, rtol=0, atol=1e-3 * max(map(abs, wanted)))


def test_threads_agree_with_the_graph(built):
    path, source = built
    with EngineSession(path) as session, OrtSession(source) as trusted, ThreadPoolExecutor(4) as pool:
        cases = [shown(session, 1 + seed % 3, 16, seed) for seed in range(24)]
        for done in [pool.submit(require_agreement, session, trusted, fed) for fed in cases]:
            done.result(120)


def test_an_engine_can_be_opened_again_and_again(built):
    path, source = built
    with OrtSession(source) as trusted:
        for seed in range(3):
            with EngineSession(path) as session:
                require_agreement(session, trusted, shown(session, 2, 16, seed))
