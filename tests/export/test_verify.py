"""PyTorch as a reference session, and the gate's words."""

import numpy as np
import pytest

from mae_export.encoders.load import load_encoder
from mae_export.encoders.overrides import Overrides
from mae_export.errors import InputError, VerificationError
from mae_export.export.options import TraceOptions
from mae_export.export.verify import TorchSession, checkpoint_reference, verify
from mae_export.runtime.compare import require
from mae_export.runtime.metrics import relative_error
from mae_export.runtime.patchify import patchify
from mae_export.runtime.session import open_session


@pytest.mark.parametrize("mask", ["none", "keep", "patches"])
def test_the_reference_computes_the_authors_numbers(exported, fixture_dir, mask):
    given, expected = (dict(np.load(fixture_dir / f"mae/{name}.npz")) for name in ("input", "expected"))
    path = exported("mae/checkpoint.pth", TraceOptions(mask=mask, features=("class_token", "patch_tokens")))
    feeds = {"images": given["images"], "ids_keep": given["ids_keep"]}
    with (
        open_session(path) as session,
        checkpoint_reference(fixture_dir / "mae/checkpoint.pth", session.manifest, Overrides()) as reference,
    ):
        if mask == "none":
            del feeds["ids_keep"]
        if mask == "patches":
            cells = patchify(feeds.pop("images"), session.manifest.patches)
            feeds["patches"] = np.take_along_axis(cells, feeds["ids_keep"][:, :, None], axis=1)
        found = reference.run(feeds)
        assert "PyTorch" in reference.description
        assert reference.digest == session.manifest.made_from[0].sha256
    tokens = expected["tokens_full" if mask == "none" else "tokens_keep"]
    assert relative_error(found["patch_tokens"], tokens[:, 1:]) < 1e-5
    assert relative_error(found["class_token"], tokens[:, 0]) < 1e-5


def test_stated_facts_win_over_the_manifest(exported, fixture_dir):
    path = exported("mae/checkpoint.pth", TraceOptions(mask="keep", features=("class_token", "patch_tokens")))
    with open_session(path) as session:
        wrong = checkpoint_reference(fixture_dir / "mae/checkpoint.pth", session.manifest, Overrides(heads=2))
        report, summary = verify(session, wrong)
    assert not report.passed
    errors = {found.agreement.max_error: found.output for found in report.measured}
    assert summary.error == pytest.approx(max(errors), rel=1e-2)
    assert (summary.worst_output, summary.limit) == (errors[max(errors)], 1e-4)
    with pytest.raises(VerificationError, match=r"output '\w+' is off by .* checks failed against PyTorch"):
        require(report, "kept")


@pytest.mark.parametrize(
    ("folder", "file", "stated", "text"),
    [
        ("mae", "checkpoint_release.pth", Overrides(), ".*release.pth none: this checkpoint holds no decoder"),
        (
            "ijepa",
            "checkpoint.pth",
            Overrides(weights="target_encoder"),
            ".* none: the predictor works on the context encoder's",
        ),
    ],
)
def test_a_checkpoint_that_cannot_predict_is_no_reference_for_a_graph_that_does(
    exported, fixture_dir, folder, file, stated, text
):
    name, weights = ("reconstruction", None) if folder == "mae" else ("prediction", "encoder")
    options = TraceOptions(mask="keep", features=(name,))
    path = exported(f"{folder}/checkpoint.pth", options, overrides=Overrides(heads=4, decoder_heads=4, weights=weights))
    with open_session(path) as session, pytest.raises(InputError, match=f"the graph gives a {name}, but {text}"):
        checkpoint_reference(fixture_dir / folder / file, session.manifest, stated)


def test_torch_session_answers_only_what_is_asked(exported, fixture_dir):
    encoder, report = load_encoder(fixture_dir / "mae/checkpoint.pth", overrides=Overrides(heads=4, decoder_heads=4))
    path = exported("mae/checkpoint.pth", TraceOptions(features=("class_token", "pooled", "layer_0")))
    with open_session(path) as session:
        reference = TorchSession(encoder, session.manifest, digest=report.sha256)
    images = np.zeros((2, 64, 64, 3), np.uint8)
    assert set(reference.run({"images": images}, ["layer_0"])) == {"layer_0"}
    there = reference.run_on_device({"images": images}, ["pooled"])["pooled"]
    np.testing.assert_array_equal(np.from_dlpack(there), reference.run({"images": images})["pooled"])
    assert set(reference.run({"images": images})) == {"class_token", "pooled", "layer_0"}
