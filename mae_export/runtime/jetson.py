"""NVIDIA Jetson boards: which one this is, how fast it is allowed to be, and what is wrong with that.

Everything is read from files, without root and without NVIDIA's programs: the release from /etc/nv_tegra_release, power
modes from /etc/nvpmodel.conf and /var/lib/nvpmodel/status, clocks from cpufreq and devfreq, swap from /proc/swaps,
temperatures from the thermal zones. docs/jetson.md names the sources.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from mae_export.runtime.finding import Finding, read_quietly

GIB = 2**30
FIRST_SUPPORTED_L4T = 36  # JetPack 6: Python 3.10, TensorRT 10.3
JETPACK_OF = {35: 5, 36: 6, 38: 7, 39: 7}  # by the major number of Jetson Linux
PYTHON_OF = {36: (3, 10), 38: (3, 12), 39: (3, 12)}  # whose bindings of TensorRT the system has
PYTHON = sys.version_info[:2]
SMALL_BOARD = 16 * GIB  # of memory; below, building an engine may need swap
NEAR = 5.0  # degrees Celsius below the temperature at which clocks are reduced
FULL_SPEED = ("MAXN_SUPER", "MAXN")
TRIPS = ("passive", "hot", "critical")  # kinds of limits that slow or stop a board; "active" ones start the fan


@dataclass(frozen=True, kw_only=True)
class PowerMode:
    """A mode of nvpmodel; its number means something else on each board."""

    id: int
    name: str


@dataclass(frozen=True, kw_only=True)
class Clock:
    """A clock in Hz: what it runs at, and between which limits it may move."""

    name: str
    current: int
    minimum: int
    maximum: int

    @property
    def locked(self) -> bool:
        """Whether it cannot move, as after `jetson_clocks`."""
        return self.minimum == self.maximum


@dataclass(frozen=True, kw_only=True)
class Swap:
    """A swap device or file, in bytes; zram is compressed memory, not a disk."""

    device: str
    size: int

    @property
    def zram(self) -> bool:
        """Whether it takes from the memory it is meant to relieve."""
        return "zram" in self.device


@dataclass(frozen=True, kw_only=True)
class Temperature:
    """A thermal zone in degrees Celsius, and where its clocks are reduced; None when it does not say."""

    zone: str
    celsius: float
    limit: float | None


@dataclass(frozen=True, kw_only=True)
class Jetson:
    """A board; what could not be read is empty or None.

    Attributes:
        model: as the device tree names it.
        l4t: release of Jetson Linux such as 36.4.3; "" inside a container that hides it.
        power: the mode it is in.
        power_modes: all that it has.
        clocks: of the CPU's policies and the GPU.
        cores: online and present cores, such as ("0-3", "0-5").
        swap: devices and files.
        memory: in bytes, shared by CPU and GPU.
        temperatures: of all zones that are on.
    """

    model: str
    l4t: str
    power: PowerMode | None = None
    power_modes: tuple[PowerMode, ...] = ()
    clocks: tuple[Clock, ...] = ()
    cores: tuple[str, str] = ("", "")
    swap: tuple[Swap, ...] = ()
    memory: int | None = None
    temperatures: tuple[Temperature, ...] = ()

    @property
    def release(self) -> int | None:
        """Major number of Jetson Linux."""
        return int(self.l4t.partition(".")[0]) if self.l4t else None


def find_jetson(root: Path = Path("/")) -> Jetson | None:
    """The board that this is, or None; never raises.

    Args:
        root: folder that `/proc`, `/sys`, `/etc` and `/var` are read under.
    """
    model = read_quietly(root / "proc/device-tree/model")
    release = re.search(r"R(\d+).*REVISION: *([\d.]+)", read_quietly(root / "etc/nv_tegra_release"))
    if release is None and "Jetson" not in model:
        return None
    power, modes = _power(root)
    total = re.search(r"^MemTotal: *(\d+) kB", read_quietly(root / "proc/meminfo"), re.MULTILINE)
    cpu = root / "sys/devices/system/cpu"
    return Jetson(
        model=model or "unknown board",
        l4t=f"{release[1]}.{release[2]}" if release else "",
        power=power,
        power_modes=modes,
        clocks=(*_cpu_clocks(cpu), *_gpu_clocks(root / "sys/class/devfreq")),
        cores=(read_quietly(cpu / "online"), read_quietly(cpu / "present")),
        swap=tuple(_swap(root)),
        memory=int(total[1]) * 1024 if total else None,
        temperatures=tuple(_temperatures(root / "sys/class/thermal")),
    )


def judge_jetson(jetson: Jetson) -> list[Finding]:
    """What to say of a board: one finding for each thing that could be read."""
    findings = [_judge_release(jetson), *_judge_power(jetson), *_judge_clocks(jetson), *_judge_temperature(jetson)]
    return [*findings, _judge_swap(jetson)] if jetson.memory is not None else findings


def _power(root: Path) -> tuple[PowerMode | None, tuple[PowerMode, ...]]:
    conf = read_quietly(root / "etc/nvpmodel.conf")
    named = re.findall(r"^< *POWER_MODEL +ID=(\d+) +NAME=(\S+) *>", conf, re.MULTILINE)
    modes = {int(number): PowerMode(id=int(number), name=name) for number, name in named}
    status = re.search(r"pmode:(\d+)", read_quietly(root / "var/lib/nvpmodel/status"))
    # Before a mode was ever chosen there is no status, and the board is in its default mode.
    current = status or re.search(r"^< *PM_CONFIG +DEFAULT=(\d+) *>", conf, re.MULTILINE)
    if current is None:
        return None, tuple(modes.values())
    number = int(current[1])
    return modes.get(number, PowerMode(id=number, name="unnamed")), tuple(modes.values())


def _cpu_clocks(folder: Path) -> Iterator[Clock]:
    """One clock for each cluster: cores that share one have the same policy."""
    for policy in sorted(folder.glob("cpufreq/policy[0-9]*")):
        yield from _clock(
            f"CPU {policy.name}", policy, ("scaling_cur_freq", "scaling_min_freq", "scaling_max_freq"), 1000
        )


def _gpu_clocks(folder: Path) -> Iterator[Clock]:
    """`17000000.gpu` on Orin, `gpu-gpc-0` and `gpu-nvd-0` on Thor."""
    for device in sorted(folder.glob("*gpu*")):
        yield from _clock(f"GPU {device.name}", device, ("cur_freq", "min_freq", "max_freq"), 1)


def _clock(name: str, folder: Path, files: tuple[str, str, str], unit: int) -> Iterator[Clock]:
    texts = [read_quietly(folder / file) for file in files]
    if all(text.isdecimal() for text in texts):
        current, minimum, maximum = (int(text) * unit for text in texts)
        yield Clock(name=name, current=current, minimum=minimum, maximum=maximum)


def _swap(root: Path) -> Iterator[Swap]:
    for line in read_quietly(root / "proc/swaps").splitlines()[1:]:
        fields = line.split()
        if len(fields) >= 3 and fields[2].isdecimal():
            yield Swap(device=fields[0], size=int(fields[2]) * 1024)


def _temperatures(folder: Path) -> Iterator[Temperature]:
    for zone in sorted(folder.glob("thermal_zone[0-9]*")):
        name, text = read_quietly(zone / "type"), read_quietly(zone / "temp")
        if not re.fullmatch(r"-?\d+", text) or int(text) < -100_000:  # zones of units that are off say -256 degrees
            continue
        kinds = {path: read_quietly(path) for path in zone.glob("trip_point_*_type")}
        limits = [
            read_quietly(path.with_name(path.name.replace("_type", "_temp")))
            for path, kind in kinds.items()
            if kind in TRIPS
        ]
        known = [int(limit) / 1000 for limit in limits if limit.isdecimal() and int(limit) > 0]
        yield Temperature(zone=name or zone.name, celsius=int(text) / 1000, limit=min(known, default=None))


def _judge_release(jetson: Jetson) -> Finding:
    jetpack = f" (JetPack {JETPACK_OF[jetson.release]})" if jetson.release in JETPACK_OF else ""
    found = f"{jetson.model}, L4T {jetson.l4t or 'unknown'}{jetpack}"
    if jetson.release is not None and jetson.release < FIRST_SUPPORTED_L4T:
        fix = (
            f"L4T {FIRST_SUPPORTED_L4T} (JetPack 6) is the first with a TensorRT that reads the graphs; flash JetPack 6"
        )
        return Finding(what="Jetson", found=found, level="note", fix=fix)
    wanted = PYTHON_OF.get(jetson.release or 0, PYTHON)
    if wanted != PYTHON:
        needs, here = (".".join(map(str, version)) for version in (wanted, PYTHON))
        fix = f"its TensorRT is for Python {needs}, this is {here}; make environments with python{needs}"
        return Finding(what="Jetson", found=found, level="note", fix=fix)
    return Finding(what="Jetson", found=found)


def _judge_power(jetson: Jetson) -> Iterator[Finding]:
    if jetson.power is None:
        return
    found = f"{jetson.power.name} (mode {jetson.power.id})"
    best = next((mode for name in FULL_SPEED for mode in jetson.power_modes if mode.name == name), None)
    if best is None or jetson.power == best:
        yield Finding(what="power mode", found=found)
        return
    fix = (
        f"it limits clocks and cores; for full speed, if cooling allows, run: sudo nvpmodel -m {best.id} ({best.name})"
    )
    yield Finding(what="power mode", found=found, level="note", fix=fix)


def _judge_clocks(jetson: Jetson) -> Iterator[Finding]:
    if not jetson.clocks:
        return
    online, present = jetson.cores
    cores = [f"cores {online} of {present} online"] if online != present else []
    found = ", ".join((*map(_shown, jetson.clocks), *cores))
    if all(clock.locked for clock in jetson.clocks):
        yield Finding(what="clocks", found=found)
        return
    fix = (
        "they follow the load; before measuring, run: sudo jetson_clocks (until the next start); report the power mode"
    )
    yield Finding(what="clocks", found=found, level="note", fix=fix)


def _shown(clock: Clock) -> str:
    limits = "locked" if clock.locked else f"{clock.minimum / 1e6:.0f}-{clock.maximum / 1e6:.0f}"
    return f"{clock.name} {clock.current / 1e6:.0f} MHz ({limits})"


def _judge_temperature(jetson: Jetson) -> Iterator[Finding]:
    if not jetson.temperatures:
        return
    hottest = max(jetson.temperatures, key=lambda zone: zone.celsius - (zone.limit or 100.0))
    found = f"{hottest.zone} {hottest.celsius:.0f} °C" + (f", limit {hottest.limit:.0f} °C" if hottest.limit else "")
    if hottest.limit is not None and hottest.celsius > hottest.limit - NEAR:
        fix = "clocks are, or soon will be, reduced; check the fan and the heat sink, or choose a smaller power mode"
        yield Finding(what="temperature", found=found, level="problem", fix=fix)
        return
    yield Finding(what="temperature", found=found)


def _judge_swap(jetson: Jetson) -> Finding:
    found = ", ".join(f"{swap.size / GIB:.1f} GiB {swap.device}" for swap in jetson.swap) or "none"
    if any(not swap.zram for swap in jetson.swap) or (jetson.memory or 0) >= SMALL_BOARD:
        return Finding(what="swap", found=found)
    why = "zram is part of the same memory" if jetson.swap else "CPU and GPU share this board's memory"
    fix = (
        f"{why}; to build engines here, pass --low-memory, or add swap on an NVMe disk: sudo fallocate -l 8G /swapfile "
        "&& sudo chmod 600 /swapfile && sudo mkswap /swapfile && sudo swapon /swapfile"
    )
    return Finding(what="swap", found=found, level="note", fix=fix)
