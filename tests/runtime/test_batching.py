from collections.abc import Callable, Sequence

import numpy as np
import pytest

from mae_export.errors import UsageError
from mae_export.manifest import Manifest
from mae_export.runtime.batching import PENDING_BATCHES, Batch, Batcher, check_plan
from mae_export.runtime.feeds import check_feeds
from mae_export.runtime.visible import parse_visible


def pixels(number: int) -> np.ndarray:
    return np.random.default_rng(number).integers(0, 256, (32, 32, 3), dtype=np.uint8)


def run(manifest: Manifest, keeps: Sequence[int], size: int) -> list[Batch]:
    """Batches of images 0, 1, ... whose first so many patches are visible."""
    batcher, batches = Batcher(manifest, size), []
    for number, keep in enumerate(keeps):
        batch = batcher.add(index=number, item_id=f"{number}.png", pixels=pixels(number), ids_keep=np.arange(keep))
        batches += [batch] if batch else []
    batches += batcher.rest()
    for batch in batches:
        check_feeds(manifest, batch.feeds)
        assert all(array.flags.c_contiguous for array in batch.feeds.values())
    return batches


def test_a_graph_without_mask_input_takes_images_only(make_manifest: Callable[..., Manifest]) -> None:
    batches = run(make_manifest("none"), [16] * 5, size=2)
    assert [batch.indices for batch in batches] == [(0, 1), (2, 3), (4,)]
    assert [batch.ids for batch in batches][2] == ("4.png",)
    assert set(batches[0].feeds) == {"images"}
    assert np.array_equal(batches[1].feeds["images"][1], pixels(3))


def test_a_plan_that_hides_needs_a_mask_input(make_manifest: Callable[..., Manifest]) -> None:
    check_plan(make_manifest("none"), parse_visible("all"))
    check_plan(make_manifest("keep"), parse_visible("random:0.5"))
    with pytest.raises(
        UsageError, match=r"random:0.5:0 hides patches, .* no mask input; export with --mask keep or mask-token"
    ):
        check_plan(make_manifest("none"), parse_visible("random:0.5"))


def test_rows_of_equal_count_travel_together(make_manifest: Callable[..., Manifest]) -> None:
    batches = run(make_manifest("keep"), [3, 5, 3, 3, 5, 7], size=2)
    assert [batch.indices for batch in batches] == [(0, 2), (1, 4), (3,), (5,)]
    assert batches[1].feeds["ids_keep"].tolist() == [[0, 1, 2, 3, 4]] * 2
    assert [len(ids) for ids in batches[3].ids_keep] == [7]


def test_ragged_rows_are_padded_to_the_longest_in_order(make_manifest: Callable[..., Manifest]) -> None:
    first, last = run(make_manifest("keep", ragged=True), [3, 5, 2], size=2)
    assert first.feeds["ids_keep"].tolist() == [[0, 1, 2, 0, 0], [0, 1, 2, 3, 4]]
    assert first.feeds["num_keep"].tolist() == [3, 5]
    assert first.feeds["num_keep"].dtype == np.int32
    assert [len(ids) for ids in first.ids_keep] == [3, 5]
    assert last.feeds["ids_keep"].shape == (1, 2)


@pytest.mark.parametrize("ragged", [False, True])
def test_patches_mode_carries_the_visible_pixels_only(make_manifest: Callable[..., Manifest], ragged: bool) -> None:
    manifest = make_manifest("patches", ragged=ragged)
    batcher = Batcher(manifest, 2)
    assert batcher.add(index=0, item_id="a", pixels=pixels(0), ids_keep=np.array([5, 15])) is None
    batch = batcher.add(index=1, item_id="b", pixels=pixels(1), ids_keep=np.array([2, 7]))
    assert batch is not None
    assert batch.feeds["patches"].shape == (2, 2, 192)
    # Patch 5 of the 4x4 grid lies in row 1, column 1; patch 7 in row 1, column 3.
    assert np.array_equal(batch.feeds["patches"][0, 0], pixels(0)[8:16, 8:16].ravel())
    assert np.array_equal(batch.feeds["patches"][1, 1], pixels(1)[8:16, 24:32].ravel())
    assert set(batch.feeds) == {"patches", "ids_keep"} | ({"num_keep"} if ragged else set())


def test_ragged_patches_are_padded_with_zeros(make_manifest: Callable[..., Manifest]) -> None:
    (batch,) = run(make_manifest("patches", ragged=True), [1, 3], size=2)
    assert batch.feeds["patches"].shape == (2, 3, 192)
    assert not batch.feeds["patches"][0, 1:].any()
    assert batch.feeds["patches"][1].any(axis=1).all()


def test_many_different_counts_do_not_hold_ever_more_rows(make_manifest: Callable[..., Manifest]) -> None:
    size, counts = 4, [1 + i % 60 for i in range(400)]
    manifest, seen = make_manifest("keep"), 0
    batcher = Batcher(manifest, size)
    for number, keep in enumerate(counts):
        batch = batcher.add(index=number, item_id="x", pixels=pixels(0), ids_keep=np.arange(keep))
        seen += len(batch) if batch else 0
        assert number + 1 - seen < PENDING_BATCHES * size
    assert seen + sum(map(len, batcher.rest())) == len(counts)


def test_one_row_of_a_batch_is_a_batch(make_manifest: Callable[..., Manifest]) -> None:
    manifest = make_manifest("keep", ragged=True)
    (batch,) = run(manifest, [3, 5], size=2)
    row = batch.row(1)
    check_feeds(manifest, row.feeds)
    assert (row.indices, row.ids, len(row)) == ((1,), ("1.png",), 1)
    assert np.array_equal(row.feeds["images"][0], pixels(1))
    assert row.feeds["num_keep"].tolist() == [5]


def test_masks_hide_what_is_not_visible_and_rows_need_not_agree(make_manifest: Callable[..., Manifest]) -> None:
    first, last = run(make_manifest("mask-token"), [3, 16, 1], size=2)
    assert (first.indices, last.indices) == ((0, 1), (2,))
    assert set(first.feeds) == {"images", "mask"}
    assert first.feeds["mask"].tolist() == [[False] * 3 + [True] * 13, [False] * 16]
    assert last.feeds["mask"].tolist() == [[False] + [True] * 15]
    assert [len(ids) for ids in first.ids_keep] == [3, 16]
    check_plan(make_manifest("mask-token"), parse_visible("random:0.5"))
