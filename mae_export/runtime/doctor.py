"""What this machine can run, and what to do about what it cannot.

Reads files under a root folder, package metadata and `nvidia-smi`. The only package it imports is ONNX Runtime, to ask
which providers it has; everything else is known by its metadata, so a broken installation is reported, not triggered.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import json
import math
import os
import platform
import re
import subprocess
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

Level = Literal["ok", "note", "problem"]

GIB = 2**30
SMALL_MEMORY = 2 * GIB  # a ViT-L graph is 1.2 GB of weights before any activation
FIRST_SUPPORTED_L4T = 36  # JetPack 6: Python 3.10, TensorRT 10.3
NVIDIA_SMI = ("nvidia-smi", "--query-gpu=name,compute_cap,memory.total,driver_version", "--format=csv,noheader")
NVIDIA_SMI_SECONDS = 20.0  # the first call on an idle server loads the driver

# Instruction sets that decide the speed of fp32, bf16, fp16 and int8 kernels, as /proc/cpuinfo spells them.
CPU_FLAGS = (
    *("avx2", "fma", "avx512f", "avx512_vnni", "avx_vnni", "avx512_bf16", "avx512_fp16"),
    *("amx_int8", "amx_bf16", "asimd", "asimdhp", "asimddp", "i8mm", "bf16", "sve"),
)
# Distributions that all install a package called `onnxruntime`.
RUNTIME_DISTRIBUTIONS = (
    *("onnxruntime", "onnxruntime-gpu", "onnxruntime-openvino", "onnxruntime-directml", "onnxruntime-qnn"),
    *("onnxruntime-migraphx", "onnxruntime-rocm", "onnxruntime-training"),
)
TENSORRT_MODULES = ("tensorrt", "tensorrt_rtx", "tensorrt_rtx_bindings")


@dataclass(frozen=True, kw_only=True)
class Finding:
    """One thing that was looked at: what was found, how much it matters, and a sentence on what to do, or ""."""

    what: str
    found: str
    level: Level = "ok"
    fix: str = ""


@dataclass(frozen=True, kw_only=True)
class Cpu:
    """The processor; `quota` is the number of cores that a container may use, None when it may use them all."""

    model: str
    cores: int
    quota: float | None
    flags: tuple[str, ...]


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
class Jetson:
    """An NVIDIA Jetson board; `l4t` is its Linux release such as 36.4.3, "" inside a container that hides it."""

    model: str
    l4t: str


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

    @property
    def runs_graphs(self) -> bool:
        """Whether some runtime here can run a graph."""
        return bool(self.providers)

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
    packages = _installed()
    providers, load_failure = _providers(packages)
    tensorrt = _tensorrt_modules(packages)
    output, smi_failure = _run_nvidia_smi()
    gpus = _parse_gpus(output)
    cpu, memory, jetson = _cpu(root), _memory(root), _jetson(root)
    findings = [
        Finding(what="Python", found=f"{platform.python_version()} ({sys.executable})"),
        Finding(what="platform", found=platform.platform()),
        _judge_cpu(cpu),
        _judge_memory(memory),
        _judge_runtime(packages, providers, load_failure),
        _judge_tensorrt(tensorrt, jetson),
        _judge_export(packages),
        _judge_gpus(gpus, smi_failure, bool(tensorrt) or "CUDAExecutionProvider" in providers or jetson is not None),
        *([_judge_jetson(jetson)] if jetson else []),
    ]
    return Diagnosis(
        python=platform.python_version(),
        platform=platform.platform(),
        cpu=cpu,
        memory=memory,
        packages=packages,
        providers=providers,
        tensorrt=tensorrt,
        gpus=gpus,
        jetson=jetson,
        findings=tuple(findings),
    )


def nvidia_gpus() -> tuple[Gpu, ...]:
    """The NVIDIA GPUs that `nvidia-smi` lists; empty when there is none, or no working driver."""
    return _parse_gpus(_run_nvidia_smi()[0])


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace").strip("\0\n ")
    except OSError:
        return ""


def _installed() -> dict[str, str]:
    """Versions of the distributions that matter, by name in lower case with dashes."""
    found: dict[str, str] = {}
    for distribution in importlib.metadata.distributions():
        name = str(distribution.metadata["Name"]).lower().replace("_", "-")
        if name in (*RUNTIME_DISTRIBUTIONS, "torch", "onnx") or name.startswith("tensorrt"):
            found.setdefault(name, distribution.version)  # the first on sys.path is the one that imports see
    return found


def _providers(packages: dict[str, str]) -> tuple[tuple[str, ...], str]:
    """ONNX Runtime's providers, and why there are none although it is installed."""
    try:
        import onnxruntime

        return tuple(onnxruntime.get_available_providers()), ""
    except (ImportError, AttributeError, OSError) as error:  # AttributeError: two distributions, partly overwritten
        installed = any(name in packages for name in RUNTIME_DISTRIBUTIONS)
        return (), str(error).partition("\n")[0] if installed else ""


