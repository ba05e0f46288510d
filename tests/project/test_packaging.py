"""The wheel, as a user gets it: what is inside, and that it runs in an environment where nothing else is."""

import os
import subprocess
import sys
import venv
import zipfile
from pathlib import Path

import pytest

import mae_export

ROOT = Path(__file__).parents[2]


def run(*command: str | Path, cwd: Path) -> str:
    environment = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "VIRTUAL_ENV")}
    done = subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    pip = (sys.executable, "-m", "pip", "wheel", "--quiet", "--disable-pip-version-check")
    run(*pip, "--no-deps", "--no-build-isolation", "--wheel-dir", folder, ROOT, cwd=folder)
    (built,) = folder.glob("*.whl")
    return built


def test_wheel_is_pure_and_named_for_the_version(wheel: Path) -> None:
    assert wheel.name == f"mae_export-{mae_export.__version__}-py3-none-any.whl"


def test_wheel_holds_the_whole_package_and_nothing_else(wheel: Path) -> None:
    names = zipfile.ZipFile(wheel).namelist()
    sources = {path.relative_to(ROOT).as_posix() for path in (ROOT / "mae_export").rglob("*.py")}
    assert {name for name in names if name.endswith(".py")} == sources
    assert {name.partition("/")[0].partition("-")[0] for name in names} == {"mae_export"}
    assert "mae_export/py.typed" in names
    assert any(name.endswith(".dist-info/licenses/LICENSE") for name in names)


def test_wheel_holds_the_probe_photographs(wheel: Path) -> None:
    photos = {path.relative_to(ROOT).as_posix() for path in (ROOT / "mae_export/runtime/probe_photos").glob("*.jpg")}
    assert photos
    assert photos <= set(zipfile.ZipFile(wheel).namelist())


def test_wheel_runs_in_a_clean_environment(wheel: Path, tmp_path: Path) -> None:
    venv.create(tmp_path / "env", with_pip=True)
    bin_ = tmp_path / "env" / ("Scripts" if os.name == "nt" else "bin")
    pip = (bin_ / "python", "-m", "pip", "install", "--quiet", "--disable-pip-version-check")
    run(*pip, "--constraint", ROOT / "constraints.txt", wheel, cwd=tmp_path)
    assert mae_export.__version__ in run(bin_ / "mae-export", "--version", cwd=tmp_path)
    assert "export" in run(bin_ / "mae-export", "--help", cwd=tmp_path)
    origin = run(bin_ / "python", "-c", "import mae_export; print(mae_export.__file__)", cwd=tmp_path)
    assert Path(origin.strip()).is_relative_to(tmp_path / "env")
    run(bin_ / "python", "-m", "pip", "check", cwd=tmp_path)
