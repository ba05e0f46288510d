"""One session over several: shares, order, threads, errors and closing; and two GPUs of the double."""

import threading

import numpy as np
import pytest

from mae_export.errors import InputError, MachineError, UsageError
from mae_export.runtime.fake import FakeSession
from mae_export.runtime.session import open_session
from mae_export.runtime.spread import SpreadSession
from tests.runtime.cuda_double import CudaDouble
from tests.runtime.tensorrt_double import feeds, install, require_right


class Counting(FakeSession):
    """Remembers the batches that it ran."""

    def __init__(self, manifest):
        super().__init__(manifest)
        self.batches, self.closed = [], 0

    def run(self, feeds, outputs=None):
        self.batches.append(len(feeds["images"]))
        return super().run(feeds, outputs)

    def close(self):
        self.closed += 1
        super().close()


@pytest.fixture
def three(make_manifest):
    return [Counting(make_manifest("keep")) for _ in range(3)]


@pytest.mark.parametrize(("rows", "shares"), [(9, [3, 3, 3]), (8, [2, 3, 3]), (4, [1, 1, 2]), (3, [1, 1, 1])])
def test_devices_get_equal_shares_in_order(three, rows, shares):
    with SpreadSession(three) as session:
        require_right(session, feeds(rows))
        require_right(session, feeds(rows, seed=1), ["pooled"])
    assert sorted(size for each in three for size in each.batches) == sorted(shares * 2)


def test_single_images_take_turns(three):
    with SpreadSession(three) as session:
        for seed in range(6):
            require_right(session, feeds(1, seed=seed))
    assert [each.batches for each in three] == [[1, 1]] * 3


def test_shares_run_at_the_same_time(three):
    """Each waits for the others: one after another they would wait forever."""
    barrier = threading.Barrier(3)
    for each in three:
        each._function = lambda fed: barrier.wait(20) * 0 or {"pooled": np.zeros((len(fed["images"]), 8), np.float32)}
    with SpreadSession(three) as session:
        assert session.run(feeds(6), ["pooled"])["pooled"].shape == (6, 8)


def test_it_is_the_model(three):
    with SpreadSession(three) as session:
        assert (session.name, session.digest, session.manifest) == (three[0].name, three[0].digest, three[0].manifest)
        assert session.description == "3 devices: fake session; fake session; fake session"


def test_wrong_feeds_reach_no_device(three):
    with SpreadSession(three) as session:
        with pytest.raises(InputError, match="'ids_keep' is missing"):
            session.run({"images": feeds()["images"]})
        with pytest.raises(UsageError, match="there is no output 'dense'"):
            session.run(feeds(), ["dense"])
    assert [each.batches for each in three[:1]] == [[1]], "only the second is found out by the sessions"


def test_one_failing_device_fails_the_batch(three):
    def fails(fed):
        raise MachineError("the GPU fell off the bus")

    three[1]._function = fails
    with SpreadSession(three) as session, pytest.raises(MachineError, match="fell off the bus"):
        session.run(feeds(6))


def test_closing_closes_all_and_is_final(three):
    session = SpreadSession(three)
    session.close()
    session.close()
    assert all(each.closed for each in three)
    with pytest.raises(UsageError, match="the session on fake is closed; open it again"):
        session.run(feeds())


def test_sessions_that_do_not_belong_together(make_manifest, three):
    for wrong in ([], [three[0], FakeSession(make_manifest("none"))]):
        with pytest.raises(UsageError, match=f"{len(wrong)} sessions cannot share batches"):
            SpreadSession(wrong)


def test_outputs_cannot_stay_on_several_devices(three):
    with SpreadSession(three) as session:
        with pytest.raises(UsageError, match=r"fake runs on 3 devices.*use run, or open one session for each device"):
            session.run_on_device(feeds())
        assert [each.batches for each in three] == [[], [], []]


def test_two_gpus(monkeypatch, engine):
    found = install(monkeypatch, gpu=CudaDouble(count=2))
    with open_session(engine(), devices=[0, 1]) as session:
        for seed in range(4):
            require_right(session, feeds(6, seed=seed))
            require_right(session, feeds(1, seed=seed))
        assert session.description.startswith("2 devices: TensorRT")
        assert {block.device for block in found.gpu.blocks.values()} == {0, 1}
        assert found.gpu.current == 0
    assert found.gpu.leaks() == {}


def test_a_gpu_that_does_not_exist_gives_the_others_back(monkeypatch, engine):
    found = install(monkeypatch, gpu=CudaDouble(count=2))
    with pytest.raises(MachineError, match=r"opening the GPU: cudaErrorInvalidDevice .*CUDA shows fewer GPUs"):
        open_session(engine(), devices=[0, 1, 2])
    assert found.gpu.leaks() == {}
