"""Every way to run ViT on this CPU in one run: PyTorch, ONNX Runtime and OpenVINO, in float32, bf16 and INT8.

All contenders do the same work on the same feeds, with all patches and with a quarter of them, and take turns; see
`mae_export.runtime.bench`. Weights are random, which changes nothing in the time that they take.

    python -m benchmarks.runtimes [--size base] [--rounds 15] [--batch 1,8]
"""

from __future__ import annotations

import argparse
import tempfile
from contextlib import ExitStack
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks.hardware import RESULTS, write_result
from benchmarks.models import write_graph, write_half, write_int8
from mae_export.export.options import Rival
from mae_export.export.rivals import gemm_of_torch, rival_maker
from mae_export.graph import read_manifest
from mae_export.report import console, speed
from mae_export.runtime.bench import BenchPlan, Case, Maker, bench
from mae_export.runtime.clocks import cpu_mhz
from mae_export.runtime.gemm import gemms_on_cpu
from mae_export.runtime.providers import Backend
from mae_export.runtime.session import open_session

PYTORCH: dict[str, Rival] = {
    "PyTorch eager": "torch",
    "PyTorch compile": "compile",
    "PyTorch bf16": "torch-bf16",
}
# (faster, slower, at least): what the project aims at on CPUs with AVX512-BF16
AIMS = (("ONNX Runtime fp32", "PyTorch eager", 2.0), ("OpenVINO bf16", "PyTorch bf16", 1.2))


def contenders(graph: Path, stack: ExitStack, *, compiled: bool) -> tuple[dict[str, Maker], dict[str, str]]:
    """What prepares runs, by name, eager PyTorch first; and what runs each session."""
    half, quantized, lowered = write_half(graph, "bf16"), write_int8(graph), write_int8(graph, lower=True)
    manifest = read_manifest(graph)
    makers = {name: rival_maker(manifest, rival) for name, rival in PYTORCH.items() if compiled or rival != "compile"}
    described = {}
    sessions: dict[str, tuple[Path, Backend]] = {
        "ONNX Runtime fp32": (graph, "cpu"),
        "ONNX Runtime INT8": (quantized, "cpu"),
        "ONNX Runtime INT8 lowered": (lowered, "cpu"),
        "OpenVINO fp32": (graph, "openvino"),
        "OpenVINO bf16": (half, "openvino"),
        "OpenVINO INT8": (quantized, "openvino"),
    }
    for name, (path, backend) in sessions.items():
        session = stack.enter_context(open_session(path, backend=backend))
        makers[name], described[name] = partial(partial, session.run), session.description
    return makers, described


def aims(case: Case) -> list[dict[str, Any]]:
    """What was aimed at and what was reached, each the quotient of two speeds over eager."""
    over = {timing.name: timing.over_first for timing in case.timings}
    return [
        {"faster": fast, "slower": slow, "aim": aim, "reached": round(over[fast] / over[slow], 3)}
        for fast, slow, aim in AIMS
    ]


def main() -> None:
    """Run everything, print the tables, write the JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--size", default="base")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--batch", default="1,8")
    parser.add_argument("--no-compile", action="store_true", help="leave torch.compile out, which needs a C++ compiler")
    parser.add_argument("--results", type=Path, default=RESULTS)
    options = parser.parse_args()
    plan = BenchPlan(batches=tuple(map(int, options.batch.split(","))), shares=(1.0, 0.25), rounds=options.rounds)
    with tempfile.TemporaryDirectory() as name, ExitStack() as stack:
        graph = write_graph(options.size, Path(name))
        makers, described = contenders(graph, stack, compiled=not options.no_compile)
        before = cpu_mhz()
        with console.steps() as progress:
            gemms = [*gemms_on_cpu(), gemm_of_torch()]
            cases = bench(read_manifest(graph), makers, plan=plan, gemms=gemms, progress=progress)
    result = {
        "size": options.size,
        "cpu_mhz": [before, cpu_mhz()],
        "sessions": described,
        "cases": [{**asdict(case), "aims": aims(case)} for case in cases],
    }
    console.say(speed.peak_line(cases[0]))
    for case in cases:
        console.say(case.title)
        console.table(speed.bench_rows(case), header=speed.HEADER)
        for aim in aims(case):
            console.say(f"{aim['faster']} over {aim['slower']}: {aim['reached']:.2f}x, aim {aim['aim']}x")
    path = write_result("runtimes" if options.size == "base" else f"runtimes-{options.size}", result, options.results)
    console.say(f"written to {path}")


if __name__ == "__main__":
    main()
