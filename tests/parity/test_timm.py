"""EVA-01 and EVA-02 against timm's own implementation, random weights in float64, on shapes that no fixture has.

timm asks for torchvision, which it needs for augmentation only: here, whatever it imports from there is a placeholder.
"""

from __future__ import annotations

import importlib.abc
import importlib.machinery
import importlib.util
import re
import sys
import types
from collections.abc import Iterator
from functools import partial
from typing import Any

import pytest
import torch

from mae_export.encoders.load import load_encoder
from mae_export.encoders.overrides import Overrides
from mae_export.encoders.rotary import rotations
from tests.parity.cases import eps_times_ten, transposed_rotations

LIMIT = 1e-8
DIM, HEADS, PATCH, GRID, DEPTH = 96, 3, 14, 5, 2
SHAPE = {"img_size": PATCH * GRID, "patch_size": PATCH, "embed_dim": DIM, "depth": DEPTH, "num_heads": HEADS}
ROTARY = {"use_rot_pos_emb": True, "ref_feat_shape": (GRID, GRID), "swiglu_mlp": True, "mlp_ratio": 8 / 3}
EVA01 = {"mlp_ratio": 4.3637}
PACKED = {**ROTARY}
SPLIT = {**ROTARY, "qkv_fused": False, "scale_mlp": True}
# From timm's names to the authors': checkpoint_filter_fn of timm.models.eva, the other way round.
COMMON = [(r"(.*)", r"\1")]
RENAMES = {
    "eva01": COMMON,
    "packed": [(r"(.*\.mlp)\.fc1\.(.*)", r"\1.w12.\2"), (r"(.*\.mlp)\.fc2\.(.*)", r"\1.w3.\2"), *COMMON],
    "split": [
        (r"(.*\.mlp)\.fc1_g\.(.*)", r"\1.w1.\2"),
        (r"(.*\.mlp)\.fc1_x\.(.*)", r"\1.w2.\2"),
        (r"(.*\.mlp)\.norm\.(.*)", r"\1.ffn_ln.\2"),
        (r"(.*\.mlp)\.fc2\.(.*)", r"\1.w3.\2"),
        (r"(.*\.attn)\.([qv])_proj\.bias", r"\1.\2_bias"),
        *COMMON,
    ],
}


class Name(type):
    """A class whose every attribute is its own name."""

    def __getattr__(cls, name: str) -> str:
        if name.startswith("__"):
            raise AttributeError(name)
        return f"{cls.__name__}.{name}"


class Placeholder(types.ModuleType):
    """A module that has whatever is asked of it."""

    def __getattr__(self, name: str) -> type:
        if name.startswith("__"):
            raise AttributeError(name)
        return Name(name, (), {})


class Finder(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Finds placeholders where torchvision would be."""

    def find_spec(self, fullname: str, path: Any = None, target: Any = None) -> importlib.machinery.ModuleSpec | None:
        if fullname.partition(".")[0] != "torchvision":
            return None
        return importlib.machinery.ModuleSpec(fullname, self, is_package=True)

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> Placeholder:
        return Placeholder(spec.name)

    def exec_module(self, module: types.ModuleType) -> None:
        pass


@pytest.fixture(scope="module")
def eva() -> Iterator[types.ModuleType]:
    """timm.models.eva; nothing of it stays imported, nor the placeholders."""
    if importlib.util.find_spec("timm") is None:
        pytest.skip("timm is not installed")
    finder, before = Finder(), set(sys.modules)
    sys.meta_path.insert(0, finder)
    try:
        import timm.models.eva

        yield timm.models.eva
    finally:
        sys.meta_path.remove(finder)
        for name in set(sys.modules) - before:
            if name.partition(".")[0] in ("timm", "torchvision"):
                del sys.modules[name]


def renamed(state: dict[str, torch.Tensor], kind: str) -> dict[str, torch.Tensor]:
    found = {"mask_token": torch.randn(1, 1, DIM, dtype=torch.float64)}
    for name, tensor in state.items():
        target = next(match.expand(to) for old, to in RENAMES[kind] if (match := re.fullmatch(old, name)))
        found[target] = tensor
    return {name: tensor for name, tensor in found.items() if not name.endswith("k_bias")}


def sines_and_cosines() -> torch.Tensor:
    """timm's rotary table in float64: sines, then cosines, of row and column times 10000^(-4i / width)."""
    width = DIM // HEADS
    frequencies = 10000.0 ** (-4 * torch.arange(width // 4, dtype=torch.float64) / width)
    cells = torch.cartesian_prod(torch.arange(GRID), torch.arange(GRID)).double()
    angles = (cells[:, :, None] * frequencies).flatten(1).repeat_interleave(2, dim=-1)
    return torch.cat([angles.sin(), angles.cos()], dim=-1)


@pytest.mark.parametrize(
    ("kind", "family", "arguments"),
    [("eva01", "eva01", EVA01), ("packed", "eva02", PACKED), ("split", "eva02", SPLIT)],
)
def test_random_weights_give_timms_tokens(eva, tmp_path, kind, family, arguments):
    torch.manual_seed(0)
    norm = partial(torch.nn.LayerNorm, eps=1e-6)
    theirs = eva.Eva(**SHAPE, **arguments, num_classes=0, global_pool="token", norm_layer=norm).double().eval()
    with torch.no_grad():
        for tensor in theirs.parameters():
            # float32 numbers, so that a stored file holds them exactly
            tensor.add_(0.05 * torch.randn_like(tensor)).copy_(tensor.float().double())
    state = renamed(dict(theirs.state_dict()), kind)
    state["mask_token"] = state["mask_token"].float()
    torch.save({"model": {name: tensor.float() for name, tensor in state.items()}}, tmp_path / "eva.pth")
    encoder, report = load_encoder(tmp_path / "eva.pth", overrides=Overrides(heads=HEADS))
    assert report.family == family
    pixels = torch.randn(2, 3, PATCH * GRID, PATCH * GRID, dtype=torch.float64)

    def error() -> float:
        embedded = encoder.patch_embed.proj(pixels).flatten(2).transpose(1, 2)
        return float((encoder.finish(encoder.encode_tokens(embedded).tokens) - expected).abs().max())

    encoder = encoder.double()
    with torch.inference_mode():
        if family == "eva02":
            exact = sines_and_cosines()
            assert (theirs.rope.pos_embed - exact).abs().max() < 1e-6  # timm computes it in float32
            theirs.rope.pos_embed = exact
            ours = rotations((GRID, GRID), (GRID, GRID), width=DIM // HEADS, base=10000.0, prefix=1)
            encoder.get_buffer("turns").copy_(ours)  # loaded encoders hold it in float32
        expected = theirs.forward_features(pixels)
        assert error() < LIMIT
        if family == "eva02":
            transposed_rotations(encoder)
        else:
            eps_times_ten(encoder)
        assert error() > 100 * LIMIT
