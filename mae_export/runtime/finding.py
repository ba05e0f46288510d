"""What the doctor says of one thing, and how it reads files that may be missing or locked."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

Level = Literal["ok", "note", "problem"]


@dataclass(frozen=True, kw_only=True)
class Finding:
    """One thing that was looked at: what was found, how much it matters, and a sentence on what to do, or ""."""

    what: str
    found: str
    level: Level = "ok"
    fix: str = ""


def read_quietly(path: Path) -> str:
    """The text of a file of /proc or /sys without the NUL or newline at its end; "" when it cannot be read."""
    try:
        return path.read_text(encoding="utf-8", errors="replace").strip("\0\n ")
    except OSError:
        return ""
