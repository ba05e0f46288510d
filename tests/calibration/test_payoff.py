"""Predictions: sizes are those of closed forms, times follow the three bounds, and verdicts name the reason."""

import numpy as np
import pytest

from benchmarks.sizes import gflops
from mae_export.calibration.payoff import BANDWIDTH, FLOPS, START, Product, predict, products_of
from mae_export.export.options import TraceOptions
from mae_export.graph import read_manifest
from mae_export.runtime.batching import Batcher


def product(rows, inner, columns, **changes):
    facts = {"node": "n", "module": "blocks.0.mlp.fc2", "kind": "fc2", "second": inner * columns, "weighted": True}
    return Product(rows=rows, inner=inner, columns=columns, **(facts | changes))


def vit(tokens, dim, depth, heads=12):
    """The products of a plain ViT of any size, without a graph."""
    head = dim // heads
    found = []
    for block in range(depth):
        shapes = {
            "qkv": (tokens, dim, 3 * dim), "scores": (heads * tokens, head, tokens),
            "mix": (heads * tokens, tokens, head), "proj": (tokens, dim, dim), "fc1": (tokens, dim, 4 * dim),
            "fc2": (tokens, 4 * dim, dim),
        }  # fmt: skip
        for kind, (rows, inner, columns) in shapes.items():
            weighted = kind not in ("scores", "mix")
            second = inner * columns if weighted else tokens * dim
            name = f"blocks.{block}/{kind}"
            found.append(product(rows, inner, columns, node=name, kind=kind, weighted=weighted, second=second))
    return found


def weighted(products):
    return {product.node for product in products if product.weighted}


@pytest.mark.parametrize("kept", [64, 16])
@pytest.mark.parametrize("options", [TraceOptions(mask="keep"), TraceOptions(mask="patches", ragged=True)])
def test_sizes_are_those_of_the_closed_form(graph_of, tmp_path, kept, options):
    path = graph_of(options)
    manifest = read_manifest(path)
    batcher = Batcher(manifest, 2)
    blank = np.zeros((64, 64, 3), np.uint8)
    batcher.add(index=0, item_id="a", pixels=blank, ids_keep=np.arange(kept))
    batch = batcher.add(index=1, item_id="b", pixels=blank, ids_keep=np.arange(kept))
    assert batch is not None
    products = products_of(path, manifest, batch, tmp_path)
    tokens, dim = kept + 1, 48
    work = kept * 192 * dim + 2 * (12 * tokens * dim**2 + 2 * tokens**2 * dim)
    assert sum(product.work for product in products) == work
    shapes = {p.kind: (p.rows, p.inner, p.columns) for p in products}
    assert shapes["scores"] == (4 * tokens, 12, tokens)
    assert shapes["mix"] == (4 * tokens, tokens, 12)
    assert shapes["fc2"] == (tokens, 192, 48)


def test_the_work_of_a_published_size_is_the_known_one():
    work = sum(product.work for product in vit(197, 768, 12))
    assert 2 * work / 1e9 == pytest.approx(gflops("base", 196, embedded=0), rel=1e-9)


def test_time_is_the_longest_of_three():
    busy, moving, small = product(10_000, 4096, 4096), product(100_000, 64, 64), product(10, 10, 10)
    assert busy.seconds(1, quantized=False) == pytest.approx(2 * busy.work / FLOPS)
    assert busy.seconds(1, quantized=True) == pytest.approx(busy.work / FLOPS)
    assert moving.seconds(1, quantized=False) == pytest.approx(2 * (2 * 100_000 * 64 + 64 * 64) / BANDWIDTH)
    assert small.seconds(1, quantized=True) == START
    assert product(10, 10, 10, kind="fc1").seconds(1, quantized=True) == 2 * START
    one, two = (product(1000, 64, 1000, weighted=False).seconds(batch, quantized=False) for batch in (1, 2))
    assert two == pytest.approx(2 * one) or one == START


def test_published_gains_of_a_base_encoder_are_predicted():
    """INT8 over FP16 of ViT-B on an A100, from TensorRT: 1.27 to 1.72 at large batches, nothing at batch 1."""
    products = vit(197, 768, 12)
    large, single = (predict(products, weighted(products), batch=batch) for batch in (64, 1))
    assert 1.27 < large.speed_up < 1.72
    assert large.reason == ""
    assert single.speed_up < 1.1
    assert "over before a kernel has started" in single.reason
    assert "197 x 768 x 2304 at batch 1" in single.reason


def test_few_tokens_need_larger_batches():
    products = vit(50, 768, 12)
    gains = [predict(products, weighted(products), batch=batch).speed_up for batch in (1, 8, 64)]
    assert gains == sorted(gains)
    assert gains[0] < 1 < 1.4 < gains[2]


def test_a_small_share_cannot_pay():
    products = vit(197, 768, 12)
    payoff = predict(products, {p.node for p in products if p.kind == "proj"}, batch=64)
    assert payoff.share == pytest.approx(0.081, abs=0.005)
    assert "only 8% of the multiply-adds run in 8 bits, which gains 1.04x at most" in payoff.reason


def test_narrow_encoders_are_bound_by_activations():
    products = vit(50, 128, 4, heads=2)
    payoff = predict(products, weighted(products), batch=1024)
    assert payoff.speed_up < 1
    assert "reading and writing activations takes what the products save" in payoff.reason


def test_nothing_in_8_bits_changes_nothing():
    products = vit(50, 192, 2)
    assert predict(products, set(), batch=8).speed_up == 1
