import errno
import json
import os
import threading
import weakref
from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from mae_export.errors import (
    GraphError,
    InputError,
    MaskError,
    QuarantineError,
    ResourceError,
    UsageError,
    VerificationError,
)
from mae_export.manifest import Golden, Manifest
from mae_export.runtime import extract as extract_module
from mae_export.runtime import features as features_module
from mae_export.runtime.extract import ExtractOptions, extract
from mae_export.runtime.fake import FakeSession
from mae_export.runtime.features import read_features
from mae_export.runtime.visible import parse_visible

Array = np.ndarray[Any, Any]
Make = Callable[..., Manifest]
MakeImages = Callable[[int], Path]
WAIT = 10  # seconds; only a failing test waits that long


def closed_form(path: Path, ids: Sequence[int]) -> Array:
    """Tokens [K, 6] of one image, computed apart from the package."""
    pixels = np.asarray(Image.open(path)).astype(float)
    tokens = []
    for patch in ids:
        y, x = divmod(int(patch), 4)
        colour = pixels[8 * y : 8 * y + 8, 8 * x : 8 * x + 8].mean(axis=(0, 1)) / 255
        tokens.append([sum(colour[i] * np.cos((i + 1) * j) for i in range(3)) + patch / 16 for j in range(1, 7)])
    return np.array(tokens)


def failures(out: Path) -> list[tuple[str, str]]:
    lines = [json.loads(line) for line in (out / "failures.jsonl").read_text().splitlines()]
    return [(line["id"], line["reason"]) for line in lines]


class Recording(FakeSession):
    """Remembers what it was asked."""

    def __init__(self, manifest: Manifest, function: Callable[[Mapping[str, Array]], dict[str, Array]] | None = None):
        super().__init__(manifest, function)
        self.calls: list[tuple[dict[str, tuple[int, ...]], Sequence[str] | None]] = []

    def run(self, feeds: Mapping[str, Array], outputs: Sequence[str] | None = None) -> dict[str, Array]:
        self.calls.append(({name: array.shape for name, array in feeds.items()}, outputs))
        return super().run(feeds, outputs)


@pytest.mark.parametrize("format_", ["npy", "parquet"])
@pytest.mark.parametrize(
    ("mode", "ragged", "visible"),
    [("none", False, "all"), ("keep", False, "random:0.25:3"), ("patches", False, "random:0.5"), ("keep", True, "all")],
)
def test_features_are_those_of_the_model(
    make_manifest: Make, make_images: MakeImages, tmp_path: Path, mode: str, ragged: bool, visible: str, format_: Any
) -> None:
    folder, out, done = make_images(11), tmp_path / "out", []
    options = ExtractOptions(visible=visible, batch=4, format=format_)
    session = FakeSession(make_manifest(mode, ragged=ragged))
    report = extract(session, [folder], out, options=options, progress=lambda *counts: done.append(counts))
    found = read_features(out)
    assert found.ids == tuple(f"{i:03}.png" for i in range(11))
    assert found.ids_keep is not None
    for number, item_id in enumerate(found.ids):
        ids = parse_visible(visible).ids_keep(number, item_id, 16)
        tokens = closed_form(folder / item_id, ids)
        assert found.ids_keep[number].tolist() == ids.tolist()
        assert np.allclose(found.arrays["patch_tokens"][number], tokens, atol=1e-5)
        assert np.allclose(found.arrays["pooled"][number], tokens.mean(axis=0), atol=1e-5)
    assert (report.rows_in, report.rows_ok, report.rows_failed, report.failures) == (11, 11, 0, {})
    assert done == [(4, 11), (8, 11), (11, 11)]


