"""ONNX Runtime on an NVIDIA GPU against PyTorch eager and compiled, in one run, as shares of the GPU's own GEMM.

ViT-B, L and H with random weights in FP16 (and in INT8 with `--int8`), all patches and a quarter of them. Feeds lie on
the GPU and outputs stay there, for sessions (I/O binding, CUDA graphs) as for PyTorch (compiled with CUDA graphs too);
one contender more runs a session from and to the host. What each contender's kernels are is recorded by PyTorch's
profiler, which sees those of the whole process: with that, whether attention is fused is read off and not assumed.
Without a GPU, or without a PyTorch and an ONNX Runtime for it, the script says so and ends well.

    python -m benchmarks.gpu [--sizes base,large,huge] [--batch 1,8,64,256] [--rounds 20] [--int8]
"""

from __future__ import annotations

import argparse
import itertools
import tempfile
from collections import Counter
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort
import torch

from benchmarks.hardware import RESULTS, write_result
from benchmarks.models import write_graph, write_half, write_int8
from mae_export.errors import MaeExportError
from mae_export.export.fused_attention import fuse_attention
from mae_export.export.rivals import gemm_on_gpu, rival_maker
from mae_export.graph import read_manifest, save, write_manifest
from mae_export.manifest import Manifest
from mae_export.report import console, speed
from mae_export.runtime.bench import BenchPlan, Case, Feeds, Maker, Run, bench, bench_feeds
from mae_export.runtime.clocks import gpu_mhz
from mae_export.runtime.doctor import nvidia_gpus
from mae_export.runtime.feeds import output_shapes
from mae_export.runtime.providers import PROVIDERS, available, choose, open_on_gpu
from mae_export.runtime.session import open_as_is

FUSED = ("Attention", "MultiHeadAttention", "PackedAttention")  # ONNX Runtime's own operators
DEVICE: Any = "cuda"
WARM_UP = 3  # runs before the one that is recorded: the first ones compile and capture
SHOWN = 8  # kernels of each contender that are recorded, those that take longest
LIKE = 0.999  # cosine that graphs with fused attention must reach with the graph they were made from


def obstacle() -> str:
    """What keeps this machine from being measured; "" when nothing does."""
    if not nvidia_gpus():
        return "nvidia-smi lists no NVIDIA GPU"
    if PROVIDERS["cuda"] not in available():
        return "ONNX Runtime has no CUDA provider; install mae-export[gpu] instead of mae-export[cpu]"
    if not torch.cuda.is_available():
        return "this PyTorch was not built for CUDA"
    return ""


def write_fused(graph: Path, *, biased: bool = False) -> Path:
    """The same graph with attention in ONNX Runtime's own operator, unproven."""
    model, out = ir.load(graph), graph.with_name(f"{graph.stem}-fused.onnx")
    fuse_attention(model, biased=biased)
    save(model, out)
    write_manifest(out, read_manifest(graph))
    return out


def resident_maker(path: Path, manifest: Manifest) -> Maker:
    """What prepares runs of a graph whose inputs and outputs lie on the GPU; each shape is a CUDA graph of its own."""
    settings = ort.SessionOptions()
    settings.log_severity_level = 3
    session, choice = open_on_gpu(ort, path, settings, choose(path, "cuda"))
    captures = choice.options["enable_cuda_graph"] == "1"
    numbers = itertools.count(1)

    def make(feeds: Feeds) -> Run:
        binding, options = session.io_binding(), ort.RunOptions()
        options.add_run_config_entry("gpu_graph_id", str(next(numbers) if captures else -1))
        shapes = output_shapes(manifest, feeds, [spec.name for spec in manifest.outputs])
        for name, array in feeds.items():
            binding.bind_ortvalue_input(name, ort.OrtValue.ortvalue_from_numpy(array, "cuda", 0))
        for spec in manifest.outputs:
            kind = np.dtype(spec.dtype).type
            value = ort.OrtValue.ortvalue_from_shape_and_type(shapes[spec.name], kind, "cuda", 0)
            binding.bind_ortvalue_output(spec.name, value)
        return lambda: session.run_with_iobinding(binding, options)  # returns when the GPU is done

    return make


def optimized(graph: Path, provider: str) -> dict[str, int]:
    """How often each operator is left after ONNX Runtime's own optimisation for a provider."""
    settings = ort.SessionOptions()
    settings.log_severity_level = 3
    written = graph.with_name(f"{graph.stem}.optimized.onnx")
    settings.optimized_model_filepath = str(written)
    ort.InferenceSession(str(graph), settings, providers=[provider], enable_fallback=0)
    counts = Counter(node.op_type for node in onnx.load(written, load_external_data=False).graph.node)
    for part in written.parent.glob(f"{written.name}*"):
        part.unlink()
    return dict(counts.most_common())


def attention(counts: dict[str, int]) -> str:
    """In words, whether attention was fused."""
    fused = {name: counts[name] for name in FUSED if name in counts}
    if fused:
        return f"attention is fused: {fused}"
    return f"attention is not fused: {counts.get('Softmax', 0)} Softmax stay between products of their own"


