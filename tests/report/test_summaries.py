"""The lines that people read after each verb, pinned word by word."""

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mae_export.encoders.load import LoadReport
from mae_export.graph import read_manifest
from mae_export.manifest import TensorSpec
from mae_export.report import summaries
from mae_export.runtime.compare import Check, Measured, Report
from mae_export.runtime.extract import ExtractReport
from mae_export.runtime.metrics import agreement

Captured = pytest.CaptureFixture[str]


@pytest.fixture(autouse=True)
def wide(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "100")


def lines(capsys: Captured) -> list[str]:
    out, err = capsys.readouterr()
    assert err == ""
    return [line.rstrip() for line in out.splitlines()]


def test_a_load_says_what_became_of_every_tensor(capsys: Captured, graph: tuple[Path, LoadReport]) -> None:
    report = dataclasses.replace(
        graph[1],
        path=Path("/data/[b]vit[b].pth"),
        ignored=(("head.weight", "classifier"), ("rope[0]", "asked to be ignored")),
        notes=("2 float16 tensors cast to float32",),
    )
    summaries.show_load(report)
    assert lines(capsys) == [
        "[b]vit[b].pth: mae (facebookresearch/mae); licence of the authors' weights: CC-BY-NC-4.0",
        "  2 blocks of width 48 with 4 heads, eps 1e-06, patch 8x8, images 64x64",
        "  used 50 tensors, ignored 2, missing 0",
        "    ignored head.weight: classifier",
        "    ignored rope[0]: asked to be ignored",
        "  note: 2 float16 tensors cast to float32",
    ]


def test_a_graph_says_what_goes_in_and_out(capsys: Captured, graph: tuple[Path, LoadReport]) -> None:
    path, _ = graph
    manifest = read_manifest(path)
    summaries.show_graph(path, manifest)
    proof = manifest.verification
    assert proof is not None
    assert lines(capsys) == [
        f"{path} ({path.stat().st_size / 1e6:.1f} MB), fp32, mask mode keep, ragged",
        "  in  images: uint8 [batch, 64, 64, 3] - RGB as decoded",
        "  in  ids_keep: int64 [batch, kept] - raster index of each visible patch, each at most once per row",
        "  in  num_keep: int32 [batch] - how many of ids_keep are real; the rest is padding with any valid index",
        "  out pooled: float32 [batch, 48] - linear-probe feature: class token after the final norm (main_linprobe.py)",
        "  out patch_tokens: float32 [batch, kept, 48] - patch tokens, after the final norm",
        f"  proven against {proof.reference}: {proof.checks} checks, worst {proof.worst_output} {proof.error:.2g} "
        "(limit 0.0001)",
    ]


def test_the_size_of_a_graph_counts_its_data_file(capsys: Captured, tmp_path: Path, graph: tuple[Path, Any]) -> None:
    manifest = dataclasses.replace(
        read_manifest(graph[0]),
        ragged=False,
        inputs=(),
        outputs=(TensorSpec(name="x", dtype="float32", shape=()),),
        verification=None,
    )
    path = tmp_path / "big[1].onnx"
    path.write_bytes(bytes(1_000_000))
    path.with_name("big[1].onnx.data").write_bytes(bytes(1_500_000))
    summaries.show_graph(path, manifest)
    assert lines(capsys) == [f"{path} (2.5 MB), fp32, mask mode keep, equal rows", "  out x: float32 []"]


EXTRACTED = ExtractReport(
    rows_in=1000,
    rows_ok=1000,
    rows_failed=0,
    failures={},
    shards=1,
    seconds=0.8,
    images_per_second=1250.0,
    decode_wait_seconds=0.1,
    model_seconds=0.5,
    store_wait_seconds=0.2,
)


def test_an_extraction_says_how_many_and_how_fast(capsys: Captured) -> None:
    summaries.show_extraction(Path("/out/[x]"), EXTRACTED)
    assert lines(capsys) == ["/out/[x]: 1000 in = 1000 ok + 0 failed", "  1,250.0 images/s over 0.8 s"]
    summaries.show_extraction(Path("/out/[x]"), dataclasses.replace(EXTRACTED, rows_ok=998, rows_failed=2))
    assert lines(capsys) == [
        "/out/[x]: 1000 in = 998 ok + 2 failed",
        "  1,250.0 images/s over 0.8 s",
        "  reasons are in /out/[x]/failures.jsonl",
    ]


def test_a_comparison_shows_the_worst_of_each_output(capsys: Captured) -> None:
    checks = (
        Check(name="all patches, batch 1", output="pooled", error=1e-6, limit=1e-4),
        Check(name="a quarter, [b]batch 2[/b]", output="pooled", error=2.5e-5, limit=1e-4),
        Check(name="permuted rows", output="pooled", error=9e-6, limit=1e-5),  # nearest to its limit
        Check(name="a quarter, [b]batch 2[/b]", output="tokens", error=float("inf"), limit=1e-4),
    )
    summaries.show_comparison(Report(candidate="ONNX Runtime 1.31", reference="PyTorch", checks=checks))
    first, header, *rows, last = lines(capsys)
    assert first == "candidate ONNX Runtime 1.31, reference PyTorch"
    assert header.split() == ["output", "worst", "error", "limit", "where"]
    assert [row.split(maxsplit=4) for row in rows] == [
        ["pooled", "9e-06", "1e-05", "ok", "permuted rows"],
        ["tokens", "inf", "0.0001", "FAILED", "a quarter, [b]batch 2[/b]"],
    ]
    assert last == "3 of 4 checks passed"


def test_a_comparison_shows_how_vectors_agree(capsys: Captured) -> None:
    expected = np.random.default_rng(0).normal(size=(32, 4))
    measured = tuple(
        Measured(scene="all patches", output=output, agreement=agreement(found, expected[:rows]))
        for output, found, rows in (
            ("pooled", expected + 0.01 * (expected - expected.mean(axis=0)), 32),
            ("layer_0", expected[:8], 8),
        )
    )
    checks = (Check(name="all patches, values", output="pooled", error=0.0, limit=1e-4),)
    summaries.show_comparison(Report(candidate="a", reference="b", checks=checks, measured=measured))
    out = lines(capsys)
    assert [line.split() for line in out if line.startswith(("pooled", "layer_0"))][-2:] == [
        ["pooled", "1.000000", "1.000000", "1.000000", "0.999994", "40.0", "dB", "1.000"],
        ["layer_0", "1.000000", "1.000000", "1.000000", "1.000000", "inf", "dB", "-"],
    ]
    assert "cosines after subtracting the mean over images, where they are smallest:" in out


def test_a_tree_is_indented(capsys: Captured) -> None:
    summaries.show_tree(
        {
            "kind": "graph",
            "path": "/[b]/x",
            "size": [224, 320],
            "nothing": None,
            "empty list": [],
            "empty table": {},
            "encoder": {"dim": 768, "decoder": {"heads": 16}},
            "files": [{"name": "a", "rows": 1}, {"name": "b", "rows": 2}],
            "notes": ["not used: 'optimizer', 'epoch'", "2 tensors cast"],
            "flag": False,
        }
    )
    assert lines(capsys) == [
        "kind: graph",
        "path: /[b]/x",
        "size: 224, 320",
        "nothing: -",
        "empty list: -",
        "empty table: -",
        "encoder:",
        "  dim: 768",
        "  decoder:",
        "    heads: 16",
        "files:",
        "  name: a",
        "  rows: 1",
        "  name: b",
        "  rows: 2",
        "notes:",
        "  not used: 'optimizer', 'epoch'",
        "  2 tensors cast",
        "flag: False",
    ]
