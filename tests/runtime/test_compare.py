"""The comparison that decides if an artefact may exist: faults it must see, and noise it must not."""

from dataclasses import replace

import numpy as np
import pytest

from mae_export.errors import InputError
from mae_export.runtime.compare import (
    SELF_LIMIT,
    Check,
    Report,
    Scene,
    compare,
    feeds_of,
    scenes,
)
from mae_export.runtime.fake import FakeSession


def faulty(session, change):
    """The same session with its outputs passed through `change(name, values, feeds)`."""

    class Faulty:
        manifest, digest, description = session.manifest, session.digest, "faulty"

        def run(self, feeds, outputs=None):
            return {name: change(name, values, feeds) for name, values in session.run(feeds, outputs).items()}

    return Faulty()


@pytest.mark.parametrize("mode", ["none", "keep", "patches"])
@pytest.mark.parametrize("ragged", [False, True])
def test_a_model_agrees_with_itself(make_manifest, mode, ragged):
    if mode == "none" and ragged:
        pytest.skip("ragged needs a mask input")
    session = FakeSession(make_manifest(mode, ragged=ragged))
    report = compare(session, session)
    assert report.passed
    assert report.worst.error == 0.0
    outputs = len(session.manifest.outputs)
    assert len(report.checks) == 5 * outputs * (1 + (mode != "none") + ragged)


FAULTS = {
    "an offset on every value": lambda name, v, feeds: v + 2e-4 * max(1, np.abs(v).max()),
    "one value of one row": lambda name, v, feeds: _with(v, (len(v) - 1, 0), 1.0),
    "NaN": lambda name, v, feeds: _with(v, (0, 0), np.nan),
    "wrong at batch 1 only": lambda name, v, feeds: v + (len(v) == 1),
    "wrong at batch 2 only": lambda name, v, feeds: v + (len(v) == 2),
    "depends on the row": lambda name, v, feeds: v + 1e-3 * np.arange(len(v)).reshape(-1, *[1] * (v.ndim - 1)),
    "depends on the neighbours": lambda name, v, feeds: v + 1e-3 * v[:1],
}


def _with(values, place, value):
    values = values.copy()
    values[place] = value
    return values


@pytest.mark.parametrize("fault", FAULTS)
def test_faults_are_seen(make_manifest, fault):
    session = FakeSession(make_manifest("keep"))
    report = compare(faulty(session, FAULTS[fault]), session)
    assert not report.passed
    assert report.worst.output in {spec.name for spec in session.manifest.outputs}


def test_noise_below_the_limits_is_no_fault(make_manifest):
    session = FakeSession(make_manifest("keep"))
    draws = np.random.default_rng(0)
    noisy = faulty(session, lambda name, v, feeds: v + draws.uniform(-1, 1, v.shape).astype(v.dtype) * SELF_LIMIT / 4)
    report = compare(noisy, session)
    assert report.passed
    assert report.worst.error > 0


def test_by_output_keeps_the_worst_share_of_the_limit():
    checks = (
        Check(name="a", output="pooled", error=5e-5, limit=1e-4),
        Check(name="b", output="pooled", error=9e-6, limit=1e-5),
        Check(name="c", output="dense", error=0.0, limit=1e-4),
    )
    report = Report(candidate="x", reference="y", checks=checks)
    assert report.passed
    assert report.worst.name == "b"
    assert {name: check.name for name, check in report.by_output().items()} == {"pooled": "b", "dense": "c"}


def test_a_masked_graph_is_compared_with_an_unmasked_one_on_all_patches(make_manifest):
    keep, none = (FakeSession(make_manifest(mode)) for mode in ("keep", "none"))
    report = compare(keep, none)
    assert {check.name.split(",")[0] for check in report.checks} == {"all patches"}


def test_a_hidden_patch_cannot_be_shown_to_a_graph_without_mask(make_manifest):
    manifest = make_manifest("none")
    images = np.zeros((1, *manifest.image.size, 3), np.uint8)
    with pytest.raises(InputError, match="no mask input; export it with --mask keep"):
        feeds_of(Scene(name="s", images=images, ids_keep=np.zeros((1, 1), np.int64)), manifest)


def test_scenes_show_photographs_and_adversarial_images(make_manifest):
    manifest = make_manifest("patches", ragged=True)
    shown = {scene.name: scene for scene in scenes(manifest)}
    assert list(shown) == ["all patches", "a quarter of the patches", "rows of different length"]
    images = shown["all patches"].images
    assert len(images) == 7
    assert not images[4].any()  # black
    assert (images[5] == 255).all()  # white
    assert (images[6] != 0).any(axis=-1).sum() == 1  # one hot pixel
    ids = shown["a quarter of the patches"].ids_keep
    assert ids.shape == (7, manifest.patches.count // 4)
    assert all(len(set(row)) == len(row) for row in ids)
    assert any((np.diff(row) < 0).any() for row in ids), "random order, not raster order"
    assert len(set(shown["rows of different length"].num_keep.tolist())) > 1


def test_models_for_different_images_cannot_be_compared(make_manifest):
    small = make_manifest("none")
    large = replace(small, image=replace(small.image, size=(64, 64)))
    with pytest.raises(InputError, match=r"takes images of .*; export both for one size"):
        compare(FakeSession(small), FakeSession(large))


def test_models_without_a_common_output_cannot_be_compared(make_manifest):
    a, b = make_manifest(outputs=("pooled",)), make_manifest(outputs=("patch_tokens",))
    with pytest.raises(InputError, match="no output in common: the candidate has pooled, the reference patch_tokens"):
        compare(FakeSession(a), FakeSession(b))
