"""Boards made of files: an Orin Nano, an AGX Orin, a Thor, and what is no Jetson."""

from collections.abc import Callable
from pathlib import Path

import pytest

from mae_export.runtime import jetson as boards
from mae_export.runtime.finding import Finding
from mae_export.runtime.jetson import Clock, Jetson, PowerMode, Swap, Temperature, find_jetson, judge_jetson

SWAP_HEADER = "Filename\t\t\t\tType\t\tSize\t\tUsed\t\tPriority\n"
NANO = {
    "proc/device-tree/model": "NVIDIA Jetson Orin Nano Engineering Reference Developer Kit Super\0",
    "etc/nv_tegra_release": "# R36 (release), REVISION: 4.3, GCID: 38968081, BOARD: generic, EABI: aarch64\n",
    "etc/nvpmodel.conf": (
        "# comment: < POWER_MODEL ID=9 NAME=NONE >\n"
        "< POWER_MODEL ID=0 NAME=15W >\nCPU_ONLINE CORE_0 1\n"
        "< POWER_MODEL ID=1 NAME=25W >\n< POWER_MODEL ID=2 NAME=MAXN_SUPER >\n< POWER_MODEL ID=3 NAME=7W >\n"
        "< PM_CONFIG DEFAULT=1 >\n"
    ),
    "var/lib/nvpmodel/status": "pmode:0000 fmode:fanNull",
    "sys/devices/system/cpu/online": "0-5\n",
    "sys/devices/system/cpu/present": "0-5\n",
    "sys/devices/system/cpu/cpufreq/policy0/scaling_cur_freq": "1497600",
    "sys/devices/system/cpu/cpufreq/policy0/scaling_min_freq": "729600",
    "sys/devices/system/cpu/cpufreq/policy0/scaling_max_freq": "1497600",
    "sys/class/devfreq/17000000.gpu/cur_freq": "306000000",
    "sys/class/devfreq/17000000.gpu/min_freq": "306000000",
    "sys/class/devfreq/17000000.gpu/max_freq": "612000000",
    "sys/class/devfreq/15480000.nvdec/cur_freq": "115200000",
    "proc/meminfo": "MemTotal:        7802108 kB\n",
    "proc/swaps": SWAP_HEADER + "/dev/zram0 partition 1950528 0 5\n/dev/zram1 partition 1950528 0 5\n",
    "sys/class/thermal/thermal_zone0/type": "cpu-thermal",
    "sys/class/thermal/thermal_zone0/temp": "48500",
    "sys/class/thermal/thermal_zone0/trip_point_0_type": "passive",
    "sys/class/thermal/thermal_zone0/trip_point_0_temp": "99000",
    "sys/class/thermal/thermal_zone0/trip_point_1_type": "active",
    "sys/class/thermal/thermal_zone0/trip_point_1_temp": "50000",
    "sys/class/thermal/thermal_zone1/type": "cv0-thermal",
    "sys/class/thermal/thermal_zone1/temp": "-256000",
}
AGX = NANO | {
    "proc/device-tree/model": "NVIDIA Jetson AGX Orin Developer Kit\0",
    "etc/nvpmodel.conf": "< POWER_MODEL ID=0 NAME=MAXN >\n< POWER_MODEL ID=1 NAME=MODE_15W >\n< PM_CONFIG DEFAULT=0 >",
    "sys/devices/system/cpu/cpufreq/policy0/scaling_cur_freq": "2201600",
    "sys/devices/system/cpu/cpufreq/policy0/scaling_min_freq": "2201600",
    "sys/devices/system/cpu/cpufreq/policy0/scaling_max_freq": "2201600",
    "sys/class/devfreq/17000000.gpu/cur_freq": "1300500000",
    "sys/class/devfreq/17000000.gpu/min_freq": "1300500000",
    "sys/class/devfreq/17000000.gpu/max_freq": "1300500000",
    "proc/meminfo": "MemTotal:       64325600 kB\n",
    "proc/swaps": SWAP_HEADER,
}
THOR = {
    "proc/device-tree/model": "NVIDIA Jetson AGX Thor Developer Kit\0",
    "etc/nv_tegra_release": "# R38 (release), REVISION: 2.1, GCID: 42061081, BOARD: generic, EABI: aarch64\n",
    "sys/class/devfreq/gpu-gpc-0/cur_freq": "1575000000",
    "sys/class/devfreq/gpu-gpc-0/min_freq": "315000000",
    "sys/class/devfreq/gpu-gpc-0/max_freq": "1575000000",
    "sys/class/devfreq/bwmgr/cur_freq": "4266000000",
    "proc/meminfo": "MemTotal:      128825600 kB\n",
}
Tree = Callable[[dict[str, str]], Path]


