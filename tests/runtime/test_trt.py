"""Engine sessions on a double that forbids what CUDA and TensorRT forbid; see `tensorrt_double.py`."""

import dataclasses
import hashlib
import json
import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from mae_export.errors import (
    GraphError,
    InputError,
    MachineError,
    MaskError,
    ResourceError,
    SecurityError,
    UsageError,
    VerificationError,
)
from mae_export.manifest import TensorSpec
from mae_export.runtime.engine_file import sidecar_path
from mae_export.runtime.fake import FakeSession
from mae_export.runtime.session import open_session
from mae_export.runtime.trt import EngineSession
from tests.runtime.cuda_double import CudaDouble, cudaError_t
from tests.runtime.tensorrt_double import WIDE, feeds, install, names, profile, require_right, write_engine


@pytest.mark.parametrize(("mode", "ragged"), [("none", False), ("keep", False), ("keep", True), ("patches", True)])
def test_every_mask_mode_computes_what_the_graph_does(behaviour, engine, mode, ragged):
    profiles = WIDE if mode != "none" else (profile("1:4:8"),)
    with EngineSession(engine(mode, profiles, ragged=ragged)) as session:
        fed = feeds()
        if mode == "none":
            del fed["ids_keep"]
        if mode == "patches":
            fed["patches"] = np.random.default_rng(1).integers(0, 256, (4, 4, 192), dtype=np.uint8)
            del fed["images"]
        if ragged:
            fed["num_keep"] = np.array([1, 4, 2, 3], np.int32)
        for _ in range(4):
            require_right(session, fed)
        require_right(session, fed, ["pooled"])


def test_an_engine_describes_itself(behaviour, engine):
    path = engine()
    with EngineSession(path) as session, open_session(path) as opened:
        assert (opened.description, opened.digest) == (session.description, session.digest)
        assert (session.name, session.description) == ("vit.engine", "TensorRT 10.13.3.9, NVIDIA L4 (sm89)")
        assert (session.manifest, session.digest) == (session.sidecar.manifest, session.sidecar.sha256)


def test_results_belong_to_the_caller(behaviour, engine):
    with EngineSession(engine()) as session:
        first = session.run(feeds())
        kept = {name: values.copy() for name, values in first.items()}
        session.run(feeds(seed=1))
    for name, values in kept.items():
        np.testing.assert_array_equal(first[name], values)
    assert all(values.flags.writeable and values.flags.owndata for values in first.values())


def test_feeds_of_any_layout(behaviour, engine):
    with EngineSession(engine()) as session:
        fed = feeds()
        turned = {name: np.asfortranarray(array) for name, array in fed.items()}
        require_right(session, turned)


def test_wrong_feeds_and_outputs_never_reach_the_gpu(behaviour, engine):
    with EngineSession(engine()) as session:
        behaviour.gpu.issued.clear()
        with pytest.raises(MaskError, match="16"):
            session.run({**feeds(), "ids_keep": np.full((4, 4), 16)})
        with pytest.raises(UsageError, match="there is no output 'dense'"):
            session.run(feeds(), ["dense"])
        with pytest.raises(InputError, match="'ids_keep' is missing"):
            session.run({"images": feeds()["images"]})
        assert behaviour.gpu.issued == []


# Shapes and profiles


def test_batches_that_no_profile_holds_are_cut_and_filled_up(behaviour, engine):
    path = engine(profiles=(profile("4:4:4", "1:4:16"),))
    with EngineSession(path) as session:
        for batch in (1, 4, 7, 9):
            require_right(session, feeds(batch))
    assert {name for name, _ in behaviour.gpu.done} == {"copy in", "profile", "run", "graph", "copy out"}


def test_numbers_of_patches_that_no_profile_holds_are_refused_with_the_ranges(behaviour, engine):
    with EngineSession(engine(profiles=(profile("1", "4"), profile("1:2:4", "4:8:8")))) as session:
        with pytest.raises(InputError, match=r"runs no 9 visible patches; .* batch=1:1:1,keep=4:4:4; batch=1:2:4,keep"):
            session.run(feeds(1, 9))
        require_right(session, feeds(1, 8))


