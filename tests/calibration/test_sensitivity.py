"""Sensitivity of a real graph: parts are named as the encoder names them, and the one made bad is the one found."""

import dataclasses

import numpy as np
import onnx
import pytest

from mae_export.calibration.observe import observe
from mae_export.calibration.options import ObserveOptions
from mae_export.calibration.sensitivity import fidelity, measure, prepare
from mae_export.calibration.wanted import QuantizeOptions
from mae_export.encoders.overrides import Overrides
from mae_export.errors import GraphError, InputError, UsageError
from mae_export.export.options import TraceOptions

INT8 = QuantizeOptions(precision="int8")


@pytest.fixture(scope="module")
def table(graph, images, tmp_path_factory):
    out = tmp_path_factory.mktemp("table") / "t.calib.json"
    return observe(graph, [images], out, options=ObserveOptions(samples=8)).table


@pytest.fixture
def trial_of(graph, images, table, tmp_path):
    def make(source=graph, table=table, **changes):
        return prepare(source, table, [images], options=dataclasses.replace(INT8, **changes), folder=tmp_path)

    return make


def test_every_block_and_kind_is_measured_once(trial_of, graph, table):
    told = []
    found = measure(trial_of(), progress=lambda *step: told.append(step))
    names = [(loss.part.block, loss.part.kind, loss.part.modules) for loss in found.losses]
    modules = {"qkv": "attn.qkv", "proj": "attn.proj", "fc1": "mlp.fc1", "fc2": "mlp.fc2"}
    assert names == [
        (f"blocks.{block}", kind, (f"blocks.{block}.{module}",)) for block in (0, 1) for kind, module in modules.items()
    ]
    assert told == [(f"{block} {kind}", at, 9) for at, (block, kind, _) in enumerate(names)] + [("everything", 8, 9)]
    assert (found.graph, found.graph_name, found.feature) == (table.graph, graph.name, "pooled")
    assert (found.images, found.grouped) == (16, "")  # 24 less the 8 of the table
    assert found.everything.neighbours is None  # too few images
    assert found.everything.cosine < min(loss.fidelity.cosine for loss in found.losses)
    assert all(0.99 < loss.fidelity.cosine < 1 for loss in found.losses)
    embedding = 64 * 192 * 48 / (64 * 192 * 48 + 2 * (12 * 65 * 48**2 + 2 * 65**2 * 48))
    attention = 2 * 2 * 65**2 * 48 / (64 * 192 * 48 + 2 * (12 * 65 * 48**2 + 2 * 65**2 * 48))
    assert sum(loss.part.share for loss in found.losses) == pytest.approx(1 - embedding - attention, abs=1e-4)


def test_the_part_whose_range_is_wrong_is_found(trial_of, table):
    ranges = dict(table.ranges)
    ranges["gelu_1"] = dataclasses.replace(ranges["gelu_1"], low=-100.0, high=100.0)
    found = measure(trial_of(table=dataclasses.replace(table, ranges=ranges)))
    worst = min(found.losses, key=lambda loss: loss.fidelity.cosine)
    assert worst.part.modules == ("blocks.1.mlp.fc2",)


@pytest.mark.parametrize(
    ("most", "blocks", "note"),
    [
        (7, ["blocks.0", "blocks.1"], "8 parts were measured by block, because they are more than 7"),
        (1, ["blocks.0 to blocks.1"], "8 parts were measured 2 blocks at a time"),
    ],
)
def test_many_parts_are_grouped_and_that_is_said(trial_of, most, blocks, note):
    found = measure(trial_of(), most=most)
    assert [loss.part.block for loss in found.losses] == blocks
    assert {loss.part.kind for loss in found.losses} == {"all"}
    assert note in found.grouped


def test_attention_is_one_part_where_it_is_quantized_whole(exported, images, tmp_path):
    heads = Overrides(heads=3, decoder_heads=4)  # of width 16, as INT8 attention wants them
    graph = exported("mae/checkpoint.pth", TraceOptions(mask="keep"), overrides=heads)
    table = observe(graph, [images], tmp_path / "t.calib.json", options=ObserveOptions(samples=8)).table
    found = measure(prepare(graph, table, [images], options=dataclasses.replace(INT8, preset="full"), folder=tmp_path))
    kinds = [(loss.part.block, loss.part.kind) for loss in found.losses]
    assert kinds == [(block, kind) for block in ("blocks.0", "blocks.1") for kind in ("attention", "fc1", "fc2")]
    assert found.losses[0].part.modules == ("blocks.0.attn.qkv", "blocks.0.attn", "blocks.0.attn.proj")
    assert all(loss.fidelity.cosine < 1 for loss in found.losses)


def test_what_is_kept_on_request_is_no_part(trial_of):
    found = measure(trial_of(keep=("blocks.0", "blocks.1.attn")))
    assert [loss.part.modules for loss in found.losses] == [("blocks.1.mlp.fc1",), ("blocks.1.mlp.fc2",)]


def test_masks_follow_the_table(graph, images, tmp_path):
    options = ObserveOptions(samples=8, visible="random:0.25..1.0:3")
    table = observe(graph, [images], tmp_path / "t.calib.json", options=options).table
    trial = prepare(graph, table, [images], options=INT8, folder=tmp_path)
    assert trial.visible == "random:0.25..1.0:3"
    assert len({batch.width for batch in trial.batches}) > 1
    assert len(trial.expected) == 16


def test_what_cannot_be_judged_is_refused(graph_of, trial_of, graph, images, table, tmp_path):
    with pytest.raises(UsageError, match="0 parts cannot be measured"):
        measure(trial_of(), most=0)
    with pytest.raises(UsageError, match=r"masks from 'file:m\.npy'"):
        trial_of(table=dataclasses.replace(table, visible="file:m.npy"))
    with pytest.raises(InputError, match="the table was observed on"):
        trial_of(source=graph_of(TraceOptions()))
    everything = observe(graph, [images], tmp_path / "all.json", options=ObserveOptions(samples=24)).table
    with pytest.raises(
        InputError, match=r"0 of 24 images can be used \(24 were used for calibration\); expected at least 8 that cal"
    ):
        trial_of(table=everything)
    tokens = graph_of(TraceOptions(features=("patch_tokens",)))
    other = observe(tokens, [images], tmp_path / "tokens.json", options=ObserveOptions(samples=8)).table
    with pytest.raises(GraphError, match="no feature per image to judge; expected one of pooled"):
        trial_of(source=tokens, table=other)


def test_the_graph_itself_is_left_alone(trial_of, graph):
    before = graph.read_bytes()
    measure(trial_of(), most=1)
    assert graph.read_bytes() == before
    assert onnx.load_model(graph).graph.node[0].op_type != "QuantizeLinear"


def test_fidelity_is_that_of_its_definition():
    rng = np.random.default_rng(0)
    expected = 50 + rng.normal(size=(40, 6))
    found = expected + 0.3 * rng.normal(size=(40, 6))
    a, b = found - expected.mean(0), expected - expected.mean(0)
    cosines = [np.dot(x, y) / np.linalg.norm(x) / np.linalg.norm(y) for x, y in zip(a, b, strict=True)]
    result = fidelity(found, expected)
    assert result.cosine == pytest.approx(np.mean(cosines))
    assert result.first_percentile == pytest.approx(np.quantile(cosines, 0.01))
    assert fidelity(expected, expected).neighbours == 1
    assert 0.3 < result.neighbours < 1
    found[3] = np.nan
    assert fidelity(found, expected).first_percentile < 0
