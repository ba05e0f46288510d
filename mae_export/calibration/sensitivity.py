"""What each part of an encoder loses in 8 bits: one part quantized at a time, the others not, on held-out images.

A part is the products of one kind in one block, named as the encoder names them. With more parts than `most`, blocks
are measured whole, and neighbouring blocks together if they are still too many. Losses are measured, not estimated:
each variant of the graph runs in ONNX Runtime on images that the table was not made from.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from mae_export import graph
from mae_export.calibration.options import JUDGED_IMAGES, MOST_PARTS
from mae_export.calibration.payoff import Payoff, Product, predict, products_of
from mae_export.calibration.pictures import Pictures
from mae_export.calibration.placement import place
from mae_export.calibration.quantize import quantize_model
from mae_export.calibration.sites import Site, sites_of
from mae_export.calibration.table import Table
from mae_export.calibration.visibility import parse_visibility
from mae_export.calibration.wanted import QuantizeOptions
from mae_export.errors import GraphError, UsageError
from mae_export.manifest import METADATA_KEY, Manifest
from mae_export.runtime.batching import Batch, Batcher, check_plan
from mae_export.runtime.metrics import ENOUGH_IMAGES, neighbour_overlap
from mae_export.runtime.session import open_as_is

Array = npt.NDArray[Any]
FEATURES = ("pooled", "class_token", "mean_patch")  # one of which is judged, the first that the graph has
BATCH = 8
BATCHES = (1, 8, 64)  # images per run for which gains are predicted
ATTENTION = ("qkv", "scores", "mix", "proj")


@dataclass(frozen=True, kw_only=True)
class Part:
    """Products that are quantized or kept together.

    Attributes:
        block: the encoder's name of the block, or of the first and the last of several.
        kind: kind of layer; `attention` where attention is quantized as a whole, `all` for whole blocks.
        modules: the encoder's names of its modules, as `--keep` takes them.
        share: of the multiply-adds of all products, on the images measured.
    """

    block: str
    kind: str
    modules: tuple[str, ...]
    share: float


@dataclass(frozen=True, kw_only=True)
class Fidelity:
    """How features agree with those of the float32 graph.

    Attributes:
        cosine: mean over images of the cosine after subtracting the mean over images.
        first_percentile: of those cosines.
        neighbours: mean share of the 10 nearest images that stay the same; None for fewer than 30 images.
    """

    cosine: float
    first_percentile: float
    neighbours: float | None


@dataclass(frozen=True, kw_only=True)
class Loss:
    """What one part costs in fidelity when it alone is quantized."""

    part: Part
    fidelity: Fidelity


@dataclass(frozen=True, kw_only=True)
class Sensitivity:
    """The losses of all parts.

    Attributes:
        graph: SHA-256 of the graph.
        graph_name: its file name.
        precision: int8 or fp8.
        preset: which products are quantized at all.
        feature: the output that was judged.
        images: number of held-out images.
        visible: plan of visible patches they were shown with.
        grouped: how parts were put together, for people; empty when they were not.
        losses: of each part, in the order of the graph.
        everything: fidelity with all parts in 8 bits.
        payoff: what all parts in 8 bits can gain on a GPU, for each of `BATCHES`.
        products: all products of the graph with their sizes, from which that is predicted.
    """

    graph: str
    graph_name: str
    precision: str
    preset: str
    feature: str
    images: int
    visible: str
    grouped: str
    losses: tuple[Loss, ...]
    everything: Fidelity
    payoff: tuple[Payoff, ...]
    products: tuple[Product, ...]


@dataclass(frozen=True, kw_only=True)
class Trial:
    """Everything needed to judge one combination of parts.

    Attributes:
        source: the float32 graph.
        table: its table.
        options: what is wanted; parts are left out through `keep`.
        manifest: of the graph.
        batches: of held-out images.
        feature: the output that is judged.
        expected: the float32 graph's, [n, D].
        visible: plan of visible patches.
        folder: private folder for variants of the graph.
    """

    source: Path
    table: Table
    options: QuantizeOptions
    manifest: Manifest
    batches: tuple[Batch, ...]
    feature: str
    expected: Array
    visible: str
    folder: Path

    def judge(self, kept: Sequence[Part]) -> Fidelity:
        """Quantize everything but some parts, run the images, compare."""
        model = ir.load(self.source)
        keep = itertools.chain(*(part.modules for part in kept))
        quantize_model(model, self.table.ranges, self._wanted(model, keep))
        model.metadata_props[METADATA_KEY] = replace(self.manifest, precision=self.options.precision).to_json()
        path = self.folder / "variant.onnx"
        graph.save(model, path, embedded=0)
        del model  # its weights would be in memory twice
        return fidelity(run(path, self.batches, self.feature), self.expected)

    def placed(self, keep: Iterable[str] = ()) -> tuple[Site, ...]:
        """The products that run in 8 bits when some modules are kept."""
        model = ir.load(self.source)
        return place(model, sites_of(model), self._wanted(model, keep)).sites

    def _wanted(self, model: ir.Model, keep: Iterable[str]) -> QuantizeOptions:
        """The options with more modules kept; where that is all attention, without the demand for some of it."""
        names = (*self.options.keep, *keep)
        attention = [site.name for site in sites_of(model) if site.kind == "mix"]
        spared = all(any(f"{name}.".startswith(f"{module}.") for module in names) for name in attention)
        return replace(self.options, keep=names, preset="linear" if spared else self.options.preset)


def prepare(
    source: Path,
    table: Table,
    inputs: Sequence[str | Path],
    *,
    options: QuantizeOptions,
    folder: Path,
    most_images: int = JUDGED_IMAGES,
) -> Trial:
    """Read held-out images and run the float32 graph on them.

    Args:
        source: the float32 graph.
        table: its table; the images in it are passed over, and its plan of visible patches is followed.
        inputs: files, folders, lists and tars of images.
        options: what is wanted.
        folder: private folder, which must live as long as the trial.
        most_images: images to use, if there are as many.

    Raises:
        InputError: when the table belongs to another graph, or too few images are left.
        GraphError: when the graph gives no feature per image.
        UsageError: when the table's masks came from a file.
    """
    table.require_for(source)
    manifest = graph.read_manifest(source)
    feature = next((name for name in FEATURES if name in {spec.name for spec in manifest.outputs}), None)
    if feature is None:
        raise GraphError(
            f"{source.name} gives no feature per image to judge; expected one of {', '.join(FEATURES)}: export it with "
            "--features pooled"
        )
    if table.visible.startswith("file:"):
        raise UsageError(
            f"the table was made with masks from {table.visible!r}, which say nothing of other images; calibrate with "
            "--visible all or random:R"
        )
    plan = parse_visibility(table.visible)
    check_plan(manifest, plan)
    pictures = Pictures(inputs, manifest.image, samples=most_images, seed=table.seed, without=frozenset(table.images))
    batcher, batches = Batcher(manifest, BATCH), []
    for picture in pictures:
        ids_keep = plan.ids_keep(picture.index, picture.sha256, manifest.patches.count)
        full = batcher.add(index=picture.index, item_id=picture.item.id, pixels=picture.pixels, ids_keep=ids_keep)
        batches += [full] if full is not None else []
    batches += batcher.rest()
    return Trial(
        source=source,
        table=table,
        options=options,
        manifest=manifest,
        batches=tuple(batches),
        feature=feature,
        expected=run(source, batches, feature),
        visible=table.visible,
        folder=folder,
    )


def measure(
    trial: Trial, *, most: int = MOST_PARTS, progress: Callable[[str, int, int], object] | None = None
) -> Sensitivity:
    """Quantize one part at a time and all together.

    Args:
        trial: from `prepare`.
        most: parts to measure; with more, they are grouped.
        progress: told the part, how many are done, and how many there are.

    Raises:
        UsageError: when `most` is below 1.
        GraphError: when nothing can be quantized.
    """
    if most < 1:
        raise UsageError(f"{most} parts cannot be measured; expected at least 1")
    tell = progress or (lambda *_: None)
    products = products_of(trial.source, trial.manifest, trial.batches[0], trial.folder)
    whole = trial.options.preset == "full"
    parts, grouped = _grouped(_parts(trial.placed(), products, whole=whole), most)
    losses = []
    for done, part in enumerate(parts):
        tell(f"{part.block} {part.kind}", done, len(parts) + 1)
        others = [other for other in parts if other is not part]
        losses.append(Loss(part=part, fidelity=trial.judge(others)))
    tell("everything", len(parts), len(parts) + 1)
    return Sensitivity(
        graph=trial.table.graph,
        graph_name=trial.source.name,
        precision=trial.options.precision,
        preset=trial.options.preset,
        feature=trial.feature,
        images=len(trial.expected),
        visible=trial.visible,
        grouped=grouped,
        losses=tuple(losses),
        everything=trial.judge([]),
        payoff=payoffs(trial, products),
        products=products,
    )


def payoffs(trial: Trial, products: Sequence[Product], keep: Iterable[str] = ()) -> tuple[Payoff, ...]:
    """What a graph with some modules kept in float32 can gain, for each of `BATCHES`."""
    nodes = {site.node for site in trial.placed(keep)}
    return tuple(predict(products, nodes, batch=batch) for batch in BATCHES)


def run(path: Path, batches: Sequence[Batch], feature: str) -> Array:
    """One output of a graph for batches of images, [n, D]."""
    with open_as_is(path) as session:
        return np.concatenate([session.run(batch.feeds, [feature])[feature] for batch in batches])


def fidelity(found: Array, expected: Array) -> Fidelity:
    """Compare features [n, D] of the same images; what is not finite agrees with nothing."""
    centre = expected.mean(axis=0, dtype=np.float64)
    a, b = found - centre, expected - centre
    with np.errstate(invalid="ignore", over="ignore"):
        lengths = np.maximum(np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1), np.finfo(np.float64).tiny)
        cosines = np.nan_to_num((a * b).sum(axis=1) / lengths, nan=-1.0)
    return Fidelity(
        cosine=float(cosines.mean()),
        first_percentile=float(np.quantile(cosines, 0.01)),
        neighbours=neighbour_overlap(a, b) if len(a) >= ENOUGH_IMAGES else None,
    )


def _parts(sites: Sequence[Site], products: Sequence[Product], *, whole: bool) -> list[Part]:
    """Sites by block and kind; modules of one name, such as a projection computed twice, are never torn apart."""
    work = {product.node: product.work for product in products}
    total = sum(work.values())
    owner: dict[str, tuple[str, str]] = {}
    for site in sorted(sites, key=lambda site: site.kind == "other"):
        kind = "attention" if whole and site.kind in ATTENTION else site.kind
        owner.setdefault(site.name, (site.block, kind))
    modules: dict[tuple[str, str], dict[str, None]] = {}
    shares: dict[tuple[str, str], float] = {}
    for site in sites:
        key = owner[site.name]
        modules.setdefault(key, {})[site.name] = None
        shares[key] = shares.get(key, 0.0) + work.get(site.node, 0) / total
    return [
        Part(block=block, kind=kind, modules=tuple(names), share=round(shares[block, kind], 6))
        for (block, kind), names in modules.items()
    ]


def _grouped(parts: list[Part], most: int) -> tuple[list[Part], str]:
    """At most that many parts, and how they were put together."""
    if len(parts) <= most:
        return parts, ""
    blocks = [_join(list(group)) for _, group in itertools.groupby(parts, key=lambda part: part.block)]
    if len(blocks) <= most:
        return blocks, f"{len(parts)} parts were measured by block, because they are more than {most}"
    size = -(-len(blocks) // most)
    joined = [_join(blocks[first : first + size]) for first in range(0, len(blocks), size)]
    return joined, f"{len(parts)} parts were measured {size} blocks at a time, because they are more than {most}"


def _join(parts: Sequence[Part]) -> Part:
    first, last = parts[0].block, parts[-1].block
    return Part(
        block=first if first == last else f"{first} to {last}",
        kind="all" if len(parts) > 1 else parts[0].kind,
        modules=tuple(dict.fromkeys(itertools.chain(*(part.modules for part in parts)))),
        share=round(sum(part.share for part in parts), 6),
    )
