"""`families`, as its user meets it."""

import json
import subprocess
import sys

from mae_export.encoders.families import FAMILIES


def test_families_are_listed_for_people(run):
    code, text, _ = run("families")
    assert code == 0
    for family in FAMILIES.values():
        assert f"{family.name}, {family.title}:" in text
        assert f"  licence of published weights: {family.licence}" in text
        assert f"  checked: {family.checked}" in text
    assert "facebookresearch/mae; Hugging Face ViTMAE" in text
    assert "mask modes: none, keep, patches; trained by dropping masked patches" in text
    assert "ViT-H/14 (630.8 M parameters, width 1280, 32 blocks, 16 heads, 224x224)" in text
    assert "encoder of liuxingbin/dbot (only with --family: others' files look the same)" in text


def test_families_are_listed_for_scripts(run):
    code, text, _ = run("families", "--json")
    listed = {family["name"]: family for family in json.loads(text)}
    assert code == 0
    assert list(listed) == list(FAMILIES)
    mae = listed["mae"]
    assert mae["layouts"][1] == {"name": "Hugging Face ViTMAE", "model_type": "vit_mae", "only_if_asked": False}
    assert mae["variants"][0] == {
        "name": "ViT-B/16",
        "dim": 768,
        "depth": 12,
        "heads": 12,
        "patch": 16,
        "parameters": 85_798_656,
        "image": 224,
        "mlp_hidden": 0,
    }
    assert (mae["feature"], mae["image"]["mean"]) == ("class_token", [0.485, 0.456, 0.406])
    assert listed["eva_l"]["image"]["mean"] == [0.48145466, 0.4578275, 0.40821073]
    modes = {name: family["mask_modes"] for name, family in listed.items()}
    assert {name for name in modes if "mask-token" in modes[name]} == {
        name for name, family in FAMILIES.items() if family.trained == "mask-token"
    }


def test_without_torch_the_extra_is_named():
    code = "import sys; sys.modules['torch'] = None; from mae_export.cli import main; main()"
    done = subprocess.run([sys.executable, "-c", code, "families"], capture_output=True, text=True, check=False)
    assert done.returncode == 6
    assert "torch is not installed; run: pip install 'mae-export[export]'" in done.stderr
