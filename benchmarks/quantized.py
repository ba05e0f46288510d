"""INT8 graphs of ours beside those of `onnxruntime.quantization.quantize_static`, made from the same images and masks.

    python -m benchmarks.quantized [--scale full] [--wide base large] [--rounds 7] [--modelopt PYTHON]

ONNX Runtime's are the best of three calibration methods; NVIDIA's Model Optimizer joins where PYTHON is an interpreter
that has it (quantizers.py has the options of both). All see every patch while they are calibrated, because two of ONNX
Runtime's methods refuse rows of different length. Each graph is judged against the float32 one on images that
calibration did not see: the mean cosine of a feature after subtracting its mean, and, for a small MAE that is really
pre-trained, a linear probe over scikit-learn's digits, paired digit by digit. Wide encoders have random weights, and a
few channels of each norm that are far larger than the rest, as trained encoders have; the weights behind them are
divided, so that the float32 graph computes the same. Speeds are ratios in this run, contenders taking turns.
"""

from __future__ import annotations

import argparse
import json
import logging
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from rich.console import Console
from rich.table import Table as Grid

from benchmarks.hardware import RESULTS, write_result
from benchmarks.huge import measured
from benchmarks.quantizers import BATCH, OBSERVED, batches_of, contenders
from benchmarks.sizes import spec_of
from benchmarks.spine import race, ratio, runner, write_images
from examples import demo
from mae_export import graph
from mae_export.calibration.sensitivity import fidelity, run
from mae_export.encoders.load import load_encoder
from mae_export.encoders.vit import ViT
from mae_export.export.options import TraceOptions
from mae_export.export.trace import export_graph
from mae_export.files import sha256_files
from mae_export.runtime.batching import Batch
from mae_export.runtime.inputs import list_items
from mae_export.runtime.session import open_session
from mae_export.training.checkpoint import save_checkpoint
from mae_export.training.initialise import initialise
from mae_export.training.probe import Z95, probe_accuracy

Array = npt.NDArray[Any]

MODELOPT_VERSION = "import importlib.metadata as installed; print(installed.version('nvidia-modelopt'))"
OTHERS = ("ONNX Runtime", "modelopt")  # of each, the best of its methods counts
JUDGED = ("all", "random:0.25")
OUTLIERS, FACTOR = 6, 30.0  # channels of each norm, and how much larger they are than the others


@dataclass(frozen=True, kw_only=True)
class Scale:
    """How much of everything; tiny only shows that each step works."""

    steps: int
    digits: int
    calibration: int
    wide: tuple[str, ...]
    wide_calibration: int
    wide_images: int
    wide_judged: int
    rounds: int


SMALL = Scale(
    steps=300,
    digits=600,
    calibration=32,
    wide=("base",),
    wide_calibration=16,
    wide_images=48,
    wide_judged=32,
    rounds=3,
)
SCALES = {
    "tiny": replace(
        SMALL, steps=4, digits=120, calibration=8, wide=("tiny",), wide_calibration=8, wide_images=24, rounds=1
    ),
    "small": SMALL,
    "full": replace(
        SMALL,
        steps=1400,
        digits=1797,
        calibration=128,
        wide=("base", "large"),
        wide_images=128,
        wide_judged=48,
        rounds=5,
    ),
}


def tell(what: str) -> None:
    """A line of progress, on the error stream."""
    Console(stderr=True, highlight=False).print(f"{time.strftime('%H:%M:%S')}  {what}")


def features(path: Path, batches: Sequence[Batch], feature: str) -> Array:
    """One feature of every image, in the order of the images."""
    order = np.argsort([index for batch in batches for index in batch.indices])
    return run(path, batches, feature)[order]


def calibration_cost(source: Path, images: Path, samples: int) -> dict[str, Any]:
    """Speed and peak memory of `mae-export calibrate`, in a process of its own."""
    out = source.with_suffix(".cost.json")
    command = (sys.executable, "-m", "mae_export", "calibrate", str(source), str(images), "-o", str(out), "--json")
    told, seconds, peak = measured(*command, "--samples", str(samples))
    speed = json.loads(told)["images_per_second"]
    return {"images": samples, "seconds": seconds, "images_per_second": speed, "peak_gb": round(peak / 1e9, 2)}


def paired(found: npt.NDArray[np.bool_], expected: npt.NDArray[np.bool_]) -> dict[str, Any]:
    """How many more are right than in the reference, with its 95 % interval over the same samples."""
    difference = found.astype(float) - expected.astype(float)
    half = Z95 * difference.std(ddof=1) / np.sqrt(len(difference))
    return {"difference": difference.mean(), "interval": [difference.mean() - half, difference.mean() + half]}


