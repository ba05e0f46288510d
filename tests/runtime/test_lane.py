"""What one batch does on the GPU and in which order; buffers, copies, and CUDA graphs of frequent shapes."""

from mae_export.runtime.buckets import GRAPHS
from mae_export.runtime.trt import EngineSession
from tests.runtime.cuda_double import CudaDouble
from tests.runtime.tensorrt_double import feeds, install, names, profile, require_right


def test_only_wanted_outputs_are_copied(behaviour, engine):
    with EngineSession(engine()) as session:
        behaviour.gpu.issued.clear()
        session.run(feeds(), ["pooled"])
    assert names(behaviour.gpu.issued) == ["copy in", "copy in", "run", "copy out"]


def test_copies_are_issued_before_waiting_for_the_computation_before(behaviour, engine):
    """The order inside a stream decides what overlaps: copy in, then wait, then run."""
    calls = []
    wait, copy = behaviour.gpu.cudaStreamWaitEvent, behaviour.gpu.cudaMemcpyAsync
    behaviour.gpu.cudaStreamWaitEvent = lambda *a: calls.append("wait") or wait(*a)
    behaviour.gpu.cudaMemcpyAsync = lambda *a: calls.append("copy") or copy(*a)
    with EngineSession(engine()) as session:
        session.run(feeds())
        calls.clear()
        session.run(feeds(), ["pooled"])
    assert calls == ["copy", "copy", "wait", "copy"]


def test_unified_memory_is_never_copied(monkeypatch, engine):
    found = install(monkeypatch, gpu=CudaDouble(name="Orin", capability=(8, 7), unified=True))
    with EngineSession(engine(targets=("sm87",))) as session:
        for seed in range(4):
            require_right(session, feeds(seed=seed))
        kinds = {(block.host, block.gpu) for block in found.gpu.blocks.values()}
        assert kinds == {(True, True), (False, True)}  # mapped tensors, and the activations
    assert not {name for name, _ in found.gpu.issued} & {"copy in", "copy out"}
    assert "graph" in names(found.gpu.done)
    assert found.gpu.leaks() == {}


# CUDA graphs


def test_a_shape_is_captured_the_second_time_and_replayed_from_the_third(behaviour, engine):
    with EngineSession(engine()) as session:
        seen = []
        for turn in range(4):
            behaviour.gpu.issued.clear()
            fed = feeds(5, 6, seed=turn)
            require_right(session, fed)
            seen.append([name for name in names(behaviour.gpu.issued) if not name.startswith("copy")])
    assert [set(turn) - {"profile"} for turn in seen] == [{"run"}, {"run"}, {"graph"}, {"graph"}]


def test_graphs_survive_other_shapes_between(behaviour, engine):
    with EngineSession(engine()) as session:
        for turn in range(3):
            for batch in (2, 3, 5):
                fed = feeds(batch, seed=turn)
                require_right(session, fed)
        assert names(behaviour.gpu.done).count("graph") == 3


def test_only_the_graphs_used_last_are_kept(behaviour, engine):
    path = engine(profiles=(profile("1:4:16", "1:4:16"),))
    with EngineSession(path) as session:
        for batch in range(1, GRAPHS + 3):
            for _ in range(2):
                session.run(feeds(batch))
        assert len(behaviour.gpu.graphs) == GRAPHS
        behaviour.gpu.issued.clear()
        session.run(feeds(GRAPHS + 2))
        session.run(feeds(1))  # the oldest, which had to go
        assert [name for name in names(behaviour.gpu.issued) if name in ("run", "graph")] == ["graph", "run"]


def test_shapes_that_come_once_make_no_context(behaviour, engine):
    with EngineSession(engine()) as session:
        before = behaviour.contexts
        for keep in range(1, 17):
            session.run(feeds(1, keep) if keep != 4 else feeds(2, 4))
        assert behaviour.contexts == before


def test_what_cannot_be_captured_runs_all_the_same(behaviour, engine):
    behaviour.capturable = False
    with EngineSession(engine()) as session:
        for _ in range(2):
            require_right(session, feeds())
        made = behaviour.contexts
        for batch in (4, 4, 3, 3, 3):
            require_right(session, feeds(batch))
        assert behaviour.contexts == made  # nobody tries again
        assert "graph" not in names(behaviour.gpu.done)


def test_without_memory_for_another_context_it_runs_all_the_same(behaviour, engine):
    with EngineSession(engine()) as session:
        behaviour.refuse = "create_execution_context"
        for _ in range(3):
            require_right(session, feeds(5))
        assert "graph" not in names(behaviour.gpu.done)
