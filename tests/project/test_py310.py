"""The deployed half on JetPack 6's Python 3.10: one lock with the gate's, and every file in its syntax."""

import ast
import re
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[2]
PYTHON = {"python_version": "3.10", "python_full_version": "3.10.12"}


def pins(name: str) -> dict[str, str]:
    """The exact versions that a file of constraints gives Python 3.10."""
    lines = [line for line in (ROOT / name).read_text().splitlines() if line and not line.startswith("#")]
    found = {}
    for requirement in map(Requirement, lines):
        if requirement.marker is None or requirement.marker.evaluate(PYTHON):
            (specifier,) = requirement.specifier
            assert specifier.operator == "=="
            assert canonicalize_name(requirement.name) not in found, f"{requirement.name} is pinned twice"
            found[canonicalize_name(requirement.name)] = specifier.version
    return found


def dependencies(*extras: str) -> set[str]:
    """Names in the base install and in some extras, as pyproject.toml lists them."""
    text = (ROOT / "pyproject.toml").read_text()
    tables = [re.search(rf"^{extra} = \[\n(.*?)^\]", text, re.MULTILINE | re.DOTALL) for extra in extras]
    return {
        canonicalize_name(re.match(r"[\w-]+", name)[0])
        for table in tables
        for name in re.findall(r'^    "([^"]+)"', table[1], re.MULTILINE)
    }


def test_the_lock_agrees_with_what_the_gate_uses() -> None:
    lock, gate = pins("constraints-py310.txt"), pins("constraints.txt")
    assert {name: version for name, version in lock.items() if gate.get(name, version) != version} == {}
    assert not {"torch", "onnxscript", "transformers"} & set(lock), "the deployed half needs none of them"


def test_the_lock_holds_what_the_deployed_half_needs() -> None:
    needed = dependencies("dependencies", "cpu", "calibrate", "parquet", "video")
    assert {"numpy", "onnxruntime", "av"} <= needed
    assert needed - set(pins("constraints-py310.txt")) == set()


@pytest.mark.parametrize("folder", ["mae_export", "examples"])
def test_every_file_is_in_the_syntax_of_3_10(folder: str) -> None:
    sources = sorted((ROOT / folder).rglob("*.py"))
    assert sources
    for path in sources:
        ast.parse(path.read_text(encoding="utf-8"), filename=str(path), feature_version=(3, 10))


def test_newer_syntax_is_noticed() -> None:
    with pytest.raises(SyntaxError):
        ast.parse("try: ...\nexcept* ValueError: ...", feature_version=(3, 10))


def test_what_runs_there_exists() -> None:
    makefile = (ROOT / "Makefile").read_text()
    deployed = re.search(r"^DEPLOYED := (.*?[^\\])\n", makefile, re.MULTILINE | re.DOTALL)
    assert deployed is not None
    paths = deployed[1].replace("\\\n", " ").split()
    assert "tests/runtime" in paths
    assert [path for path in paths if not (ROOT / path).exists()] == []
