import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from mae_export.errors import InputError, MaskError
from mae_export.manifest import Manifest, TensorSpec
from mae_export.runtime.feeds import check_feeds, output_shapes

Feeds = dict[str, np.ndarray[Any, Any]]


def feeds(batch: int = 2, keep: int = 4, **changes: Any) -> Feeds:
    ids = np.tile(np.arange(keep, dtype=np.int64), (batch, 1))
    return {"images": np.zeros((batch, 32, 32, 3), np.uint8), "ids_keep": ids, **changes}


def ragged(num_keep: list[int], ids: list[list[int]]) -> Feeds:
    return feeds(len(ids), ids_keep=np.array(ids), num_keep=np.array(num_keep, np.int32))


@pytest.fixture
def manifest(make_manifest: Callable[..., Manifest]) -> Manifest:
    return make_manifest("keep")


@pytest.fixture
def ragged_manifest(make_manifest: Callable[..., Manifest]) -> Manifest:
    return make_manifest("keep", ragged=True)


@pytest.mark.parametrize("keep", [1, 4, 16])
def test_good_feeds_pass(manifest: Manifest, keep: int) -> None:
    check_feeds(manifest, feeds(keep=keep))
    order = np.array([[3, 0, 2], [15, 7, 1]])  # any order, and another patch set in every row
    check_feeds(manifest, feeds(ids_keep=order))
    check_feeds(manifest, feeds(ids_keep=np.asfortranarray(order)))


def test_patches_mode_ties_the_pixels_to_the_indices(make_manifest: Callable[..., Manifest]) -> None:
    manifest = make_manifest("patches")
    ids = np.arange(8, dtype=np.int64).reshape(2, 4)
    check_feeds(manifest, {"patches": np.zeros((2, 4, 192), np.uint8), "ids_keep": ids})
    with pytest.raises(InputError, match="'ids_keep' has K = 4 where 'patches' has K = 3; they must agree"):
        check_feeds(manifest, {"patches": np.zeros((2, 3, 192), np.uint8), "ids_keep": ids})


def test_missing_and_unknown_feeds_are_named(manifest: Manifest) -> None:
    with pytest.raises(InputError, match="input 'ids_keep' is missing; the model takes: images, ids_keep"):
        check_feeds(manifest, {"images": feeds()["images"]})
    with pytest.raises(InputError, match=r"no input 'id_keep'.*did you mean 'ids_keep'"):
        check_feeds(manifest, feeds(id_keep=np.zeros(2)))


def test_masks_for_a_model_without_mask_input_are_refused(make_manifest: Callable[..., Manifest]) -> None:
    with pytest.raises(InputError, match="no input 'ids_keep'; it takes: images"):
        check_feeds(make_manifest("none"), feeds())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"images": np.zeros((2, 32, 32, 3), np.float32)}, "'images' is float32; expected uint8"),
        ({"ids_keep": np.zeros((2, 4), np.int32)}, "'ids_keep' is int32; expected int64"),
        ({"ids_keep": np.zeros((2, 4), bool)}, "'ids_keep' is bool; expected int64"),
        ({"ids_keep": np.zeros((2, 4), ">i8")}, "'ids_keep' is >i8; expected int64"),
        ({"ids_keep": [[0, 1], [2, 3]]}, "'ids_keep' is a list; expected a numpy array of int64"),
        ({"images": np.zeros((32, 32, 3), np.uint8)}, r"'images' has shape \[32, 32, 3\]; expected \[B, 32, 32, 3\]"),
        ({"images": np.zeros((2, 3, 32, 32), np.uint8)}, r"has shape \[2, 3, 32, 32\].*axis 1 must be 32"),
        ({"ids_keep": np.arange(4)}, r"'ids_keep' has shape \[4\]; expected \[B, K\]"),
        ({"ids_keep": np.zeros((3, 1), np.int64)}, "'ids_keep' has B = 3 where 'images' has B = 2"),
    ],
)
def test_dtype_rank_and_shape_errors_name_found_and_expected(
    manifest: Manifest, change: dict[str, Any], message: str
) -> None:
    with pytest.raises(InputError, match=message):
        check_feeds(manifest, feeds(**change))


def test_an_empty_batch_is_refused(manifest: Manifest) -> None:
    with pytest.raises(InputError, match="empty batch"):
        check_feeds(manifest, feeds(batch=0))


