from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from mae_export.runtime.bound import GRAPHS, BoundRuns
from mae_export.runtime.capture_guard import captures
from mae_export.runtime.ort import OrtSession
from mae_export.runtime.providers import choose, open_on_gpu
from tests.runtime.onnxruntime_double import CUDA, RuntimeDouble
from tests.runtime.test_ort import feeds, write_graph


@pytest.fixture
def path(tmp_path, make_manifest):
    return write_graph(tmp_path / "tiny.onnx", make_manifest("keep", outputs=("pooled",)))


@pytest.fixture
def on_cpu(path):
    with OrtSession(path) as session:
        yield lambda given: session.run(given)["pooled"]


@pytest.fixture
def bound(path, make_manifest):
    double = RuntimeDouble(CUDA)
    session, choice = open_on_gpu(double, path, double.SessionOptions(), choose(path, "cuda"))
    manifest = make_manifest("keep", outputs=("pooled",))
    return BoundRuns(double, session, manifest, graphs=choice.options["enable_cuda_graph"] == "1"), session


def some(batch, seed=0):
    given = feeds(batch)
    given["images"] = np.random.default_rng(seed).integers(0, 256, given["images"].shape, dtype=np.uint8)
    return given


def test_a_shape_is_captured_when_it_comes_again_and_replayed_from_then_on(bound, on_cpu):
    runs, session = bound
    for seed in range(4):
        (found,) = runs.run(some(2, seed), ["pooled"])
        np.testing.assert_array_equal(found, on_cpu(some(2, seed)))
    assert session.runs == [-1, 1, 1, 1]


def test_captures_are_alone_and_happen_once_for_each_thread(bound, on_cpu):
    """ONNX Runtime keeps graphs by thread, and captures fail when any thread takes memory meanwhile."""
    runs, session = bound
    alone, run = [], session.run_with_iobinding

    def watch(binding, options):
        alone.append(captures._capturing is not None)
        run(binding, options)

    session.run_with_iobinding = watch
    for _ in range(4):
        runs.run(some(2), ["pooled"])
    with ThreadPoolExecutor(1) as pool:
        for seed in range(2):
            found = pool.submit(runs.run, some(2, seed), ["pooled"]).result(20)
            np.testing.assert_array_equal(found[0], on_cpu(some(2, seed)))
    assert alone == [False, True, False, False, True, False]


def test_results_belong_to_the_caller(bound):
    runs, _ = bound
    kept = [runs.run(some(2, seed), ["pooled"])[0] for seed in range(3)]
    assert len({array.tobytes() for array in kept}) == 3


def test_every_shape_has_its_own_graph(bound, on_cpu):
    runs, session = bound
    for batch in (1, 3, 1, 3, 1, 3):
        (found,) = runs.run(some(batch, batch), ["pooled"])
        np.testing.assert_array_equal(found, on_cpu(some(batch, batch)))
    assert session.runs == [-1, -1, 1, 2, 1, 2]


def test_only_so_many_shapes_are_captured(bound):
    runs, session = bound
    for _ in range(3):
        for batch in range(1, GRAPHS + 3):
            runs.run(some(batch), ["pooled"])
    assert set(session.captured) == set(range(1, GRAPHS + 1))
    assert session.runs[-2:] == [-1, -1]


def test_without_graphs_nothing_is_captured(path, make_manifest):
    double = RuntimeDouble(CUDA)
    double.captures = False
    session, _ = open_on_gpu(double, path, double.SessionOptions(), choose(path, "cuda"))
    runs = BoundRuns(double, session, make_manifest("keep", outputs=("pooled",)), graphs=False)
    for _ in range(3):
        runs.run(some(2), ["pooled"])
    assert session.runs == [-1, -1, -1]


def test_arrays_with_gaps_are_taken(bound, on_cpu):
    runs, _ = bound
    given = some(4)
    sliced = {name: array[::2] for name, array in given.items()}
    for _ in range(2):
        (found,) = runs.run(sliced, ["pooled"])
    np.testing.assert_array_equal(found, on_cpu(sliced))


def test_threads_get_their_own_results(bound, on_cpu):
    runs, _ = bound
    expected = [on_cpu(some(2, seed)) for seed in range(24)]
    with ThreadPoolExecutor(6) as pool:
        found = list(pool.map(lambda seed: runs.run(some(2, seed), ["pooled"])[0], range(24)))
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_array_equal(one, other)
