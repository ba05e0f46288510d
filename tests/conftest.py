"""What every test may use: the fixture folder, and the rule that skips GPU tests where there is no GPU."""

from pathlib import Path

import pytest
from hypothesis import settings

from mae_export.runtime.doctor import nvidia_gpus

# The same inputs on every run: the gate must not fail by chance, nor because the machine is busy.
settings.register_profile("gate", derandomize=True, deadline=None)
settings.load_profile("gate")


@pytest.fixture(scope="session")
def fixture_dir() -> Path:
    """The folder of small checkpoints and of the values that their authors' code computed from them."""
    return Path(__file__).parent / "data"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    marked = [item for item in items if item.get_closest_marker("gpu")]
    if marked and not nvidia_gpus():
        for item in marked:
            item.add_marker(pytest.mark.skip(reason="no NVIDIA GPU: nvidia-smi lists none"))
