"""Which backend builds, for which GPUs, and that the names used exist in the packages that are installed."""

import ast
import importlib
import importlib.metadata
import re
import subprocess
import sys
from pathlib import Path

import pytest

from mae_export.errors import MachineError, UsageError
from mae_export.export import flavour
from mae_export.export.plan import EnginePlan
from mae_export.runtime.doctor import Gpu

ROOT = Path(__file__).parents[2]
SOURCES = [ROOT / "mae_export" / "export" / name for name in ("build_plan.py", "flavour.py")]
ADA = Gpu(name="L4", compute_capability="8.9", memory_mib=23034, driver="580")


@pytest.fixture
def machine(monkeypatch):
    """Pretend that these backends are installed and these GPUs are here."""

    def pretend(*backends, gpus=()):
        monkeypatch.setattr(flavour, "find_module", lambda backend: backend if backend in backends else None)
        monkeypatch.setattr(flavour, "nvidia_gpus", lambda: gpus)

    return pretend


@pytest.mark.parametrize(
    ("installed", "plan", "expected"),
    [
        (("tensorrt", "rtx"), EnginePlan(), "tensorrt"),
        (("tensorrt", "rtx"), EnginePlan(targets=("this",)), "tensorrt"),
        (("tensorrt", "rtx"), EnginePlan(targets=("sm86",)), "rtx"),
        (("tensorrt", "rtx"), EnginePlan(backend="rtx"), "rtx"),
        (("rtx",), EnginePlan(), "rtx"),
        (("tensorrt",), EnginePlan(targets=("sm90",)), "tensorrt"),
    ],
)
def test_choice(machine, installed, plan, expected):
    machine(*installed)
    assert flavour.choose_backend(plan) == expected


def test_nothing_installed(machine):
    machine()
    with pytest.raises(MachineError, match=r"needs TensorRT \(pip install 'mae-export\[tensorrt\]'\) or TensorRT-RTX"):
        flavour.choose_backend(EnginePlan())
    machine("rtx")
    with pytest.raises(MachineError, match=r"needs TensorRT .*which is not installed"):
        flavour.choose_backend(EnginePlan(backend="tensorrt"))


def test_stubs_alone_are_no_tensorrt(tmp_path, monkeypatch):
    (tmp_path / "tensorrt").mkdir()
    (tmp_path / "tensorrt" / "__init__.pyi").touch()
    monkeypatch.setattr(sys, "path", [str(tmp_path)])
    monkeypatch.delitem(sys.modules, "tensorrt", raising=False)
    importlib.invalidate_caches()
    assert flavour.find_module("tensorrt") is None


def test_targets(machine):
    machine("rtx", "tensorrt", gpus=(ADA,))
    assert flavour.resolve_targets("rtx", EnginePlan()) == ("sm86", "sm89", "sm120")
    assert flavour.resolve_targets("rtx", EnginePlan(targets=("sm75",))) == ("sm75",)
    assert flavour.resolve_targets("rtx", EnginePlan(targets=("this",))) == ("sm89",)
    assert flavour.resolve_targets("tensorrt", EnginePlan()) == ("sm89",)
    assert flavour.resolve_targets("tensorrt", EnginePlan(targets=("sm89",))) == ("sm89",)
    machine("rtx", "tensorrt")
    assert flavour.resolve_targets("tensorrt", EnginePlan()) == ("this",)


@pytest.mark.parametrize("target", ["sm87", "sm90", "sm100", "sm110"])
def test_rtx_has_no_such_target(target):
    with pytest.raises(UsageError, match=f"TensorRT-RTX cannot build for {target}; it knows sm75, sm80"):
        flavour.resolve_targets("rtx", EnginePlan(targets=(target,)))


def test_targets_that_are_not_here(machine):
    machine("rtx")
    with pytest.raises(MachineError, match="--target this needs an NVIDIA GPU"):
        flavour.resolve_targets("rtx", EnginePlan(targets=("this",)))
    with pytest.raises(UsageError, match=r"GPU of its own machine \(none found\), not for sm86"):
        flavour.resolve_targets("tensorrt", EnginePlan(targets=("sm86",)))


