"""What this machine can run, and what to do about what it cannot.

Reads files under a root folder, package metadata and `nvidia-smi`. `installed.py` judges what is installed,
`abilities.py` what of it can run, `jetson.py` the boards; the only package that is imported is ONNX Runtime, to ask
which providers it has.
"""

from __future__ import annotations

import json
import math
import os
import platform
import re
import subprocess
import sys
from dataclasses import asdict, dataclass
from pathlib import Path

from mae_export.runtime.abilities import Ability, Place, abilities
from mae_export.runtime.finding import Finding, read_quietly
from mae_export.runtime.installed import Installed, judge_runtime, judge_tensorrt, look_around
from mae_export.runtime.jetson import Jetson, find_jetson, judge_jetson

GIB = 2**30
SMALL_MEMORY = 2 * GIB  # a ViT-L graph is 1.2 GB of weights before any activation
NVIDIA_SMI = ("nvidia-smi", "--query-gpu=name,compute_cap,memory.total,driver_version", "--format=csv,noheader")
NVIDIA_SMI_SECONDS = 20.0  # the first call on an idle server loads the driver

# Instruction sets that decide the speed of fp32, bf16, fp16 and int8 kernels, as /proc/cpuinfo spells them.
CPU_FLAGS = (
    *("avx2", "fma", "avx512f", "avx512_vnni", "avx_vnni", "avx512_bf16", "avx512_fp16"),
    *("amx_int8", "amx_bf16", "asimd", "asimdhp", "asimddp", "i8mm", "bf16", "sve"),
)
VNNI = frozenset({"avx512_vnni", "avx_vnni"})


@dataclass(frozen=True, kw_only=True)
class Cpu:
    """The processor; `quota` is the number of cores that a container may use, None when it may use them all."""

    model: str
    cores: int
    quota: float | None
    flags: tuple[str, ...]

    @property
    def has_vnni(self) -> bool:
        """Whether products of 8-bit integers are summed in 32 bits: at full speed, and without overflow."""
        return not VNNI.isdisjoint(self.flags)


@dataclass(frozen=True, kw_only=True)
class Memory:
    """Main memory in bytes, None where unknown; `limit` is what a container may use, None when it may use it all."""

    total: int | None
    available: int | None
    limit: int | None


@dataclass(frozen=True, kw_only=True)
class Gpu:
    """An NVIDIA GPU as `nvidia-smi` describes it; memory in MiB, None on boards that share the CPU's."""

    name: str
    compute_capability: str
    memory_mib: int | None
    driver: str


@dataclass(frozen=True, kw_only=True)
class Diagnosis:
    """What was found on this machine.

    Attributes:
        python: version of the interpreter.
        platform: operating system and architecture.
        cpu: processor.
        memory: main memory.
        packages: installed distributions that matter, name to version.
        providers: ONNX Runtime's execution providers, best first; empty when it is missing or cannot be loaded.
        tensorrt: TensorRT modules that can be found, module to version.
        gpus: NVIDIA GPUs.
        jetson: the Jetson board, or None.
        findings: the same for people, with advice.
        abilities: what can run here, and what can only be built.
    """

    python: str
    platform: str
    cpu: Cpu
    memory: Memory
    packages: dict[str, str]
    providers: tuple[str, ...]
    tensorrt: dict[str, str]
    gpus: tuple[Gpu, ...]
    jetson: Jetson | None
    findings: tuple[Finding, ...]
    abilities: tuple[Ability, ...]

    @property
    def runs_graphs(self) -> bool:
        """Whether some runtime here can run a graph."""
        return bool(self.providers) or "openvino" in self.packages

    @property
    def problems(self) -> tuple[Finding, ...]:
        """Findings that need something done before results can be trusted."""
        return tuple(finding for finding in self.findings if finding.level == "problem")

    def rows(self) -> list[tuple[str, str, str]]:
        """The findings as a table of (what, found, advice)."""
        return [(finding.what, finding.found, finding.fix) for finding in self.findings]

    def to_json(self) -> str:
        """Serialise everything, for a bug report or a fleet's inventory."""
        return json.dumps(asdict(self), indent=1)


def doctor(root: Path = Path("/")) -> Diagnosis:
    """Look at this machine; what cannot be found out is reported as unknown and never raises.

    Args:
        root: folder that `/proc`, `/sys` and `/etc` are read under.
    """
    installed = look_around(root)
    output, smi_failure = _run_nvidia_smi()
    gpus = _parse_gpus(output)
    cpu, memory, jetson = read_cpu(root), _memory(root), find_jetson(root)
    targets = tuple(dict.fromkeys(f"sm{gpu.compute_capability.replace('.', '')}" for gpu in gpus))
    usable = bool(installed.tensorrt) or "CUDAExecutionProvider" in installed.providers or jetson is not None
    findings = [
        Finding(what="Python", found=f"{platform.python_version()} ({sys.executable})"),
        Finding(what="platform", found=platform.platform()),
        _judge_cpu(cpu),
        _judge_memory(memory),
        *judge_runtime(installed),
        *judge_tensorrt(installed, jetson, targets),
        _judge_export(installed),
        _judge_gpus(gpus, smi_failure, usable),
        *(judge_jetson(jetson) if jetson else []),
    ]
    return Diagnosis(
        python=platform.python_version(),
        platform=platform.platform(),
        cpu=cpu,
        memory=memory,
        packages=installed.packages,
        providers=installed.providers,
        tensorrt=installed.tensorrt,
        gpus=gpus,
        jetson=jetson,
        findings=tuple(findings),
        abilities=abilities(installed, Place(flags=cpu.flags, targets=targets, jetson=jetson)),
    )


