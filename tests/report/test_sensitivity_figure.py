"""The picture of losses: the right number in the right place, and a file that is a picture."""

import dataclasses

import numpy as np
import pytest
from PIL import Image

from mae_export.calibration.payoff import Payoff
from mae_export.calibration.sensitivity import Fidelity, Loss, Part, Sensitivity
from mae_export.report.sensitivity_figure import loss_grid, sensitivity_figure


def loss(block, kind, cosine):
    part = Part(block=block, kind=kind, modules=(f"{block}.{kind}",), share=0.25)
    return Loss(part=part, fidelity=Fidelity(cosine=cosine, first_percentile=cosine - 0.1, neighbours=0.9))


SENSITIVITY = Sensitivity(
    graph="ab",
    graph_name="vit.onnx",
    precision="int8",
    preset="linear",
    feature="pooled",
    images=40,
    visible="all",
    grouped="",
    losses=(
        loss("blocks.0", "fc1", 0.75),
        loss("blocks.0", "qkv", 0.5),
        loss("decoder.pred", "other", 1.0),
    ),
    everything=Fidelity(cosine=0.25, first_percentile=0.1, neighbours=None),
    payoff=(Payoff(batch=8, share=0.75, speed_up=1.5, reason=""),),
    products=(),
)


def test_losses_stand_where_their_block_and_kind_are():
    grid, blocks, kinds = loss_grid(SENSITIVITY)
    assert (blocks, kinds) == (["blocks.0", "decoder.pred"], ["qkv", "fc1", "other"])
    np.testing.assert_array_equal(grid, [[0.5, 0.25, np.nan], [np.nan, np.nan, 0.0]])


@pytest.mark.parametrize("count", [1, 24])
def test_the_picture_grows_with_the_number_of_blocks(tmp_path, count):
    losses = tuple(loss(f"blocks.{index}", kind, 0.999) for index in range(count) for kind in ("qkv", "proj"))
    out = tmp_path / "s.png"
    sensitivity_figure(dataclasses.replace(SENSITIVITY, losses=losses), out)
    with Image.open(out) as picture:
        pixels = np.asarray(picture.convert("RGB"))
    assert pixels.shape[0] == round(190 + 28 * count)
    assert len(np.unique(pixels.reshape(-1, 3), axis=0)) > 20
    assert [path.name for path in tmp_path.iterdir()] == ["s.png"]
