"""data2vec 2.0's decoder for images (Baevski et al., ICML 2023, section 3.2): convolutions over the grid of patches.

Sizes in comments: B batch, K kept patches, P prefix tokens, N all patches, D width of the encoder, d channels.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from mae_export.decoder_spec import ConvDecoderSpec
from mae_export.encoders.decoder import TargetDecoder, put_back
from mae_export.spec import EncoderSpec

NORM_EPS = 1e-5  # of the norms between the convolutions, which have no weights; not the encoder's


class ConvDecoder(TargetDecoder):
    """Convolutions, each followed by a norm over channels and GELU and added to its input where that is as wide.

    Training fills the places of hidden patches with noise of standard deviation 0.01 around zero (`mask_noise_std`);
    without `fill` this takes its mean, so that an image has one prediction.
    """

    def __init__(self, spec: EncoderSpec, decoder: ConvDecoderSpec) -> None:
        super().__init__()
        self.prefix = spec.prefix_tokens
        self.grid = spec.grid[1:]
        self.blocks = nn.ModuleList(
            nn.Conv2d(
                spec.dim if index == 0 else decoder.dim,
                decoder.dim,
                decoder.kernel,
                padding=decoder.kernel // 2,
                groups=decoder.groups,
            )
            for index in range(decoder.depth)
        )
        self.pred = nn.Linear(decoder.dim, decoder.values)

    def forward(
        self, tokens: Tensor, ids_keep: Tensor | None, valid: Tensor | None = None, fill: Tensor | None = None
    ) -> Tensor:
        """Predict every patch, [B, P + K, D] -> [B, N, V]; see `TargetDecoder.forward`.

        `fill` [B, N, D] takes the places of hidden patches; None means zero.
        """
        rows, columns = self.grid
        x = tokens[:, self.prefix :]
        if ids_keep is not None:
            x, seen = put_back(x, ids_keep, valid, rows * columns)
            x = x if fill is None else x + (1 - seen) * fill
        x = x.transpose(1, 2).reshape(-1, x.shape[-1], rows, columns)  # [B, D, h, w]
        for convolution in self.blocks:
            # An even kernel makes one row and column too many; the authors leave out the last.
            y = convolution(x)[:, :, :rows, :columns].permute(0, 2, 3, 1)
            y = F.gelu(F.layer_norm(y, y.shape[-1:], eps=NORM_EPS)).permute(0, 3, 1, 2)
            x = y + x if y.shape[1] == x.shape[1] else y
        return self.pred(x.flatten(2).transpose(1, 2))  # type: ignore[no-any-return]