def test_profiles_are_switched_as_shapes_need(behaviour, engine):
    path = engine(profiles=(profile("1:4:8", "1:4:16"), profile("1:1:2", "1:4:4")))
    with EngineSession(path) as session:
        for batch, keep in ((1, 4), (8, 16), (2, 3), (1, 4), (3, 4)):
            require_right(session, feeds(batch, keep))


def test_buffers_are_allocated_once(behaviour, engine):
    with EngineSession(engine()) as session:
        before = set(behaviour.gpu.blocks)
        for batch, keep in ((1, 1), (8, 16), (3, 5)):
            session.run(feeds(batch, keep))
        assert set(behaviour.gpu.blocks) == before


# Threads


def test_one_batch_is_copied_while_the_other_is_computed(behaviour, engine):
    """A run that waits for the GPU lets another thread's copy and computation be issued."""
    waiting, second = threading.Event(), threading.Event()

    def hold(number):
        if not waiting.is_set():
            waiting.set()
            assert second.wait(20)

    with EngineSession(engine()) as session, ThreadPoolExecutor(1) as pool:
        behaviour.gpu.issued.clear()
        behaviour.gpu.synchronizing = hold
        first = pool.submit(require_right, session, feeds(seed=1))
        assert waiting.wait(20)
        require_right(session, feeds(seed=2))
        second.set()
        first.result(20)
        assert len({number for name, number in behaviour.gpu.issued if name == "copy in"}) == 2


def test_many_threads(behaviour, engine):
    behaviour.slow = 0.001
    with EngineSession(engine()) as session, ThreadPoolExecutor(4) as pool:
        cases = [feeds(1 + seed % 5, 4, seed) for seed in range(40)]
        for done in [pool.submit(require_right, session, fed) for fed in cases]:
            done.result(60)


def test_another_device_from_any_thread(monkeypatch, engine):
    gpu = install(monkeypatch, gpu=CudaDouble(count=2)).gpu
    with EngineSession(engine(), device=1) as session, ThreadPoolExecutor(2) as pool:
        for done in [pool.submit(require_right, session, feeds(seed=seed)) for seed in range(6)]:
            done.result(20)
        assert {block.device for block in gpu.blocks.values()} == {1}
    assert (gpu.current, gpu.leaks()) == (0, {})


def test_results_are_shared_by_dlpack(behaviour, engine):
    with EngineSession(engine()) as session:
        found = session.run(feeds())["pooled"]
    shared = np.from_dlpack(found)
    found[:] = 5
    assert (shared == 5).all()


# Outputs that stay on the GPU


def require_right_there(session, fed, outputs=None):
    """Run without bringing the outputs to the host, then look at them there."""
    found, wanted = session.run_on_device(fed, outputs), FakeSession(session.manifest).run(fed, outputs)
    assert list(found) == list(wanted)
    for name, values in wanted.items():
        assert (found[name].shape, found[name].dtype) == (values.shape, values.dtype.name)
        np.testing.assert_array_equal(found[name].numpy(), values)


def test_outputs_stay_on_the_gpu(behaviour, engine):
    with EngineSession(engine()) as session:
        for seed in range(4):  # plainly, captured, replayed
            require_right_there(session, feeds(seed=seed))
        require_right_there(session, feeds(), ["pooled"])
        behaviour.gpu.issued.clear()
        session.run_on_device(feeds(), ["pooled"])
    assert names(behaviour.gpu.issued) == ["copy in", "copy in", "graph", "copy"]


def test_batches_are_cut_into_one_output(behaviour, engine):
    path = engine(profiles=(profile("4:4:4", "1:4:16"),))
    with EngineSession(path) as session:
        for batch in (1, 4, 7, 9):
            require_right_there(session, feeds(batch))
            require_right(session, feeds(batch))


