"""At what clock the processor and the GPU run now; a number without it cannot be compared with another day's."""

from __future__ import annotations

import re
import statistics
import subprocess
from pathlib import Path

NVIDIA_SMI = ("nvidia-smi", "--query-gpu=clocks.sm", "--format=csv,noheader,nounits")
SECONDS = 20.0


def cpu_mhz(root: Path = Path("/")) -> float | None:
    """Mean over the cores; None where the system does not say.

    Args:
        root: folder that `/proc` and `/sys` are read under.
    """
    governed = [
        _number(path) for path in sorted(root.glob("sys/devices/system/cpu/cpu[0-9]*/cpufreq/scaling_cur_freq"))
    ]
    known = [khz / 1e3 for khz in governed if khz is not None]
    if not known:
        try:
            text = (root / "proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
        except OSError:
            return None
        known = [float(found) for found in re.findall(r"^cpu MHz\s*: ([\d.]+)$", text, re.MULTILINE)]
    return round(statistics.fmean(known), 1) if known else None


def gpu_mhz() -> float | None:
    """Of the first GPU that nvidia-smi lists; None where there is none."""
    try:
        done = subprocess.run(NVIDIA_SMI, capture_output=True, text=True, timeout=SECONDS, check=False)
        return float(done.stdout.splitlines()[0])
    except (OSError, subprocess.TimeoutExpired, IndexError, ValueError):
        return None


def _number(path: Path) -> float | None:
    try:
        return float(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
