"""The comparison on GPUs: skipped with the reason where there is none, and small where there is one."""

import json
import sys

import numpy as np
import pytest

from benchmarks import gpu
from benchmarks.attention import fuse_attention
from benchmarks.models import write_graph, write_half
from mae_export.graph import read_manifest
from mae_export.runtime import bench
from mae_export.runtime.session import open_session


def test_without_a_gpu_it_says_so_and_writes_nothing(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(gpu, "nvidia_gpus", tuple)
    monkeypatch.setattr(sys, "argv", ["gpu", "--results", str(tmp_path)])
    gpu.main()
    assert capsys.readouterr().out == "skipped: nvidia-smi lists no NVIDIA GPU\n"
    assert not list(tmp_path.iterdir())


def test_every_obstacle_has_its_sentence(monkeypatch):
    monkeypatch.setattr(gpu, "nvidia_gpus", lambda: ("H100",))
    monkeypatch.setattr(gpu, "available", lambda: ("CPUExecutionProvider",))
    assert gpu.obstacle().startswith("ONNX Runtime has no CUDA provider; install mae-export[gpu]")
    monkeypatch.setattr(gpu, "available", lambda: ("CUDAExecutionProvider",))
    monkeypatch.setattr(gpu.torch.cuda, "is_available", lambda: False)
    assert gpu.obstacle() == "this PyTorch was not built for CUDA"
    monkeypatch.setattr(gpu.torch.cuda, "is_available", lambda: True)
    assert gpu.obstacle() == ""


def test_what_onnx_runtime_made_of_attention_is_read_from_its_own_graph(tmp_path):
    counts = gpu.optimized(write_graph("tiny", tmp_path), "CPUExecutionProvider")
    assert counts["Softmax"] == 2
    assert "SkipLayerNormalization" in counts
    assert gpu.attention(counts) == "attention is not fused: 2 Softmax stay between products of their own"
    assert gpu.attention({"MultiHeadAttention": 12}) == "attention is fused: {'MultiHeadAttention': 12}"
    assert not list(tmp_path.glob("*.optimized.onnx"))


def test_lowered_attention_computes_the_same(tmp_path):
    graph = write_graph("tiny", tmp_path)
    lowered = tmp_path / "lowered.onnx"
    manifest = read_manifest(graph)
    assert fuse_attention(graph, lowered, heads=manifest.encoder["heads"]) == manifest.encoder["depth"]
    feeds = bench.bench_feeds(manifest, 2, 49)
    with open_session(graph) as plain, open_session(lowered) as other:
        np.testing.assert_allclose(other.run(feeds)["pooled"], plain.run(feeds)["pooled"], atol=1e-5)
    counts = gpu.optimized(lowered, "CPUExecutionProvider")
    assert gpu.attention(counts) == "attention is fused: {'MultiHeadAttention': 2}"
    half = tmp_path / "half.onnx"
    assert fuse_attention(write_half(graph, "fp16"), half, heads=manifest.encoder["heads"]) == 2
    with open_session(half) as other:
        assert np.isfinite(other.run(feeds)["pooled"]).all()


@pytest.mark.gpu
@pytest.mark.skipif(bool(gpu.obstacle()), reason=gpu.obstacle())
def test_a_small_size_is_measured(tmp_path, monkeypatch):
    monkeypatch.setattr(bench, "LONGEST_WARM_UP", 6)
    arguments = ["--sizes", "tiny", "--rounds", "2", "--batch", "1,8", "--results", str(tmp_path)]
    monkeypatch.setattr(sys, "argv", ["gpu", *arguments])
    gpu.main()
    found = json.loads((tmp_path / "gpu.json").read_text())["tiny"]
    assert len(found["cases"]) == 4
    assert all(case["gemm_gflops"] > 1000 for case in found["cases"])
