"""Families that other packages bring: found when asked for, and refused by the name of their distribution."""

from __future__ import annotations

import importlib
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from mae_export.encoders.families import FAMILIES
from mae_export.encoders.families.installed import families
from mae_export.errors import MachineError

Install = Callable[..., None]
TWIN = "import dataclasses; from mae_export.encoders.families import FAMILIES as F\n"


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Install]:
    """Put a distribution with one module and one entry point on the path, as pip would."""
    monkeypatch.syspath_prepend(tmp_path)

    def put(distribution: str, point: str, code: str) -> None:
        module = distribution.replace("-", "_")
        (tmp_path / f"{module}.py").write_text(code)
        info = tmp_path / f"{module}-1.2.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {distribution}\nVersion: 1.2\n")
        (info / "entry_points.txt").write_text(f"[mae_export.families]\n{point} = {module}:FAMILY\n")
        importlib.invalidate_caches()
        families.cache_clear()

    before = set(sys.modules)
    yield put
    for name in set(sys.modules) - before:
        del sys.modules[name]
    families.cache_clear()


def refusal() -> str:
    with pytest.raises(MachineError) as caught:
        families()
    return str(caught.value)


def test_our_own_families_come_first_and_cannot_be_changed() -> None:
    assert list(families())[: len(FAMILIES)] == list(FAMILIES)
    with pytest.raises(TypeError):
        families()["mae"] = FAMILIES["mae"]  # type: ignore[index]


def test_a_package_brings_a_family(install: Install) -> None:
    install("the-pack", "twin", TWIN + "FAMILY = dataclasses.replace(F['mae'], name='twin')")
    assert list(families()) == [*FAMILIES, "twin"]
    assert families()["twin"].title == FAMILIES["mae"].title


@pytest.mark.parametrize(
    ("code", "reason"),
    [
        ("import nothing_of_that_name", "ModuleNotFoundError: No module named 'nothing_of_that_name'"),
        ("FAMILIE = 3", "AttributeError: module 'bad_pack' has no attribute 'FAMILY'"),
        ("FAMILY = 1 / 0", "ZeroDivisionError: division by zero"),
        (TWIN + "FAMILY = dataclasses.replace(F['mae'], nam='x')", "TypeError: "),
        ("def", "SyntaxError: "),
    ],
)
def test_a_package_that_does_not_load_is_named(install: Install, code: str, reason: str) -> None:
    install("bad-pack", "bad", code)
    found = refusal()
    assert found.startswith(f"bad-pack 1.2 has a family 'bad' that does not load: {reason}")
    assert found.endswith("; repair it or run: pip uninstall bad-pack")


def test_something_else_than_a_family_is_refused(install: Install) -> None:
    install("bad-pack", "bad", "FAMILY = {'name': 'bad'}")
    assert refusal() == (
        "bad-pack 1.2 has a family 'bad' that is a dict; expected a mae_export.encoders.families.Family at "
        "bad_pack:FAMILY; repair it or run: pip uninstall bad-pack"
    )


def test_a_family_goes_by_the_name_of_its_entry_point(install: Install) -> None:
    install("bad-pack", "other", TWIN + "FAMILY = dataclasses.replace(F['mae'], name='twin')")
    assert refusal().startswith("bad-pack 1.2 has a family 'other' that calls itself 'twin'; expected the same name; ")


def test_a_name_that_is_taken_is_refused(install: Install) -> None:
    install("bad-pack", "mae", TWIN + "FAMILY = F['mae']")
    assert refusal() == ("bad-pack 1.2 brings a second family 'mae'; repair it or run: pip uninstall bad-pack")


def test_two_packages_cannot_share_a_name(install: Install) -> None:
    for distribution in ("pack-a", "pack-b"):
        install(distribution, "twin", TWIN + "FAMILY = dataclasses.replace(F['mae'], name='twin')")
    assert " brings a second family 'twin'; repair it or run: pip uninstall pack-" in refusal()


def test_nothing_is_loaded_before_families_are_asked_for(install: Install, tmp_path: Path) -> None:
    install("bad-pack", "bad", "raise SystemExit('loaded too early')")
    code = f"import sys; sys.path.insert(0, {str(tmp_path)!r}); import mae_export.encoders.load, mae_export.cli"
    subprocess.run([sys.executable, "-c", code], check=True)
