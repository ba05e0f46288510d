"""Graphs of the small checkpoints, each written once for all tests of a worker."""

from collections.abc import Callable
from pathlib import Path

import pytest

from mae_export.encoders.load import load_encoder
from mae_export.encoders.overrides import Overrides
from mae_export.export.options import TraceOptions
from mae_export.export.trace import export_graph

Exporter = Callable[[str, TraceOptions], Path]
HEADS = Overrides(heads=4, decoder_heads=4)


@pytest.fixture(scope="session")
def exported(tmp_path_factory: pytest.TempPathFactory, fixture_dir: Path) -> Exporter:
    """Export `NAME/FILE` of the fixtures with the given options; the second call returns the same file."""
    folder = tmp_path_factory.mktemp("graphs")
    made: dict[tuple[str, TraceOptions], Path] = {}

    def export(checkpoint: str, options: TraceOptions) -> Path:
        key = (checkpoint, options)
        if key not in made:
            encoder, report = load_encoder(fixture_dir / checkpoint, overrides=HEADS)
            path = folder / f"graph-{len(made)}.onnx"
            export_graph(encoder, report, path, options=options)
            made[key] = path
        return made[key]

    return export
