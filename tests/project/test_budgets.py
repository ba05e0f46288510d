"""Size and shape of the code: budgets that keep every file readable in one sitting, and constructs that are banned."""

import ast
import statistics
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SOURCES = sorted((ROOT / "mae_export").rglob("*.py"))
TESTS = sorted((ROOT / "tests").rglob("*.py"))
LINES_PER_FILE, MEDIAN_FILE = 400, 150
LINES_PER_FUNCTION, P95_FUNCTION = 60, 40
TESTS_PER_SOURCE_LINE = (0.6, 1.6)
NAMELESS = {"utils", "helpers", "base", "types", "common"}
BANNED_MODULES = {"pickle", "cPickle", "dill", "joblib", "marshal", "shelve"}
BANNED_CALLS = {"print", "eval", "exec", "yaml.load", "os.system", "os.popen"}

Function = ast.FunctionDef | ast.AsyncFunctionDef


def lines(path: Path) -> int:
    return len(path.read_text(encoding="utf-8").splitlines())


def functions(tree: ast.AST) -> Iterator[Function]:
    return (node for node in ast.walk(tree) if isinstance(node, Function))


def length(function: Function) -> int:
    """Lines from `def` to the end, without the docstring."""
    total = (function.end_lineno or function.lineno) - function.lineno + 1
    first = function.body[0]
    if ast.get_docstring(function, clean=False) is not None:
        total -= (first.end_lineno or first.lineno) - first.lineno + 1
    return total


def violations(tree: ast.AST) -> Iterator[tuple[int, str]]:
    """Line and name of every construct that the package may not contain."""
    for node in ast.walk(tree):
        if isinstance(node, Function | ast.Lambda) and node.args.kwarg:
            yield node.lineno, f"**{node.args.kwarg.arg}"
        elif isinstance(node, ast.Import | ast.ImportFrom):
            modules = [node.module or ""] if isinstance(node, ast.ImportFrom) else [alias.name for alias in node.names]
            yield from ((node.lineno, module) for module in modules if module.partition(".")[0] in BANNED_MODULES)
        elif isinstance(node, ast.Call):
            if ast.unparse(node.func) in BANNED_CALLS:
                yield node.lineno, ast.unparse(node.func)
            yield from (
                (node.lineno, "shell=")
                for keyword in node.keywords
                if keyword.arg == "shell" and not (isinstance(keyword.value, ast.Constant) and not keyword.value.value)
            )


def test_there_is_something_to_measure() -> None:
    assert len(SOURCES) > 5
    assert len(TESTS) > 5


def test_files_are_short() -> None:
    sizes = {path.relative_to(ROOT).as_posix(): lines(path) for path in SOURCES}
    assert {name: size for name, size in sizes.items() if size > LINES_PER_FILE} == {}
    assert statistics.median(sizes.values()) <= MEDIAN_FILE


def test_functions_are_short() -> None:
    sizes = {
        f"{path.relative_to(ROOT)}:{function.lineno} {function.name}": length(function)
        for path in SOURCES
        for function in functions(ast.parse(path.read_text(encoding="utf-8")))
    }
    assert {name: size for name, size in sizes.items() if size > LINES_PER_FUNCTION} == {}
    assert statistics.quantiles(sizes.values(), n=20)[-1] <= P95_FUNCTION


def test_files_are_named_for_what_they_decide() -> None:
    assert [path for path in SOURCES if path.stem.strip("_") in NAMELESS] == []


def test_nothing_banned_is_used() -> None:
    found = [
        f"{path.relative_to(ROOT)}:{line} {name}"
        for path in SOURCES
        for line, name in violations(ast.parse(path.read_text(encoding="utf-8")))
    ]
    assert found == []


@pytest.mark.parametrize(
    ("code", "name"),
    [
        ("def f(**options): ...", "**options"),
        ("async def f(**options): ...", "**options"),
        ("f = lambda **options: 0", "**options"),
        ("import pickle", "pickle"),
        ("from pickle import Unpickler", "pickle"),
        ("print(1)", "print"),
        ("eval('1')", "eval"),
        ("yaml.load(text)", "yaml.load"),
        ("run('ls', shell=True)", "shell="),
        ("run('ls', shell=flag)", "shell="),
    ],
)
def test_every_ban_is_noticed(code: str, name: str) -> None:
    assert [found for _, found in violations(ast.parse(code))] == [name]


@pytest.mark.parametrize("code", ["model.eval()", "import pickletools", "run('ls', shell=False)", "table.print()"])
def test_what_only_looks_banned_is_allowed(code: str) -> None:
    assert list(violations(ast.parse(code))) == []


def test_length_leaves_out_the_docstring() -> None:
    (function,) = functions(ast.parse('def f():\n    """One.\n\n    Two.\n    """\n    return 1\n'))
    assert length(function) == 2


def test_tests_weigh_about_as_much_as_the_code() -> None:
    ratio = sum(map(lines, TESTS)) / sum(map(lines, SOURCES))
    print(f"tests : source = {ratio:.2f}")
    assert TESTS_PER_SOURCE_LINE[0] <= ratio <= TESTS_PER_SOURCE_LINE[1]
