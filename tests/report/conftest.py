"""A graph of the small checkpoint with everything that a report shows, and how its checkpoint was loaded."""

from collections.abc import Callable
from pathlib import Path

import pytest

from mae_export.encoders.load import LoadReport, load_encoder
from mae_export.encoders.overrides import Overrides
from mae_export.export.options import TraceOptions


@pytest.fixture(scope="session")
def graph(exported: Callable[[str, TraceOptions], Path], fixture_dir: Path) -> tuple[Path, LoadReport]:
    """A graph that takes visible patches in rows of different length, and the report of its checkpoint."""
    options = TraceOptions(mask="keep", ragged=True, features=("pooled", "patch_tokens"))
    stated = Overrides(heads=4, decoder_heads=4)
    report = load_encoder(fixture_dir / "mae" / "checkpoint.pth", overrides=stated)[1]
    return exported("mae/checkpoint.pth", options), report
