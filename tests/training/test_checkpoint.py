import argparse
import errno
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from mae_export.decoder_spec import DecoderSpec, Target
from mae_export.encoders.load import load_encoder
from mae_export.encoders.vit import ViT
from mae_export.errors import InputError, ResourceError
from mae_export.spec import EncoderSpec, ImageSpec, StoredTable
from mae_export.training.checkpoint import save_checkpoint
from mae_export.training.initialise import initialise
from mae_export.training.pretrain import normalised_patches, reconstruct


def fresh(spec: EncoderSpec) -> ViT:
    return initialise(spec, seed=7).eval().requires_grad_(False)


def test_loading_gives_the_same_outputs_bit_for_bit(spec: EncoderSpec, tmp_path: Path) -> None:
    model = fresh(spec)
    loaded, report = load_encoder(save_checkpoint(model, tmp_path / "checkpoint.pth", args={"mask_ratio": 0.75}))
    assert (report.family, report.layout, report.ignored) == ("mae", "facebookresearch/mae", ())
    # How a user's image file is cropped is evaluation, not training; everything else must come back.
    assert replace(loaded.spec, image=spec.image) == spec
    images = np.random.default_rng(0).integers(0, 256, (2, 32, 32, 3), dtype=np.uint8)
    patches, ids_keep = normalised_patches(images, spec), torch.tensor([[3, 0, 9, 14], [1, 15, 2, 8]])
    assert torch.equal(reconstruct(loaded, patches, ids_keep), reconstruct(model, patches, ids_keep))
    assert torch.equal(loaded.encode(patches).tokens, model.encode(patches).tokens)


def test_names_and_shapes_are_the_authors(fixture_dir: Path, tmp_path: Path) -> None:
    theirs = torch.load(fixture_dir / "mae" / "checkpoint.pth", weights_only=False)
    spec = EncoderSpec(  # the sizes of that file
        family="mae",
        image=ImageSpec(size=(64, 64)),
        patch=(1, 8, 8),
        dim=48,
        depth=2,
        heads=4,
        mlp_hidden=192,
        eps=1e-6,
        position=StoredTable(grid=(8, 8)),
        decoder=DecoderSpec(dim=32, depth=1, heads=4, mlp_hidden=128, target="patch-normalised"),
    )
    ours = torch.load(save_checkpoint(fresh(spec), tmp_path / "ours.pth", epoch=799), weights_only=False)
    assert {name: tensor.shape for name, tensor in ours["model"].items()} == {
        name: tensor.shape for name, tensor in theirs["model"].items()
    }
    assert ours["epoch"] == theirs["epoch"]
    assert isinstance(ours["args"], argparse.Namespace)
    assert vars(ours["args"]).items() <= vars(theirs["args"]).items()  # input_size=64, norm_pix_loss=True


@pytest.mark.parametrize("target", ["image-normalised", "patch-normalised", "unknown"])
def test_the_target_comes_back(spec_of: Callable[[Target], EncoderSpec], tmp_path: Path, target: Target) -> None:
    _, report = load_encoder(save_checkpoint(fresh(spec_of(target)), tmp_path / "checkpoint.pth"))
    assert report.spec.decoder is not None
    assert report.spec.decoder.target == target


def test_an_encoder_without_decoder(spec: EncoderSpec, tmp_path: Path) -> None:
    loaded, _ = load_encoder(save_checkpoint(fresh(replace(spec, decoder=None)), tmp_path / "encoder.pth"))
    assert loaded.decoder is None


def test_the_file_is_replaced_whole(spec: EncoderSpec, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "checkpoint.pth"
    path.write_bytes(b"old")

    def disk_fills_up(_: object, staged: Path) -> None:
        staged.write_bytes(b"half")
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(torch, "save", disk_fills_up)
        with pytest.raises(ResourceError, match=r"the disk of .* is full"):
            save_checkpoint(fresh(spec), path)
    assert [(entry.name, entry.read_bytes()) for entry in tmp_path.iterdir()] == [("checkpoint.pth", b"old")]
    save_checkpoint(fresh(spec), path)
    assert [entry.name for entry in tmp_path.iterdir()] == ["checkpoint.pth"]
    assert load_encoder(path)[1].family == "mae"


def test_only_plain_values_are_recorded(spec: EncoderSpec, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"cannot record device=device\(type='cpu'\); expected numbers, texts"):
        save_checkpoint(fresh(spec), tmp_path / "checkpoint.pth", args={"device": torch.device("cpu")})
    assert not list(tmp_path.iterdir())


def test_a_folder_that_does_not_exist(spec: EncoderSpec, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no folder; create it"):
        save_checkpoint(fresh(spec), tmp_path / "absent" / "checkpoint.pth")
