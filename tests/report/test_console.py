"""What is printed is what was said: no markup, no emoji, nothing cut, and JSON that scripts can read."""

import json
import logging
import re
import warnings
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from mae_export.report import console

Captured = pytest.CaptureFixture[str]
TEXTS = (
    "[bold]/data/[red]x[/red][/]",
    "[/]",
    "[link=https://x.org]y[/link]",
    "a:smile:b:warning:",
    "C:\\folder\\",
    "\\[x]",
    "image [3/7] of {x} %s",
    "photo×ä 画像.png",
    "x" * 500 + " " + "y" * 500,
    "  indented",
    "",
)


@pytest.fixture(autouse=True)
def narrow(monkeypatch: pytest.MonkeyPatch) -> None:
    """Wrapped lines would show."""
    monkeypatch.setattr(console.OUT, "_width", 40)  # COLUMNS counts at import only
    monkeypatch.setattr(console.ERR, "_width", 40)


@pytest.mark.parametrize("text", TEXTS)
def test_a_line_is_shown_as_it_is(capsys: Captured, text: str) -> None:
    console.say(text)
    assert capsys.readouterr() == (text + "\n", "")


@given(st.text(st.characters(exclude_categories=["C", "Z"]) | st.sampled_from("[]/\\: =")))
@example("[b]")
def test_every_printable_line_is_shown_as_it_is(text: str) -> None:
    with console.OUT.capture() as captured:
        console.say(text)
    assert captured.get() == text + "\n"


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("\x1b[31mred\x1b[0m", r"\x1b[31mred\x1b[0m"),
        ("title\x1b]0;owned\x07", r"title\x1b]0;owned\x07"),
        ("over\rwritten\nfaked", r"over\rwritten\nfaked"),
        ("\x9b2J", r"\x9b2J"),
        ("right\u202eleft", r"right\u202eleft"),
        ("caf\udce9.png", r"caf\udce9.png"),  # a file name that is not UTF-8
    ],
)
def test_what_would_steer_the_terminal_is_escaped(capsys: Captured, text: str, shown: str) -> None:
    console.say(text)
    console.table([(text,)])
    assert [line.strip() for line in capsys.readouterr().out.splitlines()] == [shown, shown]


VALUE = {
    "path": Path("/data/[bold]x[/]"),
    "text": "a:smile: ä \x1b[31m \udce9",
    "long": "word " * 100,
    "numbers": [1, 0.1, 1e-300, True, None],
    "nested": {"tuple": (1, 2), "empty": {}},
}


def test_json_is_json(capsys: Captured) -> None:
    console.show_json(VALUE)
    out, err = capsys.readouterr()
    expected = VALUE | {"path": "/data/[bold]x[/]", "nested": {"tuple": [1, 2], "empty": {}}}
    assert json.loads(out) == expected
    assert out == json.dumps(expected, indent=1) + "\n"  # no line was wrapped, no style added
    assert err == ""


def test_json_has_no_infinity(capsys: Captured) -> None:
    """Python writes `Infinity`, which no other reader of JSON takes."""
    console.show_json({"error": float("inf"), "errors": [float("nan"), -float("inf"), 0.5], "Infinity": "NaN"})

    def refuse(name: str) -> None:
        raise AssertionError(name)

    found = json.loads(capsys.readouterr().out, parse_constant=refuse)
    assert found == {"error": "Infinity", "errors": ["NaN", "-Infinity", 0.5], "Infinity": "NaN"}


def test_a_table_shows_every_cell_whole(capsys: Captured) -> None:
    rows = [("a", "[red]1[/]"), ("b:smile:", "/" + "folder/" * 12)]
    console.table(rows, header=("what", "found"))
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split() == ["what", "found"]
    assert lines[1].split() == ["a", "[red]1[/]"]
    assert lines[2].startswith("b:smile: ")
    assert max(map(len, lines)) <= 40
    assert "".join(line[10:].strip() for line in lines[2:]) == rows[1][1]
    assert "…" not in "".join(lines)


def test_a_table_without_header_or_rows(capsys: Captured) -> None:
    console.table([("one", "two"), ("three", "four")])
    assert [line.split() for line in capsys.readouterr().out.splitlines()] == [["one", "two"], ["three", "four"]]
    console.table([])
    assert capsys.readouterr().out.strip() == ""


def test_progress_goes_to_standard_error(capsys: Captured, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "120")
    with console.images_progress("extracting [b]") as progress:
        progress(0, 7)
        progress(3, 7)
    out, err = capsys.readouterr()
    assert out == ""
    assert re.search(r"extracting \[b\] .* 3/7 ", err)


def test_remarks_during_extraction_are_lines_of_standard_error(capsys: Captured) -> None:
    logger = logging.getLogger("mae_export")
    before = list(logger.handlers)
    with console.images_progress("extracting") as progress:
        progress(1, 2)
        logger.getChild("runtime").info("[b] 3 images :smile: failed")
    out, err = capsys.readouterr()
    assert out == ""
    assert "[b] 3 images :smile: failed" in err
    assert logger.handlers == before


def test_remarks_end_with_the_extraction_even_when_it_fails() -> None:
    logger = logging.getLogger("mae_export")
    before = list(logger.handlers)
    interrupted = pytest.raises(KeyboardInterrupt)
    with interrupted, console.images_progress("extracting"):
        assert len(logger.handlers) == len(before) + 1
        raise KeyboardInterrupt
    assert logger.handlers == before


def test_only_the_decoders_warnings_are_silent() -> None:
    with console.images_progress("extracting"):
        warnings.warn_explicit("odd metadata", UserWarning, "TiffImagePlugin.py", 1, module="PIL.TiffImagePlugin")
        with pytest.raises(UserWarning, match="ours"):
            warnings.warn_explicit("ours", UserWarning, "extract.py", 1, module="mae_export.runtime.extract")


def test_phases_leave_nothing_on_standard_output(capsys: Captured) -> None:
    with console.phases() as tell:
        tell("loading [b]")
    assert capsys.readouterr().out == ""
