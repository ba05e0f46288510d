"""Each part of the package imports with its own extras alone, and the table of extras says why each line is there.

A child process blocks every installed package that the extras in question do not bring in, directly or through what
they need, as the packages' own metadata says; then it imports every module of the part.
"""

import importlib.metadata
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).parents[2]
PYPROJECT = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
PROJECT = tomllib.loads(PYPROJECT)["project"]
EXTRAS: dict[str, list[str]] = PROJECT["optional-dependencies"]
EXPECTED_EXTRAS = (
    *("cpu", "gpu", "tensorrt", "rtx", "export", "calibrate", "parquet", "serve", "ray", "train", "report", "video"),
    *("volume", "openvino", "test"),
)
# The part of the package (longest match wins) and the extras that its user has installed.
NEEDS = [
    ("mae_export", []),
    ("mae_export.graph", ["calibrate"]),
    ("mae_export.graph", ["export"]),
    ("mae_export.runtime", ["cpu"]),
    ("mae_export.calibration", ["calibrate", "cpu"]),
    ("mae_export.encoders", ["export"]),
    ("mae_export.export", ["export", "cpu"]),
    ("mae_export.training", ["train"]),
    ("mae_export.report", ["report"]),
]
BLOCK_AND_IMPORT = """
import importlib, json, sys

class Block:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in blocked:
            raise ModuleNotFoundError(f"No module named {name!r}: these extras do not install it", name=name)

blocked, modules = (set(names) for names in json.load(sys.stdin))
sys.meta_path.insert(0, Block())
for name in sorted(modules):
    importlib.import_module(name)
"""


def modules_by_part() -> dict[str, list[str]]:
    parts: dict[str, list[str]] = {part: [] for part, _ in NEEDS}
    for path in sorted((ROOT / "mae_export").rglob("*.py")):
        name = ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
        if path.name == "__main__.py":
            continue  # importing it runs the command line
        part = max((part for part in parts if f"{name}.".startswith(f"{part}.")), key=len)
        parts[part].append(name)
    return parts


def closure(extras: list[str]) -> set[str]:
    """Names of all distributions that installing the package with these extras brings in."""
    todo = [(Requirement(line), "") for line in PROJECT["dependencies"]]
    todo += [(Requirement(line), "") for extra in extras for line in EXTRAS[extra]]
    found: set[tuple[str, str]] = set()
    while todo:
        requirement, extra = todo.pop()
        name = canonicalize_name(requirement.name)
        if requirement.marker and not requirement.marker.evaluate({"extra": extra}):
            continue
        for wanted in ("", *requirement.extras):
            if (name, wanted) not in found:
                found.add((name, wanted))
                todo += [(Requirement(line), wanted) for line in importlib.metadata.requires(name) or []]
    return {name for name, _ in found}


def installed_modules() -> dict[str, set[str]]:
    """Top-level modules of every installed distribution."""
    modules: dict[str, set[str]] = {}
    for distribution in importlib.metadata.distributions():
        tops = {path.parts[0].partition(".")[0] for path in distribution.files or [] if path.suffix in (".py", ".so")}
        modules.setdefault(canonicalize_name(distribution.metadata["Name"]), set()).update(tops)
    return modules


def run(extras: list[str], modules: list[str]) -> subprocess.CompletedProcess[str]:
    installed, allowed = installed_modules(), closure(extras)
    kept = set().union(*(installed.get(name, set()) for name in allowed))
    blocked = set().union(*installed.values()) - kept - {"mae_export", ""}
    return subprocess.run(
        [sys.executable, "-c", BLOCK_AND_IMPORT],
        input=json.dumps([sorted(blocked), modules]),
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


@pytest.mark.parametrize(
    ("part", "extras"), NEEDS, ids=lambda value: "+".join(value) if isinstance(value, list) else value
)
def test_part_imports_with_its_own_extras(part: str, extras: list[str]) -> None:
    modules = modules_by_part()[part]
    assert modules, f"{part} has no modules; take it out of NEEDS"
    done = run(extras, modules)
    assert done.returncode == 0, done.stderr


def test_what_no_extra_brings_in_is_blocked() -> None:
    for extras, module in ((["cpu"], "torch"), (["cpu"], "onnx"), (["export"], "onnxruntime"), (["cpu"], "pytest")):
        done = run(extras, [module])
        assert f"No module named {module!r}: these extras do not install it" in done.stderr


def test_what_an_extra_brings_in_is_open() -> None:
    assert run(["cpu"], ["onnxruntime", "numpy", "typer"]).returncode == 0


def test_the_extras_are_these() -> None:
    assert sorted(EXTRAS) == sorted(EXPECTED_EXTRAS)


def test_the_two_onnx_runtimes_never_come_together() -> None:
    names = {extra: {canonicalize_name(Requirement(line).name) for line in lines} for extra, lines in EXTRAS.items()}
    assert [extra for extra, found in names.items() if {"onnxruntime", "onnxruntime-gpu"} <= found] == []
    assert not {canonicalize_name(Requirement(line).name) for line in PROJECT["dependencies"]} & {"onnxruntime"}


def test_every_dependency_has_its_reason() -> None:
    table = PYPROJECT[PYPROJECT.index("\ndependencies = [") : PYPROJECT.index("[project.scripts]")]
    lines = re.findall(r'^    "(.+?)",(.*)$', table, re.MULTILINE)
    listed = [line for lines_of in (PROJECT["dependencies"], *EXTRAS.values()) for line in lines_of]
    assert sorted(name for name, _ in lines) == sorted(listed)
    assert [
        name for name, reason in lines if not re.match(r" *# \w", reason) and not name.startswith("mae-export[")
    ] == []


def test_every_dependency_of_the_gate_is_pinned() -> None:
    pins = [line for line in (ROOT / "constraints.txt").read_text().splitlines() if line and not line.startswith("#")]
    assert [pin for pin in pins if not re.fullmatch(r'[a-z0-9-]+==[\w.]+(; python_version (>=|<) "3\.11")?', pin)] == []
    pinned = {canonicalize_name(Requirement(pin).name) for pin in pins}
    own = {"cpu", "openvino", "export", "train", "report", "parquet", "video"}
    needed = {Requirement(line).name for extra in own for line in EXTRAS[extra]} | {
        Requirement(line).name for line in (*PROJECT["dependencies"], *EXTRAS["test"])
    }
    assert needed - {"mae-export"} - pinned == set()
