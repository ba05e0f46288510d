"""What I-JEPA, DMT-JEPA, CAE and data2vec 2.0 predict, in ONNX Runtime against the numbers of their authors' code.

The authors' I-JEPA was asked for five of eight hidden patches; queries see each other, so a graph, which is asked for
all of them, gives other numbers. There the formula of `tests/encoders/predictions.py` is first proven on the authors'
five, and the graph then on the formula.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
import torch

from mae_export.encoders.load import load_encoder
from mae_export.encoders.overrides import Overrides
from mae_export.errors import VerificationError
from mae_export.export import flavour
from mae_export.export.engine import build
from mae_export.export.options import ConvertOptions, TraceOptions
from mae_export.export.plan import EnginePlan, parse_profile
from mae_export.export.precision import convert
from mae_export.export.verify import checkpoint_reference, verify
from mae_export.runtime.golden import check_golden
from mae_export.runtime.metrics import relative_error
from mae_export.runtime.patchify import patchify
from mae_export.runtime.session import open_session
from tests.encoders.predictions import aligned, complement, convolved, decoded, narrowed, predicted, regressed

LIMIT = 1e-4
FLOOR = 1e-5
PLAIN = Overrides(heads=4, decoder_heads=4)
CONTEXT = Overrides(heads=4, decoder_heads=4, weights="encoder")
JEPA = {"ijepa": "pred", "dmtjepa": "pred_without_localagg"}
FOLDERS = ("ijepa", "dmtjepa", "cae", "caev2", "data2vec2", "data2vec2_huge14")
PREDICTED = ("prediction", "patch_tokens")


def arrays(folder: Path, name: str) -> dict[str, np.ndarray]:
    with np.load(folder / f"{name}.npz", allow_pickle=False) as file:
        return dict(file)


@pytest.fixture
def graph(exported):
    """A graph of one folder; DMT-JEPA is asked for, for its files look like I-JEPA's."""

    def make(folder: str, mask: str, *, ragged: bool = False, image_size: tuple[int, int] | None = None) -> Path:
        return exported(
            f"{folder}/checkpoint.pth",
            TraceOptions(mask=mask, ragged=ragged, features=PREDICTED, image_size=image_size),
            overrides=CONTEXT if folder in JEPA else PLAIN,
            family="dmtjepa" if folder == "dmtjepa" else None,
        )

    return make


def loaded(fixture_dir: Path, folder: str):
    return load_encoder(
        fixture_dir / folder / "checkpoint.pth",
        family="dmtjepa" if folder == "dmtjepa" else None,
        overrides=CONTEXT if folder in JEPA else PLAIN,
    )[0]


def run(path: Path, images: np.ndarray, ids: np.ndarray, num: np.ndarray | None = None) -> dict[str, np.ndarray]:
    with open_session(path) as session:
        check_golden(session)
        feeds = {"images": images, "ids_keep": ids}
        if session.manifest.mask_mode == "patches":
            cells = patchify(images, session.manifest.patches)
            feeds = {"patches": np.take_along_axis(cells, ids[:, :, None], axis=1), "ids_keep": ids}
        if num is not None:
            feeds["num_keep"] = num
        return session.run(feeds)


def by_formula(encoder, images: np.ndarray, keep: list[np.ndarray]) -> np.ndarray:
    """Predictions [B, N, V] by the formulas, from the encoder's own tokens of each sample alone."""
    spec, rows = encoder.spec, []
    pixels = (images / 255 - np.array(spec.image.mean)) / np.array(spec.image.std)
    state = {name: value.double() for name, value in encoder.decoder.state_dict().items()}
    encoder = encoder.double()
    for image, ids in zip(torch.from_numpy(pixels), map(torch.from_numpy, keep), strict=True):
        with torch.inference_mode():
            embedded = encoder.patch_embed.proj(image.permute(2, 0, 1)[None]).flatten(2).transpose(1, 2)
            tokens = encoder.finish(encoder.encode_tokens(embedded[:, ids], ids[None]).tokens)[0]
        rows.append(sample_by_formula(spec, state, tokens, ids))
    return torch.stack(rows).numpy()


