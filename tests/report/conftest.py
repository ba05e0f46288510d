"""A graph of the small checkpoint, exported once for all tests of a worker."""

from pathlib import Path

import pytest

from mae_export.encoders.load import LoadReport, load_encoder
from mae_export.encoders.overrides import Overrides
from mae_export.export.options import TraceOptions
from mae_export.export.trace import export_graph


@pytest.fixture(scope="session")
def exported(tmp_path_factory: pytest.TempPathFactory, fixture_dir: Path) -> tuple[Path, LoadReport]:
    """A graph that takes visible patches in rows of different length, and the report of its checkpoint."""
    path = tmp_path_factory.mktemp("graph") / "vit.onnx"
    overrides = Overrides(heads=4, decoder_heads=4)
    encoder, report = load_encoder(fixture_dir / "mae" / "checkpoint.pth", overrides=overrides)
    options = TraceOptions(mask="keep", ragged=True, features=("pooled", "patch_tokens"))
    export_graph(encoder, report, path, options=options)
    return path, report
