"""A family of checkpoints for mae-export, as a package of its own; docs/families.md explains each part.

    pip install ./examples/family_plugin
    python -m mae_export_toy toy.pth
    mae-export export toy.pth -o toy.onnx --set heads=4

The invented "toy" encoder is a plain vision transformer without class token, whose authors average the patch tokens.
Its files call the position table `where`, the patch embedding `cut` and the blocks `trunk.N`.
"""

from __future__ import annotations

import sys
from dataclasses import replace

import torch

from mae_export.encoders.families import Facts, Family, Layout, Variant
from mae_export.encoders.families.sizing import image_of, vit_spec
from mae_export.spec import EncoderSpec, ImageSpec

# How the authors prepare images, which no tensor says: a short side of 36 pixels, the middle 32, values in -1..1.
IMAGE = ImageSpec(size=(32, 32), crop_fraction=224 / 256, mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5))
LAYOUT = Layout(
    name="toy",
    required=("where", r"cut\.weight", r"trunk\.0\.norm1\.weight", r"last\.weight"),
    renames=(
        ("where", "pos_embed"),
        (r"cut\.(.*)", r"patch_embed.proj.\1"),
        (r"trunk\.(.*)", r"blocks.\1"),
        (r"last\.(.*)", r"norm.\1"),
    ),
    ignored=((r"probe\..*", "classifier, not part of the encoder"),),
)


def spec(facts: Facts) -> tuple[EncoderSpec, tuple[str, ...]]:
    """Shapes say the sizes; mean and std come from `IMAGE`, unless the user states others with `--set`."""
    base, notes = vit_spec(facts, "toy", prefix_rows=0)
    return replace(base, image=image_of(facts, base.image.size, mean=IMAGE.mean, std=IMAGE.std)), notes


def outputs(spec: EncoderSpec) -> dict[str, str]:
    """What each output holds, with its source."""
    return {
        "pooled": f"mean of the {spec.patches} patch tokens after the final norm (toy/evaluate.py)",
        "patch_tokens": "patch tokens after the final norm",
    }


FAMILY = Family(
    name="toy",
    title="Toy: a Family that Shows How to Add One",
    repository="https://example.org/toy",
    licence="CC0-1.0",
    layouts=(LAYOUT,),
    spec=spec,
    outputs=outputs,
    feature="mean_patch",
    image=IMAGE,  # what `mae-export families` lists; without it, MAE's mean, std and 224 pixels
    variants=(Variant(name="toy/8", dim=32, depth=2, heads=4, patch=8, image=32, parameters=32_160),),
    checked="nothing: its weights are random",
)


def tensors(dim: int = 32, *, depth: int = 2, patch: int = 8, grid: int = 4) -> dict[str, torch.Tensor]:
    """A random checkpoint of the family; equal on every call."""
    shapes: dict[str, tuple[int, ...]] = {"where": (1, grid * grid, dim), "cut.weight": (dim, 3, patch, patch)}
    shapes |= {"cut.bias": (dim,), "last.weight": (dim,), "last.bias": (dim,), "probe.weight": (10, dim)}
    for block in (f"trunk.{index}" for index in range(depth)):
        layers = {"attn.qkv": (3 * dim, dim), "attn.proj": (dim, dim), "mlp.fc1": (4 * dim, dim)}
        for name, rows in ({**layers, "mlp.fc2": (dim, 4 * dim), "norm1": (dim,), "norm2": (dim,)}).items():
            shapes |= {f"{block}.{name}.weight": rows, f"{block}.{name}.bias": rows[:1]}
    generator = torch.Generator().manual_seed(0)
    return {name: torch.randn(shape, generator=generator) * 0.2 for name, shape in shapes.items()}


if __name__ == "__main__":
    torch.save({"model": tensors()}, sys.argv[1])
