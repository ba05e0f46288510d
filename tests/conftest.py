"""What every test may use: the fixture folder, graphs of the small checkpoints, and the rule that skips GPU tests."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from hypothesis import settings

from mae_export import cli
from mae_export.runtime.doctor import nvidia_gpus

if TYPE_CHECKING:
    import onnx_ir as ir

    from mae_export.calibration.wanted import QuantizeOptions
    from mae_export.encoders.overrides import Overrides
    from mae_export.export.options import TraceOptions

# The same inputs on every run: the gate must not fail by chance, nor because the machine is busy.
settings.register_profile("gate", derandomize=True, deadline=None)
settings.load_profile("gate")


@pytest.fixture(scope="session", autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """What is prepared on this machine for its user must not change what tests open."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MAE_EXPORT_CACHE", str(tmp_path_factory.mktemp("prepared")))
        yield


@pytest.fixture(scope="session")
def fixture_dir() -> Path:
    """The folder of small checkpoints and of the values that their authors' code computed from them."""
    return Path(__file__).parent / "data"


@pytest.fixture(scope="session")
def exported(tmp_path_factory: pytest.TempPathFactory, fixture_dir: Path) -> Callable[..., Path]:
    """Export `NAME/FILE` of the fixtures with the given options; the second call returns the same file.

    Further arguments are those of `load_encoder`; heads are 4 unless stated.
    """
    from mae_export.encoders.load import load_encoder
    from mae_export.encoders.overrides import Overrides
    from mae_export.export.trace import export_graph

    folder = tmp_path_factory.mktemp("graphs")
    made: dict[object, Path] = {}
    four = Overrides(heads=4, decoder_heads=4)

    def export(
        checkpoint: str, options: TraceOptions, *, overrides: Overrides = four, family: str | None = None
    ) -> Path:
        key = (checkpoint, options, overrides, family)
        if key not in made:
            encoder, report = load_encoder(fixture_dir / checkpoint, family=family, overrides=overrides)
            path = folder / f"graph-{len(made)}.onnx"
            export_graph(encoder, report, path, options=options)
            made[key] = path
        return made[key]

    return export


@pytest.fixture(scope="session")
def eight_bit() -> Callable[..., Path]:
    """Write a graph in 8 bits, with one range for all activations, unproven; `then` may edit it before it is saved."""
    import onnx_ir as ir

    from mae_export import graph
    from mae_export.calibration.quantize import quantize_model
    from mae_export.calibration.sites import sites_of
    from mae_export.calibration.table import TensorRange

    def write(
        source: Path, out: Path, options: QuantizeOptions, then: Callable[[ir.Model], object] | None = None
    ) -> Path:
        model = ir.load(source)
        found = TensorRange(low=-4.0, high=4.0, minimum=-4.0, maximum=4.0)
        quantize_model(model, {name: found for site in sites_of(model) for name in site.inputs}, options)
        if then is not None:
            then(model)
        graph.save(model, out)
        graph.write_manifest(out, replace(graph.read_manifest(source), precision=options.precision))
        return out

    return write


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str, str]]:
    """Run `mae-export ARGUMENTS` in this process; returns (exit code, standard output, standard error)."""

    def call(*arguments: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["mae-export", *map(str, arguments)])
        with pytest.raises(SystemExit) as stop:
            cli.main()
        captured = capsys.readouterr()
        assert "Traceback" not in captured.err
        return stop.value.code, captured.out, captured.err

    return call


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    marked = [item for item in items if item.get_closest_marker("gpu")]
    if marked and not nvidia_gpus():
        for item in marked:
            item.add_marker(pytest.mark.skip(reason="no NVIDIA GPU: nvidia-smi lists none"))
