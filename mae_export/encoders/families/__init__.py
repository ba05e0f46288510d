"""The families of published checkpoints, by name."""

from mae_export.encoders.families import (
    beit,
    cae,
    colormae,
    data2vec2,
    data2vec_vision,
    dbot,
    dmtjepa,
    eva01,
    eva02,
    eva_l,
    hpm,
    ijepa,
    imae,
    lut,
    mae,
    mfm,
    simmim,
)
from mae_export.encoders.families.family import Facts, Family, Layout, Shapes, Variant

FAMILIES: dict[str, Family] = {
    "mae": mae.FAMILY,
    "dbot": dbot.FAMILY,
    "hpm": hpm.FAMILY,
    "lut": lut.FAMILY,
    "imae": imae.FAMILY,
    "eva_l": eva_l.FAMILY,
    "colormae": colormae.FAMILY,
    "beit": beit.FAMILY,
    "beitv2": beit.FAMILY_V2,
    "simmim": simmim.FAMILY,
    "cae": cae.FAMILY,
    "data2vec_vision": data2vec_vision.FAMILY,
    "eva01": eva01.FAMILY,
    "eva02": eva02.FAMILY,
    "data2vec2": data2vec2.FAMILY,
    "mfm": mfm.FAMILY,
    "ijepa": ijepa.FAMILY,
    "dmtjepa": dmtjepa.FAMILY,
}

__all__ = ["FAMILIES", "Facts", "Family", "Layout", "Shapes", "Variant"]
