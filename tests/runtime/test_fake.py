from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest

from mae_export.errors import MaskError, UsageError
from mae_export.manifest import Manifest, TensorSpec
from mae_export.runtime.fake import FakeSession
from mae_export.runtime.session import Session

Make = Callable[..., Manifest]


def one_colour(*rgb: int) -> np.ndarray:
    return np.broadcast_to(np.array(rgb, np.uint8), (1, 32, 32, 3)).copy()


def test_the_closed_form_of_a_constant_image(make_manifest: Make) -> None:
    session: Session = FakeSession(make_manifest("none"))
    found = session.run({"images": one_colour(255, 51, 0)})
    j = np.arange(1, 7)
    colour = np.cos(j) + 0.2 * np.cos(2 * j)
    assert np.allclose(found["patch_tokens"][0, 4], colour + 4 / 16, atol=1e-6)
    assert np.allclose(found["pooled"][0], colour + 7.5 / 16, atol=1e-6)
    assert found["pooled"].dtype == np.float32


def test_every_mask_mode_gives_the_same_features(make_manifest: Make) -> None:
    images = np.random.default_rng(0).integers(0, 256, (2, 32, 32, 3), dtype=np.uint8)
    ids = np.array([[3, 0, 12], [9, 1, 2]])
    cells = images.reshape(2, 4, 8, 4, 8, 3).swapaxes(2, 3).reshape(2, 16, 192)
    patches = np.stack([cells[0][ids[0]], cells[1][ids[1]]])
    every = FakeSession(make_manifest("none")).run({"images": images})
    kept = FakeSession(make_manifest("keep")).run({"images": images, "ids_keep": ids})
    gathered = FakeSession(make_manifest("patches")).run({"patches": patches, "ids_keep": ids})
    for row in range(2):
        assert np.array_equal(kept["patch_tokens"][row], every["patch_tokens"][row][ids[row]])
    assert np.allclose(kept["pooled"], kept["patch_tokens"].mean(axis=1), atol=1e-6)
    assert all(np.array_equal(kept[name], gathered[name]) for name in kept)


def test_padding_of_ragged_rows_is_not_pooled(make_manifest: Make) -> None:
    images = np.random.default_rng(1).integers(0, 256, (2, 32, 32, 3), dtype=np.uint8)
    ids = np.array([[7, 3, 0, 0], [1, 2, 3, 4]])
    feeds = {"images": images, "ids_keep": ids, "num_keep": np.array([2, 4], np.int32)}
    found = FakeSession(make_manifest("keep", ragged=True)).run(feeds)
    alone = FakeSession(make_manifest("keep")).run({"images": images[:1], "ids_keep": ids[:1, :2]})
    assert np.allclose(found["pooled"][0], alone["pooled"][0], atol=1e-6)


def test_only_the_outputs_asked_for_are_given(make_manifest: Make) -> None:
    session = FakeSession(make_manifest("none"))
    assert list(session.run({"images": one_colour(0, 0, 0)}, ["patch_tokens"])) == ["patch_tokens"]
    with pytest.raises(UsageError, match="no output 'dense'; this file has: pooled, patch_tokens"):
        session.run({"images": one_colour(0, 0, 0)}, ["dense"])


def test_wrong_feeds_are_refused_as_a_real_session_would(make_manifest: Make) -> None:
    session = FakeSession(make_manifest("keep"))
    with pytest.raises(MaskError, match=r"ids_keep\[0, 0\] is 16"):
        session.run({"images": one_colour(0, 0, 0), "ids_keep": np.array([[16]])})


def test_a_function_replaces_the_closed_form(make_manifest: Make) -> None:
    session = FakeSession(make_manifest("none"), lambda feeds: {"pooled": np.full((len(feeds["images"]), 6), 3.0)})
    assert session.run({"images": one_colour(1, 2, 3)}, ["pooled"])["pooled"].tolist() == [[3.0] * 6]


def test_a_closed_session_does_not_run(make_manifest: Make) -> None:
    with FakeSession(make_manifest("none")) as session:
        assert len(session.digest) == 64
        assert session.digest != FakeSession(make_manifest("keep")).digest
    session.close()
    with pytest.raises(UsageError, match="session is closed"):
        session.run({"images": one_colour(0, 0, 0)})


def test_patches_under_the_mask_are_black(make_manifest: Make) -> None:
    manifest = make_manifest("none")
    mask = TensorSpec(name="mask", dtype="bool", shape=("B", 16))
    masked = FakeSession(replace(manifest, mask_mode="mask-token", inputs=(*manifest.inputs, mask)))
    hidden = np.zeros((1, 16), bool)
    hidden[0, :4] = True  # the first row of patches
    images = one_colour(10, 200, 30)
    found = masked.run({"images": images, "mask": hidden})["patch_tokens"]
    images[:, :8] = 0
    np.testing.assert_array_equal(found, FakeSession(manifest).run({"images": images})["patch_tokens"])
