import dataclasses

import numpy as np
import pytest
from PIL import Image

from mae_export.errors import InputError
from mae_export.report.speed_figure import save_bench_figure
from tests.report.test_speed import CASE, REPORT


def test_every_case_is_a_panel(tmp_path):
    heights = []
    for count in (1, 3):
        path = tmp_path / f"{count}.png"
        save_bench_figure(dataclasses.replace(REPORT, cases=(CASE,) * count), path)
        with Image.open(path) as image:
            heights.append(image.height)
            pixels = np.asarray(image.convert("RGB")).reshape(-1, 3)
        assert (np.abs(pixels.astype(int) - (0x1F, 0x5F, 0xA8)).max(axis=1) == 0).sum() > 1000  # the model's own bar
    assert heights[1] > 2 * heights[0]
    assert [entry.name for entry in sorted(tmp_path.iterdir())] == ["1.png", "3.png"]


def test_bars_are_as_long_as_speeds(tmp_path):
    slow, fast = (dataclasses.replace(CASE.timings[0], images_per_second=speed) for speed in (100.0, 400.0))
    path = tmp_path / "bars.png"
    save_bench_figure(dataclasses.replace(REPORT, cases=(dataclasses.replace(CASE, timings=(slow, fast)),)), path)
    with Image.open(path) as image:
        pixels = np.asarray(image.convert("RGB")).astype(int)
    widths = [(np.abs(pixels - colour).max(axis=2) == 0).sum(axis=1).max() for colour in ((31, 95, 168), (138,) * 3)]
    assert widths[1] / widths[0] == pytest.approx(4, rel=0.03)


def test_panels_share_one_axis(tmp_path):
    panels = [
        dataclasses.replace(CASE, timings=(dataclasses.replace(CASE.timings[0], images_per_second=speed),))
        for speed in (100.0, 400.0)
    ]
    path = tmp_path / "panels.png"
    save_bench_figure(dataclasses.replace(REPORT, cases=tuple(panels)), path)
    with Image.open(path) as image:
        pixels = np.asarray(image.convert("RGB")).astype(int)
    widths = (np.abs(pixels - (31, 95, 168)).max(axis=2) == 0).sum(axis=1)
    upper, lower = np.array_split(widths, 2)
    assert lower.max() / upper.max() == pytest.approx(4, rel=0.03)


def test_a_missing_folder_is_said(tmp_path):
    with pytest.raises(InputError, match="is no folder"):
        save_bench_figure(REPORT, tmp_path / "nowhere" / "figure.png")
