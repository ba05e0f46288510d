"""What the authors of EVA computed beyond the common cases: predictions, rotations as stored, another image size.

And what engines make of rotary attention.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import onnx_ir
import pytest

from mae_export import graph
from mae_export.encoders.load import load_encoder
from mae_export.encoders.overrides import Overrides
from mae_export.export import flavour
from mae_export.export.engine import build
from mae_export.export.options import TraceOptions
from mae_export.export.plan import EnginePlan, parse_profile
from mae_export.export.retype import retype
from mae_export.export.trace import export_graph
from mae_export.runtime.metrics import relative_error
from mae_export.runtime.session import open_session

LIMIT = 1e-4
EVA02 = ("eva02_bl", "eva02_ts")


def arrays(fixture_dir, folder):
    with np.load(fixture_dir / folder / "input.npz") as given, np.load(fixture_dir / folder / "expected.npz") as found:
        return dict(given), dict(found)


def assert_close(found, expected):
    assert found.shape == expected.shape
    assert relative_error(found, expected) <= LIMIT


def with_rounded_rotations(fixture_dir, checkpoint):
    """The encoder with its rotations rounded to half precision, as the authors' code reads them from the file."""
    encoder, report = load_encoder(fixture_dir / checkpoint, overrides=Overrides(heads=4))
    assert {reason for name, reason in report.ignored if "rope.freqs_" in name} == {
        "rotations, computed anew rather than rounded as stored"
    }
    encoder.turns = encoder.turns.half().float()
    return encoder, report


@pytest.mark.parametrize("folder", EVA02)
def test_rotations_as_stored_give_the_authors_numbers(tmp_path, fixture_dir, folder):
    given, expected = arrays(fixture_dir, folder)
    encoder, report = with_rounded_rotations(fixture_dir, f"{folder}/checkpoint.pth")
    options = TraceOptions(features=("class_token", "patch_tokens", "layer_0", "layer_1", "pooled"))
    export_graph(encoder, report, tmp_path / "g.onnx", options=options)
    with open_session(tmp_path / "g.onnx") as session:
        found = session.run({"images": given["images"]})
    assert_close(found["class_token"], expected["tokens_full"][:, 0])
    assert_close(found["patch_tokens"], expected["tokens_full"][:, 1:])
    assert_close(found["layer_0"], expected["layer_0"])
    assert_close(found["layer_1"], expected["tokens_prenorm"])
    assert_close(found["pooled"], expected["feature"])


@pytest.mark.parametrize("folder", ["eva01", *EVA02])
def test_masked_patches_and_their_predictions(tmp_path, fixture_dir, folder):
    given, expected = arrays(fixture_dir, folder)
    if folder == "eva01":
        encoder, report = load_encoder(fixture_dir / folder / "checkpoint.pth", overrides=Overrides(heads=4))
    else:
        encoder, report = with_rounded_rotations(fixture_dir, f"{folder}/checkpoint.pth")
    options = TraceOptions(mask="mask-token", features=("class_token", "patch_tokens", "prediction"))
    manifest = export_graph(encoder, report, tmp_path / "g.onnx", options=options)
    assert manifest.outputs[2].shape == ("batch", 16, 20)
    assert "features of CLIP" in manifest.outputs[2].note
    with open_session(tmp_path / "g.onnx") as session:
        found = session.run({"images": given["images"], "mask": given["mask"]})
    assert_close(found["class_token"], expected["tokens_mask"][:, 0])
    assert_close(found["patch_tokens"], expected["tokens_mask"][:, 1:])
    assert_close(found["prediction"][given["mask"]], expected["pred"])


@pytest.mark.parametrize("folder", EVA02)
def test_another_image_size_matches_the_authors(exported, fixture_dir, folder):
    given, expected = arrays(fixture_dir, folder)
    options = TraceOptions(features=("class_token", "patch_tokens"), image_size=(84, 84))
    with open_session(exported(f"{folder}/checkpoint.pth", options)) as session:
        found = session.run({"images": given["images_hr"]})
    assert_close(found["class_token"], expected["tokens_hr"][:, 0])
    assert_close(found["patch_tokens"], expected["tokens_hr"][:, 1:])


def test_rotations_follow_the_indices(exported, fixture_dir):
    """EVA-02 was not trained to drop patches, but its maths allows it: permuted indices give permuted tokens."""
    given, expected = arrays(fixture_dir, "eva02_bl")
    order = np.random.default_rng(0).permuted(np.arange(16)[None].repeat(2, axis=0), axis=1)
    options = TraceOptions(mask="keep", features=("patch_tokens",))
    with open_session(exported("eva02_bl/checkpoint.pth", options)) as session:
        kept = session.run({"images": given["images"], "ids_keep": order})["patch_tokens"]
    full = expected["tokens_full_fp32rope"][:, 1:]
    assert_close(kept, np.take_along_axis(full, order[:, :, None], axis=1))


@pytest.mark.skipif(flavour.find_module("rtx") is None, reason="tensorrt-rtx-cu13-bindings and -libs are not installed")
@pytest.mark.parametrize("mask", ["none", "keep"])
def test_rotary_attention_is_fused_in_engines(exported, tmp_path, mask):
    options = TraceOptions(mask=mask, ragged=mask == "keep", features=("pooled",))
    source, half = exported("eva02_bl/checkpoint.pth", options), tmp_path / "half.onnx"
    model = onnx_ir.load(source)
    retype(model, "fp16", ())
    onnx_ir.save(model, half)
    graph.write_manifest(half, replace(graph.read_manifest(source), precision="fp16"))
    plan = EnginePlan(backend="rtx", profiles=(parse_profile("batch=1:2:8"),), targets=("sm86",), strict=True)
    achieved = build(half, tmp_path / "half.engine", plan=plan).achieved
    assert (achieved.fused, achieved.attention, achieved.fallbacks) == (2, 2, ())
    assert achieved.gemms == {"Half": 9}
