"""`mae-export bench` as its users meet it; what its numbers mean is tested with `mae_export.runtime.bench`."""

import json
import re

import pytest
from PIL import Image

from mae_export.runtime import bench as timing

QUICK = ("--rounds", "2", "--batch", "1,2", "--keep", "1,0.25", "--threads", "1")


@pytest.fixture(autouse=True)
def impatient(monkeypatch):
    monkeypatch.setattr(timing, "LONGEST_WARM_UP", 1)
    monkeypatch.setattr(timing, "PAUSE", 0.0)


def test_a_model_beside_pytorch_and_another_backend(run, model, tmp_path):
    pytest.importorskip("openvino")
    figure = tmp_path / "speed.png"
    code, text, err = run(
        "bench", model, "--against", "torch, torch-bf16,openvino", *QUICK, "--figure", figure, "--json"
    )
    assert (code, err) == (0, "")
    found = json.loads(text)
    assert list(found["contenders"]) == ["cpu", "torch", "torch-bf16", "openvino"]
    assert found["contenders"]["openvino"].startswith("OpenVINO ")
    assert [(case["batch"], case["kept"]) for case in found["cases"]] == [(1, 64), (1, 16), (2, 64), (2, 16)]
    for case in found["cases"]:
        assert [one["name"] for one in case["timings"]] == list(found["contenders"])
        assert all(one["runs"] == 2 and one["warm_up_runs"] == 1 and one["gflops"] > 0 for one in case["timings"])
        assert case["gemm_gflops"] > 0
        assert case["gemm"].startswith("float32 with ")
    with Image.open(figure) as image:
        assert image.width > 500


def test_a_figure_is_not_replaced_unless_asked_to(run, model, monkeypatch, tmp_path):
    figure = tmp_path / "speed.png"
    figure.write_bytes(b"precious")

    def measured(*arguments, **options):
        raise AssertionError("it is refused before the work")

    with monkeypatch.context() as patch:
        patch.setattr(timing, "bench", measured)
        code, _, err = run("bench", model, *QUICK, "--figure", figure)
    assert (code, "speed.png exists; add --force to replace it" in err) == (2, True)
    assert figure.read_bytes() == b"precious"
    assert run("bench", model, *QUICK, "--figure", figure, "--force")[0] == 0
    assert figure.read_bytes().startswith(b"\x89PNG")


def test_the_table_says_what_was_chosen_and_why(run, model):
    code, text, _ = run("bench", model, "--rounds", "1", "--batch", "1", "--keep", "0.5")
    assert code == 0
    assert "batch 1, 32 of 64 patches, 1 rounds\n" in text
    assert re.search(r"^GEMM: matrix products reach \S+ GFLOP/s in float32 with ", text, re.MULTILINE)
    assert "(ONNX Runtime has no CUDA provider here)" in " ".join(text.split())


@pytest.mark.parametrize(
    ("against", "considered"),
    [("", []), ("openvino", []), ("torch", ["PyTorch"]), ("openvino, torch-bf16", ["PyTorch"])],
)
def test_pytorch_multiplies_only_where_it_runs_anyway(run, model, monkeypatch, against, considered):
    pytest.importorskip("openvino")
    real, asked = timing.bench, []

    def measured(*arguments, gemms, **options):
        asked.append([product.what for product in gemms])
        return real(*arguments, gemms=gemms, **options)

    monkeypatch.setattr(timing, "bench", measured)
    assert run("bench", model, "--against", against, *QUICK)[0] == 0
    ((first, second, *others),) = asked
    assert [first.split()[2], second.split()[2]] == ["ONNX", "OpenVINO"]
    assert [other.split()[2] for other in others] == considered


@pytest.mark.parametrize(
    ("arguments", "code", "text"),
    [
        (("--against", "jax"), 2, "there is no contender 'jax'; expected one of torch, compile, torch-bf16"),
        (("--against", "cpu"), 2, "--against names 'cpu', which runs already"),
        (("--against", "torch,torch"), 2, "--against names 'torch', which runs already"),
        (("--backend", "gpu"), 2, "'gpu' is not one of 'auto', 'cpu', 'cuda'"),
        (("--against", "cuda"), 6, "the installed ONNX Runtime has no CUDAExecutionProvider"),
        (("--batch", "one"), 2, "'one' are no numbers; write for example 1,8 or 1,0.25"),
        (("--keep", "25"), 2, "expected 0 < share <= 1"),
        (("--figure", "speed.pdf"), 2, "'speed.pdf' must end in .png"),
    ],
)
def test_wrong_calls(run, model, arguments, code, text):
    found, out, err = run("bench", model, *arguments)
    assert (found, out) == (code, "")
    assert text in err


def test_a_missing_model(run, tmp_path):
    code, _, err = run("bench", tmp_path / "nothing.onnx")
    assert code == 3
    assert "there is no model at" in err
