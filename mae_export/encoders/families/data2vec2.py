"""data2vec 2.0 for images (Baevski et al., ICML 2023), as facebookresearch/fairseq publishes it.

Base keeps its first two blocks in the modality's context encoder and the rest beside it; larger sizes keep all of them
beside it. Not to be confused with data2vec 1.0 (`Data2VecVision` in transformers), which is laid out as BEiT.
"""

from __future__ import annotations

import re
from dataclasses import replace

from torch import Tensor

from mae_export.decoder_spec import ConvDecoderSpec
from mae_export.encoders.data2vec2 import Data2Vec2
from mae_export.encoders.families.describing import described
from mae_export.encoders.families.family import Facts, Family, Layout, Variant
from mae_export.encoders.families.naming import CLASSIFIER
from mae_export.encoders.families.sizing import depth_of, vit_spec
from mae_export.errors import CheckpointError
from mae_export.spec import EncoderSpec


def spec(facts: Facts) -> tuple[EncoderSpec, tuple[str, ...]]:
    """Derive the spec from shapes, metadata and overrides.

    Raises:
        CheckpointError: when a fact cannot be told and was not given.
        InputError: when facts contradict each other.
    """
    base, notes = vit_spec(facts, "data2vec2", prefix_rows=0)
    return replace(base, pooled="mean_patch", decoder=_decoder(facts, base.dim)), notes


def _decoder(facts: Facts, dim: int) -> ConvDecoderSpec | None:
    if not any(name.startswith("decoder.") for name in facts.shapes):
        return None
    depth = depth_of(facts.shapes, "decoder.")
    channels, inputs, kernel, _ = facts.shape("decoder.blocks.0.weight", 4)
    if dim % inputs:
        raise CheckpointError(
            f"{facts.where}: decoder.blocks.0.weight takes {inputs} channels per group; expected a divisor of {dim}"
        )
    return ConvDecoderSpec(
        dim=channels,
        depth=depth,
        kernel=kernel,
        groups=dim // inputs,
        values=facts.shape("decoder.pred.weight", 2)[0],
    )


def outputs(spec: EncoderSpec) -> dict[str, str]:
    """What each output holds, with its source."""
    mean = "mean of the last block's patch tokens, the extra token left out (mae_image_classification.py)"
    return described(
        spec,
        pooled=f"fine-tuned feature: fc_norm of the {mean}" if spec.norm == "pooled" else mean,
        predicted="decoder's prediction of every patch in raster order; where patches are hidden it starts from zero, "
        "the mean of the noise that training puts there (mask_noise_std 0.01)",
    )


def number_blocks(tensors: dict[str, Tensor]) -> None:
    """Number the context encoder's blocks (`prenet.<i>`) and those that follow them as one sequence of `blocks.<i>`.

    Args:
        tensors: by the encoder's names; changed in place.
    """
    indices = [int(match[1]) for name in tensors if (match := re.match(r"prenet\.(\d+)\.", name))]
    first = max(indices, default=-1) + 1
    for name in list(tensors):
        kind, _, rest = name.partition(".")
        if kind == "blocks":
            index, _, rest = rest.partition(".")
            tensors[f"later.{int(index) + first}.{rest}"] = tensors.pop(name)
    for name in list(tensors):
        kind, _, rest = name.partition(".")
        if kind in ("prenet", "later"):
            tensors[f"blocks.{rest}"] = tensors.pop(name)


_IMAGE = r"(?:model\.)?modality_encoders\.IMAGE\."

FAIRSEQ = Layout(
    name="facebookresearch/fairseq",
    required=(
        _IMAGE + "extra_tokens",
        _IMAGE + r"local_encoder\.proj\.weight",
        _IMAGE + r"context_encoder\.norm\.weight",
        r"(?:model\.)?blocks\.0\.attn\.qkv\.bias",
    ),
    renames=(
        (_IMAGE + "extra_tokens", "cls_token"),
        (_IMAGE + r"local_encoder\.proj\.(.*)", r"patch_embed.proj.\1"),
        (_IMAGE + r"(?:fixed_positional_encoder\.positions|positional_encoder\.pos_embed)", "pos_embed"),
        (_IMAGE + r"context_encoder\.norm\.(.*)", r"context_norm.\1"),
        (_IMAGE + r"context_encoder\.blocks\.(\d+\..*)", r"prenet.\1"),
        (r"(?:model\.)?(blocks\.\d+\..*)", r"\1"),
        (r"(?:model\.)?(fc_norm\..*)", r"\1"),
        (_IMAGE + r"decoder\.blocks\.(\d+)\.0\.(weight|bias)", r"decoder.blocks.\1.\2"),
        (_IMAGE + r"decoder\.proj\.(.*)", r"decoder.pred.\1"),
    ),
    ignored=((r"(?:model\.)?" + CLASSIFIER[0], CLASSIFIER[1]),),
    adapt=number_blocks,
)

FAMILY = Family(
    name="data2vec2",
    title="data2vec 2.0: Efficient Self-supervised Learning with Contextualized Target Representations (ICML 2023)",
    repository="https://github.com/facebookresearch/fairseq/tree/main/examples/data2vec",
    licence="CC-BY-NC-4.0",
    layouts=(FAIRSEQ,),
    spec=spec,
    outputs=outputs,
    encoder=lambda _: Data2Vec2,
    trained="keep",
    feature="mean_patch",
    variants=(
        Variant(name="B/16", dim=768, depth=12, heads=12, patch=16, parameters=85_797_888),
        Variant(name="L/16", dim=1024, depth=24, heads=16, patch=16, parameters=303_300_608),
        Variant(name="H/14", dim=1280, depth=32, heads=16, patch=14, parameters=630_763_520),
    ),
    checked=(
        "tokens, blocks, features, visible subsets and the decoder with given noise, with and without blocks in the "
        "context encoder, against the authors' code on random weights"
    ),
)
