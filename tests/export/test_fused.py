"""The proven file with fused attention: what it says of itself, and that nothing wrong is written."""

import pytest

from mae_export.errors import GraphError, VerificationError
from mae_export.export import fused as module
from mae_export.export.fused import can_be_fused, write_fused
from mae_export.export.fused_attention import OPERATOR
from mae_export.export.options import TraceOptions
from mae_export.files import sha256_files
from mae_export.graph import read_manifest
from mae_export.runtime.golden import check_golden
from mae_export.runtime.session import open_as_is
from tests.export.test_fused_attention import difference, without_scale


@pytest.fixture
def source(exported):
    return exported("mae/checkpoint.pth", TraceOptions(mask="keep", features=("pooled", "patch_tokens")))


def test_it_is_proven_and_says_so(source, tmp_path):
    out = tmp_path / "fused.onnx"
    assert can_be_fused(source)
    assert write_fused(source, out)
    manifest = read_manifest(out)
    assert manifest.tools["lowered"] == "ONNX Runtime, CUDA"
    assert (manifest.made_from[-1].name, manifest.made_from[-1].sha256) == (source.name, sha256_files(source))
    assert manifest.verification.reference.startswith(f"{source.name}, ONNX Runtime")
    assert manifest.verification.checks > 10
    assert manifest.verification.error < manifest.verification.limit
    assert difference(source, out) < 1e-5
    with open_as_is(out) as session:
        assert check_golden(session) is not None


def test_a_graph_with_nothing_to_fuse_is_left_alone(exported, tmp_path):
    source = exported("beit2/checkpoint.pth", TraceOptions(mask="keep"))
    assert not can_be_fused(source)
    assert not write_fused(source, tmp_path / "fused.onnx")
    assert not list(tmp_path.iterdir())


def test_what_disagrees_is_refused(source, tmp_path, monkeypatch):
    fuse = module.fuse_attention

    def wrong(model):
        count = fuse(model)
        without_scale([node for node in model.graph if node.op_type == OPERATOR])
        return count

    monkeypatch.setattr(module, "fuse_attention", wrong)
    with pytest.raises(VerificationError, match="The graph with fused attention was not kept"):
        write_fused(source, tmp_path / "fused.onnx")


def test_what_is_no_graph_of_ours(tmp_path):
    (tmp_path / "x.onnx").write_bytes(b"\xff")
    with pytest.raises(GraphError, match="cannot be read as an ONNX model"):
        write_fused(tmp_path / "x.onnx", tmp_path / "out.onnx")