def test_nobody_waits_for_the_gpu_and_two_batches_are_in_flight(behaviour, engine):
    with EngineSession(engine()) as session:
        session.run_on_device(feeds(1), ["pooled"])["pooled"].numpy()
        behaviour.gpu.done.clear()
        held = [session.run_on_device(feeds(seed=seed), ["pooled"])["pooled"] for seed in range(2)]
        assert {name for name, _ in behaviour.gpu.done} <= {"profile"}
        third = session.run_on_device(feeds(seed=2), ["pooled"])["pooled"]  # needs the buffers of the first
        assert names(behaviour.gpu.done).count("copy") == 1
        for seed, array in enumerate([*held, third]):
            wanted = FakeSession(session.manifest).run(feeds(seed=seed))["pooled"]
            np.testing.assert_array_equal(array.numpy(), wanted)


def test_both_ways_of_running_take_turns(behaviour, engine):
    with EngineSession(engine()) as session:
        arrays = []
        for seed in range(6):
            arrays.append(session.run_on_device(feeds(3, seed=seed), ["pooled"])["pooled"])
            require_right(session, feeds(5, seed=seed))
        for seed, array in enumerate(arrays):
            wanted = FakeSession(session.manifest).run(feeds(3, seed=seed))["pooled"]
            np.testing.assert_array_equal(array.numpy(), wanted)


def test_feeds_may_change_after_the_call(behaviour, engine):
    with EngineSession(engine()) as session:
        fed = feeds()
        wanted = FakeSession(session.manifest).run(fed)["pooled"]
        array = session.run_on_device(fed)["pooled"]
        fed["images"][:] = 0
        np.testing.assert_array_equal(array.numpy(), wanted)


def test_outputs_outlive_the_session(behaviour, engine):
    session = EngineSession(engine())
    wanted = FakeSession(session.manifest).run(feeds())["pooled"]
    array = session.run_on_device(feeds(), ["pooled"])["pooled"]
    capsule = array.__dlpack__(stream=1)
    session.close()
    np.testing.assert_array_equal(array.numpy(), wanted)
    assert len(behaviour.gpu.blocks) == 1
    del array
    assert len(behaviour.gpu.blocks) == 1
    del capsule
    assert behaviour.gpu.leaks() == {}
    with pytest.raises(UsageError, match=r"vit\.engine is closed"):
        session.run_on_device(feeds())


def test_outputs_on_the_gpu_from_many_threads(behaviour, engine):
    with EngineSession(engine()) as session, ThreadPoolExecutor(4) as pool:
        cases = [feeds(1 + seed % 5, 4, seed) for seed in range(40)]
        for done in [pool.submit(require_right_there, session, fed) for fed in cases]:
            done.result(60)


def test_outputs_on_a_board_that_shares_memory(monkeypatch, engine):
    found = install(monkeypatch, gpu=CudaDouble(name="Orin", capability=(8, 7), unified=True))
    with EngineSession(engine(targets=("sm87",))) as session:
        for seed in range(4):
            require_right_there(session, feeds(seed=seed))
    assert found.gpu.leaks() == {}


def test_outputs_on_another_gpu(monkeypatch, engine):
    gpu = install(monkeypatch, gpu=CudaDouble(count=2)).gpu
    with open_session(engine(), devices=[1]) as session:
        array = session.run_on_device(feeds())["pooled"]
        assert array.device == "cuda:1"
        array.numpy()
    del array
    assert (gpu.current, gpu.leaks()) == (0, {})


@pytest.mark.parametrize("method", ["set_input_shape", "execute_async_v3"])
def test_a_refusal_leaves_nothing_behind(behaviour, engine, method):
    with EngineSession(engine()) as session:
        behaviour.refuse = method
        with pytest.raises(GraphError, match=f"IExecutionContext::{method}: refused"):
            session.run_on_device(feeds())
        behaviour.refuse = ""
        require_right_there(session, feeds())


def test_wrong_feeds_take_no_memory(behaviour, engine):
    with EngineSession(engine()) as session:
        before = len(behaviour.gpu.blocks)
        with pytest.raises(MaskError, match="16"):
            session.run_on_device({**feeds(), "ids_keep": np.full((4, 4), 16)})
        with pytest.raises(UsageError, match="there is no output 'dense'"):
            session.run_on_device(feeds(), ["dense"])
        assert len(behaviour.gpu.blocks) == before


# Ending


