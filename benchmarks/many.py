"""A job over many images: every row accounted for, memory that does not grow, and the same features every time.

python -m benchmarks.many [--images 60000]
"""

from __future__ import annotations

import argparse
import io
import json
import tarfile
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import psutil
from PIL import Image

from benchmarks.hardware import RESULTS, write_result
from benchmarks.sizes import initialise, save_checkpoint, spec_of
from mae_export.encoders.load import load_encoder
from mae_export.export.options import TraceOptions
from mae_export.export.trace import export_graph
from mae_export.runtime.extract import ExtractOptions, extract
from mae_export.runtime.features import read_features
from mae_export.runtime.session import open_session

BAD = {"empty": b"", "html": b"<html>not found</html>", "cut": None}  # None: half of a good file


def write_tar(path: Path, count: int) -> int:
    """A tar of small JPEG files of which every 97th is bad; returns the number of bad ones."""
    draws = np.random.default_rng(0)
    bad = 0
    with tarfile.open(path, "w") as tar:
        for index in range(count):
            pixels = draws.integers(0, 256, (12, 12, 3), dtype=np.uint8)
            buffer = io.BytesIO()
            Image.fromarray(pixels).resize((72, 80)).save(buffer, "JPEG")
            content = buffer.getvalue()
            if index % 97 == 50:
                kind = list(BAD)[bad % len(BAD)]
                replaced = BAD[kind]
                content = content[: len(content) // 2] if replaced is None else replaced
                bad += 1
            info = tarfile.TarInfo(f"{index // 1000:04}/{index:07}.jpg")
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return bad


def prove(count: int, folder: Path) -> dict[str, Any]:
    """Extract a tar twice, with different batch sizes and threads, and compare what came out."""
    bad = write_tar(folder / "images.tar", count)
    checkpoint = save_checkpoint(initialise(spec_of("tiny", image=64), seed=0), folder / "tiny.pth")
    encoder, report = load_encoder(checkpoint)
    export_graph(encoder, report, folder / "tiny.onnx", options=TraceOptions(mask="keep"))
    process = psutil.Process()
    memory: list[int] = []
    results = []
    with open_session(folder / "tiny.onnx") as session:
        for batch, threads in ((16, 0), (5, 3)):
            options = ExtractOptions(visible="random:0.25:1", batch=batch, threads=threads, error_budget=1.0)

            def watch(done: int, total: int) -> None:
                if done * 10 // max(1, total) > len(memory) - 1:
                    memory.append(process.memory_info().rss)

            out = folder / f"features-{batch}"
            results.append(extract(session, [folder / "images.tar"], out, options=options, progress=watch))
    first, second = (read_features(folder / f"features-{batch}") for batch in (16, 5))
    failures = [json.loads(line)["id"] for line in (folder / "features-16" / "failures.jsonl").read_text().splitlines()]
    return {
        "images": count,
        "bad": bad,
        "rows_in": [r.rows_in for r in results],
        "rows_ok": [r.rows_ok for r in results],
        "rows_failed": [r.rows_failed for r in results],
        "named_failures": len(set(failures)),
        "same_ids": first.ids == second.ids,
        "largest_difference": float(np.abs(first.arrays["pooled"] - second.arrays["pooled"]).max()),
        "same_visible_patches": bool(np.array_equal(first.ids_keep, second.ids_keep)),
        "growth_mb": round((max(memory[2:] or memory) - memory[min(1, len(memory) - 1)]) / 1e6, 1),
        "images_per_second": [round(r.images_per_second, 1) for r in results],
    }


def main() -> None:
    """Prove one count and write the result."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=int, default=60000)
    parser.add_argument("--results", type=Path, default=RESULTS)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        result = prove(options.images, Path(name))
    print(json.dumps(result, indent=1), write_result("many", result, options.results))


if __name__ == "__main__":
    main()
