from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest

from mae_export.errors import VerificationError
from mae_export.manifest import Golden, Manifest
from mae_export.runtime.fake import FakeSession
from mae_export.runtime.golden import check_golden, golden_of
from mae_export.runtime.probes import GOLDEN_RECIPE, golden_feeds

Make = Callable[..., Manifest]


def with_golden(manifest: Manifest, shift: float = 0.0, count: int = 4) -> Manifest:
    """The manifest with the fake session's own values, the last one of `patch_tokens` moved."""
    found = FakeSession(manifest).run(golden_feeds(manifest))
    values = {name: [float(v) for v in array.ravel()[:count]] for name, array in found.items()}
    values["patch_tokens"][-1] += shift
    golden = Golden(recipe=GOLDEN_RECIPE, values={name: tuple(v) for name, v in values.items()})
    return replace(manifest, golden=golden)


@pytest.mark.parametrize(("mode", "ragged"), [("none", False), ("keep", False), ("patches", True)])
def test_a_model_that_gives_its_golden_values_passes(make_manifest: Make, mode: str, ragged: bool) -> None:
    check_golden(FakeSession(with_golden(make_manifest(mode, ragged=ragged), shift=9e-4)))


def test_the_largest_error_is_told(make_manifest: Make) -> None:
    check = check_golden(FakeSession(with_golden(make_manifest("keep"), shift=5e-4)))
    assert check is not None
    assert (check.output, check.limit) == ("patch_tokens", 1e-3)
    assert check.error == pytest.approx(5e-4, rel=1e-2)


def test_without_golden_values_nothing_runs(make_manifest: Make) -> None:
    assert check_golden(FakeSession(make_manifest("none"), lambda feeds: pytest.fail("ran"))) is None


def test_a_value_that_moved_is_named_with_both_numbers(make_manifest: Make) -> None:
    manifest = with_golden(make_manifest("none"), shift=2e-3)
    with pytest.raises(VerificationError, match=r"fake session gives .* for value 3 of output 'patch_tokens'.*0\.001"):
        check_golden(FakeSession(manifest))


def test_the_tolerance_grows_with_the_value_and_with_the_precision(make_manifest: Make) -> None:
    def session(precision: str, found: float) -> FakeSession:
        manifest = make_manifest("none", golden=Golden(recipe=GOLDEN_RECIPE, values={"pooled": (100.0,)}))
        outputs = {"pooled": np.full((1, 6), found, np.float32)}
        return FakeSession(replace(manifest, precision=precision), lambda feeds: outputs)

    check_golden(session("fp32", 100.09))
    with pytest.raises(VerificationError, match=r"gives 100.2 for value 0"):
        check_golden(session("fp32", 100.2))
    check_golden(session("fp16", 101.5))
    check_golden(session("int8", 109.0))
    with pytest.raises(VerificationError, match="gives 111 for value 0"):
        check_golden(session("int8", 111.0))


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_values_that_are_not_finite_never_pass(make_manifest: Make, value: float) -> None:
    manifest = make_manifest("none", golden=Golden(recipe=GOLDEN_RECIPE, values={"pooled": (0.0,)}))
    with pytest.raises(VerificationError, match=f"gives {value:g} for value 0"):
        check_golden(FakeSession(manifest, lambda feeds: {"pooled": np.full((1, 6), value, np.float32)}))


def test_more_golden_values_than_outputs_are_a_mismatch(make_manifest: Make) -> None:
    manifest = make_manifest("none", golden=Golden(recipe=GOLDEN_RECIPE, values={"pooled": (0.0,) * 7}))
    with pytest.raises(VerificationError, match="gives 6 values for the golden image; expected at least 7"):
        check_golden(FakeSession(manifest))


def test_what_is_stored_is_the_first_values_of_each_output() -> None:
    values = {"pooled": np.arange(12, dtype=np.float32).reshape(2, 6) / 4, "short": np.zeros((1, 3), np.float32)}
    golden = golden_of(values)
    assert golden.values == {"pooled": (0.0, 0.25, 0.5, 0.75, 1.0, 1.25, 1.5, 1.75), "short": (0.0, 0.0, 0.0)}
    assert golden.recipe == "pattern-1"
