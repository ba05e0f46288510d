"""A graph file to its form for ONNX Runtime's CUDA provider, accepted only when it gives what the graph gives."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import onnx_ir as ir

from mae_export import graph
from mae_export.export.fused_attention import fuse_attention
from mae_export.files import model_files, sha256_files
from mae_export.manifest import Ancestor
from mae_export.runtime.compare import compare, require, summary_of
from mae_export.runtime.golden import golden_of
from mae_export.runtime.probes import golden_feeds
from mae_export.runtime.providers import FOR_CUDA, LOWERED
from mae_export.runtime.session import open_as_is


def can_be_fused(source: Path) -> bool:
    """Whether some attention of a graph has a form that the CUDA provider runs in one kernel."""
    return fuse_attention(ir.load(source)) > 0


def write_fused(source: Path, out: Path) -> bool:
    """Write a graph with its attention as single operators, proven against the graph on the CPU.

    Args:
        source: written by mae-export, without 8 bits.
        out: a staged path; what is there after an error is worthless.

    Returns:
        Whether there was such attention; otherwise nothing is written.

    Raises:
        GraphError: when the source is no graph of ours.
        VerificationError: when the two disagree.
    """
    manifest, model = graph.read_manifest(source), ir.load(source)
    if not fuse_attention(model):
        return False
    graph.save(model, out)
    del model  # its weights would be in memory beside two sessions'
    parent = Ancestor(kind="graph", name=source.name, sha256=sha256_files(*model_files(source)))
    manifest = replace(manifest, made_from=(*manifest.made_from, parent), tools={**manifest.tools, LOWERED: FOR_CUDA})
    graph.write_manifest(out, manifest)
    graph.check(out)
    with open_as_is(out) as candidate, open_as_is(source, backend="cpu") as reference:
        report = compare(candidate, reference)
        golden = golden_of(candidate.run(golden_feeds(manifest)))
    require(report, "The graph with fused attention was not kept")
    verification = summary_of(report, f"{source.name}, {report.reference}")
    graph.write_manifest(out, replace(manifest, verification=verification, golden=golden))
    return True
