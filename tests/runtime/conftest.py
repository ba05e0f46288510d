"""Builders shared by the tests of the deployed half."""

from __future__ import annotations

import importlib.util
import platform
import re
import sys
import types
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from mae_export.manifest import Golden, Manifest, MaskMode, Patches, TensorSpec
from mae_export.runtime.doctor import Diagnosis, doctor
from mae_export.runtime.finding import Finding
from mae_export.spec import ImageSpec

# Where torch is missing, as on a device, files that need the exporting half are left out; see `make test-py310`.
_EXPORTING = re.compile(
    r"^ *(from|import) (torch|onnx_ir|mae_export\.(calibration|encoders|export|graph|training))", re.MULTILINE
)
collect_ignore = [
    path.name
    for path in Path(__file__).parent.glob("test_*.py")
    if importlib.util.find_spec("torch") is None and _EXPORTING.search(path.read_text(encoding="utf-8"))
]
SIZE, PATCH, DIM = 32, 8, 6  # 4 x 4 = 16 patches of 192 values


def build_manifest(
    mode: MaskMode = "keep",
    *,
    ragged: bool = False,
    outputs: tuple[str, ...] = ("pooled", "patch_tokens"),
    golden: Golden | None = None,
) -> Manifest:
    """A manifest such as `export` writes, for 32x32 images in 16 patches, width 6."""
    grid = SIZE // PATCH
    keep = grid * grid if mode in ("none", "mask-token") else "K"
    inputs = {
        "none": [TensorSpec(name="images", dtype="uint8", shape=("B", SIZE, SIZE, 3))],
        "keep": [TensorSpec(name="images", dtype="uint8", shape=("B", SIZE, SIZE, 3))],
        "patches": [TensorSpec(name="patches", dtype="uint8", shape=("B", "K", PATCH * PATCH * 3))],
        "mask-token": [TensorSpec(name="images", dtype="uint8", shape=("B", SIZE, SIZE, 3))],
    }[mode]
    if mode == "mask-token":
        inputs.append(TensorSpec(name="mask", dtype="bool", shape=("B", grid * grid)))
    elif mode != "none":
        inputs.append(TensorSpec(name="ids_keep", dtype="int64", shape=("B", "K")))
    if ragged:
        inputs.append(TensorSpec(name="num_keep", dtype="int32", shape=("B",)))
    shapes: dict[str, tuple[int | str, ...]] = {"pooled": ("B", DIM), "patch_tokens": ("B", keep, DIM)}
    return Manifest(
        family="mae",
        encoder={},
        image=ImageSpec(size=(SIZE, SIZE)),
        patches=Patches(patch=(1, PATCH, PATCH), grid=(1, grid, grid), prefix_tokens=1),
        mask_mode=mode,
        ragged=ragged,
        inputs=tuple(inputs),
        outputs=tuple(TensorSpec(name=name, dtype="float32", shape=shapes[name]) for name in outputs),
        precision="fp32",
        made_from=(),
        golden=golden,
    )


class Machine:
    """A computer made of files, with neither driver, nor container, nor packages until they are added."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.root, self.commands, self.site = (folder / name for name in ("root", "bin", "site"))
        for path in (self.root, self.commands, self.site):
            path.mkdir()
        self.monkeypatch = monkeypatch
        monkeypatch.setenv("PATH", str(self.commands))
        monkeypatch.setattr(sys, "path", [str(self.site), *(p for p in sys.path if "-packages" not in p)])
        monkeypatch.setattr(platform, "machine", lambda: "x86_64")
        monkeypatch.setattr(platform, "processor", lambda: "")
        monkeypatch.setitem(sys.modules, "onnxruntime", None)
        for name in [name for name in sys.modules if name.partition(".")[0].startswith("tensorrt")]:
            monkeypatch.delitem(sys.modules, name)  # imported by another test; modules that are loaded are found
        monkeypatch.delenv("LD_LIBRARY_PATH", raising=False)

    def file(self, name: str, text: str) -> None:
        path = self.root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)

    def package(self, name: str, version: str, module: str = "") -> None:
        folder = self.site / f"{name.replace('-', '_')}-{version}.dist-info"
        folder.mkdir()
        (folder / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
        if module:
            (self.site / f"{module}.py").write_text("raise RuntimeError('the doctor must not import this')")

    def onnxruntime(self, *providers: str) -> None:
        module = types.SimpleNamespace(get_available_providers=lambda: list(providers))
        self.monkeypatch.setitem(sys.modules, "onnxruntime", module)

    def nvidia_smi(self, script: str) -> None:
        command = self.commands / "nvidia-smi"
        command.write_text(f"#!/bin/sh\n{script}\n")
        command.chmod(0o755)

    def diagnose(self) -> Diagnosis:
        return doctor(self.root)

    def finding(self, what: str) -> Finding:
        (found,) = (finding for finding in self.diagnose().findings if finding.what == what)
        return found


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Machine:
    return Machine(tmp_path, monkeypatch)


@pytest.fixture
def make_manifest() -> Callable[..., Manifest]:
    return build_manifest


@pytest.fixture
def make_images(tmp_path: Path) -> Callable[[int], Path]:
    """Writes so many different 32x32 PNG files, `000.png` and up, into a folder and returns the folder."""

    def make(count: int) -> Path:
        folder = tmp_path / "images"
        folder.mkdir(exist_ok=True)
        for number in range(count):
            pixels = np.random.default_rng(number).integers(0, 256, (SIZE, SIZE, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(folder / f"{number:03}.png")
        return folder

    return make


@pytest.fixture
def behaviour(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """A double of TensorRT and of a GPU, installed; a test must give back all that it took."""
    from tests.runtime.tensorrt_double import install

    found = install(monkeypatch)
    yield found
    assert found.gpu.leaks() == {}
    assert found.gpu.pending == []


@pytest.fixture
def engine(make_manifest: Callable[..., Manifest], tmp_path: Path) -> Callable[..., Path]:
    """Write an engine of the double with golden values; returns its path."""
    from tests.runtime.tensorrt_double import WIDE, golden, write_engine

    def make(mode: MaskMode = "keep", profiles: Any = WIDE, *, ragged: bool = False, **options: Any) -> Path:
        path = tmp_path / "vit.engine"
        write_engine(path, golden(make_manifest(mode, ragged=ragged)), profiles, **options)
        return path

    return make
