import hashlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from mae_export.errors import MaskError, UsageError
from mae_export.runtime.visible import AllVisible, FileVisible, RandomVisible, hidden_patches, parse_visible


def test_all_shows_every_patch_in_raster_order() -> None:
    plan = parse_visible("all")
    assert plan == AllVisible()
    plan.check(3, 16)
    assert plan.ids_keep(2, "c.png", 5).tolist() == [0, 1, 2, 3, 4]
    assert plan.ids_keep(2, "c.png", 5).dtype == np.int64


@pytest.mark.parametrize(
    ("text", "keep"),
    [("random:0.25", 49), ("random:1", 196), ("random:0.1", 19), ("random:0.29", 56), ("random:1e-6", 1)],
)
def test_random_keeps_int_of_n_times_r_and_at_least_one(text: str, keep: int) -> None:
    ids = parse_visible(text).ids_keep(0, "a", 196)
    assert ids.shape == (keep,)
    assert ids.dtype == np.int64
    assert (np.diff(ids) > 0).all()  # ascending, none twice
    assert ids.min() >= 0
    assert ids.max() < 196


def test_a_draw_depends_on_seed_and_id_only() -> None:
    first = RandomVisible(ratio=0.5, seed=7).ids_keep(0, "a.png", 64)
    assert np.array_equal(first, RandomVisible(ratio=0.5, seed=7).ids_keep(41, "a.png", 64))
    assert not np.array_equal(first, RandomVisible(ratio=0.5, seed=8).ids_keep(0, "a.png", 64))
    assert not np.array_equal(first, RandomVisible(ratio=0.5, seed=7).ids_keep(0, "b.png", 64))


def test_the_draw_is_the_smallest_noise_of_shake_128() -> None:
    stream = hashlib.shake_128(b"3\0photos/x.jpg").digest(8 * 10)
    noise = [int.from_bytes(stream[8 * i : 8 * i + 8], "little") for i in range(10)]
    expected = sorted(sorted(range(10), key=noise.__getitem__)[:4])
    assert RandomVisible(ratio=0.4, seed=3).ids_keep(0, "photos/x.jpg", 10).tolist() == expected


def test_every_patch_is_drawn_equally_often() -> None:
    plan = RandomVisible(ratio=0.25)
    counts = np.bincount(np.concatenate([plan.ids_keep(0, str(i), 16) for i in range(2000)]), minlength=16)
    # 2000 draws of 1/4: mean 500, standard deviation 19.4; five of them leave one false alarm in 100,000.
    assert np.abs(counts - 500).max() < 97


def test_ids_that_are_no_utf8_can_be_drawn() -> None:
    assert len(RandomVisible(ratio=0.5).ids_keep(0, "bad\udcff.png", 16)) == 8


@pytest.mark.parametrize("ratio", ["0", "0.0", "-0.25", "1.0001", "nan", "inf", "-inf", "75"])
def test_ratios_out_of_range_are_refused(ratio: str) -> None:
    with pytest.raises(MaskError, match=r"expected 0 < fraction <= 1.*fraction KEPT"):
        parse_visible(f"random:{ratio}")


@pytest.mark.parametrize("text", ["random", "random:", "random:half", "random:0,25", "random:0.25:1:2", "random::3"])
def test_malformed_random_plans_are_refused(text: str) -> None:
    with pytest.raises(UsageError, match=r"is not random:R\[:seed\]"):
        parse_visible(text)


@pytest.mark.parametrize("seed", ["-1", "1.5", "", "x", "1e3", "²"])
def test_seeds_that_are_no_whole_number_are_refused(seed: str) -> None:
    with pytest.raises(UsageError, match=r"has the seed .* expected a whole number"):
        parse_visible(f"random:0.25:{seed}")


def test_seeds_span_64_bits() -> None:
    assert parse_visible(f"random:0.25:{2**64 - 1}") == RandomVisible(ratio=0.25, seed=2**64 - 1)
    with pytest.raises(MaskError, match="the seed is 18446744073709551616"):
        parse_visible(f"random:0.25:{2**64}")


@pytest.mark.parametrize(
    ("text", "hint"), [("randm:0.5", "'random'"), ("files:x.npy", "'file'"), ("al", "'all'"), ("ALL", ""), ("", "")]
)
def test_unknown_plans_are_refused_with_a_suggestion(text: str, hint: str) -> None:
    with pytest.raises(UsageError, match=rf"is not a plan; write all, random:R.*{hint}"):
        parse_visible(text)


def test_a_plan_after_all_and_a_file_without_a_name_are_refused() -> None:
    for text in ("all:0.5", "file:", "file"):
        with pytest.raises(UsageError, match="is not a plan"):
            parse_visible(text)


@pytest.mark.parametrize("text", ["all", "random:0.25:0", "random:0.5:7"])
def test_descriptions_are_plans_again(text: str) -> None:
    assert parse_visible(text).description == text


