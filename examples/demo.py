"""The whole path on real pictures, without network: train, export, verify, extract, probe, measure, draw.

    python examples/demo.py [--seconds 120] [--out demo] [--quick]

A small MAE is pre-trained on photographs that scikit-image and scikit-learn ship and on handwritten digits, without
labels. It is exported, and its graph extracts features of digits that it never saw, from all patches and from a
quarter of them. A ViT-B/16 with random weights shows what leaving patches out saves at the size of a published model.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image
from rich.progress import Progress
from skimage import data
from sklearn.datasets import load_digits, load_sample_images

from mae_export.encoders.load import load_encoder
from mae_export.encoders.overrides import Overrides
from mae_export.export.trace import TraceOptions, export_graph
from mae_export.manifest import Manifest
from mae_export.report import console
from mae_export.report.figures import PictureRow, SpeedCurve, demo_figure, pca_map, reconstruction_rows
from mae_export.runtime.doctor import doctor
from mae_export.runtime.extract import ExtractOptions, extract
from mae_export.runtime.features import read_features
from mae_export.runtime.images import fit
from mae_export.runtime.session import Session, open_session
from mae_export.runtime.visible import RandomVisible
from mae_export.spec import DecoderSpec, EncoderSpec, ImageSpec, StoredTable
from mae_export.training.checkpoint import save_checkpoint
from mae_export.training.initialise import initialise
from mae_export.training.pretrain import PretrainOptions, pretrain
from mae_export.training.probe import Probe, probe_accuracy

Pixels = npt.NDArray[np.uint8]

# Photographs in scikit-image's wheel. The decoder is shown at work on those that it was not trained on.
TRAINED = ("astronaut", "brick", "camera", "cell", "clock", "coins", "grass", "gravel", "hubble_deep_field")
TRAINED += ("immunohistochemistry", "moon", "retina")
HELD_OUT = ("chelsea", "coffee", "rocket")
SHORT_SIDE = 160  # pixels of a photograph; crops need no more, and are cut faster from less
DIGITS_TRAINED = 1000  # the other 797 are for the probe
PHOTO_REPEATS = 50  # times that each photograph is in the training set, which has many more digits

KEPT = (1.0, 0.75, 0.5, 0.25, 0.1)
QUARTER = 0.25


@dataclass(frozen=True, kw_only=True)
class Scale:
    """How much of everything; the quick one only shows that each step works."""

    spec: EncoderSpec
    speed_spec: EncoderSpec
    training: PretrainOptions
    probe_digits: int
    speed_repeats: int


def spec_of(size: int, patch: int, dim: int, depth: int, decoder: DecoderSpec | None) -> EncoderSpec:
    """An MAE with 64 values per head and MLPs of four times the width, as all published ones have."""
    return EncoderSpec(
        family="mae",
        image=ImageSpec(size=(size, size)),
        patch=(1, patch, patch),
        dim=dim,
        depth=depth,
        heads=dim // 64,
        mlp_hidden=4 * dim,
        eps=1e-6,
        position=StoredTable(grid=(size // patch, size // patch)),
        decoder=decoder,
    )


def scale_of(arguments: argparse.Namespace) -> Scale:
    """Sizes for the full or for the quick demo."""
    decoder = DecoderSpec(dim=128, depth=2, heads=16, mlp_hidden=512, target="image-normalised")
    spec = spec_of(64, 8, 192, 6, decoder)
    if arguments.quick:
        training = PretrainOptions(steps=4, batch=8, base_lr=1.2e-2)
        return Scale(spec=spec, speed_spec=spec_of(64, 16, 64, 2, None), training=training, probe_digits=120, speed_repeats=1)
    training = PretrainOptions(seconds=arguments.seconds, batch=32, base_lr=1.2e-2)
    vit_base = spec_of(224, 16, 768, 12, None)
    return Scale(spec=spec, speed_spec=vit_base, training=training, probe_digits=797, speed_repeats=3)


def photograph(pixels: Pixels) -> Pixels:
    """RGB with a short side of `SHORT_SIDE`."""
    image = Image.fromarray(pixels).convert("RGB")
    factor = SHORT_SIDE / min(image.size)
    size = round(image.width * factor), round(image.height * factor)
    return np.asarray(image.resize(size, Image.Resampling.BICUBIC))


def digit_pictures(size: int) -> tuple[list[Pixels], npt.NDArray[np.int64]]:
    """scikit-learn's 8x8 digits as RGB pictures of `size` pixels, and what they are."""
    digits = load_digits()
    pixels = (digits.images * (255 / 16)).astype(np.uint8)
    pictures = [Image.fromarray(digit).convert("RGB").resize((size, size), Image.Resampling.BICUBIC) for digit in pixels]
    return [np.asarray(picture) for picture in pictures], digits.target.astype(np.int64)