@pytest.mark.parametrize("keep", [0, 17])
def test_keeping_no_patch_or_more_than_there_are_is_refused(manifest: Manifest, keep: int) -> None:
    with pytest.raises(MaskError, match=f"keeps {keep} patches per row; expected 1..16"):
        check_feeds(manifest, feeds(keep=keep))


@pytest.mark.parametrize("patch", [-1, 16, 2**40, -(2**62)])
def test_indices_out_of_range_are_refused(manifest: Manifest, patch: int) -> None:
    ids = np.array([[0, 1, 2], [3, patch, 5]])
    with pytest.raises(MaskError, match=rf"ids_keep\[1, 1\] is {patch}; expected a patch index 0..15"):
        check_feeds(manifest, feeds(ids_keep=ids))


def test_a_patch_named_twice_is_refused_only_within_its_row(manifest: Manifest) -> None:
    check_feeds(manifest, feeds(ids_keep=np.array([[5, 1], [5, 1]])))
    with pytest.raises(MaskError, match="names patch 5 more than once in row 1"):
        check_feeds(manifest, feeds(ids_keep=np.array([[5, 1, 2], [5, 1, 5]])))


def test_ragged_rows_may_repeat_patches_in_their_padding_only(ragged_manifest: Manifest) -> None:
    check_feeds(ragged_manifest, ragged([3, 1], [[4, 2, 0], [0, 0, 0]]))
    with pytest.raises(MaskError, match="names patch 0 more than once in row 1"):
        check_feeds(ragged_manifest, ragged([3, 2], [[4, 2, 0], [0, 0, 0]]))
    with pytest.raises(MaskError, match=r"ids_keep\[1, 2\] is -1"):  # a Gather reads padding too
        check_feeds(ragged_manifest, ragged([3, 1], [[4, 2, 0], [0, 0, -1]]))


@pytest.mark.parametrize("number", [0, -1, 4])
def test_num_keep_out_of_range_is_refused(ragged_manifest: Manifest, number: int) -> None:
    with pytest.raises(MaskError, match=rf"num_keep\[1\] is {number}; expected 1..3"):
        check_feeds(ragged_manifest, ragged([3, number], [[4, 2, 0], [0, 1, 2]]))


def masked(mask: list[list[bool]] | np.ndarray[Any, Any]) -> Feeds:
    mask = np.asarray(mask)
    return {"images": np.zeros((len(mask), 32, 32, 3), np.uint8), "mask": mask}


def test_a_mask_may_hide_any_but_every_patch(make_manifest: Callable[..., Manifest]) -> None:
    manifest = make_manifest("mask-token")
    visible = np.zeros((3, 16), bool)
    check_feeds(manifest, masked(visible))
    hidden = ~visible
    hidden[np.arange(3), [0, 7, 15]] = False
    check_feeds(manifest, masked(hidden))
    hidden[1] = True
    with pytest.raises(MaskError, match=r"^mask hides every patch of row 1; .* was the mask meant inverted \(~mask\)"):
        check_feeds(manifest, masked(hidden))


@pytest.mark.parametrize(
    ("mask", "message"),
    [
        (np.zeros((2, 16), np.uint8), "input 'mask' is uint8; expected bool"),
        (np.zeros((2, 15), bool), r"input 'mask' has shape \[2, 15\]; expected \[B, 16\]: axis 1 must be 16"),
        (np.zeros((2, 4, 4), bool), r"input 'mask' has shape \[2, 4, 4\]; expected \[B, 16\], batch first"),
    ],
)
def test_masks_of_another_kind_are_refused(
    make_manifest: Callable[..., Manifest], mask: np.ndarray[Any, Any], message: str
) -> None:
    with pytest.raises(InputError, match=f"^{message}"):
        check_feeds(make_manifest("mask-token"), masked(mask))


def test_shapes_of_outputs_follow_the_inputs(manifest: Manifest) -> None:
    layer = TensorSpec(name="layer_3", dtype="float32", shape=("B", "K+1", 6))
    manifest = dataclasses.replace(manifest, outputs=(*manifest.outputs, layer))
    shapes = output_shapes(manifest, feeds(3, 7), ["layer_3", "pooled", "patch_tokens"])
    assert shapes == {"layer_3": (3, 8, 6), "pooled": (3, 6), "patch_tokens": (3, 7, 6)}
