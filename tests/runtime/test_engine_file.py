"""Sidecars, and the one way to a plan: bytes that are not the sidecar's never reach what deserialises them."""

import dataclasses
import hashlib
import json
import random
from pathlib import Path

import pytest

from mae_export.errors import InputError, SecurityError
from mae_export.manifest import Range, Verification
from mae_export.runtime.engine_file import (
    Achieved,
    EngineLayer,
    EngineSidecar,
    Profile,
    bytes_match,
    load_plan,
    read_sidecar,
    sidecar_path,
)

PLAN = random.Random(0).randbytes(1 << 16)


@pytest.fixture
def sidecar(make_manifest):
    return EngineSidecar(
        sha256=hashlib.sha256(PLAN).hexdigest(),
        size=len(PLAN),
        backend="rtx",
        version="1.7.1.116",
        targets=("sm86", "sm120"),
        device="",
        profiles=(Profile(batch=Range.parse("1:8:64"), keep=Range.parse("1:4:16")), Profile(batch=Range.parse("1"))),
        workspace=None,
        level=None,
        low_memory=False,
        warnings=(),
        achieved=Achieved(
            attention=4,
            fused=3,
            gemms={"Half": 9, "Float": 1},
            fallbacks=("1 of 4 attention blocks are not fused into one kernel",),
            activation_bytes=(100, 50),
            weights_bytes=7,
            layers=(EngineLayer(name="a", kind="gemm", inputs=("Half",), outputs=("Half", "Float")),),
        ),
        manifest=make_manifest("keep"),
    )


@pytest.fixture
def engine(sidecar, tmp_path):
    path = tmp_path / "vit.engine"
    path.write_bytes(PLAN)
    sidecar_path(path).write_text(sidecar.to_json())
    return path


class Deserialiser:
    """Counts how often a plan reaches it."""

    def __init__(self):
        self.calls = 0

    def __call__(self, plan: bytes) -> int:
        self.calls += 1
        return len(plan)


def test_round_trip(engine, sidecar):
    assert sidecar_path(engine).name == "vit.engine.json"
    assert read_sidecar(engine) == sidecar
    assert json.loads(sidecar.to_json())["profiles"][0]["keep"] == {"minimum": 1, "typical": 4, "maximum": 16}


def test_good_bytes_are_deserialised_once(engine, sidecar):
    stub = Deserialiser()
    assert load_plan(engine, stub) == (sidecar, len(PLAN))
    assert stub.calls == 1
    assert bytes_match(engine, sidecar)


def test_no_flipped_byte_reaches_deserialisation(engine, sidecar):
    stub, draw = Deserialiser(), random.Random(1)
    for _ in range(1000):
        at = draw.randrange(len(PLAN))
        with engine.open("r+b") as file:
            file.seek(at)
            file.write(bytes([PLAN[at] ^ draw.randrange(1, 256)]))
        assert not bytes_match(engine, sidecar)
        with pytest.raises(SecurityError, match=r"the bytes of vit\.engine .* are not those that vit\.engine\.json"):
            load_plan(engine, stub)
        with engine.open("r+b") as file:
            file.seek(at)
            file.write(PLAN[at : at + 1])
    assert stub.calls == 0
    load_plan(engine, stub)
    assert stub.calls == 1


@pytest.mark.parametrize("plan", [b"", PLAN[:-1], PLAN[: 1 << 10], PLAN + b"\0"])
def test_plans_of_other_length_are_refused(engine, plan):
    engine.write_bytes(plan)
    with pytest.raises(SecurityError, match="An engine is native code, so it was not loaded"):
        load_plan(engine, pytest.fail)


def test_a_plan_without_its_sidecar_is_refused(engine):
    sidecar_path(engine).unlink()
    with pytest.raises(InputError, match=r"vit\.engine has no vit\.engine\.json beside it"):
        load_plan(engine, pytest.fail)


def test_a_sidecar_without_its_plan_is_refused(engine):
    engine.unlink()
    with pytest.raises(InputError, match=r"vit\.engine cannot be read"):
        load_plan(engine, pytest.fail)


@pytest.mark.parametrize(
    ("change", "text"),
    [
        (lambda values: values.pop("sha256"), "lacks the key 'sha256'"),
        (lambda values: values.update(backend="cuda"), "backend is 'cuda'; expected one of 'tensorrt', 'rtx'"),
        (lambda values: values.update(schema=99), "has schema 99"),
        (lambda values: values["achieved"].update(fussed=1), "unknown key 'fussed'; did you mean 'fused'"),
        (lambda values: values["profiles"][0]["batch"].update(minimum=9), "range 9:8:64 must satisfy"),
    ],
)
def test_damaged_sidecars_are_refused(engine, change, text):
    values = json.loads(sidecar_path(engine).read_text())
    change(values)
    sidecar_path(engine).write_text(json.dumps(values))
    with pytest.raises(InputError, match=text):
        load_plan(engine, pytest.fail)


def test_a_sidecar_that_is_no_text_is_refused(engine):
    sidecar_path(engine).write_bytes(b"\xff\xfe\x00")
    with pytest.raises(InputError, match=r"vit\.engine\.json cannot be read"):
        read_sidecar(engine)


def test_proven_means_compared_with_its_graph(sidecar):
    result = Verification(reference="graph", worst_output="pooled", error=1e-3, limit=1e-2, checks=3)
    manifest = dataclasses.replace(sidecar.manifest, verification=result)
    assert not sidecar.proven
    assert dataclasses.replace(sidecar, manifest=manifest).proven


def test_profiles_begin_at_one():
    assert str(Profile(batch=Range.parse("1:2:3"), keep=Range.parse("4"))) == "batch=1:2:3,keep=4:4:4"
    with pytest.raises(InputError, match="batch 0:1:2 begins at 0; an engine needs at least 1"):
        Profile(batch=Range.parse("0:1:2"))
    with pytest.raises(InputError, match="keep 0:0:0 begins at 0"):
        Profile(batch=Range.parse("1"), keep=Range.parse("0"))


def test_inspecting_needs_no_tensorrt():
    source = Path(__import__("mae_export.runtime.engine_file", fromlist=["x"]).__file__).read_text()
    assert "import tensorrt" not in source
