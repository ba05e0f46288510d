"""The largest plain encoder that is published, EVA-01 g/14 with 1.0 billion parameters: load, export, verify, run.

Weights are random and stored in float16 as the published file stores them. Every step runs in a process of its own.

python -m benchmarks.giant [--size giant]
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from pathlib import Path
from typing import Any

from benchmarks.hardware import RESULTS, write_result
from benchmarks.huge import measured, through

SIZES = {  # name: (width, depth, hidden width of the MLP); "small" is not published, it serves quick runs
    "small": (192, 2, 838),
    "giant": (1408, 40, 6144),
}
PATCH, GRID = 14, 16
RUN = """
import json, sys, time
from mae_export.runtime.probes import golden_image
from mae_export.runtime.session import open_session
start = time.perf_counter()
with open_session(sys.argv[1]) as session:
    opened = time.perf_counter()
    feature = session.run({"images": golden_image(session.manifest.image)[None]})["pooled"]
    done = time.perf_counter()
print(json.dumps({
    "open_seconds": round(opened - start, 2),
    "image_seconds": round(done - opened, 2),
    "width": feature.shape[1],
    "finite": bool((abs(feature) < 1e4).all()),
}))
"""


def write_checkpoint(size: str, path: Path) -> None:
    """Write random weights under the names of baaivision/EVA."""
    import torch

    dim, depth, hidden = SIZES[size]
    generator = torch.Generator().manual_seed(0)

    def random(*shape: int) -> torch.Tensor:
        return (torch.randn(shape, generator=generator) * 0.02).half()

    state = {"cls_token": random(1, 1, dim), "mask_token": random(1, 1, dim)}
    state |= {"pos_embed": random(1, 1 + GRID * GRID, dim)}
    state |= {"patch_embed.proj.weight": random(dim, 3, PATCH, PATCH), "patch_embed.proj.bias": random(dim)}
    for block in (f"blocks.{index}." for index in range(depth)):
        state |= {block + "attn.qkv.weight": random(3 * dim, dim)}
        state |= {block + "attn.q_bias": random(dim), block + "attn.v_bias": random(dim)}
        for layer, shape in {"attn.proj": (dim, dim), "mlp.fc1": (hidden, dim), "mlp.fc2": (dim, hidden)}.items():
            state |= {f"{block}{layer}.weight": random(*shape), f"{block}{layer}.bias": random(shape[0])}
    for norm in ("norm", *(f"blocks.{index}.norm{number}" for index in range(depth) for number in (1, 2))):
        state |= {f"{norm}.weight": 1 + random(dim), f"{norm}.bias": random(dim)}
    torch.save({"model": state}, path)


def prove(size: str, folder: Path) -> dict[str, Any]:
    """Write a checkpoint of that size, load it, export it, run one image; what each step needed."""
    checkpoint, graph = folder / f"eva_{size}.pth", folder / f"eva_{size}.onnx"
    measured(sys.executable, "-m", "benchmarks.giant", "--write", size, str(checkpoint))
    result = {"size": size, **through(checkpoint, graph)}
    text, seconds, peak = measured(sys.executable, "-c", RUN, str(graph))
    return {**result, **json.loads(text), "run_seconds": seconds, "run_peak_gb": round(peak / 1e9, 2)}


def main() -> None:
    """Prove one size and write the result."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--size", default="giant", choices=SIZES)
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument("--write", nargs=2, metavar=("SIZE", "PATH"))
    options = parser.parse_args()
    if options.write:
        write_checkpoint(options.write[0], Path(options.write[1]))
        return
    with tempfile.TemporaryDirectory() as name:
        result = prove(options.size, Path(name))
    print(json.dumps(result, indent=1), write_result(options.size, result, options.results))


if __name__ == "__main__":
    main()