@pytest.mark.parametrize(("mode", "ragged"), [("keep", False), ("keep", True), ("patches", True)])
def test_rows_with_different_counts(
    make_manifest: Make, make_images: MakeImages, tmp_path: Path, mode: str, ragged: bool
) -> None:
    folder, out = make_images(9), tmp_path / "out"
    masks = np.arange(16) < np.array([3, 1, 16, 3, 3, 1, 7, 16, 2])[:, None]
    masks = np.random.default_rng(0).permuted(masks, axis=1)
    np.save(tmp_path / "m.npy", masks)
    options = ExtractOptions(visible=f"file:{tmp_path / 'm.npy'}", batch=2)
    extract(FakeSession(make_manifest(mode, ragged=ragged)), [folder], out, options=options)
    found = read_features(out)
    assert found.ids_keep is not None
    assert sorted(found.ids) == [f"{i:03}.png" for i in range(9)]
    for at, item_id in enumerate(found.ids):
        ids = np.flatnonzero(masks[int(item_id[:3])])
        tokens = closed_form(folder / item_id, ids)
        assert found.ids_keep[at].tolist() == [*ids, *[-1] * (16 - len(ids))]
        assert np.allclose(found.arrays["patch_tokens"][at, : len(ids)], tokens, atol=1e-5)
        assert not found.arrays["patch_tokens"][at, len(ids) :].any()  # padding of the batch is not stored
        assert np.allclose(found.arrays["pooled"][at], tokens.mean(axis=0), atol=1e-5)


def test_the_batch_size_changes_nothing(make_manifest: Make, make_images: MakeImages, tmp_path: Path) -> None:
    folder, session = make_images(7), FakeSession(make_manifest("keep"))
    found = []
    for batch in (1, 3, 16):
        extract(session, [folder], tmp_path / str(batch), options=ExtractOptions(visible="random:0.3", batch=batch))
        found.append(read_features(tmp_path / str(batch)))
    for other in found[1:]:
        assert np.array_equal(found[0].arrays["patch_tokens"], other.arrays["patch_tokens"])
        assert found[0].manifest.shards == other.manifest.shards


def test_the_manifest_says_what_made_the_features(make_manifest: Make, make_images: MakeImages, tmp_path: Path) -> None:
    session = FakeSession(make_manifest("keep"))
    options = ExtractOptions(features=("pooled",), visible="random:0.5:9")
    extract(session, [make_images(2)], tmp_path / "out", options=options)
    manifest = read_features(tmp_path / "out").manifest
    assert (manifest.model, manifest.model_sha256, manifest.family) == ("fake", session.digest, "mae")
    assert (manifest.visible, manifest.precision, manifest.runtime) == ("random:0.5:9", "fp32", "fake session")
    assert [(spec.name, spec.dtype, spec.shape) for spec in manifest.features] == [("pooled", "float32", (6,))]


def test_only_the_features_asked_for_are_computed_and_stored(
    make_manifest: Make, make_images: MakeImages, tmp_path: Path
) -> None:
    session = Recording(make_manifest("none"))
    extract(session, [make_images(3)], tmp_path / "out", options=ExtractOptions(features=("pooled",), batch=2))
    assert session.calls == [({"images": (2, 32, 32, 3)}, ["pooled"]), ({"images": (1, 32, 32, 3)}, ["pooled"])]
    found = read_features(tmp_path / "out")
    assert list(found.arrays) == ["pooled"]
    assert found.ids_keep is None  # everything is visible and nothing is per patch


def test_images_that_cannot_be_decoded_are_listed_and_cost_nothing_else(
    make_manifest: Make, make_images: MakeImages, tmp_path: Path
) -> None:
    folder, out = make_images(6), tmp_path / "out"
    (folder / "001.png").write_bytes(b"")
    (folder / "004.png").write_bytes((folder / "004.png").read_bytes()[:400])
    with pytest.raises(QuarantineError, match=r"2 of 6 images failed \(1 empty, 1 truncated\).*failures.jsonl"):
        extract(FakeSession(make_manifest("none")), [folder], out, options=ExtractOptions(batch=2))
    assert failures(out) == [("001.png", "empty"), ("004.png", "truncated")]
    found = read_features(out)
    assert found.ids == ("000.png", "002.png", "003.png", "005.png")
    for at, item_id in enumerate(found.ids):
        assert np.allclose(found.arrays["patch_tokens"][at], closed_form(folder / item_id, range(16)), atol=1e-5)
    assert (found.manifest.rows_in, found.manifest.rows_ok, found.manifest.rows_failed) == (6, 4, 2)


