import numpy as np
import pytest

from mae_export.errors import MaskError, UsageError
from mae_export.runtime.given import GivenVisible, plan_of
from mae_export.runtime.visible import AllVisible, RandomVisible


def rows(visible, images=2, count=6):
    plan = plan_of(visible, count)
    plan.check(images, count)
    return [plan.ids_keep(index, "any", count).tolist() for index in range(images)]


def test_plans_and_their_texts_stay_what_they_are():
    assert plan_of("all", 4) == AllVisible()
    assert plan_of("random:0.5:3", 4) == RandomVisible(ratio=0.5, seed=3)
    assert plan_of(RandomVisible(ratio=0.5), 4) == RandomVisible(ratio=0.5)
    with pytest.raises(UsageError, match="did you mean 'random'"):
        plan_of("randm:0.5", 4)


def test_booleans_say_what_is_visible():
    mask = np.array([True, False, False, True, True, False])
    assert rows(mask) == [[0, 3, 4], [0, 3, 4]]
    assert rows(np.stack([mask, ~mask])) == [[0, 3, 4], [1, 2, 5]]
    assert rows([mask, ~mask]) == [[0, 3, 4], [1, 2, 5]]


def test_indices_keep_their_order():
    assert rows(np.array([5, 0, 2], np.uint8)) == [[5, 0, 2]] * 2
    assert rows(np.array([[5, 0], [1, 4]])) == [[5, 0], [1, 4]]
    assert rows([np.array([3]), [2, 1, 0]]) == [[3], [2, 1, 0]]
    assert plan_of(np.array([1], np.int32), 6).ids_keep(7, "", 6).dtype == np.int64


@pytest.mark.parametrize(
    ("visible", "text"),
    [
        (np.ones(5, bool), "visible has 5 booleans per image; the model has 6 patches"),
        (np.ones((2, 2, 3), bool), r"visible is \[2, 2, 3\]; expected \[N\] or \[B, N\] booleans"),
        ([], "visible is list; expected"),
        ([np.ones((2, 3), bool)], "visible is list; expected"),
        (np.array([0.0, 1.0]), "visible holds float64; expected booleans, True = visible, or indices"),
        (
            np.array([[1, 1], [0, 2]]),
            "row 0 of visible names 2 patches, 1 different ones, from 1 to 1; expected indices",
        ),
        (np.array([[1, 2], [0, 6]]), r"row 1 of visible names 2 patches.* from 0 to 6; expected indices 0\.\.5"),
        (np.array([-1, 2]), "from -1 to 2"),
        (np.zeros(6, bool), "row 0 of visible shows no patch"),
        (np.ones((3, 6), bool), "visible has 3 rows for 2 frames; expected one row each, or one for all"),
    ],
)
def test_what_does_not_fit_is_refused(visible, text):
    with pytest.raises(MaskError, match=text):
        rows(visible)


def test_rows_may_be_asked_for_before_their_number_is_known():
    plan = plan_of(np.array([[1], [2]]), 6)
    assert isinstance(plan, GivenVisible)
    assert plan.description == "given"
    assert plan.ids_keep(1, "", 6).tolist() == [2]
    with pytest.raises(MaskError, match="visible has 2 rows and there is a frame 2"):
        plan.ids_keep(2, "", 6)
