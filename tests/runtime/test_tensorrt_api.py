"""Loading backends, and the names of TensorRT that the package uses: each exists in 10.13, 11 and TensorRT-RTX, or is
declared absent."""

import ast
import importlib
import importlib.metadata
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from mae_export.errors import MachineError, ResourceError
from mae_export.runtime import tensorrt_api
from mae_export.runtime.tensorrt_api import (
    ABSENT,
    deserialise,
    find_module,
    import_backend,
    make_logger,
    open_library,
    shown_errors,
)
from tests.runtime.tensorrt_double import install

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "mae_export"
SOURCES = [PACKAGE / "export" / name for name in ("build_plan.py", "flavour.py")]
SOURCES += [PACKAGE / "runtime" / name for name in ("tensorrt_api.py", "lane.py", "trt.py")]
# What a call gives, for following objects through a function.
RETURNS = {
    "Builder": "Builder",
    "OnnxParser": "OnnxParser",
    "Runtime": "Runtime",
    "context": "IExecutionContext",
    "create_builder_config": "IBuilderConfig",
    "create_engine_inspector": "EngineInspector",
    "create_execution_context": "IExecutionContext",
    "create_network": "INetworkDefinition",
    "create_optimization_profile": "IOptimizationProfile",
    "create_runtime_cache": "IRuntimeCache",
    "create_runtime_config": "IRuntimeConfig",
    "create_timing_cache": "ITimingCache",
    "deserialize_cuda_engine": "ICudaEngine",
    "get_error": "ParserError",
    "new_context": "IExecutionContext",
}


def test_stubs_alone_are_no_tensorrt(tmp_path, monkeypatch):
    (tmp_path / "tensorrt").mkdir()
    (tmp_path / "tensorrt" / "__init__.pyi").touch()
    monkeypatch.setattr(sys, "path", [str(tmp_path)])
    monkeypatch.delitem(sys.modules, "tensorrt", raising=False)
    importlib.invalidate_caches()
    assert find_module("tensorrt") is None
    with pytest.raises(MachineError, match=r"TensorRT is not installed; run: pip install 'mae-export\[tensorrt\]'"):
        import_backend("tensorrt")


def test_a_backend_that_cannot_be_imported(tmp_path, monkeypatch):
    (tmp_path / "broken_trt.py").write_text("raise ImportError('libnvinfer.so.10: cannot open shared object file')")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(tensorrt_api, "find_module", lambda _: "broken_trt")
    with pytest.raises(MachineError, match=r"TensorRT cannot be imported \(libnvinfer\.so\.10"):
        open_library("tensorrt")


def test_a_process_has_one_logger_for_each_backend(monkeypatch):
    install(monkeypatch)
    first, second = open_library("tensorrt"), open_library("tensorrt")
    assert first.records is second.records
    assert first.title == "TensorRT 10.13.3.9"
    logger = tensorrt_api._logger(first.module)
    severity = first.module.ILogger.Severity
    for level, text in (
        (severity.VERBOSE, "v"),
        (severity.ERROR, "one"),
        (severity.INFO, "i"),
        (severity.ERROR, "two"),
    ):
        logger.log(level, text)
    assert [text for _, text in first.records] == ["one", "i", "two"]
    assert first.said() == "one; two"
    assert second.said() == "no reason given"


def test_wanted_verbose_messages_are_kept(monkeypatch):
    install(monkeypatch)
    module, records = open_library("tensorrt").module, []
    logger = make_logger(module, records, ("Layer",))
    for text in ("Layer: a", "Tactic: b"):
        logger.log(module.ILogger.Severity.VERBOSE, text)
    assert records == [("VERBOSE", "Layer: a")]


def test_errors_are_shown_once():
    records = [("ERROR", "a"), ("INFO", "b"), ("INTERNAL_ERROR", "c"), ("ERROR", "a"), ("ERROR", "d")]
    assert shown_errors(records) == "a; c"
    assert shown_errors([]) == ""


def test_the_real_library_says_why_it_refuses_a_plan():
    if find_module("rtx") is None:
        pytest.skip("tensorrt-rtx-cu13-bindings is not installed")
    library = open_library("rtx")
    with pytest.raises(MachineError, match=r"TensorRT-RTX 1\..* cannot load the plan: .*Error Code.*Build it again"):
        deserialise(library, b"no plan at all" * 100)


@pytest.mark.parametrize(
    ("words", "kind"),
    [("x.so: failed to map segment from shared object", ResourceError), ("undefined symbol: f", MachineError)],
)
def test_memory_that_runs_out_while_loading(tmp_path, monkeypatch, words, kind):
    (tmp_path / "starved_trt.py").write_text(f"raise ImportError({words!r})")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(tensorrt_api, "find_module", lambda _: "starved_trt")
    with pytest.raises(kind, match=words):
        import_backend("rtx")


