"""The process that builds: TensorRT may crash or be killed here without taking its caller along.

It is told its job in a file, reports as JSON lines on standard output, and stops at the next step when its standard
input ends, which also happens when its caller dies. A builder that gets no memory for a thread may wait for it for
ever; so one that does no work at all is given up.
"""

from __future__ import annotations

import json
import os
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import TextIO

from mae_export.errors import MaeExportError, ResourceError
from mae_export.export import flavour
from mae_export.export.build_plan import BuildJob, Cancelled, compile_plan
from mae_export.manifest import read_json
from mae_export.runtime.known_bad import judge_version

LOOKS = 30  # in a row, a second apart, at which a builder that still works is seen to work
WORKING = 0.005  # seconds of processor time between two looks
SECONDS_TO_STOP = 30  # for a build whose caller is gone


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

    threading.Thread(target=watch_work, args=(lambda: _give_up(tell),), daemon=True).start()
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
    time.sleep(SECONDS_TO_STOP)
    os._exit(1)


def watch_work(give_up: Callable[[], None], *, seconds: float = 1.0) -> None:
    """Call `give_up` once this process has used no processor time for `LOOKS` looks in a row.

    A process that was suspended, or a computer that slept, counts as one look.
    """
    idle, before = 0, time.process_time()
    while idle < LOOKS:
        time.sleep(seconds)
        now = time.process_time()
        idle, before = 0 if now - before > WORKING else idle + 1, now
    give_up()


def _give_up(tell: Callable[[dict[str, object]], None]) -> None:
    message = (
        f"the builder has done nothing for {LOOKS} seconds, as happens when it gets no memory or no thread; nothing "
        "was written. Close other programs, raise the limits of this process, or build with --low-memory"
    )
    tell({"error": ResourceError.__name__, "message": message})
    os._exit(1)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
