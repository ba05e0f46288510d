"""Small checkpoints of every family, and which of the numbers that its authors' code computed are what of ours.

A family joins by adding a `Case` to `CASES` and a folder of that name to `tests/data`: checkpoints, `input.npz` with
what the authors' code was fed, `expected.npz` with what it computed, and `meta.json` that says how.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field

import numpy as np
import torch

from mae_export.encoders.encoder import Encoder
from mae_export.encoders.overrides import Overrides
from mae_export.manifest import MaskMode

Arrays = Mapping[str, np.ndarray]


def eps_times_ten(encoder: Encoder) -> None:
    """Make every LayerNorm wrong by an amount that a tolerance of 1e-4 does not see."""
    for module in encoder.modules():
        if isinstance(module, torch.nn.LayerNorm):
            module.eps *= 10


def bias_tables(encoder: Encoder) -> Iterator[torch.Tensor]:
    return (table for name, table in encoder.named_parameters() if name.endswith("relative_position_bias_table"))


def class_rows_exchanged(encoder: Encoder) -> None:
    """Take the class token's bias as a query for its bias as a key."""
    for table in bias_tables(encoder):
        table[-3:-1] = table[-3:-1].flip(0)


def offsets_turned(encoder: Encoder) -> None:
    """Take key minus query for query minus key."""
    for table in bias_tables(encoder):
        table[:-3] = table[:-3].flip(0)


def transposed_rotations(encoder: Encoder) -> None:
    """Turn queries and keys of EVA-02 by their column first and their row second."""
    turns = encoder.get_buffer("turns")
    turns.copy_(turns.reshape(len(turns), 2, 2, -1).flip(2).reshape(turns.shape))


def extra_token_after_the_norm(encoder: Encoder) -> None:
    """Keep data2vec 2.0's extra token out of the norm that precedes the blocks."""
    begin = encoder.begin

    def wrong(embedded: torch.Tensor, ids_keep: torch.Tensor | None) -> torch.Tensor:
        right = begin(embedded, ids_keep)
        return torch.cat([encoder.cls_token.expand(len(right), -1, -1), right[:, 1:]], dim=1)

    encoder.begin = wrong


@dataclass(frozen=True, kw_only=True)
class Case:
    """The files of one folder of `tests/data`; they hold the same encoder.

    Attributes:
        folder: name in `tests/data`.
        files: checkpoints in it; each must give the same numbers.
        family: that recognises them, or that is asked for.
        asked: whether `--family` is needed, because the layout is shared and another family recognises it.
        overrides: facts that such small tensors do not say, such as the heads.
        heads: of the encoder that results.
        eps: of every LayerNorm that results.
        images: uint8 [B, H, W, C] in `input.npz`.
        tokens: all tokens of the full image in `expected.npz`, the class token first when there is one.
        tokens_finished: whether `tokens` are after the final norm; otherwise as the last block left them.
        layer_0: tokens after block 0, or None.
        feature: what the authors use of the full image; our `pooled`.
        masked: tokens when patches are hidden, or None.
        modes: mask modes in which `masked` must come out.
        predicted: (input, expected) to the prediction of every patch in raster order for `masked`, or None.
        control: breaks an encoder in one fact; the comparison in float64 must notice.
    """

    folder: str
    family: str
    files: tuple[str, ...] = ("checkpoint.pth",)
    asked: bool = False
    overrides: Overrides = field(default_factory=Overrides)
    heads: int = 4
    eps: float = 1e-6
    images: str = "images"
    tokens: str = "tokens_full"
    tokens_finished: bool = True
    layer_0: str | None = "layer_0"
    feature: str = "feature"
    masked: str | None = "tokens_keep"
    modes: tuple[MaskMode, ...] = ("keep", "patches")
    predicted: Callable[[Arrays, Arrays], np.ndarray] | None = None
    control: Callable[[Encoder], None] = eps_times_ten


FOUR = Overrides(heads=4, decoder_heads=4)


def reconstruction(given: Arrays, expected: Arrays) -> np.ndarray:
    del given
    return expected["reconstruction"]


def without_class_row(given: Arrays, expected: Arrays) -> np.ndarray:
    """dBOT predicts a row for the class token as well."""
    del given
    return expected["reconstruction"][:, 1:]


