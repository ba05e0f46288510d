"""Families that kept MAE's encoder, in float64 against transformers' ViTMAE on shapes that no fixture has.

A random ViTMAE is saved under the names of each family, loaded, and run with hidden patches. Both sides hold the same
float32 weights and compute in float64, where a wrong constant (eps, scale, GELU) cannot hide below rounding.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import pytest
import torch

from mae_export.decoder_spec import DecoderSpec
from mae_export.encoders.load import load_encoder
from mae_export.encoders.overrides import Overrides
from tests.parity.cases import eps_times_ten
from tests.parity.test_mae import SHAPES, hugging_face

State = dict[str, torch.Tensor]
LIMIT = 1e-8


def facebook(state: State) -> State:
    """Our names as facebookresearch/mae has them."""
    return {re.sub(r"^decoder\.(?!mask)", "decoder_", name).removeprefix("decoder."): t for name, t in state.items()}


def hpm(state: State) -> Any:
    second = {f"decoder_pred_losspred.{leaf}": torch.ones(2, 2) for leaf in ("weight", "bias")}
    return {"model": "a name", "state_dict": {f"module.{name}": t for name, t in (facebook(state) | second).items()}}


def lut(state: State) -> Any:
    projectors = {f"{head}.{layer}.weight": torch.ones(2, 2) for head in ("head", "predictor") for layer in (0, 2)}
    return {"model": facebook(state) | projectors, "model_ema": {name: t + 1 for name, t in facebook(state).items()}}


MMPRETRAIN = (
    (r"blocks\.(\d+)\.norm", r"layers.\1.ln"),
    (r"blocks\.(\d+)\.mlp\.fc1", r"layers.\1.ffn.layers.0.0"),
    (r"blocks\.(\d+)\.mlp\.fc2", r"layers.\1.ffn.layers.1"),
    (r"blocks\.", "layers."),
    (r"decoder\.layers", "decoder_blocks"),
    (r"^norm\.|^decoder\.norm\.", lambda match: match.group().replace("norm", "ln1").replace("decoder.", "neck.")),
    (r"patch_embed\.proj\.", "patch_embed.projection."),
    (r"^decoder\.(embed|pred|pos_embed)", r"neck.decoder_\1"),
    (r"^decoder\.mask_token", "neck.mask_token"),
    (r"^decoder_blocks", "neck.decoder_blocks"),
    (r"^(?!neck\.)", "backbone."),
)


def mmpretrain(state: State) -> Any:
    renamed = {}
    for name, tensor in state.items():
        for pattern, replacement in MMPRETRAIN:
            name = re.sub(pattern, replacement, name)
        renamed[name] = tensor
    return {"meta": {"cfg": "norm_pix=False"}, "state_dict": renamed}


# family: (what its file holds, whether it must be asked for)
FAMILIES: dict[str, tuple[Callable[[State], Any], bool]] = {
    "dbot": (
        lambda state: {"model": {name.replace("_pred.", "_predp."): t for name, t in facebook(state).items()}},
        False,
    ),
    "hpm": (hpm, False),
    "lut": (lut, False),
    "imae": (lambda state: {"model": facebook(state)}, True),
    "eva_l": (lambda state: {"module": facebook(state)}, True),
    "colormae": (mmpretrain, False),
}
SIZES = [
    ("ten heads of 8, patch 14, 70 px", "dbot"),
    ("three heads of 64, patch 16, 48 px", "dbot"),
    ("ten heads of 8, patch 14, 70 px", "hpm"),
    ("MLP ratio 3.5", "hpm"),
    ("three heads of 64, patch 16, 48 px", "lut"),
    ("one channel, patch 4, 20 px", "lut"),
    ("ten heads of 8, patch 14, 70 px", "imae"),
    ("ten heads of 8, patch 14, 70 px", "eva_l"),
    ("three heads of 64, patch 16, 48 px", "colormae"),
    ("MLP ratio 3.5", "colormae"),
]


@pytest.mark.parametrize(("shape", "family"), SIZES)
def test_random_weights_in_float64_match_transformers(tmp_path, shape, family):
    settings, size = SHAPES[shape]
    model = hugging_face(tmp_path / "hf", settings, size, attention="sdpa").double()
    colour = {} if settings.get("num_channels", 3) == 3 else {"mean": (0.5,), "std": (0.25,)}
    stated = Overrides(heads=settings["num_attention_heads"], decoder_heads=4, **colour)
    file, asked = FAMILIES[family]
    state = load_encoder(tmp_path / "hf", overrides=stated)[0].state_dict()
    torch.save(file(state), tmp_path / "c.pth")
    encoder, report = load_encoder(tmp_path / "c.pth", family=family if asked else None, overrides=stated)
    assert report.family == family

    count, dim = report.spec.patches, report.spec.dim
    draws = torch.Generator().manual_seed(0)
    pixels = torch.randn(2, report.spec.image.channels, size, size, dtype=torch.float64, generator=draws)
    noise = torch.rand(2, count, dtype=torch.float64, generator=draws)
    ids = noise.argsort(dim=1)[:, : int(count * 0.25)]
    with torch.inference_mode():
        encoded = model.vit(pixels, noise=noise, output_hidden_states=True)
        predicted = model(pixels, noise=noise).logits

        def errors() -> tuple[float, float]:
            embedded = encoder.patch_embed.proj(pixels).flatten(2).transpose(1, 2)
            kept = embedded.gather(1, ids.unsqueeze(-1).expand(-1, -1, dim))
            finished = encoder.finish(encoder.encode_tokens(kept, ids).tokens)
            tokens = (finished - encoded.last_hidden_state).abs().max()
            return float(tokens), float((encoder.decoder(finished, ids) - predicted).abs().max())

        encoder = encoder.double()
        assert max(errors()) < LIMIT
        eps_times_ten(encoder)
        assert min(errors()) > 10 * LIMIT


@pytest.mark.parametrize("family", FAMILIES)
def test_what_the_decoder_predicts_is_the_familys(tmp_path, family):
    settings, size = SHAPES["MLP ratio 3.5"]
    hugging_face(tmp_path / "hf", settings, size)
    file, asked = FAMILIES[family]
    stated = Overrides(heads=1, decoder_heads=4)
    torch.save(file(load_encoder(tmp_path / "hf", overrides=stated)[0].state_dict()), tmp_path / "c.pth")
    decoder = load_encoder(tmp_path / "c.pth", family=family if asked else None, overrides=stated)[1].spec.decoder
    assert isinstance(decoder, DecoderSpec)
    targets = {"dbot": "teacher-features", "eva_l": "teacher-features", "colormae": "image-normalised"}
    assert decoder.target == targets.get(family, "unknown")
    assert decoder.values == (192 if "teacher" in decoder.target else None)
