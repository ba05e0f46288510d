"""Writing what was trained in the layout that facebookresearch/mae publishes, for any reader of that layout."""

from __future__ import annotations

import argparse
import re
from collections.abc import Mapping
from pathlib import Path

import torch

from mae_export.encoders.vit import ViT
from mae_export.errors import InputError
from mae_export.files import put_in_place, staging

# From the names of `mae_export.encoders.vit` to the authors': the loader's renames, the other way round.
RENAMES = (
    (r"decoder\.mask_token", "mask_token"),
    (r"decoder\.(.*)", r"decoder_\1"),
)
PLAIN = (bool, int, float, str, type(None))  # what any reader of the file may unpickle


def save_checkpoint(model: ViT, path: str | Path, *, args: Mapping[str, object] | None = None, epoch: int = 0) -> Path:
    """Write `{"model": tensors, "epoch": int, "args": Namespace}`, whole or not at all.

    The layout does not hold the numbers of heads; its readers take 64 values per head in the encoder and 16 heads in
    the decoder.

    Args:
        model: trained or not, with or without a decoder.
        path: of the new file.
        args: numbers, texts and truth values to record beside `input_size` and `norm_pix_loss`.
        epoch: last epoch of the training.

    Returns:
        The path.

    Raises:
        InputError: when an argument is something else, or the folder does not exist or cannot be written.
        ResourceError: when the disk is full.
    """
    path = Path(path)
    for name, value in (args or {}).items():
        if not isinstance(value, PLAIN):
            raise InputError(f"cannot record {name}={value!r}; expected numbers, texts, truth values or None")
    facts: dict[str, object] = {**(args or {}), "input_size": max(model.spec.image.size)}
    decoder = model.spec.decoder
    if decoder is not None and decoder.target != "unknown":
        facts["norm_pix_loss"] = decoder.target == "patch-normalised"
    state = {published_name(name): tensor.detach().contiguous() for name, tensor in model.state_dict().items()}
    with staging(path) as folder:
        staged = folder / path.name
        torch.save({"model": state, "epoch": epoch, "args": argparse.Namespace(**facts)}, staged)
        put_in_place(staged, path)
    return path


def published_name(name: str) -> str:
    """The authors' name of one of our tensors."""
    for pattern, replacement in RENAMES:
        if match := re.fullmatch(pattern, name):
            return match.expand(replacement)
    return name