def trained(scale: Scale, folder: Path, modelopt: str) -> dict[str, Any]:
    """A small MAE pre-trained on photographs and digits: cosines, and a probe that knows the digits' classes."""
    arguments = argparse.Namespace(steps=scale.steps, seconds=None, quick=False)
    pictures, labels = demo.digit_pictures(64)
    tell("digits: pre-training")
    training = demo.train(pictures, demo.scale_of(arguments), folder / "digits.pth")
    source = folder / "digits.onnx"
    demo.export(folder / "digits.pth", source, ("mean_patch",))
    places = folder / "pictures"
    places.mkdir()
    for index, pixels in enumerate(pictures[: scale.digits]):
        Image.fromarray(pixels).save(places / f"{index:04d}.png")
    images = [item.source for item in list_items([places])]
    graphs, used = contenders(source, images, scale.calibration, modelopt)
    held = np.array([sha256_files(path) not in used for path in images])
    results: dict[str, Any] = {"training": training, "digits": len(images), "held_out": int(held.sum()), "graphs": {}}
    for visible in JUDGED:
        batches = batches_of(source, images, visible)
        expected = features(source, batches, "mean_patch")
        reference = probe_accuracy(expected, labels[: len(images)])
        for name, path in graphs.items():
            tell(f"digits, {visible}: judging {name}")
            values = features(path, batches, "mean_patch")
            probe = probe_accuracy(values, labels[: len(images)])
            results["graphs"].setdefault(name, {})[visible] = {
                **asdict(fidelity(values[held], expected[held])),
                "probe": probe.accuracy,
                "probe_against_float32": paired(probe.correct, reference.correct),
            }
    return results


def with_outliers(encoder: ViT) -> ViT:
    """Scale a few channels of each block's norms, and divide the weights behind them: the function is the same."""
    draws = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for block in encoder.blocks:
            for norm, linear in ((block.norm1, block.attn.qkv), (block.norm2, block.mlp.fc1)):
                channels = torch.randperm(norm.weight.numel(), generator=draws)[:OUTLIERS]
                norm.weight[channels] *= FACTOR
                norm.bias[channels] *= FACTOR
                linear.weight[:, channels] /= FACTOR
    return encoder


def wide(size: str, scale: Scale, folder: Path, modelopt: str) -> dict[str, Any]:
    """A published size with random weights and outlier channels: cosines and speeds."""
    checkpoint = save_checkpoint(with_outliers(initialise(spec_of(size), seed=0)), folder / f"{size}.pth")
    encoder, report = load_encoder(checkpoint)
    source = folder / f"{size}.onnx"
    export_graph(encoder, report, source, options=TraceOptions(mask="keep", features=("pooled",)))
    images = sorted(write_images(folder / f"{size} pictures", scale.wide_images).iterdir())
    tell(f"{size}: quantizing")
    graphs, used = contenders(source, images, scale.wide_calibration, modelopt)
    held = [path for path in images if sha256_files(path) not in used][: scale.wide_judged]
    results: dict[str, Any] = {"size": size, "held_out": len(held), "graphs": {name: {} for name in graphs}}
    for visible in JUDGED:
        batches = batches_of(source, held, visible)
        expected = run(source, batches, "pooled")
        for name, path in graphs.items():
            tell(f"{size}, {visible}: judging {name}")
            results["graphs"][name][visible] = asdict(fidelity(run(path, batches, "pooled"), expected))
    names = ("float32", "ours", "ours, for CPUs", *best_ones(results["graphs"]))
    tell(f"{size}: cost of calibration, speed")
    results["calibration"] = calibration_cost(source, images[0].parent, len(images))
    results["speed"] = speeds({name: graphs[name] for name in names}, scale.rounds)
    return results


def best_of(graphs: dict[str, Any], other: str = OTHERS[0]) -> str:
    """The method of another quantizer whose features agree best, over all plans of visible patches."""
    names = [name for name in graphs if name.startswith(other)]
    return max(names, key=lambda name: sum(graphs[name][visible]["cosine"] for visible in JUDGED))


def best_ones(graphs: dict[str, Any]) -> list[str]:
    """The best method of each other quantizer that took part."""
    return [best_of(graphs, other) for other in OTHERS if any(name.startswith(other) for name in graphs)]


