"""What an encoder is, without any tensor: how its images are prepared and how its layers are sized.

Pure values, validated at construction, so that no later step needs to check them again.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Literal

from mae_export.decoder_spec import TargetSpec
from mae_export.errors import InputError

Resize = Literal["cover", "stretch"]
Pooled = Literal["class_token", "mean_patch", "norm_of_mean", "fresh_norm_of_mean"]
Norm = Literal["tokens", "pooled", "none"]

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


def _require(condition: bool, message: str) -> None:
    if not condition:
        raise InputError(message)


@dataclass(frozen=True, kw_only=True)
class ImageSpec:
    """How a decoded image becomes the pixels that the encoder was trained on.

    Attributes:
        size: height and width in pixels that the encoder takes.
        resize: `cover` resizes so that `size / crop_fraction` is covered, then crops the centre; `stretch` resizes
            to `size` exactly.
        crop_fraction: side of the centre crop over the side of the resized image (224 / 256 in MAE's evaluation).
        interpolation: resampling filter, always antialiased.
        mean: per channel, of pixels in [0, 1].
        std: per channel, of pixels in [0, 1].
        channels: number of channels, RGB order when 3.
        frames: images per sample; 1 for still images.

    Raises:
        InputError: when a value is out of range.
    """

    size: tuple[int, int]
    resize: Resize = "cover"
    crop_fraction: float = 1.0
    interpolation: Literal["bicubic", "bilinear"] = "bicubic"
    mean: tuple[float, ...] = IMAGENET_MEAN
    std: tuple[float, ...] = IMAGENET_STD
    channels: int = 3
    frames: int = 1

    def __post_init__(self) -> None:
        height, width = self.size
        _require(0 < height <= 65536 and 0 < width <= 65536, f"image size {height}x{width} is out of range 1..65536")
        _require(self.resize in ("cover", "stretch"), f"resize is {self.resize!r}; expected 'cover' or 'stretch'")
        _require(0 < self.crop_fraction <= 1, f"crop_fraction is {self.crop_fraction}; expected 0 < crop_fraction <= 1")
        _require(
            self.interpolation in ("bicubic", "bilinear"),
            f"interpolation is {self.interpolation!r}; expected 'bicubic' or 'bilinear'",
        )
        _require(self.channels >= 1 and self.frames >= 1, "channels and frames must be at least 1")
        for name, values in (("mean", self.mean), ("std", self.std)):
            _require(
                len(values) == self.channels,
                f"{name} has {len(values)} values for {self.channels} channels; give one per channel",
            )
            _require(all(math.isfinite(v) for v in values), f"{name} holds a value that is not finite: {values}")
        _require(all(v > 0 for v in self.std), f"std must be positive, found {self.std}")


@dataclass(frozen=True, kw_only=True)
class StoredTable:
    """Absolute positions kept in the checkpoint as one row per token, trained or fixed sin-cos.

    Attributes:
        grid: rows and columns of the stored table, without prefix rows.
        prefix_rows: rows in front of the grid's, such as the class token's.
        resample: how the authors resize the table to another grid.
    """

    grid: tuple[int, int]
    prefix_rows: int = 1
    resample: Literal["bicubic", "bilinear"] = "bicubic"

    def __post_init__(self) -> None:
        _require(min(self.grid) >= 1, f"position grid {self.grid} must have at least one row and column")
        _require(self.prefix_rows >= 0, f"prefix_rows is {self.prefix_rows}; expected 0 or more")


@dataclass(frozen=True, kw_only=True)
class RelativeBias:
    """Learned biases added to attention logits, one row per offset between two patches (BEiT).

    Three further rows are for class token to patch, patch to class token, and class token to itself.

    Attributes:
        grid: rows and columns of the grid that the table covers.
        shared: whether all blocks share one table (pre-training) or each has its own (fine-tuning).
    """

    grid: tuple[int, int]
    shared: bool = True

    def __post_init__(self) -> None:
        _require(min(self.grid) >= 1, f"position grid {self.grid} must have at least one row and column")


@dataclass(frozen=True, kw_only=True)
class Rotary:
    """Queries and keys of patches rotated by their row and column, besides a stored table (EVA-02).

    Attributes:
        table: the absolute positions that are added as well.
        trained_grid: rows and columns of pre-training, to which coordinates of other grids are scaled.
        base: angles are coordinate * base^(-2i / (head width / 2)).
    """

    table: StoredTable
    trained_grid: tuple[int, int]
    base: float = 10000.0

    def __post_init__(self) -> None:
        _require(min(self.trained_grid) >= 1, f"grid {self.trained_grid} must have at least one row and column")
        _require(self.base > 1, f"rotary base is {self.base}; expected a number above 1")

    @property
    def grid(self) -> tuple[int, int]:
        """Rows and columns of the stored table."""
        return self.table.grid


Position = StoredTable | RelativeBias | Rotary


@dataclass(frozen=True, kw_only=True)
class EncoderSpec:
    """Everything that fixes an encoder's computation except its weights.

    Attributes:
        family: key of the family in `mae_export.encoders.families.FAMILIES`.
        image: how images are prepared; `image.size` is the size the graph will take.
        patch: frames, rows and columns of one patch.
        dim: width of a token.
        depth: number of blocks.
        heads: attention heads per block.
        mlp_hidden: width inside the MLP.
        eps: added to the variance in every LayerNorm.
        position: how tokens know where they are.
        class_token: whether a learned token precedes the patches.
        norm: `tokens` when the checkpoint's last norm applies to every token; `pooled` when it applies to the pooled
            vector only (`fc_norm` of fine-tuned files); `none` when there is none.
        pooled: the feature that the authors recommend: the class token or the mean of the patch tokens, both after a
            norm of tokens; or the mean of patch tokens as the last block left them, then that norm (`norm_of_mean`)
            or one without weights, standing in for a norm that fine-tuning starts afresh (`fresh_norm_of_mean`).
        decoder: what predicts the training target from the tokens, or None.
        mask_token: whether a learned vector replaces the embedding of masked patches.
    """

    family: str
    image: ImageSpec
    patch: tuple[int, int, int]
    dim: int
    depth: int
    heads: int
    mlp_hidden: int
    eps: float
    position: Position
    class_token: bool = True
    norm: Norm = "tokens"
    pooled: Pooled = "class_token"
    decoder: TargetSpec | None = None
    mask_token: bool = False

    def __post_init__(self) -> None:
        _require(min(self.dim, self.depth, self.heads, self.mlp_hidden) >= 1, "dim, depth, heads, mlp must be >= 1")
        _require(
            self.dim % self.heads == 0,
            f"width {self.dim} is not divisible by {self.heads} heads; pass --set heads=N with the trained number",
        )
        _require(
            self.norm == "tokens" or self.pooled != "norm_of_mean", "norm_of_mean needs the checkpoint's norm of tokens"
        )
        _require(
            self.norm != "pooled" or self.pooled != "fresh_norm_of_mean",
            "a file that norms the pooled vector needs no fresh norm",
        )
        _require(0 < self.eps < 0.1, f"eps is {self.eps}; expected a small positive number such as 1e-6")
        _require(min(self.patch) >= 1, f"patch {self.patch} must be at least 1 along each axis")
        for axis, extent, step in (
            ("frames", self.image.frames, self.patch[0]),
            ("height", self.image.size[0], self.patch[1]),
            ("width", self.image.size[1], self.patch[2]),
        ):
            below = extent // step * step
            choices = f"{below} or {below + step}" if below else f"{step}"
            _require(
                extent == below, f"image {axis} {extent} is not a multiple of the patch's {step}; choose {choices}"
            )

    @property
    def grid(self) -> tuple[int, int, int]:
        """Patches along time, rows and columns."""
        height, width = self.image.size
        return self.image.frames // self.patch[0], height // self.patch[1], width // self.patch[2]

    @property
    def patches(self) -> int:
        """Number N of patch tokens of a full image."""
        return math.prod(self.grid)

    @property
    def patch_values(self) -> int:
        """Pixel values in one patch, p_t * p_y * p_x * channels."""
        return math.prod(self.patch) * self.image.channels

    @property
    def prefix_tokens(self) -> int:
        """Tokens in front of the patches."""
        return int(self.class_token)

    def resized(self, size: tuple[int, int]) -> EncoderSpec:
        """The same encoder for images of another height and width in pixels.

        Raises:
            InputError: when the size is not a multiple of the patch.
        """
        return replace(self, image=replace(self.image, size=size))


def predicts_pixels(spec: EncoderSpec) -> bool:
    """Whether the checkpoint's decoder or head predicts pixels, rather than features or tokens of a teacher."""
    return spec.decoder is not None and spec.decoder.target not in ("teacher-features", "token-logits")
