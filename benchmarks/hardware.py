"""What a result was measured on; every committed JSON carries it."""

from __future__ import annotations

import json
from datetime import datetime, timezone
from importlib import metadata
from pathlib import Path
from typing import Any

from mae_export.runtime.doctor import doctor

RESULTS = Path(__file__).parent / "results"
PACKAGES = ("mae-export", "torch", "onnx", "onnxruntime", "onnxruntime-gpu", "openvino", "numpy", "pillow")


def describe() -> dict[str, Any]:
    """Processor, cores, flags, memory, GPUs and versions of this machine."""
    diagnosis = doctor()
    return {
        "processor": diagnosis.cpu.model,
        "cores": diagnosis.cpu.cores,
        "flags": diagnosis.cpu.flags,
        "memory_gib": round((diagnosis.memory.total or 0) / 2**30, 1),
        "gpus": [gpu.name for gpu in diagnosis.gpus],
        "platform": diagnosis.platform,
        "python": diagnosis.python,
        "versions": {name: version for name in PACKAGES if (version := _version(name))},
    }


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def write_result(name: str, result: dict[str, Any], folder: Path = RESULTS) -> Path:
    """Write `NAME.json` with the hardware named."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{name}.json"
    when = datetime.now(timezone.utc).isoformat(timespec="seconds")
    path.write_text(json.dumps({"measured": when, "hardware": describe(), **result}, indent=1) + "\n", encoding="utf-8")
    return path
