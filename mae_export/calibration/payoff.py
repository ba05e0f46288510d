"""Whether 8 bits can pay at all: the time of every product predicted from its shape, in half precision and in 8 bits.

A product takes the longest of three times: of its multiply-adds, of the bytes it reads and writes, and of starting a
kernel. In 8 bits the first halves and the second shrinks, but the activation function behind a first MLP layer becomes
a kernel of its own, because 8-bit kernels cannot do it on the way out. The three constants are those of an NVIDIA A100;
other GPUs have other speeds and similar proportions. This says what cannot pay, and measuring says what does.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import onnx_ir as ir

from mae_export.calibration.reductions import columns_of, output_name, write_observed
from mae_export.calibration.sites import Kind, Site, sites_of
from mae_export.manifest import Manifest
from mae_export.runtime.batching import Batch
from mae_export.runtime.session import open_as_is

FLOPS = 312e12  # dense FP16 per second; twice that in 8 bits
BANDWIDTH = 2.0e12  # bytes per second
START = 3e-6  # seconds until a kernel does anything
WORTH = 1.1  # predicted gain below which 8 bits are not worth their loss


@dataclass(frozen=True, kw_only=True)
class Product:
    """One matrix product, or many of one shape.

    Attributes:
        node: name of the node.
        module: the encoder's name.
        kind: what it is to the encoder.
        rows: M, of one image; heads times tokens for attention.
        inner: K.
        columns: N.
        second: numbers in the second factor: weights, or of one image for attention.
        weighted: whether the second factor is weights, which do not grow with the batch.
    """

    node: str
    module: str
    kind: Kind
    rows: int
    inner: int
    columns: int
    second: int
    weighted: bool

    @property
    def work(self) -> int:
        """Multiply-adds for one image."""
        return self.rows * self.inner * self.columns

    def seconds(self, batch: int, *, quantized: bool) -> float:
        """Predicted time, with the function behind it."""
        rows = batch * self.rows
        second = self.second if self.weighted else batch * self.second
        width = 1 if quantized else 2
        moved = width * (rows * self.inner + second) + 2 * rows * self.columns
        time = max(2 * rows * self.inner * self.columns * width / (2 * FLOPS), moved / BANDWIDTH, START)
        if quantized and self.kind == "fc1":
            time += max(3 * rows * self.columns / BANDWIDTH, START)  # reads half precision, writes 8 bits
        return time


@dataclass(frozen=True, kw_only=True)
class Payoff:
    """What 8 bits can gain over half precision in the products of a graph.

    Attributes:
        batch: images per run.
        share: of the multiply-adds that run in 8 bits.
        speed_up: predicted, of all products together.
        reason: why it cannot pay; empty when it may.
    """

    batch: int
    share: float
    speed_up: float
    reason: str


def products_of(source: Path, manifest: Manifest, batch: Batch, folder: Path) -> tuple[Product, ...]:
    """The products of a graph with their sizes, as one batch of images runs through it.

    Args:
        source: the graph.
        manifest: of the graph.
        batch: images with their visible patches.
        folder: private folder to work in.
    """
    model = ir.load(source)
    sites = sites_of(model)
    names = dict.fromkeys(name for site in sites for name in site.inputs)
    with open_as_is(write_observed(source, manifest, dict.fromkeys(names, 0), folder=folder, fetch=False)) as session:
        outputs = session.run(batch.feeds)
    sizes = {name: int(outputs[output_name(name, "size")]) // len(batch) for name in names}
    found = []
    for index, site in enumerate(sites):
        if site.weight:
            shape = model.graph.initializers[site.weight].shape
            weight = (0,) if shape is None else shape.numpy()
            second = math.prod(weight)
            inner = columns_of(model, site) or second // weight[0]  # of a convolution, [out, in, ...]
            extents = (sizes[site.inputs[0]] // inner, inner, second // inner)
        else:
            mix = next(other for other in sites[index:] if other.kind == "mix")
            second, extents = sizes[site.inputs[1]], _attention(model, site, sizes, sizes[mix.inputs[0]])
        if all(extents):
            rows, inner, columns = extents
            product = Product(
                node=site.node,
                module=site.name,
                kind=site.kind,
                rows=rows,
                inner=inner,
                columns=columns,
                second=second,
                weighted=bool(site.weight),
            )
            found.append(product)
    return tuple(found)


def _attention(model: ir.Model, site: Site, sizes: Mapping[str, int], probabilities: int) -> tuple[int, int, int]:
    """Rows, inner and columns of a product of two activations; zeros where the graph does not say its width."""
    whose = site.inputs[0 if site.kind == "scores" else 1]
    value = next(value for node in model.graph for value in node.outputs if value.name == whose)
    width = value.shape[-1] if value.shape is not None else None
    if not isinstance(width, int):
        return 0, 0, 0
    rows = sizes[whose] // width
    tokens = probabilities // rows
    return (rows, width, tokens) if site.kind == "scores" else (rows, tokens, width)


def predict(products: Sequence[Product], quantized: Collection[str], *, batch: int) -> Payoff:
    """Compare the time of all products in half precision with that when some run in 8 bits.

    Args:
        products: of the graph.
        quantized: nodes that run in 8 bits.
        batch: images per run.
    """
    before = sum(product.seconds(batch, quantized=False) for product in products)
    after = sum(product.seconds(batch, quantized=product.node in quantized) for product in products)
    share = sum(product.work for product in products if product.node in quantized) / sum(p.work for p in products)
    return Payoff(
        batch=batch,
        share=share,
        speed_up=before / after,
        reason="" if before / after >= WORTH else _why(products, quantized, share, batch),
    )


def _why(products: Sequence[Product], quantized: Collection[str], share: float, batch: int) -> str:
    best = 1 / (1 - share / 2)
    if best < WORTH:
        return (
            f"only {share:.0%} of the multiply-adds run in 8 bits, which gains {best:.2f}x at most; quantize more of "
            "the graph, or stay with half precision"
        )
    idle = [product for product in products if product.node in quantized and _is_started(product, batch)]
    if 2 * len(idle) >= len(quantized):
        largest = max(idle, key=lambda product: product.work)
        return (
            f"{len(idle)} of {len(quantized)} products in 8 bits are over before a kernel has started: the largest of "
            f"them is {batch * largest.rows} x {largest.inner} x {largest.columns} at batch {batch}. Run larger "
            "batches, or stay with half precision"
        )
    return (
        "reading and writing activations takes what the products save, since functions behind 8-bit products run as "
        "kernels of their own; stay with half precision, or use a wider encoder"
    )


def _is_started(product: Product, batch: int) -> bool:
    """Whether starting the kernel takes longer than the product itself, in half precision."""
    return product.seconds(batch, quantized=False) <= START
