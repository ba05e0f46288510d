"""Versions of TensorRT that are known to compute vision transformers wrongly, and what to do about each.

A version with a fault that no build log shows is refused where another version can be installed, and warned about where
it cannot (JetPack 6 ships 10.3 only) or where only some GPUs or precisions are affected. Each entry names the public
report it comes from. The table does not replace comparing an engine with its graph.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

from mae_export.errors import MachineError
from mae_export.runtime.engine_file import Backend

HALF = ("fp16", "bf16")


@dataclass(frozen=True, kw_only=True)
class KnownBad:
    """A fault of TensorRT from version `first` to before `fixed`; empty conditions mean all."""

    first: tuple[int, ...]
    fixed: tuple[int, ...]
    fault: str
    report: str
    refused: bool = False
    precisions: tuple[str, ...] = ()
    targets: tuple[str, ...] = ()


KNOWN_BAD = (
    KnownBad(
        first=(10, 3),
        fixed=(10, 4),
        fault="wrong FP16 features of some vision transformers",
        report="github.com/NVIDIA/TensorRT/issues/4723",
        precisions=("fp16",),
    ),
    KnownBad(
        first=(10, 4),
        fixed=(10, 5),
        fault="vision transformers wrong in FP32 and NaN in FP16, with a clean build log",
        report="github.com/NVIDIA/TensorRT/issues/4742",
        refused=True,
    ),
    KnownBad(
        first=(10, 7),
        fixed=(10, 8),
        fault="wrong results of scaled dot product attention",
        report="github.com/NVIDIA/TensorRT/issues/4333",
        refused=True,
    ),
    KnownBad(
        first=(10,),
        fixed=(10, 16, 2),
        fault="wrong results of fused attention on this GPU",
        report="github.com/NVIDIA/TensorRT/issues/4837",
        precisions=HALF,
        targets=("sm120",),
    ),
    KnownBad(
        first=(11, 1),
        fixed=(11, 2),
        fault="identical rows of one batch gave different FP32 features",
        report="github.com/NVIDIA/TensorRT/issues/4813",
        precisions=("fp32",),
    ),
)


def judge_version(backend: Backend, version: str, *, precision: str, targets: tuple[str, ...]) -> tuple[str, ...]:
    """What is known against building or running an engine with this version, as sentences.

    Raises:
        MachineError: when the version must not be used.
    """
    warnings = []
    for entry in _matching(backend, version, precision, targets):
        sentence = f"TensorRT {version} is known for {entry.fault} ({entry.report})"
        if entry.refused:
            raise MachineError(f"{sentence}; install another version")
        warnings.append(f"{sentence}; compare the engine with its graph before using it")
    return tuple(warnings)


def _matching(backend: Backend, version: str, precision: str, targets: tuple[str, ...]) -> Iterator[KnownBad]:
    numbers = tuple(int(part) for part in re.findall(r"\d+", version)[:4])
    for entry in KNOWN_BAD if backend == "tensorrt" else ():
        affected = (not entry.precisions or precision in entry.precisions) and (
            not entry.targets or bool(set(targets) & set(entry.targets))
        )
        if affected and entry.first <= numbers < entry.fixed:
            yield entry
