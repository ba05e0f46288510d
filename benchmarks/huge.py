"""Memory of the largest published size: what loading and exporting ViT-H need, each in a process of its own.

python -m benchmarks.huge [--size huge]
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks.hardware import RESULTS, write_result
from benchmarks.sizes import write_checkpoint

LOAD = """
import json, re, sys
import mae_export.encoders.load as load
# Not getrusage: a process inherits the peak of the one that started it.
peak = lambda: int(re.search(r"VmHWM:\\s+(\\d+)", open("/proc/self/status").read())[1]) * 1024
before = peak()
encoder, report = load.load_encoder(sys.argv[1])
print(json.dumps({"bytes": peak() - before, "parameters": sum(p.numel() for p in encoder.parameters())}))
"""


# Between us and the command: a process inherits the peak of the one that starts it, and this one has none to pass on.
LAUNCH = """
import os, subprocess, sys
child = subprocess.Popen(sys.argv[2:])
_, status, usage = os.wait4(child.pid, 0)
open(sys.argv[1], "w").write(str(usage.ru_maxrss))
sys.exit(os.waitstatus_to_exitcode(status) & 255)
"""


def measured(*command: str) -> tuple[str, float, int]:
    """Run a command; its output, seconds, and peak resident bytes.

    Raises:
        RuntimeError: when it fails.
    """
    start = time.perf_counter()
    with tempfile.NamedTemporaryFile("r") as peak:
        launched = (sys.executable, "-I", "-S", "-c", LAUNCH, peak.name, *command)
        done = subprocess.run(launched, stdout=subprocess.PIPE, text=True, check=False)
        if done.returncode:
            raise RuntimeError(f"{' '.join(command)} ended with {done.returncode}")
        return done.stdout, round(time.perf_counter() - start, 1), int(peak.read()) * 1024


def prove(size: str, folder: Path) -> dict[str, Any]:
    """Write a checkpoint of that size, load it, export it, inspect the graph; what each step needed."""
    checkpoint = folder / f"mae_pretrain_vit_{size}.pth"
    measured(sys.executable, "-m", "benchmarks.huge", "--write", size, str(checkpoint))
    return {"size": size, **through(checkpoint, folder / f"vit_{size}.onnx", "--mask", "keep")}


def through(checkpoint: Path, graph: Path, *options: str) -> dict[str, Any]:
    """Load a checkpoint and export it with these options; what each step needed."""
    bytes_ = checkpoint.stat().st_size
    loaded = json.loads(measured(sys.executable, "-c", LOAD, str(checkpoint))[0])
    command = (sys.executable, "-m", "mae_export", "export", str(checkpoint), "-o", str(graph), *options, "--json")
    text, seconds, peak = measured(*command)
    verification = json.loads(text)["manifest"]["verification"]
    return {
        "parameters": loaded["parameters"],
        "checkpoint_bytes": bytes_,
        "load_peak_over_file": round(loaded["bytes"] / bytes_, 3),
        "export_seconds": seconds,
        "export_peak_gb": round(peak / 1e9, 2),
        "files": {path.name: path.stat().st_size for path in sorted(graph.parent.glob(f"{graph.name}*"))},
        "verification": verification,
    }


def main() -> None:
    """Prove one size and write the result."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--size", default="huge")
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
