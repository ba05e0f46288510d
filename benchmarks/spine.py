"""The spine in one run on this CPU: graph against PyTorch eager, few patches against all, extraction against its parts.

Every number is a ratio within this run. Contenders of one comparison take turns, round after round, and each ratio is
the median of the rounds' ratios, so that a slow moment of the machine hits both sides.

    python -m benchmarks.spine [--size base] [--rounds 7] [--images 160]
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from PIL import Image
from rich.console import Console
from rich.table import Table
from skimage import data as photographs

from benchmarks.hardware import RESULTS, write_result
from benchmarks.sizes import gflops, write_checkpoint
from mae_export.encoders.load import load_encoder
from mae_export.encoders.vit import ViT
from mae_export.export.options import TraceOptions
from mae_export.export.trace import export_graph
from mae_export.runtime.extract import ExtractOptions, extract
from mae_export.runtime.inputs import list_items
from mae_export.runtime.loading import load
from mae_export.runtime.patchify import patchify
from mae_export.runtime.session import Session, open_session

Run = Callable[[], object]


def race(contenders: dict[str, Run], rounds: int) -> dict[str, list[float]]:
    """Seconds of each contender in each round, taking turns after one warm-up each."""
    seconds: dict[str, list[float]] = {name: [] for name in contenders}
    for run in contenders.values():
        run()
    for _ in range(rounds):
        for name, run in contenders.items():
            start = time.perf_counter()
            run()
            seconds[name].append(time.perf_counter() - start)
    return seconds


def ratio(seconds: dict[str, list[float]], slow: str, fast: str) -> float:
    """Median over the rounds of slow / fast."""
    pairs = zip(seconds[slow], seconds[fast], strict=True)
    return round(statistics.median(a / b for a, b in pairs), 3)


def eager(encoder: ViT, images: np.ndarray) -> Run:
    """PyTorch eager on the same work: normalise, convolve, blocks with fused attention, final norm."""
    image = encoder.spec.image
    pixels = (torch.from_numpy(images).float() / 255 - torch.tensor(image.mean)) / torch.tensor(image.std)
    pixels = pixels.permute(0, 3, 1, 2).contiguous()

    def run() -> object:
        with torch.inference_mode():
            tokens = encoder.patch_embed.proj(pixels).flatten(2).transpose(1, 2)
            return encoder.finish(encoder.encode_tokens(tokens).tokens)[:, 0]

    return run


def structure(path: Path) -> dict[str, Any]:
    """Facts read off a graph: its inputs, and along how many tokens its products, norms and activations run."""
    model = onnx.shape_inference.infer_shapes(onnx.load(path, load_external_data=False), data_prop=True)
    values = [*model.graph.input, *model.graph.value_info]
    extents = {v.name: [d.dim_param or d.dim_value for d in v.type.tensor_type.shape.dim] for v in values}
    heavy = [n.output[0] for n in model.graph.node if n.op_type in ("MatMul", "LayerNormalization", "Softmax", "Gelu")]
    return {
        "inputs": {v.name: extents[v.name] for v in model.graph.input},
        "heavy_nodes": len(heavy),
        "token_extents": sorted({str(extents[name][-2]) for name in heavy}),
    }


def speeds(folder: Path, encoder: ViT, rounds: int) -> dict[str, Any]:
    """Compare graphs with eager, 25 % with all patches, `patches` with `keep`."""
    count = encoder.spec.patches
    kept = count // 4
    results: dict[str, Any] = {}
    draws = np.random.default_rng(0)
    with (
        open_session(folder / "none.onnx") as none,
        open_session(folder / "keep.onnx") as keep,
        open_session(folder / "patches.onnx") as patches,
    ):
        for batch in (8, 1):
            images = draws.integers(0, 256, (batch, *encoder.spec.image.size, 3), dtype=np.uint8)
            ids = {k: np.stack([draws.permutation(count)[:k] for _ in range(batch)]) for k in (count, kept)}
            cells = patchify(images, keep.manifest.patches)
            rows = {k: np.take_along_axis(cells, ids[k][:, :, None], axis=1) for k in ids}
            seconds = race(
                {
                    "eager": eager(encoder, images),
                    "none": runner(none, {"images": images}),
                    "keep all": runner(keep, {"images": images, "ids_keep": ids[count]}),
                    "keep 25 %": runner(keep, {"images": images, "ids_keep": ids[kept]}),
                    "patches all": runner(patches, {"patches": rows[count], "ids_keep": ids[count]}),
                    "patches 25 %": runner(patches, {"patches": rows[kept], "ids_keep": ids[kept]}),
                },
                rounds,
            )
            results[f"batch {batch}"] = {
                "images_per_second": {n: round(batch / statistics.median(s), 2) for n, s in seconds.items()},
                "graph over eager": ratio(seconds, "eager", "none"),
                "25 % over all, keep": ratio(seconds, "keep all", "keep 25 %"),
                "25 % over all, patches": ratio(seconds, "patches all", "patches 25 %"),
                "25 % patches over all without mask": ratio(seconds, "none", "patches 25 %"),
                "patches over keep at 25 %": ratio(seconds, "keep 25 %", "patches 25 %"),
                "keep all over no mask": ratio(seconds, "none", "keep all"),
            }
    return results


def runner(session: Session, feeds: dict[str, np.ndarray]) -> Run:
    """One run of a session on prepared feeds."""
    return lambda: session.run(feeds)


def write_images(folder: Path, count: int) -> Path:
    """JPEG files of ImageNet's usual size, cut from photographs."""
    folder.mkdir()
    sources = [photographs.astronaut(), photographs.coffee(), photographs.rocket(), photographs.chelsea()]
    draws = np.random.default_rng(0)
    for index in range(count):
        source = Image.fromarray(sources[index % len(sources)])
        side = int(draws.integers(200, 300))
        left, top = int(draws.integers(0, source.width - side)), int(draws.integers(0, source.height - side))
        crop = source.crop((left, top, left + side, top + side)).resize((500, 375))
        crop.save(folder / f"{index:05}.jpg", quality=90)
    return folder


