import sys

import pytest

from mae_export.errors import InputError, MachineError
from mae_export.runtime.session import open_session


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
    monkeypatch.delitem(sys.modules, "mae_export.runtime.ort", raising=False)
    with pytest.raises(
        MachineError, match=r"needs ONNX Runtime, which is not installed; run: pip install 'mae-export\[cpu\]'"
    ):
        open_session(path)
