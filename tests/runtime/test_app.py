"""Frames in, features out, on the fake session, whose features a reader can compute; and once on real graphs."""

import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from mae_export.errors import InputError, MaskError, UsageError
from mae_export.export.options import TraceOptions
from mae_export.manifest import TensorSpec
from mae_export.runtime.app import FeatureSession
from mae_export.runtime.fake import FakeSession
from mae_export.runtime.frames import prepare_frame
from mae_export.runtime.providers import Choice
from mae_export.runtime.session import open_session
from mae_export.runtime.visible import RandomVisible

FAKE = Choice(backend="cpu", reason="it is a test")


@pytest.fixture
def fake(make_manifest):
    return lambda mode, **options: FeatureSession(FakeSession(make_manifest(mode, **options)), FAKE)


def noise(*shape, seed=0):
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def test_frames_of_any_size_are_resized_by_the_rule(fake):
    session = fake("none")
    frames = [noise(50, 40, 3), noise(32, 32, 3), noise(7, 300, 3)]
    found = session.extract(frames)
    images = np.stack([prepare_frame(frame, session.manifest.image, prepared=False) for frame in frames])
    expected = session.run({"images": images})
    assert list(found) == ["pooled", "patch_tokens"]
    for name in found:
        np.testing.assert_array_equal(found[name], expected[name])


def test_prepared_frames_are_not_touched(fake):
    session, images = fake("none"), noise(3, 32, 32, 3)
    np.testing.assert_array_equal(
        session.extract(images, prepared=True)["pooled"], session.run({"images": images})["pooled"]
    )


@pytest.mark.parametrize("mode", ["keep", "patches"])
def test_given_patches_are_seen_in_their_order(fake, mode):
    session, images = fake(mode), noise(2, 32, 32, 3)
    ids = np.array([[9, 1, 4], [0, 15, 3]])
    found = session.extract(images, ids, prepared=True)
    everything = fake("none").run({"images": images})["patch_tokens"]
    np.testing.assert_array_equal(found["ids_keep"], ids)
    for row in range(2):
        np.testing.assert_array_equal(found["patch_tokens"][row], everything[row][ids[row]])


@pytest.mark.parametrize("ragged", [False, True])
def test_rows_of_different_length_are_padded_with_zeros_and_minus_one(fake, ragged):
    session, images = fake("keep", ragged=ragged), noise(3, 32, 32, 3)
    visible = [np.array([2, 7]), np.array([1, 3, 5, 7]), np.array([4])]
    found = session.extract(images, visible, prepared=True)
    assert found["ids_keep"].tolist() == [[2, 7, -1, -1], [1, 3, 5, 7], [4, -1, -1, -1]]
    assert not found["patch_tokens"][0, 2:].any()
    for row, ids in enumerate(visible):
        alone = session.extract(images[row : row + 1], ids, prepared=True)
        np.testing.assert_array_equal(found["patch_tokens"][row, : len(ids)], alone["patch_tokens"][0])
        np.testing.assert_allclose(found["pooled"][row], alone["pooled"][0], rtol=1e-6)


def test_a_draw_depends_on_the_position_and_not_on_the_batch(fake):
    session, images = fake("keep"), noise(5, 32, 32, 3)
    found = [session.extract(images, "random:0.25:7", batch=batch, prepared=True) for batch in (1, 2, 16)]
    plan = RandomVisible(ratio=0.25, seed=7)
    expected = np.stack([plan.ids_keep(index, str(index), 16) for index in range(5)])
    for one in found:
        np.testing.assert_array_equal(one["ids_keep"], expected)
        np.testing.assert_array_equal(one["pooled"], found[0]["pooled"])


def test_with_mask_tokens_hidden_patches_are_masked(make_manifest):
    from dataclasses import replace

    manifest = make_manifest("none")
    mask = TensorSpec(name="mask", dtype="bool", shape=("B", 16))
    manifest = replace(manifest, mask_mode="mask-token", inputs=(*manifest.inputs, mask))
    seen = []
    session = FeatureSession(
        FakeSession(manifest, lambda feeds: seen.append(feeds) or {"pooled": np.zeros((2, 6))}), FAKE
    )
    visible = np.zeros((2, 16), bool)
    visible[0, 3] = visible[1, :5] = True
    found = session.extract(noise(2, 32, 32, 3), visible, features=["pooled"])
    np.testing.assert_array_equal(seen[0]["mask"], ~visible)
    assert list(found) == ["pooled"]
    assert not session.extract(noise(2, 32, 32, 3), features=["pooled"])["pooled"].any()
    assert not seen[1]["mask"].any()


