"""How results look in a terminal. Results go to standard output, progress to standard error."""

from __future__ import annotations

import json
import logging
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from rich.console import Console
from rich.highlighter import NullHighlighter
from rich.logging import RichHandler
from rich.markup import escape
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    SpinnerColumn,
    Task,
    TextColumn,
    TimeRemainingColumn,
)
from rich.table import Table
from rich.text import Text


class _Console(Console):
    """A console that leaves the meaning of a closed pipe to the command line."""

    def on_broken_pipe(self) -> None:
        """Raise it again; rich would end the process with exit code 1."""
        raise BrokenPipeError


OUT = _Console(highlight=False, soft_wrap=True)
ERR = Console(stderr=True, highlight=False, soft_wrap=True)


def say(text: str) -> None:
    """One line of result, shown as it is."""
    OUT.print(_shown(text))


def remark(text: str) -> None:
    """One line beside the result."""
    ERR.print(_shown(text))


def show_json(value: Any) -> None:
    """A result for scripts; JSON has no infinity and no NaN, so these are written as the texts that name them."""
    finite = json.loads(json.dumps(value, default=str), parse_constant=str)
    OUT.print(Text(json.dumps(finite, indent=1)))


def table(rows: Iterable[Sequence[str]], *, header: Sequence[str] = ()) -> None:
    """A table whose cells are shown as they are; long ones are folded, never cut."""
    cells = [[_shown(cell) for cell in row] for row in rows]
    grid = Table(show_header=bool(header), box=None, pad_edge=False)
    for name in header or [""] * max(map(len, cells), default=0):
        grid.add_column(name, overflow="fold")
    for row in cells:
        grid.add_row(*row)
    OUT.print(grid)


def _shown(text: str) -> Text:
    """Text without markup; characters that could steer a terminal, or that it cannot encode, appear as escapes."""
    return Text("".join(c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in text))


class _Rate(ProgressColumn):
    """Images per second since the start."""

    def render(self, task: Task) -> Text:
        """The rate, or nothing before the first image."""
        speed = task.finished_speed or task.speed
        return Text("" if not speed else f"{speed:,.1f} images/s")


@contextmanager
def images_progress(total_label: str) -> Iterator[Callable[[int, int], None]]:
    """A bar over images; the yielded function takes (done, total)."""
    columns = (
        TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), _Rate(), TimeRemainingColumn(),
    )  # fmt: skip
    remarks = RichHandler(
        console=ERR, show_time=False, show_level=False, show_path=False, highlighter=NullHighlighter()
    )
    logger = logging.getLogger("mae_export")
    logger.addHandler(remarks)
    logger.setLevel(logging.INFO)
    progress = Progress(*columns, console=ERR)
    task = progress.add_task(escape(total_label), total=None)

    def update(done: int, total: int) -> None:
        progress.start()  # only now: an error before the first image should stand alone
        progress.update(task, completed=done, total=total)

    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", module=r"PIL\b")  # odd metadata of single images; errors still raise
        try:
            yield update
        finally:
            if progress.live.is_started:  # stopping one that is not prints an empty line
                progress.stop()
            logger.removeHandler(remarks)


@contextmanager
def phases() -> Iterator[Callable[[str], None]]:
    """A spinner that names the phase of a long step."""
    columns = (SpinnerColumn(), TextColumn("{task.description}"))
    with Progress(*columns, console=ERR, transient=True, disable=not ERR.is_terminal) as progress:
        task = progress.add_task("", total=None)
        yield lambda name: progress.update(task, description=escape(name))


@contextmanager
def steps() -> Iterator[Callable[[str, int, int], bool]]:
    """A bar over the steps of named phases; the yielded function takes (phase, done, total) and never cancels."""
    columns = (SpinnerColumn(), TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
    with Progress(*columns, console=ERR, transient=True, disable=not ERR.is_terminal) as progress:
        task = progress.add_task("", total=None)

        def update(phase: str, done: int, total: int) -> bool:
            progress.update(task, description=escape(phase), completed=done, total=total)
            return True

        yield update
