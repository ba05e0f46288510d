"""How fast models are, as tables; nothing that draws is needed for them."""

from __future__ import annotations

from mae_export.report import console
from mae_export.runtime.bench import BenchReport, Case

HEADER = ("contender", "images/s", "p50 ms", "p95 ms", "p99 ms", "GFLOP/s", "of GEMM", "speed", "warm-up")


def bench_rows(case: Case) -> list[tuple[str, ...]]:
    """The table of one case, below `HEADER`."""
    return [
        (
            timing.name,
            f"{timing.images_per_second:,.1f}",
            *(_ms(value) for value in (timing.p50_ms, timing.p95_ms, timing.p99_ms)),
            "" if timing.gflops is None else f"{timing.gflops:,.0f}",
            "" if timing.share_of_gemm is None else f"{timing.share_of_gemm:.0%}",
            f"{timing.over_first:.2f}x",
            f"{timing.warm_up_runs} runs" + ("" if timing.settled else ", restless"),
        )
        for timing in case.timings
    ]


def _ms(value: float) -> str:
    """Milliseconds with about four digits: a hundredth of 1,600 is noise, and would break the table's lines."""
    return f"{value:,.{2 if value < 100 else 1 if value < 1000 else 0}f}"


def show_bench(report: BenchReport) -> None:
    """The machine, what each contender is, and a table for every case."""
    console.say(f"{report.model}, {report.sha256[:12]}, on {machine_line(report)}")
    console.table(sorted(report.contenders.items()))
    if report.cases[0].gemm:
        console.say(peak_line(report.cases[0]))
    for case in report.cases:
        console.say("")
        console.say(f"{case.title}, {case.timings[0].runs} rounds")
        console.table(bench_rows(case), header=HEADER)


def peak_line(case: Case) -> str:
    """What 100 % of GEMM is: the quickest matrix product of all cases, with its type and library."""
    if case.gemm_gflops is None:
        return "no matrix product was measured"
    return f"GEMM: matrix products reach {case.gemm_gflops:,.0f} GFLOP/s in {case.gemm}"


def machine_line(report: BenchReport) -> str:
    """Processor, GPUs and clocks, such as `AMD EPYC, 2 cores at 2596 MHz`."""
    clocks = [f"{value:,.0f}" for value in report.cpu_mhz if value is not None]
    line = report.processor + (f" at {' to '.join(dict.fromkeys(clocks))} MHz" if clocks else "")
    gpu_clocks = [f"{value:,.0f}" for value in report.gpu_mhz if value is not None]
    gpus = f"; {', '.join(report.gpus)}" if report.gpus else ""
    return line + gpus + (f" at {' to '.join(dict.fromkeys(gpu_clocks))} MHz" if report.gpus and gpu_clocks else "")
