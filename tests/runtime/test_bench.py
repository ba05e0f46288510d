"""The arithmetic of timings, on a clock that only runs advance."""

import dataclasses
from types import SimpleNamespace

import numpy as np
import pytest

from mae_export.errors import UsageError
from mae_export.runtime import bench as module
from mae_export.runtime.bench import LONGEST_WARM_UP, BenchPlan, Contender, bench, bench_feeds, race
from mae_export.runtime.fake import FakeSession


@pytest.fixture
def clock(monkeypatch):
    """`clock.run(name, seconds...)` makes runs that take these times in turn, the last one from then on."""
    now = SimpleNamespace(seconds=0.0, order=[])

    def run(name, *durations):
        left = list(durations)

        def once():
            now.order.append(name)
            now.seconds += left.pop(0) if len(left) > 1 else left[0]

        return once

    stub = SimpleNamespace(perf_counter=lambda: now.seconds, sleep=lambda seconds: None)
    monkeypatch.setattr(module, "time", stub)
    now.run = run
    return now


def test_contenders_take_turns_and_the_first_of_a_round_changes(clock):
    race([Contender(run=clock.run(name, 1.0), flops=None) for name in "abc"], rounds=4)
    warm = 3 * 2 * module.WINDOW
    assert clock.order[:warm] == ["a"] * 6 + ["b"] * 6 + ["c"] * 6
    assert "".join(clock.order[warm:]) == "abcbcacababc"


def test_laps_are_what_each_run_took(clock):
    laps = race([Contender(run=clock.run("a", *[9] * 6, 1.0, 2.0, 4.0), flops=None)], rounds=3)
    assert (laps[0].seconds, laps[0].quickest) == ((1.0, 2.0, 4.0), 1.0)


def test_warming_up_lasts_until_two_windows_agree(clock):
    slow_start = [10.0, 9.0, 8.0, 2.0, 2.0, 2.0, 2.0]
    laps = race([Contender(run=clock.run("a", *slow_start), flops=None)], rounds=1)
    assert laps[0].settled
    assert laps[0].warm_up_runs == 8  # medians of (8, 2, 2) and (2, 2, 2) are the first that agree
    restless = [float(2**n) for n in range(40)]
    laps = race([Contender(run=clock.run("b", *restless), flops=None)], rounds=1)
    assert (laps[0].warm_up_runs, laps[0].settled) == (LONGEST_WARM_UP, False)


def test_numbers_of_a_case(clock, make_manifest):
    manifest = make_manifest("keep")
    makers = {
        "slow": lambda feeds: clock.run("slow", 0.5),
        "fast": lambda feeds: clock.run("fast", *[0.1] * 6, *[0.1, 0.125, 0.2] * 7),
    }
    gemm = Contender(run=clock.run("gemm", 0.25), flops=1e9, what="float32 with numpy")
    (case,) = bench(manifest, makers, plan=BenchPlan(batches=(4,), shares=(0.25,), rounds=21), gemms=[gemm])
    slow, fast = case.timings
    assert (case.batch, case.kept, case.patches, case.title) == (4, 4, 16, "batch 4, 4 of 16 patches")
    assert (case.gemm, case.gemm_gflops) == ("float32 with numpy", pytest.approx(4.0))
    assert (slow.name, slow.over_first, slow.runs, slow.settled) == ("slow", 1.0, 21, True)
    assert (slow.images_per_second, slow.p50_ms, slow.p99_ms) == (8.0, 500.0, 500.0)
    assert fast.p50_ms == pytest.approx(125.0)
    assert fast.p95_ms == pytest.approx(200.0)
    assert fast.images_per_second == pytest.approx(32.0)
    assert fast.over_first == pytest.approx(4.0)  # the median of the rounds' 5, 4 and 2.5
    assert fast.gflops is fast.share_of_gemm is None  # the manifest of this test says nothing of sizes


def test_operations_become_a_share_of_the_matrix_product(clock, make_manifest, monkeypatch):
    monkeypatch.setattr(module, "flops_per_image", lambda manifest, kept: kept * 1e8)
    gemm = Contender(run=clock.run("gemm", 0.25), flops=1e9)
    makers = {"a": lambda feeds: clock.run("a", 0.5)}
    (case,) = bench(make_manifest("keep"), makers, plan=BenchPlan(batches=(2,), shares=(0.25,)), gemms=[gemm])
    assert case.timings[0].gflops == pytest.approx(2 * 4 * 0.1 / 0.5)
    assert case.timings[0].share_of_gemm == pytest.approx(1.6 / 4)
    (case,) = bench(make_manifest("keep"), makers, plan=BenchPlan(batches=(2,), shares=(0.25,)), gemms=())
    assert (case.gemm, case.gemm_gflops, case.timings[0].share_of_gemm) == ("", None, None)


