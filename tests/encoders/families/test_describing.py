"""Notes of outputs follow what the encoder has: a final norm or none, a class token or none, a prediction of what."""

import dataclasses

import pytest

from mae_export.decoder_spec import HeadSpec
from mae_export.encoders.families.describing import described, normed_mean
from tests.encoders.formulas import SPEC


@pytest.mark.parametrize(
    ("norm", "words"),
    [
        ("tokens", "after the final norm"),
        ("pooled", "as the last block leaves them: no norm follows"),
        ("none", "as the last block leaves them: no norm follows"),
    ],
)
def test_tokens_say_whether_a_norm_was_applied(norm, words) -> None:
    named = described(dataclasses.replace(SPEC, norm=norm, decoder=None), pooled="the feature", predicted="nothing")
    assert named == {
        "class_token": f"class token, {words}",
        "mean_patch": f"mean of the patch tokens, {words}",
        "patch_tokens": f"patch tokens, {words}",
        "pooled": "the feature",
    }


def test_encoders_without_class_token_have_no_note_of_it() -> None:
    assert "class_token" not in described(dataclasses.replace(SPEC, class_token=False), pooled="")


@pytest.mark.parametrize(
    ("target", "name"), [("image-normalised", "reconstruction"), ("teacher-features", "prediction")]
)
def test_predictions_of_pixels_are_reconstructions(target, name) -> None:
    spec = dataclasses.replace(SPEC, decoder=HeadSpec(target=target, values=7))
    named = described(spec, pooled="", predicted="every patch")
    assert named[name] == "every patch"
    assert len({"reconstruction", "prediction"} & set(named)) == 1


@pytest.mark.parametrize(("norm", "words"), [("tokens", "a norm without weights"), ("pooled", "fc_norm, of the mean")])
def test_the_norm_after_the_mean_is_the_files_or_a_fresh_one(norm, words) -> None:
    text = normed_mean(dataclasses.replace(SPEC, norm=norm), "finetune.py")
    assert text.startswith(f"fine-tuning feature: {words}")
    assert text.endswith("of the mean of the last block's patch tokens (finetune.py)")
