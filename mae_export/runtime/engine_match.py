"""Whether an engine may run here: the library, its version and the GPU must be those that the plan was built for.

TensorRT refuses most mismatches itself, in words that name neither side, and runs some that it should not. Here each
refusal says both sides and the command that helps.
"""

from __future__ import annotations

from pathlib import Path
from typing import get_args

from mae_export.errors import MachineError
from mae_export.runtime.engine_file import Backend, EngineSidecar
from mae_export.runtime.known_bad import judge_version
from mae_export.runtime.tensorrt_api import NAMES, find_module

ANY_OF_ITS_MACHINE = "this"  # the target of engines from boards where the GPU could not be named


def require_backend(engine: Path, sidecar: EngineSidecar) -> None:
    """Refuse an engine whose library is not installed.

    Raises:
        MachineError: naming the extra to install, and the other library when that is here.
    """
    if find_module(sidecar.backend) is not None:
        return
    others = [NAMES[name] for name in get_args(Backend) if name != sidecar.backend and find_module(name)]
    here = f"; here is {others[0]}, which cannot run it" if others else ", which is not installed"
    raise MachineError(
        f"{engine.name} needs {NAMES[sidecar.backend]} {sidecar.version}{here}. Run: pip install "
        f"'mae-export[{sidecar.backend}]', or build again for what is here: {_command(engine, sidecar)}"
    )


def require_version(engine: Path, sidecar: EngineSidecar, version: str) -> None:
    """Refuse an engine of another version of its library, and a version that is known to be wrong.

    Args:
        engine: names the file in the message.
        sidecar: the engine's.
        version: of the library that is installed.

    Raises:
        MachineError: naming both versions.
    """
    if version != sidecar.version:
        name = NAMES[sidecar.backend]
        raise MachineError(
            f"{engine.name} was built with {name} {sidecar.version} and runs with that version only; here is "
            f"{version}. Build it again: {_command(engine, sidecar)}"
        )
    judge_version(sidecar.backend, version, precision=sidecar.manifest.precision, targets=sidecar.targets)


def require_target(engine: Path, sidecar: EngineSidecar, *, target: str, name: str) -> None:
    """Refuse an engine for other GPUs, and a version that is known to be wrong on this one.

    Args:
        engine: names the file in the message.
        sidecar: the engine's.
        target: compute capability of the GPU, such as `sm87`.
        name: of the GPU.

    Raises:
        MachineError: naming both GPUs.
    """
    if target not in sidecar.targets and ANY_OF_ITS_MACHINE not in sidecar.targets:
        built_on = f", built on {sidecar.device}" if sidecar.device else ""
        raise MachineError(
            f"{engine.name} is for {', '.join(sidecar.targets)}{built_on}; this GPU, {name}, is {target}. Build it for "
            f"this one: {_command(engine, sidecar)}"
        )
    judge_version(sidecar.backend, sidecar.version, precision=sidecar.manifest.precision, targets=(target,))


def _command(engine: Path, sidecar: EngineSidecar) -> str:
    graphs = [ancestor.name for ancestor in sidecar.manifest.made_from if ancestor.kind == "graph"]
    return f"mae-export build {graphs[-1] if graphs else 'GRAPH.onnx'} -o {engine.name} --force"
