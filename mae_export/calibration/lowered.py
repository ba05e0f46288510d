"""An INT8 graph file to its form for ONNX Runtime's CPU, accepted only when it gives what the Q/DQ graph gives."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import onnx_ir as ir

from mae_export import graph
from mae_export.calibration.lower import lower
from mae_export.files import model_files, sha256_files
from mae_export.manifest import Ancestor
from mae_export.runtime.compare import compare, require, summary_of
from mae_export.runtime.golden import golden_of
from mae_export.runtime.probes import golden_feeds
from mae_export.runtime.session import open_as_is, open_to_judge

TOOL = ("lowered", "ONNX Runtime, CPU")


def write_lowered(source: Path, out: Path) -> bool:
    """Write the lowered form of a graph, proven against it as it is written, node by node.

    Args:
        source: a graph of `mae-export quantize`.
        out: a staged path; what is there after an error is worthless.

    Returns:
        Whether it has such a form: only graphs do whose 8 bits are INT8 products with weights, and the rest float32.

    Raises:
        GraphError: when the source is no graph of ours.
        VerificationError: when the two disagree.
    """
    manifest, model = graph.read_manifest(source), ir.load(source)
    halves = any(value.dtype == ir.DataType.FLOAT16 for value in model.graph.initializers.values())
    if halves or not lower(model) or any(node.op_type == "DequantizeLinear" for node in model.graph):
        return False
    graph.save(model, out)
    del model  # its weights would be in memory beside two sessions'
    parent = Ancestor(kind="graph", name=source.name, sha256=sha256_files(*model_files(source)))
    manifest = replace(manifest, made_from=(*manifest.made_from, parent), tools={**manifest.tools, TOOL[0]: TOOL[1]})
    graph.write_manifest(out, manifest)
    graph.check(out)
    with open_as_is(out, backend="cpu") as candidate, open_to_judge(source) as reference:
        report = compare(candidate, reference)
        golden = golden_of(candidate.run(golden_feeds(manifest)))
    require(report, "The lowered graph was not kept")
    verification = summary_of(report, f"{source.name}, {report.reference}")
    graph.write_manifest(out, replace(manifest, verification=verification, golden=golden))
    return True
