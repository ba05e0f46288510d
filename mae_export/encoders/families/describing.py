"""What the outputs of a family's graphs hold, in words, where families differ only in their feature and its source."""

from __future__ import annotations

from mae_export.spec import EncoderSpec, predicts_pixels


def normed_mean(spec: EncoderSpec, source: str) -> str:
    """The feature of those who fine-tune with a norm after the mean; `source` says where they do."""
    norm = "fc_norm" if spec.norm == "pooled" else "a norm without weights, as fine-tuning starts with"
    return f"fine-tuning feature: {norm}, of the mean of the last block's patch tokens ({source})"


def described(spec: EncoderSpec, *, pooled: str, predicted: str = "") -> dict[str, str]:
    """Notes of the outputs, by name.

    Args:
        spec: of the encoder.
        pooled: what the authors' feature is, and where they say so.
        predicted: what the decoder or head predicts, when there is one, and in which order.
    """
    norm = "after the final norm" if spec.norm == "tokens" else "as the last block leaves them: no norm follows"
    named = {
        "mean_patch": f"mean of the patch tokens, {norm}",
        "patch_tokens": f"patch tokens, {norm}",
        "pooled": pooled,
    }
    if spec.class_token:
        named["class_token"] = f"class token, {norm}"
    if spec.decoder is not None:
        named["reconstruction" if predicts_pixels(spec) else "prediction"] = predicted
    return named
