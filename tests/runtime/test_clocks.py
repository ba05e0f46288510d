import subprocess
from types import SimpleNamespace

import pytest

from mae_export.runtime.clocks import cpu_mhz, gpu_mhz


def test_the_governor_is_asked_first(tmp_path):
    for core, khz in enumerate(("2000000", "3000000")):
        folder = tmp_path / f"sys/devices/system/cpu/cpu{core}/cpufreq"
        folder.mkdir(parents=True)
        (folder / "scaling_cur_freq").write_text(khz + "\n")
    (tmp_path / "sys/devices/system/cpu/cpu1/cpufreq/scaling_cur_freq").write_text("<unknown>\n")
    assert cpu_mhz(tmp_path) == 2000.0


def test_virtual_machines_say_it_in_cpuinfo(tmp_path):
    (tmp_path / "proc").mkdir()
    (tmp_path / "proc/cpuinfo").write_text("cpu MHz\t\t: 2596.108\ncache size\t: 512 KB\ncpu MHz\t\t: 2600.000\n")
    assert cpu_mhz(tmp_path) == 2598.1


def test_what_is_not_said_is_none(tmp_path):
    assert cpu_mhz(tmp_path) is None
    (tmp_path / "proc").mkdir()
    (tmp_path / "proc/cpuinfo").write_text("processor: 0\n")
    assert cpu_mhz(tmp_path) is None


@pytest.mark.parametrize(
    ("output", "expected"),
    [("1980\n1410\n", 1980.0), ("", None), ("[N/A]\n", None), (FileNotFoundError(), None),
     (subprocess.TimeoutExpired("nvidia-smi", 20), None)],
    ids=["two GPUs", "none", "hidden", "no driver", "hangs"],
)  # fmt: skip
def test_the_gpu_says_through_nvidia_smi(monkeypatch, output, expected):
    def run(*arguments, **options):
        if isinstance(output, Exception):
            raise output
        return SimpleNamespace(stdout=output)

    monkeypatch.setattr(subprocess, "run", run)
    assert gpu_mhz() == expected
