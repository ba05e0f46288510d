"""The comparison that decides if an artefact may exist: faults it must see, and noise it must not."""

import itertools
from dataclasses import replace

import numpy as np
import pytest

from mae_export.errors import InputError
from mae_export.runtime.compare import (
    BATCH,
    Check,
    Measured,
    Report,
    Scene,
    compare,
    feeds_of,
    require,
    scenes,
    summary_of,
)
from mae_export.runtime.fake import FakeSession
from mae_export.runtime.metrics import agreement
from mae_export.runtime.probes import verification_images
from mae_export.runtime.thresholds import LIMITS


def faulty(session, change):
    """The same session with its outputs passed through `change(name, values, feeds)`."""

    class Faulty:
        manifest, digest, description = session.manifest, session.digest, "faulty"

        def run(self, feeds, outputs=None):
            return {name: change(name, values, feeds) for name, values in session.run(feeds, outputs).items()}

    return Faulty()


@pytest.mark.parametrize("mode", ["none", "keep", "patches", "mask-token"])
@pytest.mark.parametrize("ragged", [False, True])
def test_a_model_agrees_with_itself(make_manifest, mode, ragged):
    if mode in ("none", "mask-token") and ragged:
        pytest.skip("ragged needs a mask input")
    session = FakeSession(make_manifest(mode, ragged=ragged))
    report = compare(session, session)
    assert report.passed
    assert report.worst.error < 1e-15
    shown = len(session.manifest.outputs) * (1 + (mode != "none") + (ragged or mode == "mask-token"))
    assert len(report.measured) == shown
    assert len(report.checks) == 15 * shown  # 8 of the set, 2 small batches, 5 with itself


def test_many_images_run_in_small_batches_and_have_neighbours(make_manifest):
    sizes = set()
    session = FakeSession(make_manifest("keep"))
    watched = faulty(session, lambda name, v, feeds: sizes.add(len(v)) or v)
    report = compare(watched, session, images=verification_images(session.manifest.image))
    assert report.passed
    assert max(sizes) == BATCH
    assert {found.output for found in report.measured if found.agreement.neighbours is not None} == {"pooled"}
    assert sum("10 nearest images" in check.name for check in report.checks) == 2  # pooled, in both scenes


