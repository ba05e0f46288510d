"""Reading whole checkpoints: every format gives the same tensors as the library that wrote it."""

from __future__ import annotations

import argparse
import hashlib
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from mae_export.encoders.checkpoint import read_checkpoint, require_finite
from mae_export.errors import CheckpointError, LayoutError

FIXTURES = [
    ("mae/checkpoint.pth", 50, True),
    ("mae/checkpoint_release.pth", 30, False),
    ("mae_finetune/checkpoint.pth", 32, True),
    ("mae_finetune/checkpoint_release.pth", 32, False),
    ("mae_linprobe/checkpoint.pth", 35, True),
]
STATE = {
    "cls_token": torch.randn(1, 1, 8),
    "blocks.0.attn.qkv.weight": torch.randn(24, 8).half(),
    "blocks.0.norm1.bias": torch.randn(8, dtype=torch.float64),
    "norm.weight": torch.randn(8).bfloat16(),
    "index": torch.arange(6).reshape(2, 3),
    "unused": torch.empty(0, 8),
}


def same(ours: dict[str, torch.Tensor], theirs: dict[str, torch.Tensor]) -> bool:
    return list(ours) == list(theirs) and all(
        tensor.dtype == theirs[name].dtype and torch.equal(tensor, theirs[name]) for name, tensor in ours.items()
    )


@pytest.mark.parametrize(("name", "count", "trained"), FIXTURES)
def test_published_files_match_torch_load(fixture_dir: Path, name: str, count: int, trained: bool) -> None:
    path = fixture_dir / name
    checkpoint = read_checkpoint(path)
    with torch.serialization.safe_globals([argparse.Namespace]):
        reference = torch.load(path, weights_only=True)
    assert len(checkpoint.tensors) == count
    assert same(dict(checkpoint.tensors), reference["model"])
    assert (checkpoint.path, checkpoint.format, checkpoint.container, checkpoint.stripped) == (
        path,
        "torch",
        "model",
        (),
    )
    assert checkpoint.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
    if trained:
        args = vars(reference["args"])
        assert checkpoint.metadata["args"] == {key: list(v) if type(v) is tuple else v for key, v in args.items()}
        assert checkpoint.notes == ("not used: 'optimizer', 'epoch', 'scaler'",)
    else:
        assert checkpoint.metadata == {}
        assert checkpoint.notes == ()


def test_metadata_holds_the_training_arguments(fixture_dir: Path) -> None:
    args = read_checkpoint(fixture_dir / "mae" / "checkpoint.pth").metadata["args"]
    assert args["norm_pix_loss"] is True
    assert args["model"] == "mae_vit_large_patch16"


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
@pytest.mark.parametrize("zipped", [True, False])
def test_every_protocol_and_both_formats(tmp_path: Path, protocol: int, zipped: bool) -> None:
    path = tmp_path / "x.pth"
    torch.save({"state_dict": STATE}, path, pickle_protocol=protocol, _use_new_zipfile_serialization=zipped)
    checkpoint = read_checkpoint(path)
    assert same(dict(checkpoint.tensors), STATE)
    assert (checkpoint.format, checkpoint.container) == ("torch", "state_dict")


def save_renamed_safetensors(path: Path) -> None:
    save_file(STATE, path)


def save_renamed_torch(path: Path) -> None:
    torch.save(STATE, path)


@pytest.mark.parametrize(
    ("name", "save", "found"),
    [("x.pth", save_renamed_safetensors, "safetensors"), ("x.safetensors", save_renamed_torch, "torch")],
)
def test_format_is_found_by_content(tmp_path: Path, name: str, save: Callable[[Path], None], found: str) -> None:
    save(tmp_path / "plain")
    (tmp_path / "plain").rename(tmp_path / name)
    checkpoint = read_checkpoint(str(tmp_path / name))
    assert checkpoint.format == found
    assert checkpoint.notes == (f"{name} is a {found} file by its content, whatever its name says",)
    assert same(dict(sorted(checkpoint.tensors.items())), dict(sorted(STATE.items())))


def test_folder(tmp_path: Path) -> None:
    config = {"model_type": "vit_mae", "hidden_size": 8}
    (tmp_path / "config.json").write_text(json.dumps(config))
    save_file({f"module.{name}": tensor for name, tensor in STATE.items()}, tmp_path / "model.safetensors")
    checkpoint = read_checkpoint(tmp_path)
    assert (checkpoint.format, checkpoint.container, checkpoint.stripped) == ("huggingface", "", ("module.",))
    assert checkpoint.metadata == config
    assert set(checkpoint.tensors) == set(STATE)
    assert checkpoint.sha256 == hashlib.sha256((tmp_path / "model.safetensors").read_bytes()).hexdigest()


