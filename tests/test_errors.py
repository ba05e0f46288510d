"""The tree drawn in the module's docstring is the tree of the classes, down to the exit codes."""

import inspect
import re

import pytest

from mae_export import errors
from mae_export.errors import ImageError, MaeExportError

LINE = re.compile(r"^(?P<branch>[ │├└─]*)(?P<name>\w+) +(?P<code>\d)  ")
CLASSES = {name: value for name, value in vars(errors).items() if inspect.isclass(value)}


def drawn() -> dict[str, tuple[str | None, int]]:
    """Parent and exit code of each class, as drawn."""
    found: dict[str, tuple[str | None, int]] = {}
    above: list[str] = []
    for line in inspect.getdoc(errors).splitlines():
        if match := LINE.match(line):
            depth = len(match["branch"]) // 4 - 1
            above[depth:] = [match["name"]]
            found[match["name"]] = (above[depth - 1] if depth else None, int(match["code"]))
    return found


def test_the_drawn_tree_is_the_real_one() -> None:
    real = {
        name: (None if value is MaeExportError else value.__base__.__name__, value.exit_code)
        for name, value in CLASSES.items()
    }
    assert drawn() == real
    assert len(real) == 13


def test_each_branch_has_an_exit_code_of_its_own() -> None:
    branches = [value for value in CLASSES.values() if value.__base__ is MaeExportError]
    assert [value.exit_code for value in branches] == [2, 3, 4, 5, 6, 7, 8]
    assert {value.exit_code for value in CLASSES.values() if issubclass(value, errors.InputError)} == {3}


@pytest.mark.parametrize("name", CLASSES)
def test_every_class_says_what_it_means(name: str) -> None:
    words = vars(CLASSES[name])["__doc__"]
    assert words
    assert words.splitlines()[0].endswith((".", ":"))


def test_errors_are_ordinary_exceptions() -> None:
    assert issubclass(MaeExportError, Exception)
    assert not any(issubclass(value, OSError | ValueError) for value in CLASSES.values())


def test_an_image_error_carries_its_reason_beside_its_message() -> None:
    error = ImageError("truncated", "a.jpg ends early")
    assert (error.reason, str(error), error.exit_code) == ("truncated", "a.jpg ends early", 3)
