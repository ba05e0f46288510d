import json
import os
import subprocess
import sys
from pathlib import Path

from PIL import Image

from mae_export.encoders.load import load_encoder
from mae_export.graph import read_manifest

ROOT = Path(__file__).parents[2]


def test_the_quick_demo_runs_every_step(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, ROOT / "examples" / "demo.py", "--quick", "--out", tmp_path / "demo"],
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)},
        cwd=tmp_path,
        capture_output=True,
        encoding="utf-8",
        timeout=180,
    )
    assert done.returncode == 0, done.stderr
    out = tmp_path / "demo"
    results = json.loads((out / "results.json").read_text())
    manifest = read_manifest(out / "checkpoint.onnx")
    assert results["training"]["steps"] == 4
    assert results["parity"]["error"] <= results["parity"]["limit"]
    assert manifest.verification is not None
    assert results["parity"]["error"] == manifest.verification.error
    for state in ("untrained", "trained"):
        for plan in ("all", "random:0.25:0"):
            for feature in ("mean_patch", "reconstruction"):
                probe = results["probe"][state][plan][feature]
                assert probe["interval"][0] <= probe["accuracy"] <= probe["interval"][1]
                assert f" {probe['accuracy']:.1%} (" in done.stdout
    assert len(list((out / "digits").iterdir())) == results["probe"]["digits"] == 120
    assert len(results["speed"]["images_per_second"]) == 5
    assert load_encoder(out / "checkpoint.pth")[1].family == "mae"
    with Image.open(out / "demo.png") as figure:
        assert figure.size == (1600, 750)
    assert not list(tmp_path.glob("*.png")), "it writes into its folder only"
