"""Importing the package and asking for help load nothing heavy, so that mistakes on the command line are cheap."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
HEAVY = ("numpy", "torch", "onnx", "onnx_ir", "onnxscript", "onnxruntime", "tensorrt", "PIL", "matplotlib", "sklearn")
REPORT = f"\nimport sys\nloaded = [name for name in {HEAVY} if name in sys.modules]\nsys.exit(', '.join(loaded) or 0)\n"
MAIN = """
import sys
from mae_export.cli import main
sys.argv = ["mae-export", *{arguments}]
try:
    main()
except SystemExit as stop:
    assert stop.code in {codes}, stop.code
"""


def run(code: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", code + REPORT], cwd=ROOT, capture_output=True, text=True, timeout=60, check=False
    )


def test_importing_the_package_is_light() -> None:
    done = run("import mae_export, mae_export.errors, mae_export.spec, mae_export.manifest")
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize(
    ("arguments", "codes"),
    [
        (["--help"], (0, None)),
        (["--version"], (0, None)),
        (["export", "--help"], (0, None)),
        (["no-such-verb"], (2,)),
        (["export", "--no-such-option"], (2,)),
    ],
)
def test_help_and_mistakes_are_light(arguments: list[str], codes: tuple[int | None, ...]) -> None:
    done = run(MAIN.format(arguments=arguments, codes=codes))
    assert done.returncode == 0, done.stderr


def test_a_heavy_import_is_noticed() -> None:
    done = run("import numpy")
    assert (done.returncode, done.stderr.strip()) == (1, "numpy")