def training_pictures(digits: Sequence[Pixels]) -> list[Pixels]:
    """What the model is trained on: photographs and the first digits."""
    named = [getattr(data, name)() for name in TRAINED]
    left, _, _ = data.stereo_motorcycle()
    photographs = [photograph(pixels) for pixels in (*named, left, *load_sample_images().images)]
    return [*photographs * PHOTO_REPEATS, *digits[:DIGITS_TRAINED]]


def train(digits: Sequence[Pixels], scale: Scale, path: Path) -> dict[str, Any]:
    """Pre-train and write the checkpoint."""
    start = time.monotonic()
    with Progress(console=console.ERR) as bar:
        task = bar.add_task("pre-training", total=1)
        trained = pretrain(
            training_pictures(digits),
            scale.spec,
            options=scale.training,
            progress=lambda share, _: bar.update(task, completed=share),
        )
    save_checkpoint(trained.model, path, args=dataclasses.asdict(scale.training))
    last = trained.losses[-max(1, len(trained.losses) // 20) :]
    return {
        "steps": len(trained.losses),
        "seconds": time.monotonic() - start,
        "first_loss": trained.losses[0],
        "last_loss": statistics.fmean(last),
    }


def export(checkpoint: Path, out: Path, features: tuple[str, ...]) -> Manifest:
    """Export with `ids_keep`; the graph is compared with PyTorch before it is written."""
    encoder, report = load_encoder(checkpoint, overrides=Overrides(crop_fraction=1.0))
    return export_graph(encoder, report, out, options=TraceOptions(mask="keep", features=features, force=True))


def probe(session: Session, folder: Path, visible: str, labels: npt.NDArray[np.int64]) -> Probe:
    """Extract the digits' features with the given patches visible, and judge them."""
    out = folder.with_name(f"features-{visible.partition(':')[0]}")
    extract(session, [folder], out, options=ExtractOptions(features=("pooled",), visible=visible, batch=32, force=True))
    features = read_features(out, "pooled")
    indices = [int(Path(name).stem) for name in features.ids]
    return probe_accuracy(features.arrays["pooled"], labels[indices])


def picture_rows(session: Session, digits: Sequence[Pixels]) -> list[PictureRow]:
    """Rows of pictures that the model has not seen: reconstruction from a quarter, and colours of its tokens."""
    manifest = session.manifest
    photographs = [getattr(data, name)() for name in HELD_OUT]
    images = np.stack([fit(Image.fromarray(pixels), manifest.image) for pixels in (*photographs, *digits[-3:])])
    count = manifest.patches.count
    plan = RandomVisible(ratio=QUARTER)
    ids_keep = np.stack([plan.ids_keep(index, f"picture {index}", count) for index in range(len(images))])
    predicted = session.run({"images": images, "ids_keep": ids_keep}, ["reconstruction"])["reconstruction"]
    rows = reconstruction_rows(images, ids_keep, predicted, manifest=manifest)
    everything = np.tile(np.arange(count), (len(images), 1))
    tokens = session.run({"images": images, "ids_keep": everything}, ["patch_tokens"])["patch_tokens"]
    colours = pca_map(tokens, manifest.patches.grid[1:])
    return [*rows, PictureRow(label="Patch tokens\n3 principal\ncomponents", pictures=colours)]


def multiply_adds(spec: EncoderSpec, kept: int) -> int:
    """Multiply-adds of the encoder when all patches are embedded and `kept` of them go through the blocks."""
    tokens = kept + spec.prefix_tokens
    linear = tokens * spec.dim * (4 * spec.dim + 2 * spec.mlp_hidden)
    return spec.patches * spec.patch_values * spec.dim + spec.depth * (linear + 2 * tokens**2 * spec.dim)


def measure_speed(scale: Scale, out: Path, processor: str) -> SpeedCurve:
    """Images per second of a model of published size, for each share of patches kept."""
    spec, batch = scale.speed_spec, 8
    checkpoint = save_checkpoint(initialise(spec, seed=0), out / "speed.pth")
    export(checkpoint, out / "speed.onnx", ("pooled",))
    generator = np.random.default_rng(0)
    images = generator.integers(0, 256, (batch, *spec.image.size, 3), dtype=np.uint8)
    speeds, ideals = [], []
    with open_session(out / "speed.onnx") as session:
        for share in KEPT:
            kept = max(1, int(spec.patches * share))
            ids_keep = np.stack([generator.permutation(spec.patches)[:kept] for _ in range(batch)])
            seconds = []
            for _ in range(1 + scale.speed_repeats):  # the first run allocates
                start = time.perf_counter()
                session.run({"images": images, "ids_keep": ids_keep})
                seconds.append(time.perf_counter() - start)
            speeds.append(batch / statistics.median(seconds[1:]))
            ideals.append(multiply_adds(spec, spec.patches) / multiply_adds(spec, kept))
    title = f"Encoder {spec.dim} wide, {spec.depth} deep, {spec.patches} patches, batch {batch}\n{processor}"
    return SpeedCurve(title=title, kept=KEPT, images_per_second=tuple(speeds), ideal=tuple(ideals))


def show(results: dict[str, Any], out: Path) -> None:
    """Print the table."""
    training, parity, probes, speed = (results[key] for key in ("training", "parity", "probe", "speed"))
    quarter = speed["kept"].index(QUARTER)

    def accuracy(name: str) -> str:
        low, high = probes[name]["interval"]
        return f"{probes[name]['accuracy']:.1%}   (95 % interval {low:.1%} to {high:.1%}, n = {probes['n']})"

    rows = [
        ("machine", results["machine"]),
        ("runtime", results["runtime"]),
        ("pre-training", f"{training['steps']} steps in {training['seconds']:.0f} s, loss {training['first_loss']:.2f} -> "
         f"{training['last_loss']:.2f}"),
        ("graph against PyTorch", f"relative error {parity['error']:.1e} (limit {parity['limit']:.0e})"),
        ("digit probe, all patches", accuracy("all")),
        ("digit probe, 25 % of them", accuracy("quarter")),
        ("ViT-B/16, all patches" if speed["published_size"] else "speed, all patches",
         f"{speed['images_per_second'][0]:.2f} images/s"),
        ("ViT-B/16, 25 % of them" if speed["published_size"] else "speed, 25 % of them",
         f"{speed['images_per_second'][quarter]:.2f} images/s   ({speed['speed_up'][quarter]:.2f} times as fast; "
         f"ideal {speed['ideal'][quarter]:.2f})"),
        ("pictures", str(out / "demo.png")),
    ]
    console.table(rows)


def main() -> None:
    """Run every step and leave demo.png and results.json in the output folder."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--seconds", type=float, default=120.0, help="time for pre-training (default 120)")
    parser.add_argument("--out", type=Path, default=Path(__file__).parents[1] / "demo", help="folder to write")
    parser.add_argument("--quick", action="store_true", help="only show that every step works")
    arguments = parser.parse_args()
    scale, out = scale_of(arguments), arguments.out
    folder = out / "digits"
    folder.mkdir(parents=True, exist_ok=True)

    digits, labels = digit_pictures(scale.spec.image.size[0])
    first = DIGITS_TRAINED
    for index in range(first, first + scale.probe_digits):
        Image.fromarray(digits[index]).save(folder / f"{index}.png")

    training = train(digits, scale, out / "checkpoint.pth")
    features = ("pooled", "mean_patch", "patch_tokens", "reconstruction")
    manifest = export(out / "checkpoint.pth", out / "encoder.onnx", features)
    with open_session(out / "encoder.onnx") as session:
        probes = {"all": probe(session, folder, "all", labels)}
        probes["quarter"] = probe(session, folder, f"random:{QUARTER}:0", labels)
        rows = picture_rows(session, digits)
        runtime = session.description
    cpu = doctor().cpu
    machine = f"{cpu.model}, {cpu.cores} cores"
    curve = measure_speed(scale, out, machine)
    demo_figure(rows, curve, out / "demo.png", title="mae-export: one graph, as many patches as you like")