def test_options_that_would_be_ignored_are_refused_by_name(tmp_path):
    with pytest.raises(UsageError, match="TensorRT-RTX ignores --timing-cache"):
        flavour.refuse_unhonoured("rtx", EnginePlan(timing_cache=tmp_path / "t"))
    with pytest.raises(UsageError, match="TensorRT-RTX ignores --level"):
        flavour.refuse_unhonoured("rtx", EnginePlan(level=5))
    flavour.refuse_unhonoured("tensorrt", EnginePlan(level=5, timing_cache=tmp_path / "t"))


def test_a_backend_that_cannot_be_imported(machine, tmp_path, monkeypatch):
    (tmp_path / "broken_trt.py").write_text("raise ImportError('libnvinfer.so.10: cannot open shared object file')")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(flavour, "find_module", lambda _: "broken_trt")
    with pytest.raises(MachineError, match=r"TensorRT cannot be imported \(libnvinfer\.so\.10"):
        flavour.load("tensorrt")


def names_used():
    """Every dotted name that begins with `trt.` in the sources, such as trt.MemoryPoolType.WORKSPACE."""
    for path in SOURCES:
        for node in ast.walk(ast.parse(path.read_text())):
            text = ast.unparse(node) if isinstance(node, ast.Attribute) else ""
            if re.fullmatch(r"trt(\.\w+)+", text):
                yield text.removeprefix("trt.")


def test_names_exist_in_tensorrt_rtx():
    """Its bindings are those of TensorRT 11 but for what is missing in both."""
    name = flavour.find_module("rtx")
    if name is None:
        pytest.skip("tensorrt-rtx-cu13-bindings is not installed")
    found = set(names_used())
    assert {"IProgressMonitor", "MemoryPoolType.WORKSPACE", "NetworkDefinitionCreationFlag"} <= found
    missing = []
    for dotted in sorted(found):
        value = importlib.import_module(name)
        for part in dotted.split("."):
            value = getattr(value, part, None)
        missing += [dotted] if value is None else []
    assert missing == []


def stubs(folder):
    """A copy of the published stubs of TensorRT 10.13 in which the five signatures that are no Python are replaced."""
    try:
        files = importlib.metadata.distribution("tensorrt-stubs").files or []
    except importlib.metadata.PackageNotFoundError:
        pytest.skip("tensorrt-stubs is not installed")
    for file in (file for file in files if file.suffix == ".pyi"):
        lines = Path(str(file.locate())).read_text().split("\n")
        while (wrong := syntax_error(lines)) is not None:
            while "def " not in lines[wrong]:
                wrong -= 1
            lines[wrong] = re.sub(r"def (\w+)\(.*", r"def \1(self, *args: object) -> object:", lines[wrong])
        target = folder / file
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text("\n".join(lines))


def syntax_error(lines):
    try:
        ast.parse("\n".join(lines))
    except SyntaxError as error:
        return error.lineno - 1
    return None


def mypy(folder, *sources):
    """Errors in the sources alone; the stubs have hundreds of their own."""
    command = [sys.executable, "-m", "mypy", "--strict", "--follow-imports=silent", "--config-file=", "--cache-dir"]
    done = subprocess.run(
        [*command, str(folder / "cache"), *map(str, sources)],
        cwd=ROOT,
        env={"MYPYPATH": str(folder), "PATH": ""},
        capture_output=True,
        text=True,
    )
    named = {path.name for path in sources}
    return [line for line in done.stdout.splitlines() if Path(line.partition(":")[0]).name in named]


def test_types_against_the_stubs_of_tensorrt(tmp_path):
    stubs(tmp_path)
    wrong = tmp_path / "wrong.py"
    wrong.write_text("import tensorrt as trt\n\nx = trt.MemoryPoolType.WORKSPACES\n")
    found = mypy(tmp_path, *SOURCES, wrong)
    assert len(found) == 1, found
    assert '"type[MemoryPoolType]" has no attribute "WORKSPACES"' in found[0]
