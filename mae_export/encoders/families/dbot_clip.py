"""dBOT with a CLIP teacher (`85.7_clip_base_pre.pth` and others): BEiT's encoder and names, as the README and the
configuration of fine-tuning say. The code that pre-trained it was not published, so a head under a name of its own is
left for the user to ignore.
"""

from __future__ import annotations

from dataclasses import replace

from mae_export.encoders.beit import TABLE, BEiT
from mae_export.encoders.families.beit import UNILM, Derived, derive
from mae_export.encoders.families.family import Facts

LAYOUT = replace(UNILM, name="liuxingbin/dbot, CLIP teacher", encoder=BEiT, asked=True)


def spec(facts: Facts) -> Derived:
    """Derive the spec from shapes and overrides; see `beit.derive`."""
    return derive(facts, "dbot", target="teacher-features")


def recognised(facts: Facts) -> bool:
    """Whether a file of dBOT is of this kind: the others have absolute positions."""
    return any(name.endswith(TABLE) for name in facts.shapes)