def nvidia_gpus() -> tuple[Gpu, ...]:
    """The NVIDIA GPUs that `nvidia-smi` lists; empty when there is none, or no working driver."""
    return _parse_gpus(_run_nvidia_smi()[0])


def _run_nvidia_smi() -> tuple[str, str]:
    """What the command printed, and why it printed nothing although it is installed."""
    try:
        done = subprocess.run(
            NVIDIA_SMI, capture_output=True, check=False, timeout=NVIDIA_SMI_SECONDS, encoding="utf-8", errors="replace"
        )
    except FileNotFoundError:
        return "", ""
    except (OSError, subprocess.TimeoutExpired) as error:
        return "", str(error)
    if done.returncode != 0:
        said = (done.stderr + done.stdout).strip().partition("\n")[0]
        return "", said or f"exit code {done.returncode}"
    return done.stdout, ""


def _parse_gpus(output: str) -> tuple[Gpu, ...]:
    gpus = []
    for line in output.splitlines():
        fields = [field.strip() for field in line.split(",")]
        if len(fields) == 4:
            mib = re.match(r"\d+", fields[2])  # "[N/A]" on Jetson
            memory_mib = int(mib[0]) if mib else None
            gpus.append(Gpu(name=fields[0], compute_capability=fields[1], memory_mib=memory_mib, driver=fields[3]))
    return tuple(gpus)


def read_cpu(root: Path = Path("/")) -> Cpu:
    """The processor, as far as /proc says it."""
    lines = [line.partition(":") for line in read_quietly(root / "proc/cpuinfo").splitlines()]
    values = {key.strip(): value.strip() for key, _, value in reversed(lines)}  # reversed: the first core's value wins
    present = set((values.get("flags") or values.get("Features") or "").split())
    cores = sum(key.strip() == "processor" for key, _, _ in lines)
    quota, _, period = read_quietly(root / "sys/fs/cgroup/cpu.max").partition(" ")
    limited = quota.isdecimal() and period.isdecimal() and int(period) > 0
    return Cpu(
        model=values.get("model name") or platform.processor() or platform.machine(),
        cores=cores or os.cpu_count() or 1,
        quota=int(quota) / int(period) if limited else None,
        flags=tuple(flag for flag in CPU_FLAGS if flag in present),
    )


def _memory(root: Path) -> Memory:
    kib = dict(re.findall(r"^(\w+): *(\d+) kB", read_quietly(root / "proc/meminfo"), re.MULTILINE))
    limit = read_quietly(root / "sys/fs/cgroup/memory.max")
    return Memory(
        total=int(kib["MemTotal"]) * 1024 if "MemTotal" in kib else None,
        available=int(kib["MemAvailable"]) * 1024 if "MemAvailable" in kib else None,
        limit=int(limit) if limit.isdecimal() else None,
    )


def _judge_cpu(cpu: Cpu) -> Finding:
    found = f"{cpu.model}, {cpu.cores} cores, {' '.join(cpu.flags) or 'instruction sets unknown'}"
    if cpu.quota is not None and cpu.quota < cpu.cores:
        threads = max(1, math.floor(cpu.quota))
        fix = f"the container may use {cpu.quota:g} of the cores; pass --threads {threads}, more threads only wait"
        return Finding(what="processor", found=found, level="note", fix=fix)
    if platform.machine() in ("x86_64", "AMD64") and cpu.flags and "avx2" not in cpu.flags:
        fix = "without AVX2 graphs run several times slower; use another machine or virtual CPU type for large jobs"
        return Finding(what="processor", found=found, level="note", fix=fix)
    return Finding(what="processor", found=found)


def _judge_memory(memory: Memory) -> Finding:
    parts = [
        f"{size / GIB:.1f} GiB {name}"
        for name, size in (("in all", memory.total), ("available", memory.available), ("container limit", memory.limit))
        if size is not None
    ]
    known = [size for size in (memory.available, memory.limit) if size is not None]
    if known and min(known) < SMALL_MEMORY:
        fix = "too little for ViT-L and larger; close other programs or raise the limit, and use a small --batch"
        return Finding(what="memory", found=", ".join(parts), level="note", fix=fix)
    return Finding(what="memory", found=", ".join(parts) or "unknown")


def _judge_export(installed: Installed) -> Finding:
    packages = installed.packages
    found = ", ".join(f"{name} {packages[name]}" for name in ("torch", "onnx") if name in packages)
    if "torch" in packages and "onnx" in packages:
        return Finding(what="export", found=found)
    fix = "only needed to export graphs and to train; to do that here run: pip install 'mae-export[export]'"
    return Finding(what="export", found=found or "not installed", level="note", fix=fix)


def _judge_gpus(gpus: tuple[Gpu, ...], failure: str, usable: bool) -> Finding:
    if failure:
        fix = "the driver does not answer; restart the machine, or reinstall the driver if it stays so"
        return Finding(what="NVIDIA GPU", found=f"nvidia-smi failed: {failure}", level="note", fix=fix)
    found = "; ".join(
        f"{gpu.name}, compute capability {gpu.compute_capability}"
        + (f", {gpu.memory_mib / 1024:.0f} GiB" if gpu.memory_mib is not None else "")
        + f", driver {gpu.driver}"
        for gpu in gpus
    )
    if gpus and not usable:
        fix = "no runtime here can use it; run: pip uninstall -y onnxruntime, then: pip install 'mae-export[gpu]'"
        return Finding(what="NVIDIA GPU", found=found, level="note", fix=fix)
    return Finding(what="NVIDIA GPU", found=found or "none")
