"""Which backend builds, for which GPUs, and which options it honours; the names used are in test_tensorrt_api.py."""

import sys

import pytest

from mae_export.errors import MachineError, UsageError
from mae_export.export import flavour
from mae_export.export.plan import EnginePlan
from mae_export.runtime import tensorrt_api
from mae_export.runtime.cuda import Device
from mae_export.runtime.doctor import Gpu

ADA = Gpu(name="L4", compute_capability="8.9", memory_mib=23034, driver="580")


@pytest.fixture
def machine(monkeypatch):
    """Pretend that these backends are installed and these GPUs are here."""

    def no_device():
        raise MachineError("no GPU")

    def pretend(*backends, gpus=(), cuda=no_device):
        monkeypatch.setattr(flavour, "find_module", lambda backend: backend if backend in backends else None)
        monkeypatch.setattr(flavour, "nvidia_gpus", lambda: gpus)
        monkeypatch.setattr(flavour, "open_device", cuda)

    return pretend


@pytest.mark.parametrize(
    ("installed", "plan", "expected"),
    [
        (("tensorrt", "rtx"), EnginePlan(), "tensorrt"),
        (("tensorrt", "rtx"), EnginePlan(targets=("this",)), "tensorrt"),
        (("tensorrt", "rtx"), EnginePlan(targets=("sm86",)), "rtx"),
        (("tensorrt", "rtx"), EnginePlan(backend="rtx"), "rtx"),
        (("rtx",), EnginePlan(), "rtx"),
        (("tensorrt",), EnginePlan(targets=("sm90",)), "tensorrt"),
    ],
)
def test_choice(machine, installed, plan, expected):
    machine(*installed)
    assert flavour.choose_backend(plan) == expected


def test_nothing_installed(machine):
    machine()
    with pytest.raises(MachineError, match=r"needs TensorRT \(pip install 'mae-export\[tensorrt\]'\) or TensorRT-RTX"):
        flavour.choose_backend(EnginePlan())
    machine("rtx")
    with pytest.raises(MachineError, match=r"needs TensorRT .*which is not installed"):
        flavour.choose_backend(EnginePlan(backend="tensorrt"))


def test_targets(machine):
    machine("rtx", "tensorrt", gpus=(ADA,))
    assert flavour.resolve_targets("rtx", EnginePlan()) == ("sm86", "sm89", "sm120")
    assert flavour.resolve_targets("rtx", EnginePlan(targets=("sm75",))) == ("sm75",)
    assert flavour.resolve_targets("rtx", EnginePlan(targets=("this",))) == ("sm89",)
    assert flavour.resolve_targets("tensorrt", EnginePlan()) == ("sm89",)
    assert flavour.resolve_targets("tensorrt", EnginePlan(targets=("sm89",))) == ("sm89",)
    machine("rtx", "tensorrt")
    assert flavour.resolve_targets("tensorrt", EnginePlan()) == ("this",)


def test_cuda_is_asked_where_nvidia_smi_is_missing(machine):
    machine("tensorrt", cuda=lambda: Device(name="Orin", target="sm87", integrated=True))
    assert flavour.resolve_targets("tensorrt", EnginePlan()) == ("sm87",)
    assert flavour.resolve_targets("tensorrt", EnginePlan(targets=("sm87",))) == ("sm87",)
    with pytest.raises(UsageError, match=r"GPU of its own machine \(sm87\), not for sm86"):
        flavour.resolve_targets("tensorrt", EnginePlan(targets=("sm86",)))


@pytest.mark.parametrize("target", ["sm87", "sm90", "sm100", "sm110"])
def test_rtx_has_no_such_target(target):
    with pytest.raises(UsageError, match=f"TensorRT-RTX cannot build for {target}; it knows sm75, sm80"):
        flavour.resolve_targets("rtx", EnginePlan(targets=(target,)))


def test_of_several_kinds_of_gpu_the_one_that_cuda_takes(machine):
    old = Gpu(name="T4", compute_capability="7.5", memory_mib=15360, driver="580")
    machine("tensorrt", gpus=(old, ADA), cuda=lambda: Device(name="L4", target="sm89", integrated=False))
    assert flavour.resolve_targets("tensorrt", EnginePlan()) == ("sm89",)
    machine("tensorrt", gpus=(old, ADA))
    assert flavour.resolve_targets("tensorrt", EnginePlan()) == ("sm75",)


def test_rtx_does_not_run_on_every_gpu_that_is_here(machine):
    hopper = Gpu(name="H100", compute_capability="9.0", memory_mib=81559, driver="580")
    machine("rtx", gpus=(hopper,))
    with pytest.raises(UsageError, match="TensorRT-RTX cannot build for sm90"):
        flavour.resolve_targets("rtx", EnginePlan(targets=("this",)))


def test_targets_that_are_not_here(machine):
    machine("rtx")
    with pytest.raises(MachineError, match="--target this needs an NVIDIA GPU"):
        flavour.resolve_targets("rtx", EnginePlan(targets=("this",)))
    with pytest.raises(UsageError, match=r"GPU of its own machine \(none found\), not for sm86"):
        flavour.resolve_targets("tensorrt", EnginePlan(targets=("sm86",)))


def test_options_that_would_be_ignored_are_refused_by_name(tmp_path):
    with pytest.raises(UsageError, match="TensorRT-RTX ignores --timing-cache"):
        flavour.refuse_unhonoured("rtx", EnginePlan(timing_cache=tmp_path / "t"))
    with pytest.raises(UsageError, match="TensorRT-RTX ignores --level"):
        flavour.refuse_unhonoured("rtx", EnginePlan(level=5))
    flavour.refuse_unhonoured("tensorrt", EnginePlan(level=5, timing_cache=tmp_path / "t"))


def test_the_backend_is_imported_under_one_name(tmp_path, monkeypatch):
    (tmp_path / "some_trt.py").write_text("__version__ = '10.0'")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(tensorrt_api, "find_module", lambda _: "some_trt")
    monkeypatch.setitem(sys.modules, "tensorrt", None)
    assert flavour.load("rtx").__name__ == "some_trt"
    assert sys.modules["tensorrt"].__name__ == "some_trt"