def test_the_error_budget_is_a_share_that_may_fail(
    make_manifest: Make, make_images: MakeImages, tmp_path: Path
) -> None:
    folder, session = make_images(4), FakeSession(make_manifest("none"))
    (folder / "002.png").write_bytes(b"")
    report = extract(session, [folder], tmp_path / "a", options=ExtractOptions(error_budget=0.25))
    assert report.failures == {"empty": 1}
    with pytest.raises(QuarantineError, match=r"1 of 4 images failed .* error budget of 24\.000%"):
        extract(session, [folder], tmp_path / "b", options=ExtractOptions(error_budget=0.24))


def test_when_every_image_fails_the_folder_is_still_complete(make_manifest: Make, tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "a.jpg").write_bytes(b"text")
    with pytest.raises(QuarantineError, match=r"1 of 1 images failed .1 not-an-image"):
        extract(FakeSession(make_manifest("none")), [tmp_path / "in"], tmp_path / "out")
    assert failures(tmp_path / "out") == [("a.jpg", "not-an-image")]
    assert read_features(tmp_path / "out").arrays["pooled"].shape == (0, 6)


def test_rows_that_are_not_finite_fail_alone(make_manifest: Make, make_images: MakeImages, tmp_path: Path) -> None:
    folder, out, plain = make_images(6), tmp_path / "out", FakeSession(make_manifest("none"))
    black, white = np.zeros((32, 32, 3), np.uint8), np.full((32, 32, 3), 255, np.uint8)
    Image.fromarray(black).save(folder / "001.png")
    Image.fromarray(white).save(folder / "003.png")

    def function(feeds: Mapping[str, Array]) -> dict[str, Array]:
        found = plain.run(feeds)
        means = feeds["images"].mean(axis=(1, 2, 3))
        found["pooled"][means == 0, 2] = np.nan
        found["patch_tokens"][means == 255, 15, 5] = -np.inf
        return found

    with pytest.raises(QuarantineError, match="2 not-finite"):
        extract(FakeSession(make_manifest("none"), function), [folder], out)
    assert failures(out) == [("001.png", "not-finite"), ("003.png", "not-finite")]
    assert read_features(out).ids == ("000.png", "002.png", "004.png", "005.png")


@pytest.mark.parametrize("error", [GraphError("cannot run"), RuntimeError("CUDA"), MemoryError("out of memory")])
def test_a_failing_batch_loses_only_the_rows_that_fail_alone(
    make_manifest: Make, make_images: MakeImages, tmp_path: Path, error: Exception
) -> None:
    folder, out = make_images(7), tmp_path / "out"
    Image.fromarray(np.zeros((32, 32, 3), np.uint8)).save(folder / "005.png")
    plain = FakeSession(make_manifest("keep"))

    def function(feeds: Mapping[str, Array]) -> dict[str, Array]:
        if not feeds["images"].any(axis=(1, 2, 3)).all():
            raise error
        return plain.run(feeds)

    session = Recording(make_manifest("keep"), function)
    with pytest.raises(QuarantineError, match=r"1 of 7 images failed .1 model-error"):
        extract(session, [folder], out, options=ExtractOptions(batch=4))
    assert [shapes["images"][0] for shapes, _ in session.calls] == [4, 3, 1, 1, 1]
    assert failures(out) == [("005.png", "model-error")]
    found = read_features(out)
    assert found.ids == tuple(f"{i:03}.png" for i in range(7) if i != 5)
    assert np.allclose(found.arrays["patch_tokens"][5], closed_form(folder / "006.png", range(16)), atol=1e-5)


