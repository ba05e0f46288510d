"""Which profile runs what, checked against trying all of them; and the values used last."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mae_export.errors import InputError
from mae_export.runtime.buckets import Bucket, Recent, cut_batch, holds
from tests.runtime.tensorrt_double import profile

SEVERAL = (profile("1:8:64", "1:49:196"), profile("1:1:4", "49"), profile("16:16:32", "49:98:98"))


@pytest.mark.parametrize(
    ("batch", "keep", "expected"),
    [
        (1, 49, [(0, 1, 1, 1)]),
        (4, 49, [(0, 4, 1, 4)]),
        (5, 49, [(0, 5, 0, 5)]),
        (16, 49, [(0, 16, 2, 16)]),
        (16, 100, [(0, 16, 0, 16)]),
        (65, 49, [(0, 64, 0, 64), (64, 65, 1, 1)]),
        (200, 1, [(0, 64, 0, 64), (64, 128, 0, 64), (128, 192, 0, 64), (192, 200, 0, 8)]),
    ],
)
def test_the_smallest_profile_that_contains_the_shape(batch, keep, expected):
    cuts = cut_batch(SEVERAL, batch, keep)
    assert [(cut.first, cut.last, cut.bucket.profile, cut.bucket.batch) for cut in cuts] == expected
    assert {cut.bucket.keep for cut in cuts} == {keep}


def test_what_is_left_is_filled_up():
    cuts = cut_batch((profile("4:4:8"),), 17, None)
    assert [(cut.first, cut.last, cut.bucket.batch) for cut in cuts] == [(0, 8, 8), (8, 16, 8), (16, 17, 4)]


def test_no_profile_for_the_number_of_patches():
    assert not holds(SEVERAL[1:], 99)
    with pytest.raises(
        InputError, match=r"no 99 visible .*are batch=1:1:4,keep=49:49:49; batch=16:16:32,keep=49:98:98"
    ):
        cut_batch(SEVERAL[1:], 1, 99)


RANGES = st.lists(st.integers(1, 12), min_size=3, max_size=3).map(lambda v: ":".join(map(str, sorted(v))))


@given(st.lists(st.builds(profile, RANGES, RANGES), min_size=1, max_size=4), st.integers(1, 40), st.integers(1, 12))
def test_every_row_runs_once_inside_a_profile(profiles, batch, keep):
    profiles = tuple(profiles)
    if not holds(profiles, keep):
        return
    cuts = cut_batch(profiles, batch, keep)
    assert [row for cut in cuts for row in range(cut.first, cut.last)] == list(range(batch))
    for cut in cuts:
        chosen = profiles[cut.bucket.profile]
        assert chosen.batch.minimum <= cut.bucket.batch <= chosen.batch.maximum
        assert chosen.keep.minimum <= keep <= chosen.keep.maximum
        assert cut.last - cut.first <= cut.bucket.batch
    assert all(cut.last - cut.first == cut.bucket.batch for cut in cuts[:-1])


def test_the_values_used_last_are_held():
    recent = Recent(2)
    one, two, three = (Bucket(profile=0, batch=batch, keep=None) for batch in (1, 2, 3))
    assert recent.put(one, "one") == []
    assert recent.put(two, "two") == []
    assert recent.get(one) == "one"
    assert recent.put(three, "three") == ["two"]
    assert (recent.get(two), recent.get(one)) == (None, "one")
    assert sorted(recent.clear()) == ["one", "three"]
    assert recent.get(one) is None
