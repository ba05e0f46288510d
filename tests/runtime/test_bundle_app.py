"""The app of a bundle, run as its user runs it: in another folder, by another process."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mae_export.errors import SecurityError
from mae_export.runtime.features import read_features
from tests.runtime.bundled import make_bundle

ROOT = Path(__file__).parents[2]


@pytest.fixture
def bundle(tmp_path, make_manifest):
    return make_bundle(tmp_path, make_manifest("keep", outputs=("pooled",)))


def run(bundle: Path, *arguments: object, stdin: str = "") -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, bundle / "app.py", *map(str, arguments)],
        input=stdin,
        cwd=bundle.parent,
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def test_it_extracts_a_folder(bundle, make_images, tmp_path):
    done = run(bundle, make_images(3), "-o", tmp_path / "features")
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert lines[0].startswith("vit.onnx: ONNX Runtime 1.")
    features = read_features(tmp_path / "features")
    for line, item, row in zip(lines[1:], features.ids, features.arrays["pooled"], strict=True):
        name, feature, *values = line.split()[:-1]
        assert (name, feature) == (item, "pooled")
        np.testing.assert_allclose([float(value) for value in values], row, atol=1e-4)
    with Image.open(tmp_path / "images/001.png") as image:
        expected = np.tile(np.asarray(image, dtype=np.float64).mean(axis=(0, 1)), 2)  # what the graph computes
    np.testing.assert_allclose(features.arrays["pooled"][1], expected, rtol=1e-5)


def test_it_reads_names_from_standard_input(bundle, make_images, tmp_path):
    folder = make_images(3)
    names = "\n".join(str(folder / f"00{number}.png") for number in (2, 0))
    done = run(bundle, "-o", tmp_path / "features", "--visible", "random:0.25", stdin=f"{names}\n\n")
    assert done.returncode == 0, done.stderr
    features = read_features(tmp_path / "features")
    assert [Path(item).name for item in features.ids] == ["002.png", "000.png"]
    assert features.ids_keep is not None
    assert features.ids_keep.shape == (2, 4)


def test_it_says_what_is_wrong_and_shows_no_traceback(bundle, tmp_path):
    done = run(bundle, tmp_path / "nothing")
    assert (done.returncode, done.stdout.count("\n")) == (3, 1)
    assert done.stderr.startswith("error: there is no file or folder")
    (bundle / "vit.onnx").write_bytes(b"damaged")
    done = run(bundle, tmp_path)
    assert (done.returncode, done.stdout) == (SecurityError.exit_code, "")
    assert done.stderr.startswith("error: 1 of 8 files of the bundle")


def test_it_is_short_and_imports_only_the_deployed_half(bundle):
    lines = [line for line in (bundle / "app.py").read_text().splitlines() if line.strip()]
    assert len(lines) <= 40
    code = f"import sys, runpy; runpy.run_path({str(bundle / 'app.py')!r}); print(sorted(sys.modules))"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=60, check=True
    )
    assert not {name for name in ("torch", "onnx", "typer", "rich") if f"'{name}'" in done.stdout}