def test_a_stream_gives_one_frame_after_another_as_extract_does(fake):
    session = fake("keep")
    frames = [noise(40 + index, 50, 3, seed=index) for index in range(7)]
    whole = session.extract(frames, "random:0.5")
    for batch in (1, 3):
        rows = list(session.stream(iter(frames), "random:0.5", batch=batch))
        assert len(rows) == 7
        for index, row in enumerate(rows):
            assert row["pooled"].shape == (6,)
            for name in row:
                np.testing.assert_array_equal(row[name], whole[name][index])


def test_a_stream_of_unequal_rows_is_not_padded(fake):
    visible = [np.arange(3), np.arange(5)]
    rows = list(fake("keep", ragged=True).stream(noise(2, 32, 32, 3), visible, batch=2))
    assert [row["patch_tokens"].shape for row in rows] == [(3, 6), (5, 6)]
    assert [row["ids_keep"].tolist() for row in rows] == [[0, 1, 2], [0, 1, 2, 3, 4]]


def test_a_stream_never_ends_by_itself_and_stops_when_left(fake):
    asked = []

    def camera():
        while True:
            asked.append(threading.get_ident())
            yield noise(32, 32, 3)

    rows = fake("none").stream(camera())
    next(rows)
    next(rows)
    rows.close()
    assert len(asked) <= 5
    assert threading.get_ident() not in asked


def test_an_error_in_a_frame_reaches_the_caller(fake):
    rows = fake("none").stream([noise(32, 32, 3), np.zeros((4, 4))])
    next(rows)
    with pytest.raises(InputError, match="a frame is float64"):
        next(rows)


def test_wrong_calls_are_refused_before_any_frame_is_read(fake):
    session = fake("none")
    with pytest.raises(UsageError, match="no output 'dense'"):
        session.stream(iter([]), features=["dense"])
    with pytest.raises(UsageError, match="hides patches, but this graph has no mask input"):
        session.stream(iter([]), "random:0.5")
    with pytest.raises(MaskError, match="3 rows for 2 frames"):
        fake("keep").extract(noise(2, 32, 32, 3), np.ones((3, 16), bool))
    with pytest.raises(InputError, match="there are no frames"):
        session.extract([])
    with pytest.raises(InputError, match="batch is 0"):
        session.extract(noise(1, 32, 32, 3), batch=0)


def test_it_stands_in_for_the_session_it_holds(fake):
    with fake("none") as session:
        assert (session.name, session.description) == ("fake", "fake session")
        assert len(session.digest) == 64
        assert str(session.choice) == "cpu: it is a test"
    with pytest.raises(UsageError, match="session is closed"):
        session.extract(noise(1, 32, 32, 3))


@pytest.mark.parametrize("backend", ["cpu", "openvino"])
def test_many_threads_on_a_real_graph(exported, backend):
    if backend == "openvino":
        pytest.importorskip("openvino")
    path = exported("mae/checkpoint.pth", TraceOptions(mask="keep", features=("pooled", "patch_tokens")))
    with open_session(path, backend=backend, threads=1) as session, ThreadPoolExecutor(4) as pool:
        count = session.manifest.patches.count
        frames = [noise(40, 60, 3, seed=seed) for seed in range(8)]
        masks = np.random.default_rng(0).random((8, count)) < 0.5
        alone = [session.extract([frame], mask) for frame, mask in zip(frames, masks, strict=True)]
        found = list(pool.map(lambda index: session.extract([frames[index]], masks[index]), range(8)))
        together = session.extract(frames, masks)
    for index, (one, other) in enumerate(zip(alone, found, strict=True)):
        np.testing.assert_array_equal(one["pooled"], other["pooled"])
        np.testing.assert_allclose(together["pooled"][index], one["pooled"][0], atol=1e-4)
        assert (together["ids_keep"][index] >= 0).sum() == masks[index].sum()