def test_closing_is_final_and_harmless_twice(behaviour, engine):
    path = engine()
    session = EngineSession(path)
    session.close()
    session.close()
    for _ in range(2):
        with pytest.raises(UsageError, match=r"vit\.engine is closed; open it again"):
            session.run(feeds())
    assert behaviour.gpu.leaks() == {}


def test_closing_waits_for_runs_in_flight(behaviour, engine):
    waiting, go = threading.Event(), threading.Event()

    def hold(number):
        waiting.set()
        assert go.wait(20)

    session = EngineSession(engine())
    with ThreadPoolExecutor(2) as pool:
        behaviour.gpu.synchronizing = hold
        running = pool.submit(require_right, session, feeds())
        assert waiting.wait(20)
        closing = pool.submit(session.close)
        assert not closing.done()
        assert behaviour.gpu.leaks() != {}
        go.set()
        closing.result(20)
        running.result(20)


@pytest.mark.parametrize("call", ["cudaStreamSynchronize", "cudaMemcpyAsync", "cudaEventRecord"])
def test_a_failing_gpu_is_named_and_the_rest_given_back(behaviour, engine, call):
    session = EngineSession(engine())
    behaviour.gpu.refuse[call] = cudaError_t.cudaErrorIllegalAddress
    with pytest.raises(MachineError, match=r"CUDA failed while .*: cudaErrorIllegalAddress .*restart the program"):
        session.run(feeds())
    behaviour.gpu.refuse.clear()
    for stream in list(behaviour.gpu.streams):
        behaviour.gpu.cudaStreamSynchronize(stream)
    session.close()


def test_too_little_gpu_memory(behaviour, engine):
    behaviour.gpu.refuse["cudaMalloc"] = cudaError_t.cudaErrorMemoryAllocation
    with pytest.raises(ResourceError, match=r"taking [\d,]+ bytes of GPU memory: cudaErrorMemoryAllocation .*--batch"):
        EngineSession(engine())


def test_running_out_of_memory_in_the_middle_gives_back_what_was_taken(behaviour, engine):
    behaviour.gpu.refuse["cudaHostAlloc"] = cudaError_t.cudaErrorMemoryAllocation
    with pytest.raises(ResourceError, match="bytes of pinned memory"):
        EngineSession(engine())


@pytest.mark.parametrize("method", ["set_input_shape", "set_tensor_address", "execute_async_v3"])
def test_what_tensorrt_refuses_is_said_in_its_words(behaviour, engine, method):
    with EngineSession(engine()) as session:
        behaviour.refuse = method
        with pytest.raises(GraphError, match=f"TensorRT 10.13.3.9 refuses .*IExecutionContext::{method}: refused"):
            session.run(feeds())
        behaviour.refuse = ""
        require_right(session, feeds())


def test_no_context(behaviour, engine):
    behaviour.refuse = "create_execution_context"
    with pytest.raises(MachineError, match=r"cannot prepare the engine: out of memory\. .*--low-memory"):
        EngineSession(engine())


# What may be opened


def test_changed_bytes_are_not_loaded(behaviour, engine):
    path = engine()
    path.write_bytes(path.read_bytes() + b" ")
    with pytest.raises(SecurityError, match="it was not loaded"):
        EngineSession(path)
    assert behaviour.gpu.blocks == {}


def rewrite(path, **values):
    """Change a sidecar."""
    sidecar = sidecar_path(path)
    sidecar.write_text(json.dumps({**json.loads(sidecar.read_text()), **values}))


def test_a_plan_that_tensorrt_cannot_read(behaviour, engine):
    path = engine()
    path.write_bytes(b"no plan")
    rewrite(path, sha256=hashlib.sha256(b"no plan").hexdigest())
    with pytest.raises(MachineError, match=r"cannot load the plan: .*magic tag does not match"):
        EngineSession(path)


def test_tensors_that_are_not_the_manifests(behaviour, engine, make_manifest):
    path, other = engine(), make_manifest("keep")
    extra = TensorSpec(name="extra", dtype="float32", shape=("B", 6))
    manifest = dataclasses.replace(other, outputs=(other.outputs[0], extra))
    rewrite(path, manifest=json.loads(manifest.to_json()))
    with pytest.raises(InputError, match=r"vit\.engine has the tensors .*'patch_tokens'.*its manifest says .*'extra'"):
        EngineSession(path)


