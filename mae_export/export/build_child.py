"""The process that builds: TensorRT may crash or be killed here without taking its caller along.

It is told its job in a file, reports as JSON lines on standard output, and stops at the next step when its standard
input ends, which also happens when its caller dies.
"""

from __future__ import annotations

import json
import os
import sys
import threading
from pathlib import Path
from typing import TextIO

from mae_export.errors import MaeExportError, ResourceError
from mae_export.export import flavour
from mae_export.export.build_plan import BuildJob, Cancelled, compile_plan
from mae_export.manifest import read_json
from mae_export.runtime.known_bad import judge_version


def main(path: Path) -> None:
    """Do the job in a file; the last line written is `done`, `error` or `cancelled`."""
    out = _own_output()
    stop = threading.Event()
    threading.Thread(target=_watch, args=(stop,), daemon=True).start()

    def tell(message: dict[str, object]) -> None:
        out.write(json.dumps(message) + "\n")
        out.flush()

    def report(phase: str, done: int, total: int) -> None:
        tell({"phase": phase, "done": done, "total": total})

    try:
        job = read_json(path.read_text(encoding="utf-8"), BuildJob, "build job")
        version = str(flavour.load(job.backend).__version__)
        warnings = judge_version(job.backend, version, precision=job.precision, targets=job.targets)
        compile_plan(job, report, stop)
        tell({"done": {"version": version, "warnings": warnings}})
    except Cancelled:
        tell({"cancelled": True})
    except MemoryError:
        tell({"error": ResourceError.__name__, "message": "memory ran out while building; see --low-memory"})
    except MaeExportError as error:
        tell({"error": type(error).__name__, "message": str(error)})


def _own_output() -> TextIO:
    """Standard output for our lines alone; what TensorRT itself prints goes to standard error."""
    own = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    return own


def _watch(stop: threading.Event) -> None:
    os.read(0, 1)  # returns when the caller closes the pipe or dies
    stop.set()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
