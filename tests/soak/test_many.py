"""A job over many images; in the everyday run, over a few."""

import pytest

from benchmarks.hardware import write_result
from benchmarks.many import prove


@pytest.mark.parametrize("count", [400, pytest.param(60_000, marks=pytest.mark.soak)])
def test_every_row_is_accounted_for(count, tmp_path):
    result = prove(count, tmp_path)
    bad = result["bad"]
    assert bad == len(range(50, count, 97))
    assert result["rows_in"] == [count, count]
    assert result["rows_failed"] == [bad, bad]
    assert result["rows_ok"] == [count - bad, count - bad]
    assert result["named_failures"] == bad
    assert result["same_ids"]
    assert result["same_visible_patches"]
    assert result["largest_difference"] < 1e-5
    if count >= 60_000:
        assert result["growth_mb"] < 100
        write_result("many", result)