def test_the_peak_is_the_quickest_product_and_no_disturbed_one_makes_a_share_exceed_it(
    clock, make_manifest, monkeypatch
):
    monkeypatch.setattr(module, "flops_per_image", lambda manifest, kept: 1e9)
    disturbed = Contender(run=clock.run("gemm", 0.3, 0.2, *[0.5] * 30), flops=1e9)  # quickest while it warms up
    makers = {"as fast as can be": lambda feeds: clock.run("a", 0.2)}
    plan = BenchPlan(batches=(1,), shares=(1.0,), rounds=9)
    (case,) = bench(make_manifest("keep"), makers, plan=plan, gemms=[disturbed])
    assert case.gemm_gflops == pytest.approx(5.0)
    assert case.timings[0].share_of_gemm == pytest.approx(1.0)
    slower_later = Contender(run=clock.run("gemm", *[0.2] * 15, 0.5), flops=1e9)
    first, second = bench(
        make_manifest("keep"), makers, plan=dataclasses.replace(plan, batches=(1, 2)), gemms=[slower_later]
    )
    assert first.gemm_gflops == second.gemm_gflops == pytest.approx(5.0)


def test_the_quickest_of_several_products_is_the_peak_and_named(clock, make_manifest):
    products = [
        Contender(run=clock.run(name, *seconds), flops=flops, what=f"float32 with {name}")
        for name, seconds, flops in (
            ("slow", (0.5,), 1e9),
            ("large", (0.4,), 2e9),
            ("restless", (*[1.0] * 20, 0.1, 1.0), 1e9),
        )
    ]
    makers = {"a": lambda feeds: clock.run("a", 1.0)}
    plan = BenchPlan(batches=(1, 2), shares=(1.0,), rounds=8)
    for gemms, peak, library in ((products[:2], 5.0, "large"), (products, 10.0, "restless")):
        cases = bench(make_manifest("keep"), makers, plan=plan, gemms=gemms)
        assert [(case.gemm, case.gemm_gflops) for case in cases] == [
            (f"float32 with {library}", pytest.approx(peak))
        ] * 2


def test_every_batch_and_share_is_a_case_and_graphs_without_mask_have_one_share(clock, make_manifest):
    told = []
    makers = {"a": lambda feeds: clock.run("a", 1.0)}
    plan = BenchPlan(batches=(1, 3), shares=(1.0, 0.5), rounds=2)
    cases = bench(make_manifest("keep"), makers, plan=plan, gemms=(), progress=lambda *step: told.append(step))
    assert [(case.batch, case.kept) for case in cases] == [(1, 16), (1, 8), (3, 16), (3, 8)]
    assert told[:2] == [("batch 1, 16 patches", 1, 2), ("batch 1, 16 patches", 2, 2)]
    cases = bench(make_manifest("none"), makers, plan=plan, gemms=())
    assert [(case.batch, case.kept) for case in cases] == [(1, 16), (3, 16)]


@pytest.mark.parametrize(("mode", "ragged"), [("none", False), ("keep", False), ("keep", True), ("patches", True)])
def test_feeds_are_what_a_graph_takes_and_images_see_different_patches(make_manifest, mode, ragged):
    manifest = make_manifest(mode, ragged=ragged)
    feeds = bench_feeds(manifest, 3, 5)
    found = FakeSession(manifest).run(feeds)  # which checks them
    assert found["patch_tokens"].shape == (3, 16 if mode == "none" else 5, 6)
    if mode != "none":
        assert len(np.unique(feeds["ids_keep"], axis=0)) == 3


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"batches": ()}, "expected at least one, all of them >= 1"),
        ({"batches": (1, 0)}, r"batches are \(1, 0\)"),
        ({"rounds": 0}, "rounds 0"),
        ({"shares": (0.0,)}, r"the visible shares are \(0.0,\); expected 0 < share <= 1"),
        ({"shares": (float("nan"),)}, "visible shares"),
    ],
)
def test_plans_that_mean_nothing(options, text):
    with pytest.raises(UsageError, match=text):
        BenchPlan(**options)