def test_too_few_rows_from_the_model_stop_everything(
    make_manifest: Make, make_images: MakeImages, tmp_path: Path
) -> None:
    plain = FakeSession(make_manifest("none"))
    session = FakeSession(make_manifest("none"), lambda feeds: {k: v[1:] for k, v in plain.run(feeds).items()})
    with pytest.raises(VerificationError, match="fake session returned 2 rows of 'pooled' for 3 images"):
        extract(session, [make_images(3)], tmp_path / "out")
    assert not (tmp_path / "out" / "manifest.json").exists()


def test_rows_that_get_lost_are_noticed(
    make_manifest: Make, make_images: MakeImages, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    load = extract_module.load

    def forgetful(*args: Any, **options: Any) -> Generator[Any, None, None]:
        yield from (loaded for loaded in load(*args, **options) if loaded.index != 1)

    monkeypatch.setattr(extract_module, "load", forgetful)
    with pytest.raises(VerificationError, match="3 images went in, 2 rows and 0 failures came out; no manifest"):
        extract(FakeSession(make_manifest("none")), [make_images(3)], tmp_path / "out")
    assert not (tmp_path / "out" / "manifest.json").exists()


def test_a_wrong_golden_value_stops_before_anything_is_written(
    make_manifest: Make, make_images: MakeImages, tmp_path: Path
) -> None:
    manifest = make_manifest("keep", golden=Golden(recipe="pattern-1", values={"pooled": (123.0,)}))
    with pytest.raises(VerificationError, match="of output 'pooled' on the golden image; expected 123"):
        extract(FakeSession(manifest), [make_images(1)], tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("mode", "options", "kind", "message"),
    [
        ("none", {"visible": "random:0.5"}, UsageError, "no mask input; export with --mask keep"),
        ("keep", {"visible": "random:1.5"}, MaskError, "expected 0 < fraction <= 1"),
        ("keep", {"visible": "some"}, UsageError, "is not a plan"),
        ("keep", {"features": ("dense",)}, UsageError, "no output 'dense'; this file has: pooled, patch_tokens"),
    ],
)
def test_what_does_not_fit_the_model_is_refused_before_anything_runs(
    make_manifest: Make, make_images: MakeImages, tmp_path: Path, mode: Any, options: Any, kind: Any, message: str
) -> None:
    session = FakeSession(make_manifest(mode), lambda feeds: pytest.fail("ran"))
    with pytest.raises(kind, match=message):
        extract(session, [make_images(2)], tmp_path / "out", options=ExtractOptions(**options))
    assert not (tmp_path / "out").exists()


def test_masks_and_encoders_that_do_not_fit_the_images_are_refused_early(
    make_manifest: Make, make_images: MakeImages, tmp_path: Path
) -> None:
    np.save(tmp_path / "m.npy", np.ones((3, 16), bool))
    options = ExtractOptions(visible=f"file:{tmp_path / 'm.npy'}")
    with pytest.raises(MaskError, match="has 3 rows; expected 2"):
        extract(FakeSession(make_manifest("keep")), [make_images(2)], tmp_path / "out", options=options)
    manifest = make_manifest("none")
    grey = replace(manifest, image=replace(manifest.image, channels=1, mean=(0.5,), std=(0.5,)))
    with pytest.raises(InputError, match="takes 1 channels"):
        extract(FakeSession(grey), [make_images(2)], tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"batch": 0}, "batch is 0"),
        ({"threads": -1}, "threads -1"),
        ({"error_budget": float("nan")}, "error budget is nan"),
        ({"error_budget": 1.5}, "error budget is 1.5"),
        ({"format": "csv"}, "format is 'csv'; expected npy or parquet"),
        ({"features": ()}, "name at least one"),
        ({"features": ("pooled", "pooled")}, "each once"),
    ],
)
def test_options_out_of_range_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        ExtractOptions(**options)