# Names


def names_used():
    """Names of TensorRT in the sources, such as `MemoryPoolType.WORKSPACE` or `IExecutionContext.set_input_shape`."""
    for path in SOURCES:
        tree = ast.parse(path.read_text())
        for node in ast.walk(tree):
            if isinstance(node, ast.Attribute):
                dotted = re.fullmatch(r"(?:trt|module|library\.module)\.([A-Z]\w*(?:\.\w+)?)", ast.unparse(node))
                if dotted:
                    yield dotted[1]
            if isinstance(node, ast.FunctionDef):
                yield from members_used(node)
        yield from re.findall(r'getattr\((?:trt|module), "(\w+)"', path.read_text())


def members_used(function):
    """`Class.member` of every variable whose class is known from its annotation or from what made it."""
    arguments = [node for node in ast.walk(function) if isinstance(node, ast.arg) and node.annotation is not None]
    found = {node.arg: re.fullmatch(r"trt\.(\w+)", ast.unparse(node.annotation)) for node in arguments}
    kinds = {name: kind[1] for name, kind in found.items() if kind}
    for node in ast.walk(function):
        if isinstance(node, ast.Assign | ast.AnnAssign) and node.value is not None:
            target = node.targets[0] if isinstance(node, ast.Assign) else node.target
            made = kind_of(node.value, kinds)
            if isinstance(target, ast.Name) and made:
                kinds[target.id] = made
    for node in ast.walk(function):
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id in kinds:
            yield f"{kinds[node.value.id]}.{node.attr}"
        if isinstance(node, ast.Call) and ast.unparse(node.func) == "getattr":
            subject, name = node.args[:2]
            if isinstance(subject, ast.Name) and subject.id in kinds and isinstance(name, ast.Constant):
                yield f"{kinds[subject.id]}.{name.value}"


def kind_of(value, kinds):
    calls = [node for node in ast.walk(value) if isinstance(node, ast.Call)]
    for call in calls:
        name = ast.unparse(call.func).rpartition(".")[2]
        if name in RETURNS:
            return RETURNS[name]
        if name == "getattr" and ast.unparse(call.args[0]) in ("trt", "module"):
            return call.args[1].value
    return kinds.get(value.id) if isinstance(value, ast.Name) else None


def listed_in_11():
    names = json.loads((ROOT / "tests" / "data" / "tensorrt_11_names.json").read_text())["names"]
    return lambda name, member: name in names and (member is None or member in names[name])


def installed_rtx():
    found = find_module("rtx")
    if found is None:
        pytest.skip("tensorrt-rtx-cu13-bindings is not installed")
    module = importlib.import_module(found)
    return lambda name, member: hasattr(getattr(module, name, None), member) if member else hasattr(module, name)


def stubbed_in_10(folder):
    stubs(folder)
    names = {}
    for node in ast.parse((folder / "tensorrt_bindings" / "tensorrt.pyi").read_text()).body:
        if isinstance(node, ast.ClassDef):
            own = names.setdefault(node.name, set())
            for base in node.bases:
                own |= names.get(ast.unparse(base), set())
            for item in node.body:
                own |= {item.name} if isinstance(item, ast.FunctionDef | ast.ClassDef) else set()
                own |= {ast.unparse(item.target)} if isinstance(item, ast.AnnAssign) else set()
                own |= {ast.unparse(target) for target in item.targets} if isinstance(item, ast.Assign) else set()
    return lambda name, member: name in names and (member is None or member in names[name])


@pytest.fixture(scope="module")
def used():
    found = {name for name in names_used() if not name.endswith(".__init__")}
    known = {"IProgressMonitor", "MemoryPoolType.WORKSPACE", "IExecutionContext.set_input_shape"}
    known |= {"ICudaEngine.device_memory_size_v2", "IRuntimeConfig.set_runtime_cache", "TensorIOMode.INPUT"}
    assert known <= found
    assert len(found) > 60
    return found


@pytest.mark.parametrize("version", ["10.13", "11", "rtx"])
def test_every_name_exists_or_is_declared_absent(used, version, tmp_path):
    exists = {"10.13": lambda: stubbed_in_10(tmp_path), "11": listed_in_11, "rtx": installed_rtx}[version]()
    parts = {dotted: (*dotted.split("."), None)[:2] for dotted in used}
    missing = {dotted for dotted, part in parts.items() if not exists(*part)}
    assert missing == used & set(ABSENT[version])


def test_what_is_declared_absent_is_absent(tmp_path):
    checks = {"10.13": stubbed_in_10(tmp_path), "11": listed_in_11()}
    for version, exists in checks.items():
        assert [name for name in ABSENT[version] if exists(*(*name.split("."), None)[:2])] == []


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
        [*command, str(folder / "cache"), "--disable-error-code=import-not-found", *map(str, sources)],
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
