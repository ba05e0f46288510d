"""The lines and the JSON of calibration, pinned word by word."""

import dataclasses
import json
from pathlib import Path

import pytest

from mae_export.calibration.budget import Budget, Plan
from mae_export.calibration.observe import Observation
from mae_export.calibration.payoff import Payoff
from mae_export.calibration.sensitivity import Fidelity, Loss, Part, Sensitivity
from mae_export.calibration.table import Table, TensorRange
from mae_export.report import calibrations
from mae_export.report.sensitivity_figure import sensitivity_figure

WIDE = TensorRange(low=-2.0, high=2.0, minimum=-1.0, maximum=2.0)
CLIPPED = TensorRange(low=-2.0, high=2.0, minimum=-1.0, maximum=3.0)
TABLE = Table(
    graph="ab",
    graph_name="vit.onnx",
    method="mse",
    percentile=99.99,
    seed=0,
    visible="all",
    samples=1,
    images=("cd",),
    ranges={"a": WIDE, "b": CLIPPED},
    tools={},
)
OBSERVATION = Observation(
    table=TABLE,
    listed=4,
    failures={"truncated": 2},
    repeated=1,
    passes=1,
    seconds=2.0,
    images_per_second=0.5,
    fetched_bytes=7,
    peak_bytes=1_500_000_000,
)


def lines(capsys, observation):
    calibrations.show_observation(Path("vit.calib.json"), observation)
    return capsys.readouterr().out.splitlines()


def test_every_image_is_accounted_for(capsys):
    assert lines(capsys, OBSERVATION) == [
        "vit.calib.json: 2 activations of vit.onnx, mse, visible all",
        "  1 of 4 images used",
        "    passed over 2: truncated",
        "    passed over 1: same pixels as another image",
        "  1 activations are clipped below the largest value seen",
        "  0.5 images/s, at most 1.50 GB of memory",
    ]


@pytest.mark.parametrize(
    ("matches", "said"),
    [
        (True, "the graph beside the table"),
        (False, "the graph of that name beside the table is ANOTHER one"),
        (None, "no graph of that name beside the table"),
    ],
)
def test_a_table_as_a_whole(capsys, matches, said):
    described = {
        "kind": "table",
        "path": "vit.calib.json",
        "graph": "vit.onnx",
        "graph_sha256": "abcd",
        "graph_matches": matches,
        "method": "percentile",
        "percentile": 99.9,
        "visible": "all",
        "seed": 3,
        "samples": 40,
        "images": ["cd"] * 40,
        "tensors": 17,
        "clipped": 4,
        "widest": {"blocks.0[b]": {"low": -2.0, "high": 2.0, "minimum": -1.25, "maximum": 3.14159265}},
        "tools": {"mae-export": "0.1.0", "onnxruntime": "1.31"},
    }
    calibrations.show_table(described)
    assert [line.rstrip() for line in capsys.readouterr().out.splitlines()] == [
        "vit.calib.json: 17 activations of vit.onnx, percentile 99.9",
        "  visible all; 40 images, drawn with seed 3",
        f"  graph sha256 abcd ({said})",
        "  4 activations are clipped below the largest value seen",
        "  written by mae-export 0.1.0, onnxruntime 1.31",
        "widest ranges  represented  seen",
        "blocks.0[b]    -2 to 2      -1.25 to 3.142",
    ]


def test_what_does_not_apply_is_not_told(capsys):
    table = dataclasses.replace(TABLE, method="percentile", percentile=99.9)
    told = lines(
        capsys,
        dataclasses.replace(OBSERVATION, table=table, failures={}, repeated=0, passes=3, peak_bytes=None),
    )
    assert told[0] == "vit.calib.json: 2 activations of vit.onnx, percentile 99.9, visible all"
    assert told[1:] == [
        "  1 of 4 images used",
        "  1 activations are clipped below the largest value seen",
        "  0.5 images/s in 3 passes",
    ]


@pytest.mark.parametrize("key", ["images_per_second", "peak_bytes", "fetched_bytes", "listed", "repeated", "failures"])
def test_scripts_get_the_figures(key):
    assert calibrations.summary(Path("t"), OBSERVATION)[key] == getattr(OBSERVATION, key)
    assert "ranges" not in calibrations.summary(Path("t"), OBSERVATION)


def part(block, kind, share):
    return Part(block=block, kind=kind, modules=(f"{block}.{kind}",), share=share)


SENSITIVITY = Sensitivity(
    graph="ab",
    graph_name="vit.onnx",
    precision="int8",
    preset="linear",
    feature="pooled",
    images=40,
    visible="all",
    grouped="9 parts were measured by block, because they are more than 4",
    losses=(
        Loss(part=part("blocks.0", "qkv", 0.25), fidelity=Fidelity(cosine=0.75, first_percentile=0.5, neighbours=0.9)),
        Loss(part=part("blocks.1", "fc2", 0.5), fidelity=Fidelity(cosine=0.5, first_percentile=0.25, neighbours=None)),
    ),
    everything=Fidelity(cosine=0.25, first_percentile=0.1, neighbours=0.5),
    payoff=(Payoff(batch=8, share=0.75, speed_up=1.5, reason=""),),
    products=(),
)
PLAN = Plan(
    budget=Budget(cosine=0.7),
    keep=("blocks.1.fc2",),
    fidelity=Fidelity(cosine=0.75, first_percentile=0.5, neighbours=0.9),
    share=0.25,
    measured=2,
    payoff=(Payoff(batch=8, share=0.25, speed_up=1.05, reason="too little; stop"),),
)


def test_the_worst_part_is_told_first_and_the_plan_last(capsys):
    calibrations.show_sensitivity(Path("s.json"), SENSITIVITY, PLAN)
    told = [line.rstrip() for line in capsys.readouterr().out.splitlines()]
    assert told == [
        "s.json and s.png: vit.onnx, int8 linear, judged by pooled of 40 images, visible all",
        "  9 parts were measured by block, because they are more than 4",
        "in 8 bits    layer  of the work  1 - cosine  same neighbours",
        "blocks.1     fc2    50.0%        5.00e-01    unknown",
        "blocks.0     qkv    25.0%        2.50e-01    90.0%",
        "all of them         75.0%        7.50e-01    50.0%",
        "  batch 8: products predicted 1.50x of fp16's speed on a GPU, may pay",
        "within cosine=0.7,knn=0: 25.0% of the work in 8 bits, 1 - cosine 2.50e-01, 90.0% neighbours",
        "  --keep blocks.1.fc2",
        "  batch 8: products predicted 1.05x of fp16's speed on a GPU, cannot pay: too little; stop",
    ]


def test_a_plan_that_keeps_nothing_says_so(capsys):
    calibrations.show_sensitivity(Path("s.json"), SENSITIVITY, dataclasses.replace(PLAN, keep=()))
    assert "  nothing has to be kept in float32" in capsys.readouterr().out.splitlines()


@pytest.mark.parametrize("plan", [None, PLAN])
def test_findings_are_written_with_their_picture(tmp_path, plan):
    calibrations.write_sensitivity(tmp_path / "s.json", SENSITIVITY, plan, draw=sensitivity_figure)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["s.json", "s.png"]
    written = json.loads((tmp_path / "s.json").read_text())
    assert written["sensitivity"]["losses"][1]["fidelity"] == {
        "cosine": 0.5,
        "first_percentile": 0.25,
        "neighbours": None,
    }
    assert (written["plan"] is None) == (plan is None)
