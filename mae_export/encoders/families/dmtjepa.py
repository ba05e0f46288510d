"""DMT-JEPA (Mo and Yun, 2024), whose encoder and files are those of I-JEPA: only its training targets differ.

In training a module that gathers neighbours (LocalAggHead) stands between encoder and predictor. Its weights are in no
file, so what can be predicted is what the predictor makes of the encoder's own tokens.
"""

from __future__ import annotations

from dataclasses import replace

from mae_export.encoders.families import ijepa
from mae_export.encoders.families.family import Facts, Family
from mae_export.spec import EncoderSpec


def spec(facts: Facts) -> tuple[EncoderSpec, tuple[str, ...]]:
    """Derive the spec from shapes, metadata and overrides; see `ijepa.spec`."""
    return ijepa.spec(facts, "dmtjepa")


def outputs(spec: EncoderSpec) -> dict[str, str]:
    """What each output holds, with its source."""
    named = ijepa.outputs(spec)
    if "prediction" in named:
        named["prediction"] += (
            "; the predictor alone, for files do not hold the LocalAggHead that training puts before it"
        )
    return named


FAMILY = Family(
    name="dmtjepa",
    title="DMT-JEPA: Discriminative Masked Targets for Joint-Embedding Predictive Architecture (2024)",
    repository="https://github.com/DMTJEPA/DMTJEPA",
    licence="none published (code: CC-BY-NC-4.0)",
    layouts=(replace(ijepa.FACEBOOK, name="DMTJEPA/DMTJEPA", asked=True),),
    spec=spec,
    outputs=outputs,
    trained="keep",
    feature="mean_patch",
    image=ijepa.IMAGE,
    checked=(
        "tokens, blocks, features, visible subsets and the predictor alone against the authors' code on random weights"
    ),
    undecoded=ijepa.UNDECODED,
)