def extraction(folder: Path, rounds: int, count: int) -> dict[str, Any]:
    """End-to-end extraction against the slower of its decoder alone and its model alone, on the same files."""
    images = write_images(folder / "images", count)
    items = list_items([images])
    results: dict[str, Any] = {}
    with open_session(folder / "keep.onnx") as session:
        spec, total = session.manifest.image, session.manifest.patches.count
        first = np.stack([loaded.pixels for loaded in load(items[:8], spec) if loaded.pixels is not None])
        for visible, kept in (("all", total), ("random:0.25", total // 4)):
            ids = np.stack([np.sort(np.random.default_rng(i).permutation(total)[:kept]) for i in range(8)])
            out = folder / f"features-{kept}"

            def model_alone(feeds: dict[str, np.ndarray] = {"images": first, "ids_keep": ids}) -> None:  # noqa: B006
                for _ in range(count // 8):
                    session.run(feeds, ["pooled"])

            def whole(visible: str = visible, out: Path = out) -> None:
                options = ExtractOptions(features=("pooled",), visible=visible, batch=8, force=True)
                extract(session, [images], out, options=options)

            seconds = race(
                {"decode": lambda: sum(1 for _ in load(items, spec)), "model": model_alone, "extract": whole}, rounds
            )
            slower = [max(d, m) for d, m in zip(seconds["decode"], seconds["model"], strict=True)]
            shares = [s / e for s, e in zip(slower, seconds["extract"], strict=True)]
            both = [
                (d + m) / e for d, m, e in zip(seconds["decode"], seconds["model"], seconds["extract"], strict=True)
            ]
            results[visible] = {
                "images_per_second": {n: round(count / statistics.median(s), 2) for n, s in seconds.items()},
                "share of the slower part": round(statistics.median(shares), 3),
                "decode plus model over extract": round(statistics.median(both), 3),
            }
    return results


def main() -> None:
    """Run everything, print the table, write the JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--size", default="base")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--images", type=int, default=160)
    parser.add_argument("--results", type=Path, default=RESULTS)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        encoder, report = load_encoder(write_checkpoint(options.size, folder / "checkpoint.pth"))
        for mask in ("none", "keep", "patches"):
            trace = TraceOptions(mask=mask, features=("pooled",))
            export_graph(encoder, report, folder / f"{mask}.onnx", options=trace)
        count = encoder.spec.patches
        ideal = gflops(options.size, count) / gflops(options.size, count // 4)
        result: dict[str, Any] = {
            "size": options.size,
            "threads": torch.get_num_threads(),
            "ideal 25 % over all": round(ideal, 3),
            "structure": {mask: structure(folder / f"{mask}.onnx") for mask in ("none", "keep", "patches")},
            **speeds(folder, encoder, options.rounds),
            "extraction": extraction(folder, max(3, options.rounds // 2), options.images),
        }
    path = write_result("spine" if options.size == "base" else f"spine-{options.size}", result, options.results)
    show(result)
    Console().print(f"written to {path}")


def show(result: dict[str, Any]) -> None:
    """The ratios as a table."""
    table = Table(
        "comparison",
        "batch 8",
        "batch 1",
        title=f"ViT-{result['size']}, ideal for 25 % {result['ideal 25 % over all']}x",
    )
    for key in result["batch 8"]:
        if key != "images_per_second":
            table.add_row(key, *(f"{result[batch][key]:.2f}x" for batch in ("batch 8", "batch 1")))
    for visible, values in result["extraction"].items():
        table.add_row(f"extraction ({visible}) of the slower part", f"{values['share of the slower part']:.1%}", "")
    console = Console(width=110)
    console.print(table)
    for mask, facts in result["structure"].items():
        console.print(f"{mask}: inputs {facts['inputs']}")
        console.print(
            f"  {facts['heavy_nodes']} products, norms and activations run along {facts['token_extents']} tokens"
        )


if __name__ == "__main__":
    main()
