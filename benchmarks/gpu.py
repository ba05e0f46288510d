"""ONNX Runtime on an NVIDIA GPU against PyTorch eager and compiled, in one run, as shares of the GPU's own GEMM.

ViT-B, L and H with random weights in FP16 (and in INT8 with `--int8`), all patches and a quarter of them. Sessions use
I/O binding and CUDA graphs, compiled PyTorch uses CUDA graphs too. Without a GPU, or without a PyTorch and an ONNX
Runtime for it, the script says so and ends well.

    python -m benchmarks.gpu [--sizes base,large,huge] [--batch 1,8,64,256] [--rounds 20] [--int8]
"""

from __future__ import annotations

import argparse
import tempfile
from collections import Counter
from contextlib import ExitStack
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import onnx
import onnxruntime as ort
import torch

from benchmarks.attention import fuse_attention
from benchmarks.hardware import RESULTS, write_result
from benchmarks.models import write_graph, write_half, write_int8
from mae_export.export.rivals import gemm_on_gpu, rival_maker
from mae_export.graph import read_manifest
from mae_export.report import console, speed
from mae_export.runtime.bench import BenchPlan, Case, Maker, bench
from mae_export.runtime.clocks import gpu_mhz
from mae_export.runtime.doctor import nvidia_gpus
from mae_export.runtime.providers import PROVIDERS, available
from mae_export.runtime.session import open_session

FUSED = ("Attention", "MultiHeadAttention", "PackedAttention")  # ONNX Runtime's own operators


def obstacle() -> str:
    """What keeps this machine from being measured; "" when nothing does."""
    if not nvidia_gpus():
        return "nvidia-smi lists no NVIDIA GPU"
    if PROVIDERS["cuda"] not in available():
        return "ONNX Runtime has no CUDA provider; install mae-export[gpu] instead of mae-export[cpu]"
    if not torch.cuda.is_available():
        return "this PyTorch was not built for CUDA"
    return ""


def optimized(graph: Path, provider: str) -> dict[str, int]:
    """How often each operator is left after ONNX Runtime's own optimisation for a provider."""
    settings = ort.SessionOptions()
    settings.log_severity_level = 3
    written = graph.with_name(f"{graph.stem}.optimized.onnx")
    settings.optimized_model_filepath = str(written)
    ort.InferenceSession(str(graph), settings, providers=[provider])
    counts = Counter(node.op_type for node in onnx.load(written, load_external_data=False).graph.node)
    written.unlink()
    return dict(counts.most_common())


def attention(counts: dict[str, int]) -> str:
    """In words, whether attention was fused."""
    fused = {name: counts[name] for name in FUSED if name in counts}
    if fused:
        return f"attention is fused: {fused}"
    return f"attention is not fused: {counts.get('Softmax', 0)} Softmax stay between products of their own"


def measure(size: str, plan: BenchPlan, folder: Path, *, int8: bool) -> tuple[tuple[Case, ...], dict[str, Any]]:
    """One size: its cases, and what ONNX Runtime made of its graph."""
    graph = write_graph(size, folder)
    half = write_half(graph, "fp16")
    manifest = read_manifest(half)
    makers: dict[str, Maker] = {
        "PyTorch eager fp16": rival_maker(manifest, "torch", device="cuda"),
        "PyTorch compile fp16": rival_maker(manifest, "compile", device="cuda"),
    }
    with ExitStack() as stack:
        graphs = {"fp16": half, "fp16, attention lowered": half.with_name("lowered.onnx")}
        fuse_attention(half, graphs["fp16, attention lowered"], heads=manifest.encoder["heads"])
        if int8:
            graphs["INT8"] = write_int8(graph)
        for name, path in graphs.items():
            session = stack.enter_context(open_session(path, backend="cuda"))
            makers[f"ONNX Runtime {name}"] = partial(partial, session.run)
        with console.steps() as progress:
            cases = bench(manifest, makers, plan=plan, gemms=[gemm_on_gpu("fp16")], progress=progress)
    return cases, optimized(half, PROVIDERS["cuda"])


def main() -> None:
    """Run everything, print the tables, write the JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sizes", default="base,large,huge")
    parser.add_argument("--batch", default="1,8,64,256")
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--int8", action="store_true")
    parser.add_argument("--results", type=Path, default=RESULTS)
    options = parser.parse_args()
    reason = obstacle()
    if reason:
        console.say(f"skipped: {reason}")
        return
    plan = BenchPlan(batches=tuple(map(int, options.batch.split(","))), shares=(1.0, 0.25), rounds=options.rounds)
    result: dict[str, Any] = {}
    for size in options.sizes.split(","):
        before = gpu_mhz()
        with tempfile.TemporaryDirectory() as name:
            cases, counts = measure(size, plan, Path(name), int8=options.int8)
        result[size] = {
            "gpu_mhz": [before, gpu_mhz()],
            "attention": attention(counts),
            "operators": counts,
            "cases": [asdict(case) for case in cases],
        }
        console.say(f"ViT-{size}: {attention(counts)}")
        console.say(speed.peak_line(cases[0]))
        for case in cases:
            console.say(case.title)
            console.table(speed.bench_rows(case), header=speed.HEADER)
    console.say(f"written to {write_result('gpu', result, options.results)}")


if __name__ == "__main__":
    main()
