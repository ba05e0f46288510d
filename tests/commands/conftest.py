"""A small graph written by the command itself, and a folder of pictures."""

import sys

import numpy as np
import pytest
from PIL import Image

from mae_export import cli

HEADS = ("--set", "heads=4", "--set", "decoder_heads=4")


@pytest.fixture(scope="module")
def model(tmp_path_factory, fixture_dir):
    """A graph of the small checkpoint, written by the command itself."""
    out = tmp_path_factory.mktemp("cli") / "vit.onnx"
    argv = ["mae-export", "export", str(fixture_dir / "mae/checkpoint.pth"), "-o", str(out), *HEADS]
    with pytest.MonkeyPatch.context() as m:
        m.setattr(sys, "argv", [*argv, "--mask", "keep", "--features", "pooled, patch_tokens"])
        with pytest.raises(SystemExit) as stop:
            cli.main()
    assert stop.value.code == 0
    return out


@pytest.fixture
def images(tmp_path):
    folder = tmp_path / "images"
    (folder / "deep").mkdir(parents=True)
    for index in range(5):
        pixels = np.random.default_rng(index).integers(0, 256, (80, 90, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / ("deep" if index % 2 else ".") / f"{index}.png")
    return folder
