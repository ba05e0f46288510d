"""The example of a family in a package of its own: found once installed, loaded, exported, and listed."""

from __future__ import annotations

import importlib
import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from mae_export.encoders.families.installed import families
from mae_export.encoders.load import load_encoder
from mae_export.encoders.overrides import Overrides
from mae_export.runtime.session import open_session
from mae_export.spec import ImageSpec

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

EXAMPLE = Path(__file__).parents[2] / "examples" / "family_plugin"


@pytest.fixture
def toy(tmp_path, monkeypatch):
    """The example's module, with the metadata that pip would write for it, and a checkpoint."""
    project = tomllib.loads((EXAMPLE / "pyproject.toml").read_text())["project"]
    (points,) = project["entry-points"].items()
    info = tmp_path / "site" / f"{project['name'].replace('-', '_')}-{project['version']}.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {project['name']}\nVersion: {project['version']}\n")
    lines = [f"[{points[0]}]", *(f"{name} = {value}" for name, value in points[1].items())]
    (info / "entry_points.txt").write_text("\n".join(lines))
    for folder in (EXAMPLE, info.parent):
        monkeypatch.syspath_prepend(folder)
    families.cache_clear()
    yield importlib.import_module("mae_export_toy")
    families.cache_clear()
    del sys.modules["mae_export_toy"]


def saved(toy, path):
    torch.save({"model": toy.tensors()}, path)
    return path


def test_the_example_is_short():
    assert len((EXAMPLE / "mae_export_toy.py").read_text().splitlines()) < 100


def test_its_checkpoint_is_recognised_and_exported(run, toy, tmp_path):
    path, graph = saved(toy, tmp_path / "toy.pth"), tmp_path / "toy.onnx"
    code, text, err = run("export", path, "-o", graph, "--set", "heads=4", "--mask", "keep")
    assert code == 0, err
    assert "toy.pth: toy (toy); licence of the authors' weights: CC0-1.0" in text
    assert "mean of the 16 patch tokens after the final norm (toy/evaluate.py)" in text
    assert run("verify", graph, path)[0] == 0
    images = np.random.default_rng(0).integers(0, 256, (2, 32, 32, 3), dtype=np.uint8)
    encoder, report = load_encoder(path, overrides=Overrides(heads=4))
    assert report.ignored == (("probe.weight", "classifier, not part of the encoder"),)
    with torch.inference_mode():
        pixels = torch.from_numpy((images / 255 - 0.5) / 0.5).float().permute(0, 3, 1, 2)
        embedded = encoder.patch_embed.proj(pixels).flatten(2).transpose(1, 2)
        expected = encoder.finish(encoder.encode_tokens(embedded).tokens).mean(dim=1)
    with open_session(graph) as session:
        ids = np.tile(np.arange(16), (2, 1))
        found = session.run({"images": images, "ids_keep": ids})["pooled"]
    assert float(np.abs(found - expected.numpy()).max()) < 1e-4


def test_it_is_listed_with_its_true_size(run, toy, tmp_path):
    listed = {family["name"]: family for family in json.loads(run("families", "--json")[1])}
    assert listed["toy"]["licence_of_published_weights"] == "CC0-1.0"
    encoder, _ = load_encoder(saved(toy, tmp_path / "toy.pth"), overrides=Overrides(heads=4))
    counted = sum(tensor.numel() for tensor in encoder.state_dict().values())
    assert listed["toy"]["variants"][0]["parameters"] == counted


def test_it_states_how_images_are_prepared_and_loads_so(run, toy, tmp_path):
    encoder, _ = load_encoder(saved(toy, tmp_path / "toy.pth"), overrides=Overrides(heads=4))
    expected = ImageSpec(size=(32, 32), crop_fraction=0.875, mean=(0.5,) * 3, std=(0.5,) * 3)
    assert toy.FAMILY.image == encoder.spec.image == expected
    assert [variant.image for variant in toy.FAMILY.variants] == [expected.size[0]]
    listed = {family["name"]: family for family in json.loads(run("families", "--json")[1])}
    assert (listed["toy"]["image"]["mean"], listed["toy"]["image"]["size"]) == ([0.5] * 3, [32, 32])
    stated = Overrides(heads=4, mean=(0.1, 0.2, 0.3))
    assert load_encoder(tmp_path / "toy.pth", overrides=stated)[0].spec.image.mean == (0.1, 0.2, 0.3)


def test_the_example_writes_its_own_checkpoint(toy, tmp_path, monkeypatch):
    import runpy

    monkeypatch.setattr(sys, "argv", ["mae_export_toy", str(tmp_path / "toy.pth")])
    runpy.run_path(str(EXAMPLE / "mae_export_toy.py"), run_name="__main__")
    assert load_encoder(tmp_path / "toy.pth", overrides=Overrides(heads=4))[1].family == "toy"
