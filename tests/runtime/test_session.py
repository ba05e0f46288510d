import sys

import numpy as np
import onnx_ir as ir
import pytest

from mae_export.calibration.wanted import QuantizeOptions
from mae_export.errors import InputError, MachineError, UsageError
from mae_export.export.options import TraceOptions
from mae_export.runtime.probes import golden_feeds
from mae_export.runtime.session import open_session, open_to_judge


def test_missing_model_says_what_was_expected(tmp_path):
    with pytest.raises(InputError, match=r"there is no model at .*nothing\.onnx; expected an \.onnx file"):
        open_session(tmp_path / "nothing.onnx")


def test_a_folder_is_no_model(tmp_path):
    with pytest.raises(InputError, match="there is no model at"):
        open_session(tmp_path)


def test_missing_runtime_names_the_extra(tmp_path, monkeypatch):
    path = tmp_path / "model.onnx"
    path.write_bytes(b"x")
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    monkeypatch.setitem(sys.modules, "openvino", None)
    monkeypatch.delitem(sys.modules, "mae_export.runtime.ort", raising=False)
    with pytest.raises(
        MachineError, match=r"needs ONNX Runtime, which is not installed; run: pip install 'mae-export\[cpu\]'"
    ):
        open_session(path)


def test_an_engine_takes_no_other_backend(tmp_path):
    path = tmp_path / "model.engine"
    path.write_bytes(b"x")
    with pytest.raises(UsageError, match="is an engine, which runs with the library that built it; leave 'cpu' out"):
        open_session(path, backend="cpu")


def test_the_session_says_what_was_chosen_and_why(exported):
    path = exported("mae/checkpoint.pth", TraceOptions())
    with open_session(path, backend="cpu") as session:
        assert str(session.choice) == "cpu: it was asked for"
    with open_session(path, threads=1) as session:
        assert session.choice.backend in ("cpu", "cuda")
        assert "CUDA provider" in session.choice.reason
    with pytest.raises(UsageError, match="there is no backend 'gpu'"):
        open_session(path, backend="gpu")


def turned(model):
    """Put the scales of a square weight along its inputs."""
    node = next(node for node in model.graph if node.name == "blocks.1.attn.proj/DequantizeLinear_weight")
    node.attributes["axis"] = ir.AttrInt64("axis", 0)


def test_8_bit_graphs_are_judged_as_they_are_written(exported, eight_bit, tmp_path):
    """Fused kernels give the same for a graph whose scales lie along the wrong axis; engines would not."""
    source, options = exported("mae/checkpoint.pth", TraceOptions()), QuantizeOptions(precision="int8")
    good = eight_bit(source, tmp_path / "good.onnx", options)
    wrong = eight_bit(source, tmp_path / "wrong.onnx", options, turned)
    found = {}
    for opened in (open_session, open_to_judge):
        for path in (good, wrong):
            with opened(path) as session:
                found[opened, path] = session.run(golden_feeds(session.manifest))["pooled"]
    fused, judged = (np.abs(found[f, good] - found[f, wrong]).max() for f in (open_session, open_to_judge))
    assert fused < 1e-6
    assert judged > 1e-2
    assert np.abs(found[open_session, good] - found[open_to_judge, good]).max() < 1e-2


def test_other_graphs_are_judged_as_they_run(exported):
    with open_to_judge(exported("mae/checkpoint.pth", TraceOptions()), threads=1) as session:
        assert session.choice.options == {}


@pytest.mark.parametrize("devices", [[], [0, 0], [-1]])
def test_devices_that_are_no_choice(exported, devices):
    with pytest.raises(UsageError, match=r"are no choice of GPUs; expected each number once, such as \[0, 1\]"):
        open_session(exported("mae/checkpoint.pth", TraceOptions()), devices=devices)


def test_devices_of_a_backend_without_gpus(exported):
    with pytest.raises(UsageError, match=r"runs with cpu: it was asked for, which uses no GPU of \[0, 1\]"):
        open_session(exported("mae/checkpoint.pth", TraceOptions()), backend="cpu", devices=[0, 1])
