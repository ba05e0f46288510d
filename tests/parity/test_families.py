"""Every family's graphs against the numbers that its authors' code computed from the same small checkpoint.

Errors are max |a - b| / max(1, max |b|) per output, and must stay under 1e-4. That is blind to a wrong eps, so eps and
heads are compared as numbers, and in float64 a deliberately broken encoder must stand out from the right one.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from mae_export.encoders.encoder import Encoder
from mae_export.encoders.load import LoadReport, load_encoder
from mae_export.export.options import TraceOptions
from mae_export.runtime.metrics import relative_error
from mae_export.runtime.patchify import patchify
from mae_export.runtime.session import open_session
from mae_export.spec import predicts_pixels
from tests.parity.cases import CASES, Case

LIMIT = 1e-4
FLOOR = 2e-5  # what float32 and its kernels cost the authors' numbers themselves, at most
FILES = [pytest.param(case, file, id=f"{case.folder}-{file}") for case in CASES for file in case.files]
# A graph takes seconds, so the first file of a case is exported and the others are proven to hold the same encoder.
FIRST = [pytest.param(case, case.files[0], id=f"{case.folder}-{case.files[0]}") for case in CASES]
OTHERS = [pytest.param(case, file, id=f"{case.folder}-{file}") for case in CASES for file in case.files[1:]]
MASKED = [
    pytest.param(case, case.files[0], mode, id=f"{case.folder}-{case.files[0]}-{mode}")
    for case in CASES
    for mode in case.modes
    if case.masked is not None
]


def arrays(folder: Path, name: str) -> dict[str, np.ndarray]:
    with np.load(folder / f"{name}.npz", allow_pickle=False) as file:
        return dict(file)


def loaded(fixture_dir: Path, case: Case, file: str) -> tuple[Encoder, LoadReport]:
    asked = case.family if case.asked else None
    return load_encoder(fixture_dir / case.folder / file, family=asked, overrides=case.overrides)


def graph_of(exported, case: Case, file: str, options: TraceOptions) -> Path:
    asked = case.family if case.asked else None
    return exported(f"{case.folder}/{file}", options, overrides=case.overrides, family=asked)


def assert_close(found: np.ndarray, expected: np.ndarray) -> None:
    assert found.shape == expected.shape
    assert relative_error(found, expected) <= LIMIT


def assert_tokens(found: dict[str, np.ndarray], expected: np.ndarray, spec) -> None:
    if spec.class_token:
        assert_close(found["class_token"], expected[:, 0])
    assert_close(found["patch_tokens"], expected[:, spec.prefix_tokens :])


@pytest.mark.parametrize(("case", "file"), FIRST)
def test_a_full_image_gives_the_authors_numbers(exported, fixture_dir, case, file):
    given, expected = (arrays(fixture_dir / case.folder, name) for name in ("input", "expected"))
    spec = loaded(fixture_dir, case, file)[1].spec
    last = f"layer_{spec.depth - 1}"
    features = ("pooled", "patch_tokens", "layer_0", last, *(("class_token",) if spec.class_token else ()))
    with open_session(graph_of(exported, case, file, TraceOptions(features=features))) as session:
        found = session.run({"images": given[case.images]})
    if case.tokens_finished:
        assert_tokens(found, expected[case.tokens], spec)
    else:
        assert_close(found[last], expected[case.tokens])
    if case.layer_0 is not None:
        assert_close(found["layer_0"], expected[case.layer_0])
    assert_close(found["pooled"], expected[case.feature])


@pytest.mark.parametrize(("case", "file", "mode"), MASKED)
def test_hidden_patches_give_the_authors_numbers(exported, fixture_dir, case, file, mode):
    given, expected = (arrays(fixture_dir / case.folder, name) for name in ("input", "expected"))
    spec = loaded(fixture_dir, case, file)[1].spec
    prediction = "reconstruction" if predicts_pixels(spec) else "prediction"
    features = ("patch_tokens", *(("class_token",) if spec.class_token else ()))
    if case.predicted is not None:
        features += (prediction,)
    with open_session(graph_of(exported, case, file, TraceOptions(mask=mode, features=features))) as session:
        images = given[case.images]
        if mode == "mask-token":
            feeds = {"images": images, "mask": given["mask"].reshape(len(images), -1).astype(bool)}
        elif mode == "patches":
            cells = patchify(images, session.manifest.patches)
            rows = np.take_along_axis(cells, given["ids_keep"][:, :, None], axis=1)
            feeds = {"patches": rows, "ids_keep": given["ids_keep"]}
        else:
            feeds = {"images": images, "ids_keep": given["ids_keep"]}
        found = session.run(feeds)
    assert_tokens(found, expected[case.masked], spec)
    if case.predicted is not None:
        assert_close(found[prediction], case.predicted(given, expected))


@pytest.mark.parametrize(("case", "file"), OTHERS)
def test_other_files_hold_the_same_encoder(fixture_dir, case, file):
    (first, _), (other, _) = (loaded(fixture_dir, case, name) for name in (case.files[0], file))
    assert replace(first.spec, decoder=None) == replace(other.spec, decoder=None)
    ours, theirs = ({n: t for n, t in e.state_dict().items() if "decoder." not in n} for e in (first, other))
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


@pytest.mark.parametrize(("case", "file"), FILES)
def test_constants_that_tensors_do_not_say_are_the_authors(fixture_dir, case, file):
    encoder, report = loaded(fixture_dir, case, file)
    assert (report.family, report.spec.eps, report.spec.heads) == (case.family, case.eps, case.heads)
    assert {module.eps for module in encoder.modules() if isinstance(module, torch.nn.LayerNorm)} == {case.eps}


def error_in_float64(encoder: Encoder, case: Case, fixture_dir: Path) -> float:
    """Largest difference between the encoder's tokens in float64 and the authors' in float32."""
    given, expected = (arrays(fixture_dir / case.folder, name) for name in ("input", "expected"))
    image = encoder.spec.image
    pixels = (given[case.images] / 255 - np.array(image.mean)) / np.array(image.std)
    with torch.inference_mode():
        embedded = encoder.patch_embed.proj(torch.from_numpy(pixels).permute(0, 3, 1, 2)).flatten(2).transpose(1, 2)
        tokens = encoder.encode_tokens(embedded).tokens
        tokens = encoder.finish(tokens) if case.tokens_finished else tokens
    return float((tokens - torch.from_numpy(expected[case.tokens])).abs().max())


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case.folder}-{case.files[0]}")
def test_a_broken_encoder_stands_out_in_float64(fixture_dir, case):
    encoder = loaded(fixture_dir, case, case.files[0])[0].double()
    right = error_in_float64(encoder, case, fixture_dir)
    case.control(encoder)
    wrong = error_in_float64(encoder, case, fixture_dir)
    assert right < FLOOR
    assert wrong > 3 * right