def kernels(run: Run) -> list[dict[str, Any]]:
    """The kernels of one run that take longest, whichever library launches them: name, times and milliseconds."""
    activity = torch.profiler.ProfilerActivity
    seen = activity.CUDA if DEVICE == "cuda" else activity.CPU
    for _ in range(WARM_UP):
        run()
    with torch.profiler.profile(activities=[seen]) as profile:
        run()
        if DEVICE == "cuda":
            torch.cuda.synchronize()
    times = "self_device_time_total" if DEVICE == "cuda" else "self_cpu_time_total"
    events = [event for event in profile.key_averages() if getattr(event, times) > 0]
    events.sort(key=lambda event: getattr(event, times), reverse=True)
    return [
        {"kernel": event.key[:120], "times": event.count, "ms": round(getattr(event, times) / 1e3, 4)}
        for event in events[:SHOWN]
    ]


def graphs_of(size: str, folder: Path, *, int8: bool) -> tuple[dict[str, Path], dict[str, str]]:
    """The graphs of a size by name, and why some are missing."""
    half = write_half(write_graph(size, folder), "fp16")
    graphs, left_out = {"fp16": half, "fp16, attention fused": write_fused(half)}, {}
    if int8:
        try:
            graphs["INT8"] = write_int8(folder / f"{size}.onnx")
            open_as_is(graphs["INT8"], backend="cuda").close()
        except MaeExportError as error:
            graphs.pop("INT8", None)
            left_out["INT8"] = str(error)
    return graphs, left_out


def likeness(graphs: Mapping[str, Path], manifest: Manifest) -> float:
    """Smallest cosine between rows of the graph's features and of those with fused attention, on the GPU."""
    feeds = bench_feeds(manifest, 8, max(1, manifest.patches.count // 4))
    found = []
    for name in ("fp16", "fp16, attention fused"):
        with open_as_is(graphs[name], backend="cuda") as session:
            rows = session.run(feeds)["pooled"].astype(np.float64)
        found.append(rows / np.linalg.norm(rows, axis=1, keepdims=True))
    return float((found[0] * found[1]).sum(axis=1).min())


def measure(size: str, plan: BenchPlan, folder: Path, *, int8: bool) -> tuple[tuple[Case, ...], dict[str, Any]]:
    """One size: its cases, and what is known of how they were computed."""
    graphs, left_out = graphs_of(size, folder, int8=int8)
    manifest = read_manifest(graphs["fp16"])
    cosine = likeness(graphs, manifest)
    if not cosine >= LIKE:
        raise SystemExit(f"fused attention gives other features: cosine {cosine}, expected at least {LIKE}")
    makers: dict[str, Maker] = {
        "PyTorch eager fp16": rival_maker(manifest, "torch", device=DEVICE, resident=True),
        "PyTorch compile fp16": rival_maker(manifest, "compile", device=DEVICE, resident=True),
        **{f"ONNX Runtime {name}": resident_maker(path, manifest) for name, path in graphs.items()},
    }
    with ExitStack() as stack:
        session = stack.enter_context(open_as_is(graphs["fp16, attention fused"], backend="cuda"))
        makers["ONNX Runtime fused, from and to the host"] = partial(partial, session.run)
        with console.steps() as progress:
            cases = bench(manifest, makers, plan=plan, gemms=[gemm_on_gpu("fp16")], progress=progress)
        feeds = bench_feeds(manifest, max(plan.batches), manifest.patches.count)
        seen = {name: kernels(make(feeds)) for name, make in makers.items() if "host" not in name}
    counts = {name: optimized(path, PROVIDERS["cuda"]) for name, path in graphs.items()}
    return cases, {"operators": counts, "kernels": seen, "fused_cosine": cosine, "left_out": left_out}


def show(size: str, cases: tuple[Case, ...], known: Mapping[str, Any]) -> None:
    """The tables of a size."""
    for name, counts in known["operators"].items():
        console.say(f"ViT-{size} {name}: {attention(counts)}")
    for name, reason in known["left_out"].items():
        console.say(f"ViT-{size} {name} does not run: {reason}")
    console.say(speed.peak_line(cases[0]))
    for case in cases:
        console.say(case.title)
        console.table(speed.bench_rows(case), header=speed.HEADER)
    for name, listed in known["kernels"].items():
        console.say(f"{name}, kernels of one run:")
        console.table([(each["kernel"], str(each["times"]), f"{each['ms']:.3f}") for each in listed])


def main() -> None:
    """Run everything, print the tables, write the JSON after every size."""
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
            cases, known = measure(size, plan, Path(name), int8=options.int8)
        clocks = [before, gpu_mhz()]
        result[size] = {"gpu_mhz": clocks, **known, "cases": [asdict(case) for case in cases]}
        show(size, cases, known)
        console.say(f"written to {write_result('gpu', result, options.results)}")
        torch.cuda.empty_cache()


if __name__ == "__main__":
    main()
