"""The comparison on GPUs: skipped with the reason where there is none, and small where there is one."""

import json
import sys

import numpy as np
import pytest
import torch

import mae_export.runtime.ort as ort_module
from benchmarks import gpu
from benchmarks.models import write_graph
from mae_export.errors import MachineError
from mae_export.graph import read_manifest
from mae_export.runtime import bench
from mae_export.runtime.gemm import gemms_on_cpu
from mae_export.runtime.session import open_session
from tests.runtime.onnxruntime_double import CUDA, RuntimeDouble


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


def test_fused_attention_stays_fused_and_computes_the_same(tmp_path):
    graph = write_graph("tiny", tmp_path)
    fused = gpu.write_fused(graph)
    feeds = bench.bench_feeds(read_manifest(graph), 2, 49)
    with open_session(graph) as plain, open_session(fused) as other:
        np.testing.assert_allclose(other.run(feeds)["pooled"], plain.run(feeds)["pooled"], atol=1e-5)
    counts = gpu.optimized(fused, "CPUExecutionProvider")
    assert gpu.attention(counts) == "attention is fused: {'MultiHeadAttention': 2}"


def test_kernels_are_told_by_the_time_they_take(monkeypatch):
    monkeypatch.setattr(gpu, "DEVICE", "cpu")
    large, small = torch.ones(512, 512), torch.ones(8)
    listed = gpu.kernels(lambda: (large @ large, small + small))
    assert listed[0]["kernel"] == "aten::mm"
    assert listed[0]["times"] == 1
    assert [each["ms"] for each in listed] == sorted((each["ms"] for each in listed), reverse=True)


@pytest.fixture
def pretended(monkeypatch):
    """A GPU that is none: ONNX Runtime's double insists on the rules of bindings and CUDA graphs; PyTorch has a CPU."""
    double = RuntimeDouble(CUDA)
    for place in (gpu, ort_module):
        monkeypatch.setattr(place, "ort", double)
    monkeypatch.setattr(gpu, "DEVICE", "cpu")
    monkeypatch.setattr(gpu, "obstacle", lambda: "")
    monkeypatch.setattr(gpu, "gemm_on_gpu", lambda precision: gemms_on_cpu(size=64)[0])
    monkeypatch.setattr(torch, "compile", lambda view, **options: view)
    monkeypatch.setattr(bench, "LONGEST_WARM_UP", 2)
    return double


def test_everything_runs_to_the_end(tmp_path, monkeypatch, capsys, pretended):
    arguments = ["--sizes", "tiny", "--rounds", "2", "--batch", "1,2", "--int8", "--results", str(tmp_path)]
    monkeypatch.setattr(sys, "argv", ["gpu", *arguments])
    gpu.main()
    found = json.loads((tmp_path / "gpu.json").read_text())["tiny"]
    assert [(case["batch"], case["kept"]) for case in found["cases"]] == [(1, 196), (1, 49), (2, 196), (2, 49)]
    names = [timing["name"] for timing in found["cases"][0]["timings"]]
    assert names == [
        "PyTorch eager fp16",
        "PyTorch compile fp16",
        "ONNX Runtime fp16",
        "ONNX Runtime fp16, attention fused",
        "ONNX Runtime INT8",
        "ONNX Runtime fused, from and to the host",
    ]
    assert found["fused_cosine"] > 0.9999
    assert "MultiHeadAttention" not in found["operators"]["fp16"]  # a CPU has no Softmax in float16 either
    assert found["operators"]["INT8"]["Softmax"] == 2
    assert found["operators"]["fp16, attention fused"]["MultiHeadAttention"] == 2
    assert found["left_out"] == {}
    assert list(found["kernels"]) == names[:-1]
    assert found["kernels"]["PyTorch eager fp16"]  # ONNX Runtime's on a CPU are none that PyTorch sees
    runs = [made.session.runs for made in pretended.made]
    assert [1, 2, 3, 4, 5] in [sorted(set(each)) for each in runs]  # a CUDA graph for every case, and for the profile
    printed = capsys.readouterr().out
    assert "ViT-tiny INT8: attention is not fused: 2 Softmax stay" in printed
    assert "ViT-tiny fp16, attention fused: attention is fused: {'MultiHeadAttention': 2}" in printed
    assert "matrix products reach" in printed


def test_8_bits_that_do_not_run_are_named(tmp_path, pretended, monkeypatch):
    def refuse(path, *, backend):
        raise MachineError("CUDAExecutionProvider does not run MatMulInteger of this graph")

    monkeypatch.setattr(gpu, "open_as_is", refuse)
    graphs, left_out = gpu.graphs_of("tiny", tmp_path, int8=True)
    assert list(graphs) == ["fp16", "fp16, attention fused"]
    assert left_out == {"INT8": "CUDAExecutionProvider does not run MatMulInteger of this graph"}


def test_other_features_end_the_measurement(tmp_path, pretended, monkeypatch):
    monkeypatch.setattr(gpu, "likeness", lambda graphs, manifest: float("nan"))
    with pytest.raises(SystemExit, match=r"fused attention gives other features: cosine nan, expected at least 0\.999"):
        gpu.measure("tiny", bench.BenchPlan(batches=(1,), rounds=1), tmp_path, int8=False)


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
    assert all(found["kernels"].values())
    assert "MultiHeadAttention" in found["operators"]["fp16, attention fused"]
