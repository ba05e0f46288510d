"""What people read: no file names a machine it was written on, and every command in the documents exists."""

import json
import re
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
FORBIDDEN = {
    "a folder of one machine": r"(?<![\w.])/(work|root|home/\w+|Users/\w+)/",
    "a temporary folder": r"(?<![\w.])/tmp/",
    "a package index": r"index[-]url|find[-]links",
    "who or what wrote it": r"\b(session|issue|task|ticket) (no\. ?|number |#)?\d+\b|\b(fixes|closes|see|PR) #\d+",
    "an unfinished place": r"\b(TODO|FIXME|XXX)\b",
}
# Tests may write a path under a temporary folder into a hostile input; this file holds the patterns themselves.
ALLOWED_IN_TESTS = {"a temporary folder"}
CODE = re.compile(r"^```.*?^```|`[^`\n]+`", re.MULTILINE | re.DOTALL)
COMMAND = re.compile(r"\bmae-export (?P<verb>[a-z][a-z-]*)(?P<rest>[^`|#&;\n]*)")
OPTION = re.compile(r"(?<![\w-])--[a-z][a-z-]*")
HELP_OF_EACH = """
import contextlib, io, json, sys
from mae_export.cli import main

pages = {}
for verb in json.load(sys.stdin):
    sys.argv = ["mae-export", *([verb] if verb else []), "--help"]
    with contextlib.redirect_stdout(io.StringIO()) as page, contextlib.redirect_stderr(page):
        try:
            code = main()
        except SystemExit as stop:
            code = stop.code
    pages[verb] = "" if code else page.getvalue()
json.dump(pages, sys.stdout)
"""


@cache
def tracked_texts() -> dict[str, str]:
    """Text files of the tree that version control has or would take."""
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        capture_output=True,
        check=True,
    )
    texts = {}
    for name in filter(None, listed.stdout.decode().split("\0")):
        path = ROOT / name
        content = path.read_bytes() if path.is_file() else b"\0"
        if b"\0" not in content:
            texts[name] = content.decode("utf-8", errors="replace")
    return texts


@cache
def code_in_documents() -> dict[str, str]:
    """What the documents show as code, with lines that end in a backslash joined to the next."""
    found = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
    texts = {path.name: path.read_text("utf-8").replace("\\\n", " ") for path in found if path.is_file()}
    return {name: "\n".join(CODE.findall(text)) for name, text in texts.items()}


@cache
def help_pages() -> dict[str, str]:
    verbs = sorted({"", *(match["verb"] for code in code_in_documents().values() for match in COMMAND.finditer(code))})
    environment = {"COLUMNS": "250", "TERM": "dumb", "NO_COLOR": "1", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-c", HELP_OF_EACH], input=json.dumps(verbs), env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    pages: dict[str, str] = json.loads(done.stdout)
    return pages


@pytest.mark.parametrize("what", FORBIDDEN)
def test_no_file_carries_what_only_its_author_needs(what: str) -> None:
    found = [
        f"{name}: {match[0]!r}"
        for name, text in tracked_texts().items()
        if name != Path(__file__).relative_to(ROOT).as_posix()
        and not (name.startswith("tests/") and what in ALLOWED_IN_TESTS)
        for match in re.finditer(FORBIDDEN[what], text)
    ]
    assert found == []


@pytest.mark.parametrize(
    ("what", "text"),
    [
        ("a folder of one machine", "see /root/notes"),
        ("a folder of one machine", "in '/home/anna/x'"),
        ("a temporary folder", "open('/tmp/a')"),
        ("a package index", "pip --extra-" + "index-" + "url=https://x"),
        ("who or what wrote it", "done in session 12"),
        ("who or what wrote it", "fixes #123"),
        ("an unfinished place", "# TODO later"),
    ],
)
def test_each_pattern_finds_its_kind(what: str, text: str) -> None:
    assert re.search(FORBIDDEN[what], text)


@pytest.mark.parametrize(
    "text", ["a framework/root/x", "https://x.org/tmp/y", "colour #333333", "an open session", "[#/a]"]
)
def test_ordinary_prose_is_left_alone(text: str) -> None:
    assert [what for what, pattern in FORBIDDEN.items() if re.search(pattern, text)] == []


def test_every_command_in_the_documents_exists() -> None:
    pages = help_pages()
    assert pages[""], "`mae-export --help` failed"
    assert [verb for verb, page in pages.items() if not page] == []


def test_every_option_in_the_documents_exists() -> None:
    pages = help_pages()
    missing = [
        f"{name}: mae-export {match['verb']} {option}"
        for name, code in code_in_documents().items()
        for match in COMMAND.finditer(code)
        for option in OPTION.findall(match["rest"])
        if option not in OPTION.findall(pages[match["verb"]])
    ]
    assert missing == []


def test_options_named_alone_belong_to_some_command() -> None:
    known = {option for page in help_pages().values() for option in OPTION.findall(page)}
    named = {
        option for code in code_in_documents().values() for option in re.findall(r"^`(--[a-z-]+)", code, re.MULTILINE)
    }
    assert named - known == set()


def test_every_make_target_in_the_documents_exists() -> None:
    targets = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    named = {name for code in code_in_documents().values() for name in re.findall(r"\bmake ([a-z]+)\b", code)}
    assert {"test", "demo"} <= named <= targets