def test_another_gpu(monkeypatch, engine):
    found = install(monkeypatch, gpu=CudaDouble(name="Orin", capability=(8, 7)))
    with pytest.raises(MachineError, match=r"vit\.engine is for sm89; this GPU, Orin, is sm87.*mae-export build"):
        EngineSession(engine())
    assert found.gpu.leaks() == {}


# Proof


def test_the_golden_check_runs_once_on_a_machine(behaviour, engine):
    path = engine()
    EngineSession(path).close()
    marker = path.with_name("vit.engine.proven.json")
    assert marker.is_file()
    behaviour.disturb = lambda outputs: {name: values + 1 for name, values in outputs.items()}
    EngineSession(path).close()  # not checked again
    marker.unlink()
    with pytest.raises(VerificationError, match=r"TensorRT 10\.13\.3\.9, NVIDIA L4 \(sm89\) gives .* on the golden"):
        EngineSession(path)
    assert not marker.exists()


@pytest.mark.parametrize("wrong", [np.nan, 0.01])
def test_wrong_values_are_never_served(behaviour, engine, wrong):
    behaviour.disturb = lambda outputs: {name: values + np.float32(wrong) for name, values in outputs.items()}
    with pytest.raises(VerificationError, match="Do not use features from it"):
        EngineSession(engine())


def test_proof_belongs_to_gpu_and_bytes(behaviour, engine, monkeypatch):
    path = engine(targets=("sm86", "sm89"))
    EngineSession(path).close()
    other = install(monkeypatch, gpu=CudaDouble(name="NVIDIA A10", capability=(8, 6)))
    other.disturb = lambda outputs: {name: values + 1 for name, values in outputs.items()}
    with pytest.raises(VerificationError, match="NVIDIA A10"):
        EngineSession(path)


def test_an_engine_that_nothing_can_prove_is_refused(behaviour, make_manifest, tmp_path):
    path = tmp_path / "vit.engine"
    write_engine(path, make_manifest("keep"), (profile("1", "8"),))
    with pytest.raises(VerificationError, match=r"no golden values that its profiles can run \(batch=1:1:1,keep=8:8:8"):
        EngineSession(path)
    EngineSession(path, check=False).close()


# Boards that share memory, TensorRT-RTX, old releases


def test_rtx_keeps_its_kernels_beside_the_engine(monkeypatch, engine):
    path = engine(backend="rtx")
    found = install(monkeypatch, "rtx")
    with EngineSession(path) as session:
        require_right(session, feeds(3))
        assert session.description.startswith("TensorRT-RTX 1.7.1.116, ")
    assert found.compiled == 2  # the golden image and the batch
    cache = path.with_name("vit.engine.cache")
    assert cache.is_file()
    before = cache.stat().st_mtime_ns
    again = install(monkeypatch, "rtx")
    with EngineSession(path) as session:
        session.run(feeds(3))
    assert (again.compiled, cache.stat().st_mtime_ns) == (0, before)
    for gpu in (found.gpu, again.gpu):
        assert gpu.leaks() == {}
        assert "graph" not in names(gpu.done)


def test_rtx_kernels_of_another_gpu_are_ignored(monkeypatch, engine):
    path = engine(backend="rtx", targets=("sm86", "sm89"))
    install(monkeypatch, "rtx")
    EngineSession(path).close()
    other = install(monkeypatch, "rtx", gpu=CudaDouble(name="NVIDIA A10", capability=(8, 6)))
    EngineSession(path).close()
    assert other.compiled == 1


@pytest.mark.parametrize("absent", [("set_device_memory", "device_memory_size_v2"), ("device_memory_size",)])
def test_names_that_some_versions_lack(monkeypatch, engine, absent):
    found = install(monkeypatch, absent=absent)
    with EngineSession(engine()) as session:
        for _ in range(3):
            require_right(session, feeds())
    assert found.gpu.leaks() == {}
