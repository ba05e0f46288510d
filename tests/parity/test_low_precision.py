"""Every family's graphs in half precision as engines, and in 8 bits: both proven, or refused with the reason."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mae_export.calibration.observe import observe
from mae_export.calibration.options import ObserveOptions
from mae_export.calibration.quantize import quantize
from mae_export.calibration.wanted import QuantizeOptions
from mae_export.errors import VerificationError
from mae_export.export import flavour
from mae_export.export.engine import build
from mae_export.export.options import ConvertOptions, TraceOptions
from mae_export.export.plan import EnginePlan, parse_profile
from mae_export.export.precision import convert
from mae_export.runtime.probes import probe_photos
from mae_export.spec import ImageSpec
from tests.parity.cases import CASES, Case

ATTENTION = {"beit2": 3, "data2vec2": 3}  # blocks, all fused; two in the other fixtures
UNFUSED = {"dmtjepa": "2 of 2 attention blocks are not fused into one kernel"}  # 8 values per head; kernels start at 16
# Refused because nearly all patches of some rows are the mask token: a random encoder then gives all images one vector,
# and what is left after subtracting it is smaller than the noise of 8 bits.
REFUSED = {"simmim_vit": "rows of different length, centred cosine, first percentile"}
CASES_ONCE = [pytest.param(case, id=case.folder) for case in CASES]
needs_builder = pytest.mark.skipif(
    flavour.find_module("rtx") is None, reason="tensorrt-rtx-cu13-bindings and -libs are not installed"
)


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Sixteen different pictures as files: the photographs as they are, and mirrored."""
    folder = tmp_path_factory.mktemp("pictures")
    photos = probe_photos(ImageSpec(size=(96, 96)))
    for index, pixels in enumerate(np.concatenate([photos, photos[:, :, ::-1]])):
        Image.fromarray(pixels).save(folder / f"{index}.png")
    return folder


def masked_graph(exported, case: Case) -> Path:
    asked = case.family if case.asked else None
    return exported(
        f"{case.folder}/{case.files[0]}", TraceOptions(mask=case.modes[0]), overrides=case.overrides, family=asked
    )


@needs_builder
@pytest.mark.parametrize("case", CASES_ONCE)
def test_half_precision_becomes_an_engine_with_fused_attention(exported, tmp_path, case):
    half = tmp_path / "half.onnx"
    convert(masked_graph(exported, case), half, options=ConvertOptions(precision="fp16"))
    plan = EnginePlan(backend="rtx", profiles=(parse_profile("batch=1:2:8"),), targets=("sm89",))
    achieved = build(half, tmp_path / "half.engine", plan=plan).achieved
    blocks = ATTENTION.get(case.folder, 2)
    if case.folder in UNFUSED:
        assert (achieved.fused, achieved.fallbacks) == (0, (UNFUSED[case.folder],))
    else:
        assert (achieved.fused, achieved.attention, achieved.fallbacks) == (blocks, blocks, ())
    assert set(achieved.gemms) <= {"Half", "Float"}


@pytest.mark.parametrize("case", CASES_ONCE)
def test_eight_bits_agree_with_float32(exported, tmp_path, pictures, case):
    source, table, out = masked_graph(exported, case), tmp_path / "table.calib.json", tmp_path / "int8.onnx"
    observe(source, [str(pictures)], table, options=ObserveOptions(samples=16))
    if case.folder in REFUSED:
        with pytest.raises(VerificationError, match=REFUSED[case.folder]):
            quantize(source, table, out, options=QuantizeOptions(precision="int8"))
        return
    manifest, report = quantize(source, table, out, options=QuantizeOptions(precision="int8"))
    assert (manifest.precision, report.passed) == ("int8", True)
