"""What people read after `bench`, pinned word by word."""

import dataclasses

import pytest

from mae_export.report import console
from mae_export.report.speed import HEADER, bench_rows, machine_line, peak_line, show_bench
from mae_export.runtime.bench import BenchReport, Case, Timing


def timing(name="cpu", **changes):
    values = {
        **{"name": name, "images_per_second": 1234.56, "p50_ms": 6.25, "p95_ms": 7.0, "p99_ms": 1008.123},
        **{"over_first": 1.0, "gflops": 213.4, "share_of_gemm": 0.854, "runs": 20, "warm_up_runs": 6, "settled": True},
    }
    return Timing(**{**values, **changes})


RIVAL = timing("torch", over_first=0.4987, gflops=None, share_of_gemm=None, settled=False)
CASE = Case(batch=8, kept=49, patches=196, gemm="float32 with numpy 2.4", gemm_gflops=250.2, timings=(timing(), RIVAL))
REPORT = BenchReport(
    model="[b]vit.onnx",
    sha256="abcdef" * 10,
    contenders={"cpu": "ONNX Runtime 1.31", "torch": "PyTorch 2.13"},
    processor="AMD EPYC, 2 cores",
    gpus=(),
    cpu_mhz=(2596.1, 2596.1),
    gpu_mhz=(None, None),
    cases=(CASE,),
)


def test_rows_leave_out_what_is_not_known_and_say_when_a_contender_never_settled():
    first, second = bench_rows(CASE)
    assert first == ("cpu", "1,234.6", "6.25", "7.00", "1,008", "213", "85%", "1.00x", "6 runs")
    assert second[5:] == ("", "", "0.50x", "6 runs, restless")
    assert len(HEADER) == len(first)


@pytest.mark.parametrize(
    ("value", "text"), [(0.123, "0.12"), (99.99, "99.99"), (100.04, "100.0"), (999.94, "999.9"), (21167.2, "21,167")]
)
def test_times_have_about_four_digits(value, text):
    assert bench_rows(dataclasses.replace(CASE, timings=(timing(p50_ms=value),)))[0][2] == text


def test_a_table_of_slow_models_fits_a_terminal(capsys, monkeypatch):
    monkeypatch.setattr(console.OUT, "_width", 80)
    slow = timing("openvino", p50_ms=1602.77, p95_ms=2113.47, p99_ms=12216.0, images_per_second=5.07, gflops=1175.0)
    show_bench(dataclasses.replace(REPORT, cases=(dataclasses.replace(CASE, timings=(slow,)),)))
    assert capsys.readouterr().out.splitlines()[-1].split() == [
        *("openvino", "5.1", "1,603", "2,113", "12,216"),
        *("1,175", "85%", "1.00x", "6", "runs"),
    ]


def test_without_a_matrix_product_there_is_no_peak():
    assert peak_line(dataclasses.replace(CASE, gemm="", gemm_gflops=None)) == "no matrix product was measured"


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        ({}, "AMD EPYC, 2 cores at 2,596 MHz"),
        ({"cpu_mhz": (3000.0, 2800.4)}, "AMD EPYC, 2 cores at 3,000 to 2,800 MHz"),
        ({"cpu_mhz": (None, None)}, "AMD EPYC, 2 cores"),
        ({"gpus": ("H100",), "gpu_mhz": (345.0, 1980.0)}, "AMD EPYC, 2 cores at 2,596 MHz; H100 at 345 to 1,980 MHz"),
        ({"gpus": ("Orin",), "gpu_mhz": (None, None)}, "AMD EPYC, 2 cores at 2,596 MHz; Orin"),
    ],
)
def test_the_machine_is_named_with_its_clocks(changes, line):
    assert machine_line(dataclasses.replace(REPORT, **changes)) == line


def test_the_report_as_a_whole(capsys, monkeypatch):
    monkeypatch.setattr(console.OUT, "_width", 120)  # COLUMNS counts at import only
    show_bench(REPORT)
    shown = [line.rstrip() for line in capsys.readouterr().out.splitlines()]
    assert shown[:6] == [
        "[b]vit.onnx, abcdefabcdef, on AMD EPYC, 2 cores at 2,596 MHz",
        "cpu    ONNX Runtime 1.31",
        "torch  PyTorch 2.13",
        "GEMM: matrix products reach 250 GFLOP/s in float32 with numpy 2.4",
        "",
        "batch 8, 49 of 196 patches, 20 rounds",
    ]
    assert shown[6].split() == " ".join(HEADER).split()
    assert len(shown) == 9
