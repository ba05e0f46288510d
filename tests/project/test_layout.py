"""Tests mirror the package: whoever opens a module knows where its tests are, and an untested module is noticed."""

import ast
from pathlib import Path

ROOT = Path(__file__).parents[2]

# Modules without a test file of their own, and why.
UNMIRRORED: dict[str, str] = {}
# Folders of tests that mirror no part of the package, and why.
CROSSING = {
    "project": "about the project itself",
    "soak": "long proofs of whole jobs, scaled down unless asked for with `make soak`",
    "parity": "whole graphs against numbers that others computed, one file per family",
    "examples": "what examples/ shows, run as a user runs it",
    "mutants": "graphs with seeded faults, which the comparison must refuse, from the code of benchmarks/",
    "hostile": "one list of bad inputs per kind of file, through the public functions",
}


def decides_something(path: Path) -> bool:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    return any(isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef) for node in ast.walk(tree))


def modules() -> list[Path]:
    package = ROOT / "mae_export"
    return [path.relative_to(package) for path in sorted(package.rglob("*.py")) if decides_something(path)]


def mirror_of(module: Path) -> Path:
    name = module.parent.name if module.name == "__init__.py" else module.stem
    return module.parent / f"test_{name}.py"


def test_every_module_has_its_tests() -> None:
    missing = [str(module) for module in modules() if not (ROOT / "tests" / mirror_of(module)).is_file()]
    assert sorted(missing) == sorted(UNMIRRORED)


def test_every_test_file_has_its_module() -> None:
    package = ROOT / "mae_export"
    expected = {mirror_of(path.relative_to(package)) for path in package.rglob("*.py")}
    present = {path.relative_to(ROOT / "tests") for path in (ROOT / "tests").rglob("test_*.py")}
    assert {str(path) for path in present - expected if path.parts[0] not in CROSSING} == set()


def test_reasons_are_given() -> None:
    assert all(reason for reason in (*UNMIRRORED.values(), *CROSSING.values()))
