"""Lowered graphs are written only where there is such a form, and only when they agree with the Q/DQ graph."""

import onnx_ir as ir
import pytest

from mae_export.calibration import lowered
from mae_export.calibration.lowered import write_lowered
from mae_export.calibration.wanted import QuantizeOptions
from mae_export.encoders.overrides import Overrides
from mae_export.errors import VerificationError
from mae_export.export.options import ConvertOptions, TraceOptions
from mae_export.export.precision import convert
from mae_export.files import sha256_files
from mae_export.graph import read_manifest
from mae_export.runtime.golden import check_golden
from mae_export.runtime.session import open_session


@pytest.fixture
def source(exported):
    return exported("mae/checkpoint.pth", TraceOptions(mask="keep"))


@pytest.fixture
def int8(source, eight_bit, tmp_path):
    return eight_bit(source, tmp_path / "int8.onnx", QuantizeOptions(precision="int8"))


def test_the_lowered_graph_is_proven_and_says_where_it_came_from(int8, tmp_path):
    out = tmp_path / "lowered.onnx"
    assert write_lowered(int8, out)
    assert sum(node.op_type == "MatMulIntegerToFloat" for node in ir.load(out).graph) == 8
    manifest = read_manifest(out)
    assert (manifest.precision, manifest.tools["lowered"]) == ("int8", "ONNX Runtime, CPU")
    assert (manifest.made_from[-1].name, manifest.made_from[-1].sha256) == ("int8.onnx", sha256_files(int8))
    assert manifest.verification.checks > 10
    assert 0 <= manifest.verification.error < manifest.verification.limit
    with open_session(out) as session:
        assert check_golden(session).passed


def test_graphs_without_that_form(source, exported, eight_bit, tmp_path):
    fp8 = eight_bit(source, tmp_path / "fp8.onnx", QuantizeOptions(precision="fp8"))
    wide = exported("mae/checkpoint.pth", TraceOptions(), overrides=Overrides(heads=3, decoder_heads=4))
    full = eight_bit(wide, tmp_path / "full.onnx", QuantizeOptions(precision="int8", preset="full"))
    assert [write_lowered(path, tmp_path / "out.onnx") for path in (fp8, full, source)] == [False] * 3
    assert not (tmp_path / "out.onnx").exists()


def test_graphs_whose_rest_is_in_16_bits(int8, tmp_path):
    half = tmp_path / "half.onnx"
    convert(int8, half, options=ConvertOptions(precision="fp16"))
    assert not write_lowered(half, tmp_path / "out.onnx")


def test_a_wrong_form_is_refused(int8, tmp_path, monkeypatch):
    def wrong(model):
        made = real(model)
        node = next(node for node in model.graph if node.op_type == "MatMulIntegerToFloat")
        node.replace_input_with(3, node.inputs[2])  # the activation's scale in place of the weights'
        return made

    real = lowered.lower
    monkeypatch.setattr(lowered, "lower", wrong)
    with pytest.raises(VerificationError, match=r"is off by .* The lowered graph was not kept"):
        write_lowered(int8, tmp_path / "out.onnx")
