"""May this engine run here: each refusal names both sides and the command that helps."""

import dataclasses

import pytest

from mae_export.errors import MachineError
from mae_export.manifest import Ancestor
from mae_export.runtime import engine_match
from mae_export.runtime.engine_match import require_backend, require_target, require_version
from tests.runtime.tensorrt_double import WIDE, write_engine

COMMAND = r"mae-export build vit_fp16\.onnx -o vit\.engine --force"


@pytest.fixture
def path(tmp_path):
    return tmp_path / "vit.engine"


@pytest.fixture
def sidecar(path, make_manifest):
    graph = Ancestor(kind="graph", name="vit_fp16.onnx", sha256="0" * 64)
    manifest = dataclasses.replace(make_manifest("keep"), made_from=(graph,), precision="fp16")
    return write_engine(path, manifest, WIDE, targets=("sm86", "sm89"))


def installed(monkeypatch, *backends):
    monkeypatch.setattr(engine_match, "find_module", lambda backend: backend if backend in backends else None)


def test_a_missing_library(path, sidecar, monkeypatch):
    installed(monkeypatch)
    text = (
        r"vit\.engine needs TensorRT 10\.13\.3\.9, which is not installed\. Run: pip install 'mae-export\[tensorrt\]'"
    )
    with pytest.raises(MachineError, match=text):
        require_backend(path, sidecar)
    rtx = dataclasses.replace(sidecar, backend="rtx", version="1.7.1.116")
    with pytest.raises(MachineError, match=r"needs TensorRT-RTX 1\.7\.1\.116.*'mae-export\[rtx\]'"):
        require_backend(path, rtx)


def test_the_other_library(path, sidecar, monkeypatch):
    installed(monkeypatch, "rtx")
    with pytest.raises(MachineError, match=f"here is TensorRT-RTX, which cannot run it.*{COMMAND}"):
        require_backend(path, sidecar)
    installed(monkeypatch, "tensorrt")
    require_backend(path, sidecar)


def test_another_version(path, sidecar):
    require_version(path, sidecar, sidecar.version)
    text = rf"built with TensorRT 10\.13\.3\.9 and runs with that version only; here is 10\.3\.0\.30\..*{COMMAND}"
    with pytest.raises(MachineError, match=text):
        require_version(path, sidecar, "10.3.0.30")


def test_a_version_that_is_known_to_be_wrong(path, sidecar):
    wrong = dataclasses.replace(sidecar, version="10.7.0.23")
    with pytest.raises(MachineError, match=r"10\.7\.0\.23 is known for wrong results of scaled dot product attention"):
        require_version(path, wrong, "10.7.0.23")
    with pytest.raises(MachineError, match="install another version"):
        require_target(path, wrong, target="sm86", name="NVIDIA A10")


def test_another_gpu(path, sidecar):
    for target in sidecar.targets:
        require_target(path, sidecar, target=target, name="some board")
    text = rf"vit\.engine is for sm86, sm89; this GPU, Orin, is sm87\. Build it for this one: {COMMAND}"
    with pytest.raises(MachineError, match=text):
        require_target(path, sidecar, target="sm87", name="Orin")
    built = dataclasses.replace(sidecar, targets=("sm90",), device="NVIDIA H100", manifest=sidecar.manifest)
    with pytest.raises(MachineError, match="is for sm90, built on NVIDIA H100; this GPU"):
        require_target(path, built, target="sm87", name="Orin")


def test_an_engine_of_a_board_that_could_not_be_named(path, sidecar):
    require_target(path, dataclasses.replace(sidecar, targets=("this",)), target="sm87", name="Orin")
