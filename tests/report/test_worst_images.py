"""The worst image of each output, as a file that says which and how bad."""

import numpy as np
import pytest
from PIL import Image

from mae_export.errors import InputError, UsageError
from mae_export.report.worst_images import require_folder, save_worst
from mae_export.runtime.compare import Measured, Report
from mae_export.runtime.metrics import agreement


def report_on(bad: dict[str, int], count: int = 6) -> Report:
    """A report in which row `bad[output]` of each output is turned around."""
    expected = np.random.default_rng(0).normal(size=(count, 5))
    measured = []
    for output, row in bad.items():
        found = expected.copy()
        found[row] = -found[row] * (1 + row)
        measured.append(Measured(scene="all patches", output=output, agreement=agreement(found, expected)))
    return Report(candidate="x", reference="y", checks=(), measured=tuple(measured))


@pytest.mark.parametrize("channels", [3, 1, 4])
def test_the_file_holds_the_image_and_names_output_and_cosine(tmp_path, channels):
    images = np.random.default_rng(1).integers(0, 256, (6, 8, 10, channels), dtype=np.uint8)
    report = report_on({"pooled": 4, "layer_1": 2})
    paths = save_worst(report, images, tmp_path / "a" / "worst")
    assert sorted((tmp_path / "a" / "worst").iterdir()) == sorted(paths)
    for path in paths:
        output, _, cosine = path.stem.rpartition("_")
        row = {"pooled": 4, "layer_1": 2}[output]
        assert float(cosine) == pytest.approx(report.worst_scenes()[output].agreement.centred_cosine.minimum, abs=1e-6)
        expected = images[row] if channels == 3 else images[row, ..., 0]
        np.testing.assert_array_equal(np.asarray(Image.open(path)), expected)


def test_a_folder_with_something_in_it_is_kept_for_what_it_holds(tmp_path):
    folder = tmp_path / "worst"
    require_folder(folder, force=False)
    folder.mkdir()
    require_folder(folder, force=False)
    (folder / "pooled_0.5.png").write_text("")
    with pytest.raises(UsageError, match=r"worst is not empty; add --force to write there all the same, or choose an"):
        require_folder(folder, force=False)
    require_folder(folder, force=True)
    with pytest.raises(UsageError, match=r"pooled_0\.5\.png is a file; give a folder"):
        require_folder(folder / "pooled_0.5.png", force=True)


def test_a_folder_that_cannot_be_made_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match=r"cannot make the folder .*file"):
        save_worst(report_on({"pooled": 1}), np.zeros((6, 4, 4, 3), np.uint8), tmp_path / "file")
