"""How fast models are, as a figure: a panel for each batch size and number of visible patches, on one axis for all."""

from __future__ import annotations

from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from mae_export.report.figures import DPI, IDEAL, MEASURED, save_figure
from mae_export.report.speed import machine_line, peak_line
from mae_export.runtime.bench import BenchReport, Case, Timing

BAR_HEIGHT = 0.4  # inches
ROOM = 1.35  # of the longest bar, for its label


def save_bench_figure(report: BenchReport, path: Path) -> None:
    """Draw images per second of every contender, one panel for each case; bars of equal length are equally fast.

    Args:
        report: with at least one case.
        path: of the PNG file, which is replaced.

    Raises:
        InputError: when the folder cannot be written.
    """
    count = len(report.cases)
    height = 1.2 + count * (0.8 + BAR_HEIGHT * max(len(case.timings) for case in report.cases))
    figure = Figure(figsize=(9, height), dpi=DPI, layout="constrained")
    figure.suptitle(f"{report.model} on {machine_line(report)}", fontsize=12, fontweight="bold")
    panels = figure.subplots(count, 1, squeeze=False, sharex=True)[:, 0]
    for axes, case in zip(panels, report.cases, strict=True):
        _draw(axes, case)
    panels[-1].set_xlim(0, ROOM * max(timing.images_per_second for case in report.cases for timing in case.timings))
    peak = f"\n{peak_line(report.cases[0])}" if report.cases[0].gemm else ""
    panels[-1].set_xlabel(f"images per second{peak}", fontsize=11)
    save_figure(figure, path)


def _draw(axes: Axes, case: Case) -> None:
    speeds = [timing.images_per_second for timing in case.timings]
    colours = [MEASURED, *[IDEAL] * (len(speeds) - 1)]  # the model itself, and what it is compared with
    axes.barh(range(len(speeds)), speeds, color=colours)
    axes.set_yticks(range(len(speeds)), [timing.name for timing in case.timings], fontsize=11)
    axes.invert_yaxis()
    for place, timing in enumerate(case.timings):
        axes.annotate(
            _label(timing), (speeds[place], place), (5, 0), textcoords="offset points", va="center", fontsize=10
        )
    axes.set_title(case.title, fontsize=12, loc="left")
    axes.spines[["top", "right"]].set_visible(False)


def _label(timing: Timing) -> str:
    share = "" if timing.share_of_gemm is None else f", {timing.share_of_gemm:.0%} of GEMM"
    return f"{timing.images_per_second:,.1f}{share}"