def in_raster_order(given: Arrays, expected: Arrays) -> np.ndarray:
    """HPM predicts visible patches first, then masked ones."""
    restored = np.empty_like(expected["reconstruction"])
    np.put_along_axis(restored, given["decoder_order"][:, :, None], expected["reconstruction"], axis=1)
    return restored


def cut_into_patches(given: Arrays, expected: Arrays) -> np.ndarray:
    """SimMIM predicts an image [B, C, H, W]; `given["mask"]` has its grid."""
    images, (rows, columns) = expected["reconstruction"], given["mask"].shape[1:]
    batch, channels, height, width = images.shape
    cells = images.reshape(batch, channels, rows, height // rows, columns, width // columns)
    return cells.transpose(0, 2, 4, 3, 5, 1).reshape(batch, rows * columns, -1)


RELEASED = ("checkpoint.pth", "checkpoint_release.pth")
CASES = (
    Case(folder="mae", family="mae", overrides=FOUR, predicted=reconstruction),
    Case(folder="mae", family="mae", files=("checkpoint_release.pth",), overrides=FOUR),
    Case(
        folder="mae_finetune",
        family="mae",
        files=RELEASED,
        overrides=FOUR,
        tokens="tokens_prenorm",
        tokens_finished=False,
        masked=None,
    ),
    Case(folder="mae_linprobe", family="mae", overrides=FOUR, masked=None),
    Case(folder="dbot", family="dbot", overrides=FOUR, predicted=without_class_row),
    Case(folder="dbot", family="dbot", files=("checkpoint_teacher.pth",), asked=True, overrides=FOUR),
    Case(folder="hpm", family="hpm", overrides=FOUR, predicted=in_raster_order),
    Case(folder="lut", family="lut", overrides=FOUR, predicted=reconstruction),
    Case(
        folder="imae",
        family="imae",
        asked=True,
        overrides=Overrides(heads=4, decoder_heads=3),
        predicted=reconstruction,
    ),
    Case(folder="colormae", family="colormae", files=RELEASED, overrides=FOUR, predicted=reconstruction),
    Case(
        folder="beit2",
        family="beitv2",
        files=RELEASED,
        masked="tokens_mask",
        modes=("mask-token",),
        control=class_rows_exchanged,
    ),
    Case(
        folder="beit2_plain",
        family="beitv2",
        files=RELEASED,
        asked=True,
        masked="tokens_mask",
        modes=("mask-token",),
    ),
    Case(
        folder="beit2_finetune",
        family="beitv2",
        files=RELEASED,
        asked=True,
        overrides=Overrides(weights="model"),
        tokens="tokens_prenorm",
        tokens_finished=False,
        masked=None,
        control=offsets_turned,
    ),
    Case(
        folder="simmim_vit",
        family="simmim",
        heads=3,
        images="image_u8",
        masked="tokens_mask",
        modes=("mask-token",),
        predicted=cut_into_patches,
        control=offsets_turned,
    ),
    Case(folder="cae", family="cae", overrides=FOUR),
    Case(folder="caev2", family="cae", overrides=FOUR),
    Case(folder="eva01", family="eva01", files=RELEASED, overrides=FOUR, masked="tokens_mask", modes=("mask-token",)),
    *(
        # The authors' other numbers were computed with rotations rounded to half precision; see test_eva.py.
        Case(
            folder=folder,
            family="eva02",
            files=RELEASED,
            overrides=FOUR,
            tokens="tokens_full_fp32rope",
            layer_0=None,
            masked=None,
            control=transposed_rotations,
        )
        for folder in ("eva02_bl", "eva02_ts")
    ),
    Case(folder="data2vec2", family="data2vec2", overrides=FOUR, control=extra_token_after_the_norm),
    Case(folder="data2vec2_huge14", family="data2vec2", overrides=FOUR),
    Case(folder="mfm", family="mfm", overrides=FOUR, masked=None),
    Case(folder="ijepa", family="ijepa", overrides=FOUR),
    Case(folder="dmtjepa", family="dmtjepa", asked=True, overrides=FOUR),
)