def _tensorrt_modules(packages: dict[str, str]) -> dict[str, str]:
    # Named by CUDA version: the distribution tensorrt-rtx-cu13-bindings holds the module tensorrt_rtx_bindings.
    versions = {re.sub(r"-cu\d+", "", name).replace("-", "_"): version for name, version in packages.items()}
    specs = {module: importlib.util.find_spec(module) for module in TENSORRT_MODULES}
    # A folder of type stubs is found as a module without origin.
    present = [module for module, spec in specs.items() if spec is not None and spec.origin is not None]
    return {module: versions.get(module, "unknown version") for module in present}


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


def _cpu(root: Path) -> Cpu:
    lines = [line.partition(":") for line in _read(root / "proc/cpuinfo").splitlines()]
    values = {key.strip(): value.strip() for key, _, value in reversed(lines)}  # reversed: the first core's value wins
    present = set((values.get("flags") or values.get("Features") or "").split())
    cores = sum(key.strip() == "processor" for key, _, _ in lines)
    quota, _, period = _read(root / "sys/fs/cgroup/cpu.max").partition(" ")
    limited = quota.isdecimal() and period.isdecimal() and int(period) > 0
    return Cpu(
        model=values.get("model name") or platform.processor() or platform.machine(),
        cores=cores or os.cpu_count() or 1,
        quota=int(quota) / int(period) if limited else None,
        flags=tuple(flag for flag in CPU_FLAGS if flag in present),
    )


def _memory(root: Path) -> Memory:
    kib = dict(re.findall(r"^(\w+): *(\d+) kB", _read(root / "proc/meminfo"), re.MULTILINE))
    limit = _read(root / "sys/fs/cgroup/memory.max")
    return Memory(
        total=int(kib["MemTotal"]) * 1024 if "MemTotal" in kib else None,
        available=int(kib["MemAvailable"]) * 1024 if "MemAvailable" in kib else None,
        limit=int(limit) if limit.isdecimal() else None,
    )


def _jetson(root: Path) -> Jetson | None:
    model = _read(root / "proc/device-tree/model")
    release = re.search(r"R(\d+).*REVISION: *([\d.]+)", _read(root / "etc/nv_tegra_release"))
    if release is None and "Jetson" not in model:
        return None
    return Jetson(model=model or "unknown board", l4t=f"{release[1]}.{release[2]}" if release else "")


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


def _judge_runtime(packages: dict[str, str], providers: tuple[str, ...], failure: str) -> Finding:
    owners = [name for name in RUNTIME_DISTRIBUTIONS if name in packages]
    found = ", ".join((*(f"{name} {packages[name]}" for name in owners), *providers)) or "not installed"
    if len(owners) > 1:
        fix = (
            f"{' and '.join(owners)} overwrite each other's files; run: pip uninstall -y {' '.join(owners)}, "
            "then install one: pip install 'mae-export[cpu]' or 'mae-export[gpu]'"
        )
        return Finding(what="ONNX Runtime", found=found, level="problem", fix=fix)
    if failure:
        fix = f"it cannot be loaded ({failure}); run: pip install --force-reinstall {owners[0]}"
        return Finding(what="ONNX Runtime", found=found, level="problem", fix=fix)
    if not providers:
        fix = "nothing here can run a graph; run: pip install 'mae-export[cpu]', or 'mae-export[gpu]' for NVIDIA GPUs"
        return Finding(what="ONNX Runtime", found=found, level="problem", fix=fix)
    return Finding(what="ONNX Runtime", found=found)


def _judge_tensorrt(modules: dict[str, str], jetson: Jetson | None) -> Finding:
    found = ", ".join(f"{module} {version}" for module, version in modules.items()) or "not installed"
    if jetson and not modules:
        fix = "JetPack puts it in the system's Python; make environments with: python3 -m venv --system-site-packages"
        return Finding(what="TensorRT", found=found, level="note", fix=fix)
    return Finding(what="TensorRT", found=found)


def _judge_export(packages: dict[str, str]) -> Finding:
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


def _judge_jetson(jetson: Jetson) -> Finding:
    found = f"{jetson.model}, L4T {jetson.l4t or 'unknown'}"
    if jetson.l4t and int(jetson.l4t.partition(".")[0]) < FIRST_SUPPORTED_L4T:
        fix = (
            f"L4T {FIRST_SUPPORTED_L4T} (JetPack 6) is the first with a TensorRT that reads the graphs; flash JetPack 6"
        )
        return Finding(what="Jetson", found=found, level="note", fix=fix)
    return Finding(what="Jetson", found=found)