def test_decoding_goes_on_while_the_model_runs(
    make_manifest: Make, make_images: MakeImages, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    load, second_batch, waited = extract_module.load, threading.Event(), []

    def watched(*args: Any, **options: Any) -> Generator[Any, None, None]:
        for loaded in load(*args, **options):
            if loaded.index == 3:
                second_batch.set()
            yield loaded

    plain = FakeSession(make_manifest("none"))

    def slow(feeds: Mapping[str, Array]) -> dict[str, Array]:
        waited.append(second_batch.wait(WAIT))  # the first run ends only once the second batch has been decoded
        return plain.run(feeds)

    monkeypatch.setattr(extract_module, "load", watched)
    session = FakeSession(make_manifest("none"), slow)
    extract(session, [make_images(4)], tmp_path / "out", options=ExtractOptions(batch=2))
    assert waited == [True, True]


def test_the_model_goes_on_while_a_shard_is_written(
    make_manifest: Make, make_images: MakeImages, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    third_run, waited, runs, first_pixels_gone = threading.Event(), [], [], []
    plain = FakeSession(make_manifest("none"))

    def counted(feeds: Mapping[str, Array]) -> dict[str, Array]:
        runs.append(weakref.ref(feeds["images"]))
        if len(runs) == 3:
            third_run.set()
        return plain.run(feeds)

    class SlowWriter(features_module.FeaturesWriter):
        def add(self, row: Any) -> None:
            if not waited:
                waited.append(third_run.wait(WAIT))  # the first row is stored only once the third batch runs
                first_pixels_gone.append(runs[0]() is None)  # what waits for the disk holds no pixels
            super().add(row)

    monkeypatch.setattr(extract_module, "FeaturesWriter", SlowWriter)
    session = FakeSession(make_manifest("none"), counted)
    extract(session, [make_images(6)], tmp_path / "out", options=ExtractOptions(batch=2))
    assert waited == [True]
    assert first_pixels_gone == [True]
    assert len(read_features(tmp_path / "out").ids) == 6


def test_a_full_disk_in_the_storing_thread_reaches_the_caller(
    make_manifest: Make, make_images: MakeImages, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(fd: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(ResourceError, match=r"cannot write .*No space left on device"):
        extract(FakeSession(make_manifest("none")), [make_images(3)], tmp_path / "out")
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["failures.jsonl"]


def test_an_interruption_stops_the_threads_and_leaves_finished_shards(
    make_manifest: Make, make_images: MakeImages, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, plain, stored = tmp_path / "out", FakeSession(make_manifest("none")), threading.Event()

    class Small(features_module.FeaturesWriter):
        def __init__(self, folder: Path, **options: Any) -> None:
            super().__init__(folder, shard_rows=2, **options)

        def _flush(self) -> None:
            super()._flush()
            stored.set()

    def interrupted(feeds: Mapping[str, Array]) -> dict[str, Array]:
        if feeds["images"].shape[0] == 1:
            assert stored.wait(WAIT)
            raise KeyboardInterrupt
        return plain.run(feeds)

    monkeypatch.setattr(extract_module, "FeaturesWriter", Small)
    options = ExtractOptions(batch=2, features=("pooled",))
    with pytest.raises(KeyboardInterrupt):
        extract(FakeSession(make_manifest("none"), interrupted), [make_images(3)], out, options=options)
    assert sorted(path.name for path in out.iterdir()) == [
        "failures.jsonl",
        "shard-00000.ids.jsonl",
        "shard-00000.pooled.npy",
    ]
    assert not [thread for thread in threading.enumerate() if thread.name.startswith(("mae-export", "mae-load"))]
    with pytest.raises(InputError, match="the extraction did not finish"):
        read_features(out)
    monkeypatch.undo()
    extract(plain, [make_images(3)], out, options=ExtractOptions(force=True))
    assert len(read_features(out).ids) == 3
