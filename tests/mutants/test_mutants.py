"""Seeded faults: the shipped comparison refuses every one of them and no good graph."""

import onnx_ir as ir
import pytest

from benchmarks.eight_bit_faults import EIGHT_BIT_FAULTS
from benchmarks.faults import FAULTS, seed
from benchmarks.hardware import write_result
from benchmarks.mutants import WIDE, export, prove, random_encoder, usual_checks
from mae_export.export.options import TraceOptions
from mae_export.graph import read_manifest
from mae_export.runtime.session import open_session


@pytest.mark.parametrize("quick", [True, pytest.param(False, marks=pytest.mark.soak)])
def test_every_fault_is_caught_and_no_good_graph_is(tmp_path, quick):
    result = prove(tmp_path, quick=quick)
    assert result["distinct_faults"] >= 50
    for images in ("verify", "verify_on_own_images"):
        assert [mutant["graph"] for mutant in result["mutants"] if not mutant[images]] == []
        assert [graph for graph in result["good_graphs"] if graph[images]] == []
    assert not any(verdict["refused_to_run"] for verdict in result["mutants"]), "a fault must be found by its numbers"
    usual = [mutant["graph"] for mutant in result["mutants"] if not mutant["tolerance_1e_5"]]
    assert any("padding" in name for name in usual), "one dummy input has no padding to get wrong"
    if not quick:
        assert result["distinct_faults"] == len(FAULTS) + len(EIGHT_BIT_FAULTS) + 1
        assert len(result["good_graphs"]) >= 15
        write_result("mutants", result)


def test_an_edit_changes_only_what_it_names(tmp_path):
    subject = export("subject", random_encoder(5, WIDE), tmp_path, TraceOptions())
    before, model = ir.load(subject.path), ir.load(subject.path)
    seed(model, read_manifest(subject.path), "ReLU for GELU")
    kinds = [node.op_type for node in model.graph]
    assert kinds.count("Relu") == WIDE.depth
    assert "Gelu" not in kinds or not any(
        output.uses() for node in model.graph if node.op_type == "Gelu" for output in node.outputs
    )
    seed(before, read_manifest(subject.path), "position table transposed")
    assert len(before.graph) == len(ir.load(subject.path).graph)


def test_a_fault_without_a_place_is_refused(tmp_path):
    subject = export("subject", random_encoder(6, WIDE), tmp_path, TraceOptions())
    for fault in ("padding attended", "ids_keep ignored", "two outputs exchanged", "decoder without its mask token"):
        with pytest.raises(LookupError):
            seed(ir.load(subject.path), read_manifest(subject.path), fault)
    with open_session(subject.path) as session, subject.reference() as reference:
        assert usual_checks(session, reference) == (False, False)