def test_choice_between_sets_of_weights(tmp_path: Path) -> None:
    path = tmp_path / "x.pth"
    averaged = {name: tensor + 1 for name, tensor in STATE.items()}
    torch.save({"model": STATE, "student": averaged}, path)
    with pytest.raises(LayoutError, match=r"2 sets of weights: 'model'.*'student'.*--set weights=NAME"):
        read_checkpoint(path)
    torch.save({"model": STATE, "model_ema": averaged, "args": {"ema": True}}, path)
    assert read_checkpoint(path).container == "model"
    checkpoint = read_checkpoint(path, weights="model_ema")
    assert same(dict(checkpoint.tensors), averaged)
    assert checkpoint.container == "model_ema"
    assert checkpoint.notes == ("not used: 'model'",)
    assert checkpoint.metadata == {"args": {"ema": True}}


def test_views_and_shared_storages_keep_their_strides(tmp_path: Path) -> None:
    base = torch.randn(6, 4)
    state = {"base": base, "transposed": base.t(), "row": base[2], "slice": base[1:5:2, 1:3], "scalar": base[3, 3]}
    torch.save(state, tmp_path / "x.pth")
    tensors = read_checkpoint(tmp_path / "x.pth").tensors
    assert same(dict(tensors), state)
    assert tensors["transposed"].stride() == (1, 4)
    assert tensors["row"].data_ptr() - tensors["base"].data_ptr() == 2 * 4 * 4


def test_writing_to_a_tensor_leaves_the_file_alone(tmp_path: Path) -> None:
    path = tmp_path / "x.pth"
    torch.save({"w": torch.ones(4, 4)}, path)
    before = path.read_bytes()
    read_checkpoint(path).tensors["w"].zero_()
    assert path.read_bytes() == before
    assert read_checkpoint(path).tensors["w"].sum() == 16


def test_parameters_and_tensors_with_attributes(tmp_path: Path) -> None:
    parameter = torch.nn.Parameter(torch.randn(3, 3))
    tagged = torch.nn.Parameter(torch.randn(3))
    tagged.group = "decay"  # type: ignore[attr-defined]
    torch.save({"weight": parameter, "bias": tagged}, tmp_path / "x.pth")
    tensors = read_checkpoint(tmp_path / "x.pth").tensors
    assert torch.equal(tensors["weight"], parameter)
    assert torch.equal(tensors["bias"], tagged)
    assert not tensors["weight"].requires_grad


def test_finite_tensors_pass() -> None:
    require_finite({"w": torch.zeros(3), "empty": torch.empty(0), "index": torch.tensor([2**62])})


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_nan_and_infinity_are_counted_and_named(dtype: torch.dtype) -> None:
    values = torch.zeros(2, 5_000_000, dtype=dtype)
    values[0, 7] = float("nan")
    values[1, -1] = float("-inf")
    with pytest.raises(CheckpointError, match=r"1 tensors hold NaN or infinite values: 'bad' \(2 of 10000000\)\."):
        require_finite({"good": torch.ones(2), "bad": values})


def test_many_tensors_that_are_not_finite_are_listed_in_part() -> None:
    with pytest.raises(CheckpointError, match=r"10 tensors.*'t7' \(1 of 1\) and 2 more"):
        require_finite({f"t{index}": torch.tensor([torch.inf]) for index in range(10)})


CHILD = """
import sys
import torch
from mae_export.encoders.checkpoint import read_checkpoint, require_finite

def peak():
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) for line in status if line.startswith("VmHWM")) * 1024

require_finite({"warm": torch.ones(9)})
before = peak()
checkpoint = read_checkpoint(sys.argv[1])
require_finite(checkpoint.tensors)
print(peak() - before, sum(tensor.numel() for tensor in checkpoint.tensors.values()))
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="peak memory is read from /proc")
@pytest.mark.parametrize("kind", ["zip", "legacy", "safetensors"])
def test_peak_memory_stays_below_twice_the_file(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "x"
    state = {f"blocks.{index}.weight": torch.full((2500, 2500), float(index)) for index in range(8)}
    if kind == "safetensors":
        save_file(state, path)
    else:
        torch.save({"model": state}, path, _use_new_zipfile_serialization=kind == "zip")
    child = subprocess.run(
        [sys.executable, "-c", CHILD, str(path)], check=True, capture_output=True, text=True, timeout=120
    )
    grown, values = map(int, child.stdout.split())
    assert values == 8 * 2500 * 2500
    assert grown < 2.2 * path.stat().st_size
