"""Tensor names that several publishers share: transformer blocks of Hugging Face ports, and classifiers."""

from __future__ import annotations

Renames = tuple[tuple[str, str], ...]

CLASSIFIER = (
    r"head\.(?:\d+\.)?(?:weight|bias|running_mean|running_var|num_batches_tracked)",
    "classifier, not part of the encoder",
)
HUGGING_FACE_BLOCK = r"(?:encoder\.layer|layers|decoder_layers|decoder_encoder\.layer)\.(\d+)\."


def hugging_face_block(head: str, target: str) -> Renames:
    """Renames of one transformer block of a Hugging Face port, from the names of transformers v4 and v5.

    Args:
        head: regular expression of what precedes the block's name, without groups.
        target: prefix of the encoder's name.
    """
    block = head + HUGGING_FACE_BLOCK
    return (
        (block + r"attention\.(?:attention\.)?(?:query|q_proj)\.(.*)", target + r"blocks.\1.attn.q.\2"),
        (block + r"attention\.(?:attention\.)?(?:key|k_proj)\.(.*)", target + r"blocks.\1.attn.k.\2"),
        (block + r"attention\.(?:attention\.)?(?:value|v_proj)\.(.*)", target + r"blocks.\1.attn.v.\2"),
        (block + r"attention\.(?:output\.dense|o_proj)\.(.*)", target + r"blocks.\1.attn.proj.\2"),
        (block + r"layernorm_before\.(.*)", target + r"blocks.\1.norm1.\2"),
        (block + r"layernorm_after\.(.*)", target + r"blocks.\1.norm2.\2"),
        (block + r"(?:intermediate\.dense|mlp\.fc1)\.(.*)", target + r"blocks.\1.mlp.fc1.\2"),
        (block + r"(?:output\.dense|mlp\.fc2)\.(.*)", target + r"blocks.\1.mlp.fc2.\2"),
    )