@pytest.fixture
def tree(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Tree:
    """Writes a board's files; the interpreter is JetPack 6's whatever runs the tests."""
    monkeypatch.setattr(boards, "PYTHON", (3, 10))

    def write(files: dict[str, str]) -> Path:
        for name, text in files.items():
            path = tmp_path / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
        return tmp_path

    return write


def found(root: Path) -> Jetson:
    board = find_jetson(root)
    assert board is not None
    return board


def findings(root: Path) -> dict[str, Finding]:
    return {finding.what: finding for finding in judge_jetson(found(root))}


def test_an_orin_nano_is_read_whole(tree: Tree) -> None:
    assert found(tree(NANO)) == Jetson(
        model="NVIDIA Jetson Orin Nano Engineering Reference Developer Kit Super",
        l4t="36.4.3",
        power=PowerMode(id=0, name="15W"),
        power_modes=tuple(PowerMode(id=i, name=n) for i, n in enumerate(("15W", "25W", "MAXN_SUPER", "7W"))),
        clocks=(
            Clock(name="CPU policy0", current=1_497_600_000, minimum=729_600_000, maximum=1_497_600_000),
            Clock(name="GPU 17000000.gpu", current=306_000_000, minimum=306_000_000, maximum=612_000_000),
        ),
        cores=("0-5", "0-5"),
        swap=(Swap(device="/dev/zram0", size=1950528 * 1024), Swap(device="/dev/zram1", size=1950528 * 1024)),
        memory=7802108 * 1024,
        temperatures=(Temperature(zone="cpu-thermal", celsius=48.5, limit=99.0),),
    )


def test_an_orin_nano_is_told_how_to_be_faster(tree: Tree) -> None:
    rows = findings(tree(NANO))
    assert list(rows) == ["Jetson", "power mode", "clocks", "temperature", "swap"]
    assert rows["Jetson"].found.endswith("Super, L4T 36.4.3 (JetPack 6)")
    assert (rows["power mode"].found, rows["power mode"].level) == ("15W (mode 0)", "note")
    assert "sudo nvpmodel -m 2 (MAXN_SUPER)" in rows["power mode"].fix
    assert rows["clocks"].found == ("CPU policy0 1498 MHz (730-1498), GPU 17000000.gpu 306 MHz (306-612)")
    assert "sudo jetson_clocks" in rows["clocks"].fix
    assert rows["temperature"].found == "cpu-thermal 48 °C, limit 99 °C"
    assert rows["swap"].found == "1.9 GiB /dev/zram0, 1.9 GiB /dev/zram1"
    assert "zram is part of the same memory; to build engines here, pass --low-memory" in rows["swap"].fix
    assert all(bool(row.fix) == (row.level != "ok") for row in rows.values())


def test_an_agx_orin_at_full_speed_needs_nothing(tree: Tree) -> None:
    rows = findings(tree(AGX))
    assert {row.level for row in rows.values()} == {"ok"}
    assert rows["power mode"].found == "MAXN (mode 0)"
    assert rows["clocks"].found == "CPU policy0 2202 MHz (locked), GPU 17000000.gpu 1300 MHz (locked)"
    assert rows["swap"].found == "none"


def test_a_thor_has_other_names_and_python(tree: Tree) -> None:
    rows = findings(tree(THOR))
    assert rows["Jetson"].found == "NVIDIA Jetson AGX Thor Developer Kit, L4T 38.2.1 (JetPack 7)"
    assert rows["Jetson"].fix == "its TensorRT is for Python 3.12, this is 3.10; make environments with python3.12"
    assert rows["clocks"].found == "GPU gpu-gpc-0 1575 MHz (315-1575)"
    assert set(rows) == {"Jetson", "clocks", "swap"}, "nothing is said of what could not be read"


def test_a_mode_is_the_default_until_one_is_chosen(tree: Tree) -> None:
    files = {name: text for name, text in NANO.items() if name != "var/lib/nvpmodel/status"}
    assert found(tree(files)).power == PowerMode(id=1, name="25W")


@pytest.mark.parametrize(
    ("status", "conf", "expected"),
    [
        ("pmode:0007", NANO["etc/nvpmodel.conf"], PowerMode(id=7, name="unnamed")),
        ("pmode:0002", "", PowerMode(id=2, name="unnamed")),
        ("garbage", "", None),
    ],
)
def test_odd_power_modes(tree: Tree, status: str, conf: str, expected: PowerMode | None) -> None:
    root = tree(NANO | {"var/lib/nvpmodel/status": status, "etc/nvpmodel.conf": conf})
    assert found(root).power == expected
    assert ("power mode" in findings(root)) == (expected is not None)


def test_cores_that_a_mode_switches_off_are_shown(tree: Tree) -> None:
    root = tree(
        NANO | {"sys/devices/system/cpu/online": "0-3", "sys/devices/system/cpu/cpufreq/policy0/scaling_cur_freq": "?"}
    )
    assert findings(root)["clocks"].found == "GPU 17000000.gpu 306 MHz (306-612), cores 0-3 of 0-5 online"


def test_a_hot_board_is_a_problem(tree: Tree) -> None:
    hot = findings(tree(NANO | {"sys/class/thermal/thermal_zone0/temp": "95500"}))["temperature"]
    assert (hot.level, hot.found) == ("problem", "cpu-thermal 96 °C, limit 99 °C")
    assert "check the fan" in hot.fix


def test_the_zone_nearest_its_limit_is_shown(tree: Tree) -> None:
    other = "sys/class/thermal/thermal_zone2/"
    zone = {other + "type": "tj-thermal", other + "temp": "60000", other + "trip_point_0_type": "critical",
            other + "trip_point_0_temp": "62000"}  # fmt: skip
    assert findings(tree(NANO | zone))["temperature"].found == "tj-thermal 60 °C, limit 62 °C"


def test_a_swap_file_settles_it(tree: Tree) -> None:
    rows = findings(tree(NANO | {"proc/swaps": SWAP_HEADER + "/swapfile file 8388604 0 -2\n"}))
    assert (rows["swap"].found, rows["swap"].level) == ("8.0 GiB /swapfile", "ok")


def test_no_swap_on_a_small_board(tree: Tree) -> None:
    row = findings(tree(NANO | {"proc/swaps": SWAP_HEADER}))["swap"]
    assert row.found == "none"
    assert row.fix.startswith("CPU and GPU share this board's memory; to build engines here")


@pytest.mark.parametrize("model", ["", "Raspberry Pi 5 Model B\0"])
def test_what_is_no_jetson(tree: Tree, model: str) -> None:
    assert find_jetson(tree({"proc/device-tree/model": model, "proc/meminfo": "MemTotal: 1 kB"})) is None