@pytest.fixture
def save(tmp_path: Path) -> Callable[[np.ndarray], str]:
    def write(array: np.ndarray) -> str:
        np.save(tmp_path / "m.npy", array)
        return f"file:{tmp_path / 'm.npy'}"

    return write


def test_a_file_gives_the_true_positions_of_each_row(save: Callable[[np.ndarray], str]) -> None:
    masks = np.array([[True, False, True, False], [False, False, False, True]])
    plan = parse_visible(save(masks))
    plan.check(2, 4)
    assert plan.ids_keep(0, "a", 4).tolist() == [0, 2]
    assert plan.ids_keep(1, "b", 4).tolist() == [3]
    assert plan.ids_keep(1, "b", 4).dtype == np.int64
    assert plan.description == "file:m.npy"


def test_one_row_serves_every_image_and_fortran_order_is_read(save: Callable[[np.ndarray], str]) -> None:
    plan = parse_visible(save(np.array([[False, True, True]])))
    plan.check(1000, 3)
    assert plan.ids_keep(999, "a", 3).tolist() == [1, 2]
    fortran = parse_visible(save(np.asfortranarray([[True, False, False], [False, True, False]])))
    fortran.check(2, 3)
    assert fortran.ids_keep(1, "b", 3).tolist() == [1]


def test_the_file_is_mapped_and_not_read(save: Callable[[np.ndarray], str]) -> None:
    plan = parse_visible(save(np.ones((4, 4), bool)))
    assert isinstance(plan, FileVisible)
    assert isinstance(plan.masks, np.memmap)


@pytest.mark.parametrize("dtype", ["uint8", "int64", "float32"])
def test_other_dtypes_are_refused_with_the_conversion(save: Callable[[np.ndarray], str], dtype: str) -> None:
    with pytest.raises(MaskError, match=rf"holds {dtype}; expected bool.*astype\(bool\)"):
        parse_visible(save(np.ones((2, 4), dtype)))


@pytest.mark.parametrize("shape", [(4,), (2, 2, 2), ()])
def test_other_ranks_are_refused(save: Callable[[np.ndarray], str], shape: tuple[int, ...]) -> None:
    with pytest.raises(MaskError, match=r"expected \[n, N\].*reshape\(n, -1\)"):
        parse_visible(save(np.ones(shape, bool)))


@pytest.mark.parametrize(
    ("width", "advice"),
    [(17, "class token is not a patch"), (1024, "looks like pixels"), (15, "raster order"), (0, "raster order")],
)
def test_other_widths_are_refused_with_the_likely_cause(
    save: Callable[[np.ndarray], str], width: int, advice: str
) -> None:
    with pytest.raises(MaskError, match=f"has {width} values per image; the graph has 16 patches.*{advice}"):
        parse_visible(save(np.ones((2, width), bool))).check(2, 16)


@pytest.mark.parametrize("rows", [2, 4])
def test_too_few_or_too_many_rows_are_refused(save: Callable[[np.ndarray], str], rows: int) -> None:
    with pytest.raises(MaskError, match=f"has {rows} rows; expected 3"):
        parse_visible(save(np.ones((rows, 4), bool))).check(3, 4)


def test_a_row_without_visible_patches_is_refused(save: Callable[[np.ndarray], str]) -> None:
    masks = np.ones((5, 4), bool)
    masks[[2, 4]] = False
    with pytest.raises(MaskError, match=r"shows no patch in 2 of 5 rows, first in row 2.*inverted"):
        parse_visible(save(masks)).check(5, 4)


def test_bytes_other_than_0_and_1_are_refused(save: Callable[[np.ndarray], str]) -> None:
    masks = np.full((2, 4), 2, np.uint8).view(bool)
    with pytest.raises(MaskError, match="bytes other than 0 and 1"):
        parse_visible(save(masks)).check(2, 4)


@pytest.mark.parametrize("content", [b"", b"not an array", b"\x93NUMPY\x01\x00"])
def test_files_that_are_no_arrays_are_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "m.npy").write_bytes(content)
    with pytest.raises(MaskError, match="cannot be read as masks"):
        parse_visible(f"file:{tmp_path / 'm.npy'}")


def test_missing_files_archives_and_pickles_are_refused(tmp_path: Path) -> None:
    with pytest.raises(MaskError, match="cannot be read as masks"):
        parse_visible(f"file:{tmp_path / 'none.npy'}")
    np.savez(tmp_path / "m.npz", a=np.ones((1, 4), bool))
    with pytest.raises(MaskError, match="is an archive of arrays"):
        parse_visible(f"file:{tmp_path / 'm.npz'}")
    np.save(tmp_path / "m.npy", np.array([[{}]], dtype=object), allow_pickle=True)
    with pytest.raises(MaskError, match="cannot be read as masks"):
        parse_visible(f"file:{tmp_path / 'm.npy'}")


def test_what_is_not_visible_is_hidden() -> None:
    hidden = hidden_patches([np.array([2, 0]), np.array([1])], 4)
    assert hidden.dtype == np.bool_
    assert hidden.tolist() == [[False, True, False, True], [True, False, True, True]]
