"""Which runtimes are installed, and whether they fit each other and this machine.

ONNX Runtime is imported, to ask which providers it has; everything else is known by its metadata and its files, so a
broken installation is reported, not triggered. TensorRT has flavours that are easily taken for each other: the full one
builds and runs engines, lean and dispatch run only version-compatible ones, and TensorRT-RTX runs only its own.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from mae_export.errors import MachineError
from mae_export.runtime.finding import Finding, Level
from mae_export.runtime.jetson import Jetson
from mae_export.runtime.known_bad import judge_version

# Distributions that all install a package called `onnxruntime`.
RUNTIME_DISTRIBUTIONS = (
    *("onnxruntime", "onnxruntime-gpu", "onnxruntime-openvino", "onnxruntime-directml", "onnxruntime-qnn"),
    *("onnxruntime-migraphx", "onnxruntime-rocm", "onnxruntime-training"),
)
OTHERS = ("torch", "onnx", "openvino", "cuda-bindings", "onnxruntime-ep-nv-tensorrt-rtx")
TENSORRT_MODULES = ("tensorrt", "tensorrt_lean", "tensorrt_dispatch", "tensorrt_rtx", "tensorrt_rtx_bindings")
PARTIAL = ("tensorrt_lean", "tensorrt_dispatch")
PRECISIONS = ("fp32", "fp16", "bf16")
TENSORRT_PROVIDER = "TensorrtExecutionProvider"
PROVIDER_LIBRARY = "onnxruntime/capi/libonnxruntime_providers_tensorrt.so"
LIBRARY_FOLDERS = ("usr/lib", "usr/lib/aarch64-linux-gnu", "usr/lib/x86_64-linux-gnu", "usr/local/lib")
FIRST_L4T_OF_11 = 39  # JetPack 7.2; 7.2.2 is the first that TensorRT 11 supports


@dataclass(frozen=True, kw_only=True)
class Installed:
    """The runtimes of this environment.

    Attributes:
        packages: installed distributions that matter, name to version.
        providers: ONNX Runtime's execution providers, best first; empty when it is missing or cannot be loaded.
        load_failure: why there are none although it is installed.
        tensorrt: TensorRT modules that can be found, module to version.
        libraries: TensorRT's shared libraries that the loader can find, such as `libnvinfer.so.10`.
        wanted_library: the one that ONNX Runtime's TensorRT provider was linked with; "" without that provider.
    """

    packages: dict[str, str]
    providers: tuple[str, ...]
    load_failure: str
    tensorrt: dict[str, str]
    libraries: tuple[str, ...]
    wanted_library: str


def look_around(root: Path = Path("/")) -> Installed:
    """Find out what is installed; never raises.

    Args:
        root: folder that system libraries are looked for under.
    """
    packages = _packages()
    providers, failure = _providers(packages)
    return Installed(
        packages=packages,
        providers=providers,
        load_failure=failure,
        tensorrt=_tensorrt_modules(packages),
        libraries=_libraries(root),
        wanted_library=_wanted_library(packages) if TENSORRT_PROVIDER in providers else "",
    )


def judge_runtime(installed: Installed) -> list[Finding]:
    """ONNX Runtime and OpenVINO: whether they run graphs, and whether the TensorRT provider can be loaded."""
    found = [_judge_onnxruntime(installed)]
    if "openvino" in installed.packages:
        found.append(Finding(what="OpenVINO", found=installed.packages["openvino"]))
    wanted = installed.wanted_library
    if wanted and wanted not in installed.libraries:
        major = int(wanted.rpartition(".")[2])
        fix = (
            f"it cannot be loaded, and graphs run on the next provider; run: pip install 'tensorrt-cu13<{major + 1}', "
            "and name the folder of its libraries in LD_LIBRARY_PATH"
        )
        here = ", ".join(installed.libraries) or "none"
        what = f"{TENSORRT_PROVIDER} needs {wanted}; found: {here}"
        found.append(Finding(what="TensorRT provider", found=what, level="note", fix=fix))
    return found


def judge_tensorrt(installed: Installed, jetson: Jetson | None, targets: tuple[str, ...]) -> list[Finding]:
    """TensorRT: which flavours there are, whether they belong here, and what is known against their versions.

    Args:
        installed: from `look_around`.
        jetson: the board, if it is one.
        targets: compute capabilities of the GPUs, such as `sm87`.
    """
    modules = installed.tensorrt
    shown = ", ".join((*(f"{module} {version}" for module, version in modules.items()), *installed.libraries))
    finding = Finding(what="TensorRT", found=shown or "not installed")
    fix = _misplaced(modules, jetson) or missing_bindings(installed, jetson)
    if fix:
        finding = Finding(what="TensorRT", found=finding.found, level="note", fix=fix)
    version = modules.get("tensorrt", "")
    if jetson and jetson.release and jetson.release < FIRST_L4T_OF_11 and version.startswith("11."):
        fix = (
            "TensorRT 11 does not support this JetPack; run: pip uninstall -y tensorrt tensorrt-cu12 tensorrt-cu13, "
            "and use the one that JetPack installed for the system's Python"
        )
        finding = Finding(what="TensorRT", found=finding.found, level="problem", fix=fix)
    return [finding, *_known_faults(version, targets)]


def _misplaced(modules: dict[str, str], jetson: Jetson | None) -> str:
    """What to do about a flavour that does not run the engines of this package here; "" when all is well."""
    if jetson and not modules:
        return "JetPack puts it in the system's Python; make environments with: python3 -m venv --system-site-packages"
    if "tensorrt" in modules:
        return ""
    if jetson and any(module.startswith("tensorrt_rtx") for module in modules):
        return "TensorRT-RTX has no kernels for Jetson; use JetPack's TensorRT: python3 -m venv --system-site-packages"
    if any(module in PARTIAL for module in modules):
        return "lean and dispatch run only version-compatible engines; for ours run: pip install 'mae-export[tensorrt]'"
    return ""


def missing_bindings(installed: Installed, jetson: Jetson | None) -> str:
    """What to do where TensorRT is installed without cuda-python; "" when all is well."""
    if not installed.tensorrt or "cuda-bindings" in installed.packages:
        return ""
    bound = ",<13" if jetson and jetson.release == 36 else ""
    return f"run: pip install 'cuda-python>=12.6{bound}', for memory and streams of the GPU, which engines need"


def _known_faults(version: str, targets: tuple[str, ...]) -> Iterator[Finding]:
    if not version[:1].isdecimal():
        return
    judged = [_judge_known(version, precision, targets) for precision in PRECISIONS]
    refusals = [text for refused, text in judged if refused]
    sentences = refusals or list(dict.fromkeys(text for _, text in judged if text))
    if sentences:
        level: Level = "problem" if refusals else "note"
        fix = sentences[0] if refusals else "; ".join(sentences)
        yield Finding(what="TensorRT version", found=version, level=level, fix=fix)


def _judge_known(version: str, precision: str, targets: tuple[str, ...]) -> tuple[bool, str]:
    """Whether a version must not be used, and what is known against it."""
    try:
        return False, "; ".join(judge_version("tensorrt", version, precision=precision, targets=targets))
    except MachineError as error:
        return True, str(error)


def _packages() -> dict[str, str]:
    """Versions of the distributions that matter, by name in lower case with dashes."""
    found: dict[str, str] = {}
    for distribution in importlib.metadata.distributions():
        name = str(distribution.metadata["Name"]).lower().replace("_", "-")
        if name in (*RUNTIME_DISTRIBUTIONS, *OTHERS) or name.startswith("tensorrt"):
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


def _libraries(root: Path) -> tuple[str, ...]:
    folders = [root / name for name in LIBRARY_FOLDERS]
    folders += [Path(name) for name in os.environ.get("LD_LIBRARY_PATH", "").split(os.pathsep) if name]
    names = {path.name for folder in folders for path in folder.glob("libnvinfer*.so.*")}
    return tuple(sorted(name for name in names if re.fullmatch(r"libnvinfer(_lean|_dispatch)?\.so\.\d+", name)))


def _wanted_library(packages: dict[str, str]) -> str:
    """The library that the provider names as needed; its text holds no other name of that form."""
    for name in (name for name in RUNTIME_DISTRIBUTIONS if name in packages):
        path = Path(str(importlib.metadata.distribution(name).locate_file(PROVIDER_LIBRARY)))
        try:
            names = re.findall(rb"libnvinfer\.so\.\d+", path.read_bytes())
        except OSError:
            continue
        if names:
            return bytes(names[0]).decode()
    return ""


def _judge_onnxruntime(installed: Installed) -> Finding:
    packages, providers = installed.packages, installed.providers
    owners = [name for name in RUNTIME_DISTRIBUTIONS if name in packages]
    found = ", ".join((*(f"{name} {packages[name]}" for name in owners), *providers)) or "not installed"
    if len(owners) > 1:
        fix = (
            f"{' and '.join(owners)} overwrite each other's files; run: pip uninstall -y {' '.join(owners)}, "
            "then install one: pip install 'mae-export[cpu]' or 'mae-export[gpu]'"
        )
        return Finding(what="ONNX Runtime", found=found, level="problem", fix=fix)
    if installed.load_failure:
        fix = f"it cannot be loaded ({installed.load_failure}); run: pip install --force-reinstall {owners[0]}"
        return Finding(what="ONNX Runtime", found=found, level="problem", fix=fix)
    if not providers and "openvino" in packages:
        fix = "graphs run on OpenVINO; for other devices run: pip install 'mae-export[cpu]' or 'mae-export[gpu]'"
        return Finding(what="ONNX Runtime", found=found, level="note", fix=fix)
    if not providers:
        fix = "nothing here can run a graph; run: pip install 'mae-export[cpu]', or 'mae-export[gpu]' for NVIDIA GPUs"
        return Finding(what="ONNX Runtime", found=found, level="problem", fix=fix)
    return Finding(what="ONNX Runtime", found=found)
