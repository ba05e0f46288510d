"""What predicts the training target from an encoder's tokens, without any tensor: one value per architecture."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from mae_export.errors import InputError

Hiding = Literal["allowed", "required", "impossible"]
Target = Literal["image-normalised", "patch-normalised", "unknown", "teacher-features", "token-logits"]


def _require(condition: bool, message: str) -> None:
    if not condition:
        raise InputError(message)


@dataclass(frozen=True, kw_only=True)
class DecoderSpec:
    """The pre-training decoder, when the checkpoint has one.

    Attributes:
        dim: width.
        depth: number of blocks.
        heads: attention heads per block.
        mlp_hidden: width inside the MLP.
        target: what each predicted patch is: pixels after the image normalisation, pixels normalised per patch
            (`norm_pix_loss`), features of a teacher, or unknown because the file does not say.
        values: numbers predicted per patch; None for its pixels.
        kind: which of the specs this is, for those who read it as plain data.
    """

    hiding: ClassVar[Hiding] = "allowed"  # whether some patches may, must or cannot be hidden from it

    dim: int
    depth: int
    heads: int
    mlp_hidden: int
    target: Target = "unknown"
    values: int | None = None
    kind: Literal["decoder"] = "decoder"

    def __post_init__(self) -> None:
        sizes = (self.dim, self.depth, self.heads, self.mlp_hidden)
        _require(min(sizes) >= 1, "decoder dim, depth, heads and mlp_hidden must be at least 1")
        _require(
            self.dim % self.heads == 0,
            f"decoder width {self.dim} is not divisible by {self.heads} heads; pass --set decoder_heads=N",
        )
        _require(self.values is None or self.values >= 1, "a decoder must predict at least one value per patch")


@dataclass(frozen=True, kw_only=True)
class HeadSpec:
    """One linear layer that predicts every patch from its own token, in place of a decoder.

    Attributes:
        target: what is predicted.
        values: numbers predicted per patch.
        bias: whether the layer adds one.
        kind: see `DecoderSpec`.
    """

    hiding: ClassVar[Hiding] = "impossible"

    target: Target
    values: int
    bias: bool = True
    kind: Literal["head"] = "head"

    def __post_init__(self) -> None:
        _require(self.values >= 1, "a head must predict at least one value per patch")


@dataclass(frozen=True, kw_only=True)
class PredictorSpec:
    """I-JEPA's predictor: a narrow transformer that predicts a teacher's tokens of the hidden patches only.

    Attributes:
        dim: width.
        depth: number of blocks.
        heads: attention heads per block.
        mlp_hidden: width inside the MLP.
        values: numbers predicted per patch.
        target: what is predicted.
        kind: see `DecoderSpec`.
    """

    hiding: ClassVar[Hiding] = "required"

    dim: int
    depth: int
    heads: int
    mlp_hidden: int
    values: int
    target: Target = "teacher-features"
    kind: Literal["predictor"] = "predictor"

    def __post_init__(self) -> None:
        sizes = (self.dim, self.depth, self.heads, self.mlp_hidden, self.values)
        _require(min(sizes) >= 1, "predictor dim, depth, heads, mlp_hidden and values must be at least 1")
        _require(
            self.dim % self.heads == 0,
            f"predictor width {self.dim} is not divisible by {self.heads} heads; pass --set decoder_heads=N",
        )


@dataclass(frozen=True, kw_only=True)
class RegresserSpec:
    """CAE's regresser and decoder, which predict visual tokens of the hidden patches only.

    Attributes:
        dim: width of both.
        depth: number of the regresser's blocks.
        decoder_depth: number of the decoder's blocks.
        heads: attention heads per block; each is `dim // heads` wide, so that together they may be narrower than `dim`.
        mlp_hidden: width inside the MLPs of both.
        values: numbers predicted per patch.
        target: what is predicted.
        kind: see `DecoderSpec`.
    """

    hiding: ClassVar[Hiding] = "required"

    dim: int
    depth: int
    decoder_depth: int
    heads: int
    mlp_hidden: int
    values: int
    target: Target = "token-logits"
    kind: Literal["regresser"] = "regresser"

    def __post_init__(self) -> None:
        _require_regresser(self.dim, self.heads, self.depth, self.decoder_depth, self.mlp_hidden, self.values)


@dataclass(frozen=True, kw_only=True)
class AlignedRegresserSpec:
    """CAE v2's regresser with one linear head for hidden and visible patches, whose predictions have length one.

    Attributes:
        dim: width.
        depth: number of blocks.
        heads: attention heads per block, see `RegresserSpec`.
        mlp_hidden: width inside the MLP.
        values: numbers predicted per patch.
        target: what is predicted.
        kind: see `DecoderSpec`.
    """

    hiding: ClassVar[Hiding] = "allowed"

    dim: int
    depth: int
    heads: int
    mlp_hidden: int
    values: int
    target: Target = "teacher-features"
    kind: Literal["aligned-regresser"] = "aligned-regresser"

    def __post_init__(self) -> None:
        _require_regresser(self.dim, self.heads, self.depth, self.mlp_hidden, self.values)


def _require_regresser(dim: int, heads: int, *sizes: int) -> None:
    _require(min(heads, *sizes) >= 1, "regresser dim, depths, heads, mlp_hidden and values must be at least 1")
    _require(heads <= dim, f"a regresser of width {dim} cannot have {heads} heads; pass --set decoder_heads=N")


@dataclass(frozen=True, kw_only=True)
class ConvDecoderSpec:
    """data2vec 2.0's decoder: convolutions over the grid of patches.

    Attributes:
        dim: channels.
        depth: number of convolutions.
        kernel: rows and columns of each.
        groups: of channels in each.
        values: numbers predicted per patch.
        target: what is predicted.
        kind: see `DecoderSpec`.
    """

    hiding: ClassVar[Hiding] = "allowed"

    dim: int
    depth: int
    kernel: int
    groups: int
    values: int
    target: Target = "teacher-features"
    kind: Literal["convolutions"] = "convolutions"

    def __post_init__(self) -> None:
        sizes = (self.dim, self.depth, self.kernel, self.groups, self.values)
        _require(min(sizes) >= 1, "decoder dim, depth, kernel, groups and values must be at least 1")
        _require(self.dim % self.groups == 0, f"{self.dim} channels cannot be split into {self.groups} groups")


TargetSpec = DecoderSpec | HeadSpec | PredictorSpec | RegresserSpec | AlignedRegresserSpec | ConvDecoderSpec
