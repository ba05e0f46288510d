"""The whole path on real pictures, without network: train, export, verify, extract, probe, measure, draw.

    python examples/demo.py [--steps 1400 | --seconds S] [--out demo] [--quick]

A small MAE is pre-trained on photographs that scikit-image and scikit-learn ship and on handwritten digits, without
labels. It is exported, and its graph extracts features of digits that it never saw, from all patches and from a
quarter of them. A ViT-B/16 with random weights shows what leaving patches out saves at the size of a published model.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import statistics
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image
from rich.console import Console
from rich.progress import Progress
from rich.table import Table
from skimage import data
from sklearn.datasets import load_digits, load_sample_images

from mae_export.decoder_spec import DecoderSpec
from mae_export.encoders.load import load_encoder
from mae_export.encoders.overrides import Overrides
from mae_export.export.options import TraceOptions
from mae_export.export.trace import export_graph
from mae_export.manifest import Manifest
from mae_export.report.figures import PictureRow, SpeedCurve, demo_figure, pca_map, reconstruction_rows
from mae_export.runtime.doctor import doctor
from mae_export.runtime.extract import ExtractOptions, extract
from mae_export.runtime.features import read_features
from mae_export.runtime.images import fit
from mae_export.runtime.session import Session, open_session
from mae_export.runtime.visible import RandomVisible
from mae_export.spec import EncoderSpec, ImageSpec, StoredTable
from mae_export.training.checkpoint import save_checkpoint
from mae_export.training.initialise import initialise
from mae_export.training.pretrain import PretrainOptions, pretrain
from mae_export.training.probe import Probe, probe_accuracy

Pixels = npt.NDArray[np.uint8]
CONSOLE = Console(highlight=False)

# Photographs in scikit-image's wheel. The decoder is shown at work on those that it was not trained on.
TRAINED = (
    *("astronaut", "brick", "camera", "cell", "clock", "coins", "grass", "gravel", "hubble_deep_field"),
    *("immunohistochemistry", "moon", "retina"),
)
HELD_OUT = ("chelsea", "coffee", "rocket")
SHORT_SIDE = 160  # pixels of a photograph; crops need no more, and are cut faster from less
DIGITS_TRAINED = 1000  # the other 797 are for the probe
PHOTO_REPEATS = 30  # times that each photograph is in the training set, which has many more digits

KEPT = (1.0, 0.75, 0.5, 0.25, 0.1)
QUARTER = 0.25
VISIBLE = ("all", f"random:{QUARTER}:0")
FEATURES = ("mean_patch", "patch_tokens", "reconstruction")


@dataclass(frozen=True, kw_only=True)
class Scale:
    """How much of everything; the quick one only shows that each step works."""

    spec: EncoderSpec
    speed_spec: EncoderSpec
    speed_name: str
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
    decoder = DecoderSpec(dim=128, depth=1, heads=16, mlp_hidden=512, target="image-normalised")
    spec = spec_of(64, 8, 192, 4, decoder)
    steps = None if arguments.seconds else arguments.steps
    training = PretrainOptions(steps=steps, seconds=arguments.seconds, batch=32, base_lr=1.6e-2, min_area=0.3)
    full = Scale(
        spec=spec,
        speed_spec=spec_of(224, 16, 768, 12, None),
        speed_name="ViT-B/16",
        training=training,
        probe_digits=797,
        speed_repeats=3,
    )
    if not arguments.quick:
        return full
    return dataclasses.replace(
        full,
        speed_spec=spec_of(64, 16, 64, 2, None),
        speed_name="tiny ViT",
        training=dataclasses.replace(training, seconds=None, steps=4),
        probe_digits=120,
        speed_repeats=1,
    )


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
    pictures = [
        Image.fromarray(digit).convert("RGB").resize((size, size), Image.Resampling.BICUBIC) for digit in pixels
    ]
    return [np.asarray(picture) for picture in pictures], digits.target.astype(np.int64)


def training_pictures(digits: Sequence[Pixels]) -> list[Pixels]:
    """What the model is trained on: photographs and the first digits."""
    named = [getattr(data, name)() for name in TRAINED]
    left, _, _ = data.stereo_motorcycle()  # type: ignore[no-untyped-call]
    photographs = [photograph(pixels) for pixels in (*named, left, *load_sample_images().images)]
    return [*photographs * PHOTO_REPEATS, *digits[:DIGITS_TRAINED]]


def train(digits: Sequence[Pixels], scale: Scale, path: Path) -> dict[str, Any]:
    """Pre-train and write the checkpoint."""
    start = time.monotonic()
    with Progress(console=CONSOLE) as bar:
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


def probe_digits(session: Session, folder: Path, labels: npt.NDArray[np.int64]) -> dict[str, dict[str, Probe]]:
    """Extract features of the digits in `folder` and judge them: {plan of visible patches: {feature: result}}."""
    probes = {}
    for visible in VISIBLE:
        out = folder.with_name(f"features-{visible.partition(':')[0]}")
        options = ExtractOptions(features=("mean_patch", "reconstruction"), visible=visible, batch=32, force=True)
        extract(session, [folder], out, options=options)
        features = read_features(out)
        truth = labels[[int(Path(name).stem) for name in features.ids]]
        # A patch is one pixel of the 8x8 digit, so the mean of its predicted values is what the decoder says of it.
        arrays = {
            "mean_patch": features.arrays["mean_patch"],
            "reconstruction": features.arrays["reconstruction"].mean(axis=-1),
        }
        probes[visible] = {name: probe_accuracy(array, truth) for name, array in arrays.items()}
    return probes


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
    """Multiply-adds of the encoder for one image: embedding, linear layers, and attention, which is quadratic."""
    tokens = kept + spec.prefix_tokens
    linear = tokens * spec.dim * (4 * spec.dim + 2 * spec.mlp_hidden)
    return kept * spec.patch_values * spec.dim + spec.depth * (linear + 2 * tokens**2 * spec.dim)


def measure_speed(scale: Scale, folder: Path, machine: str) -> SpeedCurve:
    """Images per second of a model of published size, for each share of patches kept."""
    spec, batch = scale.speed_spec, 8
    checkpoint = save_checkpoint(initialise(spec, seed=0), folder / "speed.pth")
    export(checkpoint, folder / "speed.onnx", ("pooled",))
    generator = np.random.default_rng(0)
    images = generator.integers(0, 256, (batch, *spec.image.size, 3), dtype=np.uint8)
    keeps = [max(1, int(spec.patches * share)) for share in KEPT]
    rounds = []
    with open_session(folder / "speed.onnx") as session:
        for _ in range(1 + scale.speed_repeats):  # all shares in turn, so that a busy moment slows each of them
            seconds = []
            for kept in keeps:
                ids_keep = np.stack([generator.permutation(spec.patches)[:kept] for _ in range(batch)])
                start = time.perf_counter()
                session.run({"images": images, "ids_keep": ids_keep})
                seconds.append(time.perf_counter() - start)
            rounds.append(seconds)
    medians = np.median(rounds[1:], axis=0)  # the first round allocates
    everything = multiply_adds(spec, spec.patches)
    title = f"{scale.speed_name}, {spec.patches} patches, random weights, batch {batch}\n{machine}"
    return SpeedCurve(
        title=title,
        kept=KEPT,
        images_per_second=tuple(float(batch / seconds) for seconds in medians),
        ideal=tuple(everything / multiply_adds(spec, kept) for kept in keeps),
    )


def accuracy(probe: Probe) -> str:
    """An accuracy with its 95 % interval."""
    low, high = probe.interval
    return f"{probe.accuracy:.1%} ({100 * low:.1f}-{100 * high:.1f})"


def show(results: dict[str, Any], probes: dict[str, dict[str, dict[str, Probe]]], curve: SpeedCurve) -> None:
    """Print the tables."""
    training, parity, quarter = results["training"], results["parity"], KEPT.index(QUARTER)
    speed, gain, ideal = (values[quarter] for values in (curve.images_per_second, curve.speed_up, curve.ideal))
    facts = Table(title="mae-export demo", show_header=False, title_justify="left")
    facts.add_row("machine", results["machine"])
    facts.add_row("runtime", results["runtime"])
    facts.add_row("pre-training", f"{training['steps']} steps in {training['seconds']:.0f} s")
    facts.add_row("loss", f"{training['first_loss']:.3f} at first, {training['last_loss']:.3f} at last")
    facts.add_row("graph against PyTorch", f"relative error {parity['error']:.1e} (limit {parity['limit']:.0e})")
    facts.add_row("encoder for speed", curve.title.splitlines()[0])
    facts.add_row("all patches", f"{curve.images_per_second[0]:,.2f} images/s")
    facts.add_row("25 % of them", f"{speed:,.2f} images/s, {gain:.2f} times as fast (ideal {ideal:.2f})")
    CONSOLE.print(facts)
    table = Table(title=f"Linear probe on {results['probe']['digits']} unseen digits: accuracy, 95 % interval")
    for heading in ("feature", "patches seen", "random weights", "pre-trained"):
        table.add_column(heading)
    for name, meaning in (("mean_patch", "mean of patch tokens"), ("reconstruction", "decoder's guess of every patch")):
        for plan, seen in zip(VISIBLE, ("all", "25 %"), strict=True):
            table.add_row(meaning, seen, *(accuracy(probes[state][plan][name]) for state in ("untrained", "trained")))
    CONSOLE.print(table)
    CONSOLE.print(
        "Two minutes teach the decoder to fill in hidden patches, which shows where only a quarter is seen. The "
        "encoder's own tokens need far longer to become better than random ones on such simple pictures."
    )


def main() -> None:
    """Run every step and leave demo.png and results.json in the output folder."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--steps", type=int, default=1400, help="pre-training steps, about two minutes on two cores")
    parser.add_argument("--seconds", type=float, help="time for pre-training, instead of steps")
    parser.add_argument("--out", type=Path, default=Path(__file__).parents[1] / "demo", help="folder to write")
    parser.add_argument("--quick", action="store_true", help="only show that every step works")
    arguments = parser.parse_args()
    scale, out = scale_of(arguments), arguments.out
    digits, labels = digit_pictures(scale.spec.image.size[0])
    folder = out / "digits"
    folder.mkdir(parents=True, exist_ok=True)
    for index in range(DIGITS_TRAINED, DIGITS_TRAINED + scale.probe_digits):
        Image.fromarray(digits[index]).save(folder / f"{index}.png")

    untrained, trained = out / "untrained.pth", out / "checkpoint.pth"
    save_checkpoint(initialise(scale.spec, seed=scale.training.seed), untrained)
    training = train(digits, scale, trained)
    probes = {}
    for checkpoint in (untrained, trained):
        with CONSOLE.status(f"exporting and probing {checkpoint.name}"):
            graph = checkpoint.with_suffix(".onnx")
            manifest = export(checkpoint, graph, FEATURES)
            with open_session(graph) as session:
                probes["trained" if checkpoint == trained else "untrained"] = probe_digits(session, folder, labels)
                rows, runtime = picture_rows(session, digits), session.description
    cpu = doctor().cpu
    machine = f"{cpu.model}, {cpu.cores} cores"
    with CONSOLE.status("measuring speed"), tempfile.TemporaryDirectory(dir=out) as scratch:
        curve = measure_speed(scale, Path(scratch), machine)
    title = f"A small MAE, pre-trained by this demo in {training['seconds']:.0f} s, on pictures it never saw"
    demo_figure(rows, curve, out / "demo.png", title=title)
    verification = manifest.verification
    results = {
        "machine": machine,
        "runtime": runtime,
        "versions": manifest.tools,
        "training": training,
        "parity": dataclasses.asdict(verification) if verification else {},
        "probe": {
            "digits": scale.probe_digits,
            **{
                state: {
                    plan: {
                        name: {"accuracy": probe.accuracy, "interval": probe.interval} for name, probe in row.items()
                    }
                    for plan, row in plans.items()
                }
                for state, plans in probes.items()
            },
        },
        "speed": {**dataclasses.asdict(curve), "speed_up": curve.speed_up},
    }
    (out / "results.json").write_text(json.dumps(results, indent=1) + "\n")
    show(results, probes, curve)
    CONSOLE.print(f"written: {out / 'demo.png'}, {out / 'results.json'}", soft_wrap=True)


if __name__ == "__main__":
    main()
