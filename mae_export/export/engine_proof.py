"""Comparing a new engine with its graph on the GPU of this machine, before the engine gets its name.

TensorRT is known to compute vision transformers wrongly without a word in its log, so what was planned proves nothing.
The graph runs in ONNX Runtime on the CPU, or for bf16 in whatever has kernels for it; where nothing does, the golden
values in its manifest are what the engine must reproduce.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from mae_export.errors import MachineError
from mae_export.export.plan import THIS
from mae_export.manifest import Verification
from mae_export.runtime.compare import Check, compare, require
from mae_export.runtime.cuda import open_device
from mae_export.runtime.engine_file import EngineSidecar
from mae_export.runtime.fitted import FittedSession
from mae_export.runtime.golden import check_golden
from mae_export.runtime.session import Session, open_as_is
from mae_export.runtime.trt import EngineSession


def prove(staged: Path, graph_path: Path, sidecar: EngineSidecar) -> Verification | None:
    """Run an engine and judge it.

    Args:
        staged: the plan, with its sidecar beside it.
        graph_path: what it was built from.
        sidecar: the engine's.

    Returns:
        The result, or None where no GPU of its targets is here, or nothing can judge it.

    Raises:
        VerificationError: when the engine disagrees; `OUT.rejected` is what the caller makes of it.
        MachineError: when the engine cannot be opened although its GPU is here.
    """
    try:
        device = open_device()
    except MachineError:
        return None
    if device.target not in sidecar.targets and THIS not in sidecar.targets:
        return None
    with EngineSession(staged, check=False) as session:
        try:
            trusted = open_as_is(graph_path, backend="auto" if sidecar.manifest.precision == "bf16" else "cpu")
        except MachineError:
            return _by_golden_values(session, graph_path)
        with trusted:
            return _by_comparison(session, trusted, sidecar)


def _by_golden_values(session: Session, graph_path: Path) -> Verification | None:
    worst = check_golden(session)
    return None if worst is None else _result(f"golden values of {graph_path.name}", worst, checks=1)


def _by_comparison(session: Session, trusted: Session, sidecar: EngineSidecar) -> Verification:
    report = compare(*(FittedSession(each, sidecar.profiles) for each in (session, trusted)))
    require(
        report, f"The engine is kept as {session.name}.rejected and must not be used: try another --level or precision"
    )
    return _result(f"{trusted.name}, {report.reference}", report.worst, checks=len(report.checks))


def _result(reference: str, worst: Check, *, checks: int) -> Verification:
    return Verification(
        reference=reference,
        worst_output=worst.output,
        error=float(np.format_float_scientific(worst.error, precision=3)),
        limit=worst.limit,
        checks=checks,
    )
