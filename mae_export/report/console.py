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

OUT = Console(highlight=False, soft_wrap=True)
ERR = Console(stderr=True, highlight=False, soft_wrap=True)


def say(text: str) -> None:
    """One line of result, shown as it is."""
    OUT.print(_shown(text))


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
    with Progress(*columns, console=ERR) as progress, warnings.catch_warnings():
        warnings.filterwarnings("ignore", module=r"PIL\b")  # odd metadata of single images; errors still raise
        task = progress.add_task(escape(total_label), total=None)
        try:
            yield lambda done, total: progress.update(task, completed=done, total=total)
        finally:
            logger.removeHandler(remarks)


@contextmanager
def phases() -> Iterator[Callable[[str], None]]:
    """A spinner that names the phase of a long step."""
    with Progress(SpinnerColumn(), TextColumn("{task.description}"), console=ERR, transient=True) as progress:
        task = progress.add_task("", total=None)
        yield lambda name: progress.update(task, description=escape(name))