def speeds(graphs: dict[str, Path], rounds: int) -> dict[str, Any]:
    """Each graph with all and with a quarter of the patches, taking turns; ratios to float32 with all."""
    manifest, draws = graph.read_manifest(graphs["float32"]), np.random.default_rng(0)
    images = draws.integers(0, 256, (BATCH, *manifest.image.size, 3), dtype=np.uint8)
    count = manifest.patches.count
    sessions = {name: open_session(path) for name, path in graphs.items()}
    runs = {}
    for label, kept in (("all", count), ("25 %", count // 4)):
        ids_keep = np.stack([draws.permutation(count)[:kept] for _ in range(BATCH)])
        for name, session in sessions.items():
            runs[f"{name}, {label}"] = runner(session, {"images": images, "ids_keep": ids_keep})
    seconds = race(runs, rounds)
    for session in sessions.values():
        session.close()
    found: dict[str, Any] = {"images_per_second": {name: BATCH / float(np.median(s)) for name, s in seconds.items()}}
    for label in ("all", "25 %"):
        found[f"over float32, {label}"] = {
            name: ratio(seconds, f"float32, {label}", f"{name}, {label}") for name in graphs if name != "float32"
        }
    found["8 bits and 25 % over float32 and all"] = ratio(seconds, "float32, all", "ours, for CPUs, 25 %")
    return found


def prove(scale: Scale, folder: Path, modelopt: str = "") -> dict[str, Any]:
    """Everything, in a folder of its own; with Model Optimizer where an interpreter that has it is named."""
    version = measured(modelopt, "-c", MODELOPT_VERSION)[0].strip() if modelopt else "not asked for"
    return {
        "modelopt": version,
        "scale": asdict(scale),
        "observed": OBSERVED,
        "threads": torch.get_num_threads(),
        "trained": trained(scale, folder, modelopt),
        "wide": [wide(size, scale, folder, modelopt) for size in scale.wide],
    }


def rows(result: dict[str, Any]) -> Iterator[tuple[str, ...]]:
    """The table: one line for each encoder and graph."""
    for encoder, found in (("digits MAE", result["trained"]), *((each["size"], each) for each in result["wide"])):
        best = best_ones(found["graphs"])
        for name, by_plan in found["graphs"].items():
            cells = [f"{by_plan[visible]['cosine']:.5f}" for visible in JUDGED]
            probe = by_plan["all"].get("probe_against_float32")
            low, high = probe["interval"] if probe else (0.0, 0.0)
            told = f"{by_plan['all']['probe']:.2%} ({100 * low:+.2f}..{100 * high:+.2f})" if probe else ""
            gains = [
                found["speed"][f"over float32, {label}"].get(name) if "speed" in found else None
                for label in ("all", "25 %")
            ]
            yield (
                encoder,
                f"{name} (best)" if name in best else name,
                *cells,
                told,
                *(f"{gain:.2f}x" if gain else "" for gain in gains),
            )


def main() -> None:
    """Run everything, print the table, write the JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--scale", choices=SCALES, default="full")
    parser.add_argument("--wide", nargs="*", help="sizes of the wide encoders, instead of the scale's")
    parser.add_argument("--rounds", type=int, help="of the comparison of speeds, instead of the scale's")
    parser.add_argument("--modelopt", default="", metavar="PYTHON", help="an interpreter that has nvidia-modelopt")
    parser.add_argument("--results", type=Path, default=RESULTS)
    options = parser.parse_args()
    scale = SCALES[options.scale]
    scale = replace(scale, wide=tuple(options.wide or scale.wide), rounds=options.rounds or scale.rounds)
    logging.getLogger().setLevel(logging.ERROR)  # quantize_static recommends a step that rewrites the graph
    with tempfile.TemporaryDirectory() as name:
        result = prove(scale, Path(name), options.modelopt)
    path = write_result(
        "quantized" if options.scale == "full" else f"quantized-{options.scale}", result, options.results
    )
    table = Grid(
        "encoder", "graph", "cosine, all", "cosine, 25 %", "probe (against float32)", "speed, all", "speed, 25 %"
    )
    for row in rows(result):
        table.add_row(*row)
    console = Console(width=140)
    console.print(table)
    for found in result["wide"]:
        cost = found["calibration"]
        console.print(
            f"{found['size']}: calibrating on {cost['images']} images, {cost['images_per_second']:.1f} images/s, "
            f"at most {cost['peak_gb']} GB"
        )
    console.print(f"written to {path}")


if __name__ == "__main__":
    main()
