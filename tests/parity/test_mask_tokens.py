"""Mask tokens through every step: export, verify, convert, extract and inspect, from a checkpoint that has one."""

import json

import numpy as np
import pytest
from PIL import Image

from mae_export.runtime.features import read_features
from mae_export.runtime.session import open_session
from mae_export.runtime.visible import parse_visible

CHECKPOINT = "eva01/checkpoint.pth"
HEADS = ("--set", "heads=4")


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pictures")
    draws = np.random.default_rng(0)
    for number in range(5):
        Image.fromarray(draws.integers(0, 256, (90, 80, 3), dtype=np.uint8)).save(folder / f"{number}.png")
    return folder


def export(run, fixture_dir, out, *more):
    return run("export", fixture_dir / CHECKPOINT, "-o", out, *HEADS, "--mask", "mask-token", *more)


def test_a_graph_with_mask_goes_all_the_way(run, fixture_dir, tmp_path, pictures):
    graph, half, features = tmp_path / "g.onnx", tmp_path / "h.onnx", tmp_path / "features"
    code, text, err = export(run, fixture_dir, graph, "--features", "pooled,patch_tokens,dense,prediction")
    assert code == 0, err
    assert "mask: bool [batch, " in text
    assert run("verify", graph, fixture_dir / CHECKPOINT)[0] == 0
    assert run("convert", graph, "-o", half, "--precision", "fp16")[0] == 0
    assert run("verify", half, graph)[0] == 0
    code, text, _ = run("inspect", graph)
    assert code == 0
    assert "mask mode mask-token" in text
    assert "licence of published weights: MIT" in text
    code, _, err = run(
        "extract", graph, pictures, "-o", features, "--visible", "random:0.25:3", "--features", "pooled,patch_tokens"
    )
    assert code == 0, err
    stored = read_features(features)
    plan = parse_visible("random:0.25:3")
    with open_session(graph) as session:
        count, size = session.manifest.patches.count, session.manifest.image.size
        images = np.zeros((1, *size, 3), np.uint8)
        mask = np.ones((1, count), bool)
        mask[0, plan.ids_keep(0, "0.png", count)] = False
        shown = session.run({"images": images, "mask": mask})
        hidden = session.run({"images": images, "mask": ~mask})
    assert stored.arrays["patch_tokens"].shape[1] == count  # masked patches keep their places
    row = list(stored.ids).index("0.png")
    assert list(stored.ids_keep[row]) == list(plan.ids_keep(0, "0.png", count))
    assert not np.allclose(shown["pooled"], hidden["pooled"], atol=1e-3)


def test_rows_may_hide_different_numbers(run, fixture_dir, tmp_path, pictures):
    graph = tmp_path / "g.onnx"
    assert export(run, fixture_dir, graph)[0] == 0
    with open_session(graph) as session:
        count = session.manifest.patches.count
    masks = np.zeros((5, count), bool)
    for row in range(5):
        masks[row, : 1 + 3 * row] = True
    np.save(tmp_path / "visible.npy", masks)
    code, _, err = run("extract", graph, pictures, "-o", tmp_path / "f", "--visible", f"file:{tmp_path}/visible.npy")
    assert code == 0, err
    stored = read_features(tmp_path / "f")
    assert [int((row >= 0).sum()) for row in stored.ids_keep] == [1, 4, 7, 10, 13]


def test_a_family_without_mask_token_says_what_there_is(run, fixture_dir, tmp_path):
    code, _, err = run(
        *("export", fixture_dir / "mae/checkpoint.pth", "-o", tmp_path / "g.onnx", "--mask", "mask-token"),
        *("--set", "heads=4", "--set", "decoder_heads=4"),
    )
    assert code == 2
    assert "needs a learned mask token, which this mae checkpoint does not hold; choose --mask none, keep or" in err
    assert not list(tmp_path.iterdir())


def test_masks_that_a_family_was_not_trained_with_are_said_in_the_graph(run, fixture_dir, tmp_path):
    code, text, _ = run(
        "export", fixture_dir / CHECKPOINT, "-o", tmp_path / "g.onnx", *HEADS, "--mask", "keep", "--json"
    )
    assert code == 0
    notes = {spec["name"]: spec["note"] for spec in json.loads(text)["manifest"]["inputs"]}
    assert notes["ids_keep"].endswith(
        "; this family was trained by replacing masked patches with a learned token, never by dropping them"
    )
    code, text, _ = run(
        "export", fixture_dir / CHECKPOINT, "-o", tmp_path / "m.onnx", *HEADS, "--mask", "mask-token", "--json"
    )
    notes = {spec["name"]: spec["note"] for spec in json.loads(text)["manifest"]["inputs"]}
    assert notes["mask"] == "True where the learned mask token replaces the patch, in raster order"