def sample_by_formula(spec, state, tokens: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
    decoder, hidden = spec.decoder, complement(ids, spec.patches)
    row = torch.zeros(spec.patches, decoder.values, dtype=torch.float64)
    if decoder.kind == "predictor":
        row[hidden] = predicted(state, tokens, ids, hidden, decoder.heads)
    elif decoder.kind == "convolutions":
        placed = torch.zeros(spec.patches, spec.dim, dtype=torch.float64)
        placed[ids] = tokens[1:]
        row = convolved(state, placed.T.reshape(spec.dim, *spec.grid[1:]), decoder.groups)
    else:
        visible = narrowed(state, tokens[1:], spec.eps)
        latent = regressed(state, visible, ids, hidden, decoder.heads)
        if decoder.kind == "regresser":
            row[hidden] = decoded(state, latent, hidden, spec.patches, decoder.heads)
        else:
            row[hidden], row[ids] = aligned(state, latent), aligned(state, visible)
    return row


@pytest.mark.parametrize("mode", ["keep", "patches"])
def test_cae_gives_the_authors_logits(graph, fixture_dir, mode):
    given, expected = (arrays(fixture_dir / "cae", name) for name in ("input", "expected"))
    found = run(graph("cae", mode), given["images"], given["ids_keep"])["prediction"]
    hidden = np.take_along_axis(found, given["ids_masked"][:, :, None], axis=1)
    assert relative_error(hidden.reshape(16, -1), expected["logits"]) <= FLOOR
    assert not np.take_along_axis(found, given["ids_keep"][:, :, None], axis=1).any()


@pytest.mark.parametrize("mode", ["keep", "patches"])
def test_cae_v2_gives_the_authors_features_of_visible_and_hidden_patches(graph, fixture_dir, mode):
    given, expected = (arrays(fixture_dir / "caev2", name) for name in ("input", "expected"))
    found = run(graph("caev2", mode), given["images"], given["ids_keep"])["prediction"]
    order = np.concatenate(
        [given["ids_keep"], given["ids_masked"]], axis=1
    )  # the authors' first row is the class token
    in_order = np.take_along_axis(found, order[:, :, None], axis=1)
    assert relative_error(in_order, expected["logits"][:, 1:]) <= FLOOR
    assert relative_error(found, expected["logits"][:, 1:]) > 1000 * LIMIT  # not in raster order


@pytest.mark.parametrize("folder", ["cae", "caev2"])
def test_the_regresser_gives_the_authors_latents(fixture_dir, folder):
    given, expected = (arrays(fixture_dir / folder, name) for name in ("input", "expected"))
    decoder = loaded(fixture_dir, folder).decoder
    tokens, ids = torch.from_numpy(expected["tokens_keep"]), torch.from_numpy(given["ids_keep"])
    with torch.inference_mode():
        embedded = decoder.embedded(tokens)
        seen = torch.zeros(2, 16, 1).index_put((torch.arange(2)[:, None], ids), torch.ones(1))
        placed = torch.zeros(2, 16, embedded.shape[-1]).index_put((torch.arange(2)[:, None], ids), embedded)
        norm = decoder.regressor_norm if folder == "cae" else decoder.norm
        latent = norm(decoder.regress(placed, seen)).numpy()
    found = np.take_along_axis(latent, given["ids_masked"][:, :, None], axis=1)
    assert relative_error(found, expected["latent_pred"]) <= FLOOR


@pytest.mark.parametrize("folder", JEPA)
def test_the_predictor_gives_the_authors_numbers_for_the_patches_they_asked_for(fixture_dir, folder):
    """Module and formula, on the context tokens that the authors' code computed; four heads, not two."""
    given, expected = (arrays(fixture_dir / folder, name) for name in ("input", "expected"))
    decoder = loaded(fixture_dir, folder).decoder
    tokens, keep, asked = map(torch.from_numpy, (expected["context_tokens_keep"], given["ids_keep"], given["ids_pred"]))
    with torch.inference_mode():
        context = decoder.embed(tokens) + decoder.pos_embed[0][keep]
        queries = decoder.mask_token + decoder.pos_embed[0][asked]
        module = decoder.transform(torch.cat([context, queries], dim=1))[:, keep.shape[1] :]
        state = decoder.state_dict()
        formula, wrong = (
            torch.stack([predicted(state, *sample, heads) for sample in zip(tokens, keep, asked, strict=True)])
            for heads in (4, 2)
        )
    for found in (module, formula):
        assert relative_error(found.numpy(), expected[JEPA[folder]]) <= FLOOR
    assert relative_error(wrong.numpy(), expected[JEPA[folder]]) > 1000 * LIMIT


@pytest.mark.parametrize("folder", ["data2vec2", "data2vec2_huge14"])
def test_data2vec2_gives_the_authors_numbers_with_their_noise(fixture_dir, folder):
    given, expected = (arrays(fixture_dir / folder, name) for name in ("input", "expected"))
    decoder = loaded(fixture_dir, folder).decoder
    kept = given["ids_keep"].shape[1]
    # Place n of the grid takes entry ids_restore[n] of the visible tokens followed by the noise.
    which = np.maximum(given["ids_restore"] - kept, 0)
    fill = torch.from_numpy(np.take_along_axis(given["decoder_mask_noise"], which[:, :, None], axis=1))
    tokens, ids = torch.from_numpy(expected["tokens_keep"]), torch.from_numpy(given["ids_keep"])
    with torch.inference_mode():
        noisy, mean = decoder(tokens, ids, fill=fill).numpy(), decoder(tokens, ids).numpy()
    assert relative_error(noisy, expected["decoder_pred"]) <= FLOOR
    assert 100 * FLOOR < relative_error(mean, expected["decoder_pred"]) < 0.1  # the noise is small, but it is there


@pytest.mark.parametrize("mode", ["keep", "patches"])
@pytest.mark.parametrize("folder", FOLDERS)
def test_graphs_agree_with_the_formula_for_any_mask(graph, fixture_dir, folder, mode):
    images = arrays(fixture_dir / folder, "input")["images"]
    draws = np.random.default_rng(4)
    ids = np.stack([draws.permutation(16)[:5] for _ in images])
    found = run(graph(folder, mode), images, ids)["prediction"]
    expected = by_formula(loaded(fixture_dir, folder), images, list(ids))
    assert relative_error(found, expected) <= FLOOR
    assert relative_error(found, expected[::-1]) > 100 * LIMIT


@pytest.mark.parametrize("folder", FOLDERS)
def test_rows_of_different_length_agree_with_the_formula(graph, fixture_dir, folder):
    images = arrays(fixture_dir / folder, "input")["images"].repeat(2, axis=0)
    draws = np.random.default_rng(5)
    ids, num = np.stack([draws.permutation(16)[:9] for _ in images]), np.array([9, 1, 4, 6], np.int32)
    expected = by_formula(loaded(fixture_dir, folder), images, [row[:kept] for row, kept in zip(ids, num, strict=True)])
    padded = np.where(np.arange(9) < num[:, None], ids, ids[:, :1])  # any valid index pads, one that is there too
    for rows in (ids, padded):
        assert (
            relative_error(run(graph(folder, "keep", ragged=True), images, rows, num)["prediction"], expected) <= FLOOR
        )


@pytest.mark.parametrize("folder", FOLDERS)
def test_with_all_patches_visible_everything_is_finite(graph, fixture_dir, folder):
    images = arrays(fixture_dir / folder, "input")["images"]
    found = run(graph(folder, "keep"), images, np.tile(np.arange(16), (2, 1)))["prediction"]
    assert np.isfinite(found).all()
    assert found.any() == (folder not in (*JEPA, "cae"))


@pytest.mark.parametrize("folder", FOLDERS)
def test_another_image_size_agrees_with_the_formula(graph, fixture_dir, folder):
    encoder = loaded(fixture_dir, folder)
    size = (3 * encoder.spec.patch[1], 5 * encoder.spec.patch[2])
    images = np.random.default_rng(6).integers(0, 256, (2, *size, 3), dtype=np.uint8)
    ids = np.array([[14, 0, 7, 3], [2, 9, 11, 5]])
    found = run(graph(folder, "keep", image_size=size), images, ids)["prediction"]
    assert found.shape[:2] == (2, 15)
    assert relative_error(found, by_formula(encoder.resized(size), images, list(ids))) <= FLOOR


@pytest.mark.parametrize("folder", ["ijepa", "cae", "caev2"])
def test_another_image_size_resamples_the_table_of_what_predicts(fixture_dir, folder):
    """As the encoder's: bicubically, without the class token's row."""
    encoder = loaded(fixture_dir, folder)
    table = encoder.decoder.pos_embed
    prefix, width = encoder.spec.prefix_tokens, table.shape[-1]
    grid = table[:, prefix:].reshape(1, 4, 4, width).permute(0, 3, 1, 2)
    wanted = torch.nn.functional.interpolate(grid, size=(3, 5), mode="bicubic", align_corners=False)
    found = encoder.resized((3 * encoder.spec.patch[1], 5 * encoder.spec.patch[2])).decoder.pos_embed
    assert torch.equal(found[:, :prefix], table[:, :prefix])
    assert float((found[:, prefix:] - wanted.flatten(2).transpose(1, 2)).abs().max()) < 1e-6
    assert float((found[:, prefix:] - table[:, prefix : prefix + 15]).abs().max()) > 0.1


@pytest.mark.parametrize("folder", FOLDERS)
def test_verifying_against_the_checkpoint_passes_and_a_broken_predictor_fails(graph, fixture_dir, folder):
    stated = Overrides(weights="encoder") if folder in JEPA else Overrides()
    path = fixture_dir / folder / "checkpoint.pth"
    with open_session(graph(folder, "keep", ragged=True)) as session:
        with checkpoint_reference(path, session.manifest, stated) as reference:
            report, _ = verify(session, reference)
            assert report.passed
            reference._encoder.decoder.pred.weight[0, 0] += 1
            report, _ = verify(session, reference)
        assert not report.passed
        assert report.worst.output == "prediction"


@pytest.mark.parametrize("folder", FOLDERS)
def test_half_precision_is_proven_and_leaves_attention_whole(graph, tmp_path, folder):
    manifest = convert(graph(folder, "keep"), tmp_path / "half.onnx", options=ConvertOptions(precision="fp16"))
    assert manifest.verification.error <= manifest.verification.limit
    assert [output.name for output in manifest.outputs] == list(PREDICTED)
    assert not [name for name in manifest.fp32_nodes if "attn" in name]  # such as a mask that leaves the type


def test_convolutions_stay_in_float32_in_bf16(graph, tmp_path):
    """ONNX defines none in opset 20. The graph is sound; three bits fewer are too few for these random weights."""
    with pytest.raises(VerificationError, match=r"output 'prediction' has cosine 0\.99\d+ with the float32 graph"):
        convert(graph("data2vec2", "keep"), tmp_path / "half.onnx", options=ConvertOptions(precision="bf16"))
    model = onnx.load(tmp_path / "half.onnx.rejected")
    onnx.checker.check_model(model, full_check=True)
    types = {value.name: value.type.tensor_type.elem_type for value in model.graph.value_info}
    made = [types[node.output[0]] for node in model.graph.node if node.op_type == "Conv"]
    assert made == [onnx.TensorProto.FLOAT] * 2


@pytest.mark.skipif(flavour.find_module("rtx") is None, reason="tensorrt-rtx-cu13-bindings and -libs are not installed")
@pytest.mark.parametrize(
    ("folder", "fused", "attention"),
    [("ijepa", 2, 3), ("cae", 4, 4), ("caev2", 2, 3), ("data2vec2", 3, 3)],  # heads of 6 and of 8 do not fuse
)
def test_engines_are_built_and_fuse_what_they_can(graph, tmp_path, folder, fused, attention):
    half = tmp_path / "half.onnx"
    source = graph(folder, "keep", ragged=folder in ("cae", "data2vec2"))
    convert(source, half, options=ConvertOptions(precision="fp16"))
    plan = EnginePlan(backend="rtx", profiles=(parse_profile("batch=1:2:8"),), targets=("sm89",))
    achieved = build(half, tmp_path / "half.engine", plan=plan).achieved
    assert (achieved.fused, achieved.attention) == (fused, attention)
    assert set(achieved.gemms) <= {"Half", "Float"}
