"""Every runtime of this CPU in one run, on the smallest size; `make bench` and the command in the module measure."""

import json
import sys

import pytest

from benchmarks import runtimes
from mae_export.runtime import bench
from mae_export.runtime.bench import Case, Timing

pytest.importorskip("openvino")


def test_all_contenders_run_and_the_aims_are_judged(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(bench, "LONGEST_WARM_UP", 1)
    arguments = ["--size", "tiny", "--rounds", "2", "--batch", "1", "--no-compile", "--results", str(tmp_path)]
    monkeypatch.setattr(sys, "argv", ["runtimes", *arguments])
    runtimes.main()
    found = json.loads((tmp_path / "runtimes-tiny.json").read_text())
    assert [(case["batch"], case["kept"]) for case in found["cases"]] == [(1, 196), (1, 49)]
    for case in found["cases"]:
        names = [timing["name"] for timing in case["timings"]]
        assert names[0] == "PyTorch eager"
        assert {"PyTorch bf16", *found["sessions"]} == set(names[1:])
        assert all(timing["gflops"] > 0 for timing in case["timings"])
    assert found["sessions"]["OpenVINO bf16"] != found["sessions"]["OpenVINO fp32"]
    assert "ONNX Runtime fp32 over PyTorch eager" in capsys.readouterr().out


def test_an_aim_is_the_quotient_of_two_speeds():
    over = {"PyTorch eager": 1.0, "PyTorch bf16": 3.0, "ONNX Runtime fp32": 2.1, "OpenVINO bf16": 4.5}
    timings = tuple(
        Timing(
            **{
                "name": name,
                "over_first": speed,
                "images_per_second": 1.0,
                "p50_ms": 1.0,
                "p95_ms": 1.0,
                "p99_ms": 1.0,
            },
            **{"gflops": None, "share_of_gemm": None, "runs": 1, "warm_up_runs": 1, "settled": True},
        )
        for name, speed in over.items()
    )
    case = Case(batch=1, kept=1, patches=1, gemm="", gemm_gflops=None, timings=timings)
    assert [aim["reached"] for aim in runtimes.aims(case)] == [2.1, 1.5]