FAULTS = {
    "scaled": lambda name, v, feeds: v * np.float32(1 + 5e-5),
    "an offset on every value": lambda name, v, feeds: v + 2e-4 * max(1, np.abs(v).max()),
    "one value of one row": lambda name, v, feeds: _with(v, (len(v) - 1, 0), 1.0),
    "NaN": lambda name, v, feeds: _with(v, (0, 0), np.nan),
    "wrong at batch 1 only": lambda name, v, feeds: v + (len(v) == 1),
    "wrong at batch 2 only": lambda name, v, feeds: v + (len(v) == 2),
    "depends on the row": lambda name, v, feeds: v + 1e-3 * np.arange(len(v)).reshape(-1, *[1] * (v.ndim - 1)),
    "depends on the neighbours": lambda name, v, feeds: v + 1e-3 * v[:1],
    "changes from run to run": lambda name, v, feeds: v + 3e-5 * np.float32(next(COUNTER) % 2),
}
COUNTER = itertools.count()
SELF = {
    "all patches, repeated",
    "all patches, permuted rows",
    "all patches, a row alone",
    "all patches, identical rows",
    "all patches, an extreme neighbour",
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


@pytest.mark.parametrize(
    ("fault", "seen_by"),
    [
        (lambda v: v + 1e-4 * np.arange(len(v)).reshape(-1, *[1] * (v.ndim - 1)), "permuted rows"),
        (lambda v: v + 1e-4 * (len(v) == 1), "a row alone"),
        (lambda v: v + 1e-4 * np.roll(v, 1, axis=0), "an extreme neighbour"),
        (lambda v: v + 1e-4 * (len(v) == 3) * np.arange(len(v)).reshape(-1, *[1] * (v.ndim - 1)), "identical rows"),
    ],
)
def test_what_a_model_owes_itself_needs_no_good_reference(make_manifest, fault, seen_by):
    session = faulty(FakeSession(make_manifest("none")), lambda name, v, feeds: fault(v))
    report = compare(session, session)
    own = {check.name for check in report.checks if check.name in SELF}
    assert own == SELF
    assert f"all patches, {seen_by}" in {check.name for check in report.checks if not check.passed}


@pytest.mark.parametrize(("precision", "passes"), [("fp32", False), ("fp16", True), ("int8", True)])
def test_noise_is_judged_by_the_precision(make_manifest, precision, passes):
    session = FakeSession(replace(make_manifest("keep"), precision=precision))

    def noise(name, values, feeds):  # the same for the same row, as rounding would be
        return values + np.float32(1e-3) * np.sin(1e4 * values)

    report = compare(faulty(session, noise), session)
    assert report.passed is passes
    assert report.worst.error > 0


@pytest.mark.parametrize("precision", LIMITS)
def test_no_precision_excuses_what_is_not_finite(make_manifest, precision):
    session = FakeSession(replace(make_manifest("none"), precision=precision))
    last = faulty(session, lambda name, v, feeds: _with(v, (len(v) - 1, -1), np.nan))
    assert compare(last, session).worst.error == np.inf


def test_noise_below_the_limits_is_no_fault(make_manifest):
    session = FakeSession(make_manifest("keep"))
    noisy = faulty(session, lambda name, v, feeds: v + np.float32(1e-6) * np.sin(1e4 * v))
    report = compare(noisy, session)
    assert report.passed
    assert report.worst.error > 0


def test_one_bad_token_is_enough(make_manifest):
    session = FakeSession(replace(make_manifest("none"), precision="int8"))
    images = verification_images(session.manifest.image)

    def one(name, values, feeds):
        bad = (feeds["images"] == images[5]).all(axis=(1, 2, 3))
        values = values.copy()
        if values.ndim == 3:
            values[bad, 3] *= 0.5
        return values

    report = compare(faulty(session, one), session, images=images)
    failed = {check.name for check in report.checks if not check.passed}
    assert "all patches, centred cosine, minimum" in failed
    assert "all patches, centred cosine, first percentile" not in failed, "which is why there is a minimum"
    assert report.worst_scenes()["patch_tokens"].agreement.worst_image == 5


def test_worst_scenes_start_with_the_worst_output():
    expected = np.random.default_rng(0).normal(size=(8, 4))
    near, far = (agreement(expected + amount * np.roll(expected, 1), expected) for amount in (0.01, 0.3))
    measured = tuple(
        Measured(scene=scene, output=output, agreement=found)
        for scene, output, found in (("a", "pooled", near), ("b", "dense", near), ("b", "pooled", far))
    )
    worst = Report(candidate="x", reference="y", checks=(), measured=measured).worst_scenes()
    assert [(name, found.scene) for name, found in worst.items()] == [("pooled", "b"), ("dense", "b")]


@pytest.mark.parametrize("shape", [(1, 32, 32, 3), (4, 32, 32), (4, 16, 32, 3)])
def test_images_must_fit_and_be_several(make_manifest, shape):
    session = FakeSession(make_manifest())
    with pytest.raises(InputError, match=r"expected uint8 \[n, 32, 32, 3\] with n of 2 or more"):
        compare(session, session, images=np.zeros(shape, np.uint8))
    with pytest.raises(InputError, match="the images are float32"):
        compare(session, session, images=np.zeros((2, 32, 32, 3), np.float32))


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


def test_dropping_and_replacing_are_compared_on_all_patches_only(make_manifest):
    keep, replaced = (FakeSession(make_manifest(mode)) for mode in ("keep", "mask-token"))
    for pair in ((keep, replaced), (replaced, keep)):
        report = compare(*pair)
        assert report.passed
        assert {found.scene for found in report.measured} == {"all patches"}


def test_a_mask_hides_what_the_scene_does_not_show(make_manifest):
    manifest = make_manifest("mask-token")
    shown = list(scenes(manifest))
    assert [scene.name for scene in shown] == [
        "all patches",
        "a quarter of the patches",
        "rows of different length",
    ]
    assert not feeds_of(shown[0], manifest)["mask"].any()
    quarter, ragged = (feeds_of(scene, manifest)["mask"] for scene in shown[1:])
    assert (quarter.sum(axis=1) == 12).all()
    for scene, mask in zip(shown[1:], (quarter, ragged), strict=True):
        for row in range(len(mask)):
            count = 4 if scene.num_keep is None else scene.num_keep[row]
            assert sorted(np.flatnonzero(~mask[row])) == sorted(scene.ids_keep[row, :count])


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


def test_a_passing_report_raises_nothing():
    check = Check(name="all patches", output="pooled", error=1e-6, limit=1e-4)
    require(Report(candidate="a", reference="b", checks=(check,)), "kept")


def test_a_summary_is_of_the_worst_check():
    checks = tuple(
        Check(name=name, output=output, error=error, limit=1e-4)
        for name, output, error in (("one hot pixel", "pooled", 3.4567e-5), ("all patches", "dense", 2e-6))
    )
    summary = summary_of(Report(candidate="a", reference="b", checks=checks), "b in float32")
    assert (summary.reference, summary.worst_output, summary.error) == ("b in float32", "pooled", 3.457e-5)
    assert (summary.limit, summary.checks) == (1e-4, 2)
