"""The doctor on machines made of files: a fake root, a fake PATH, a fake site-packages and a fake ONNX Runtime."""

import json
import os
import platform
import sys

import pytest

from mae_export.runtime.doctor import Gpu, Memory, doctor, nvidia_gpus
from mae_export.runtime.finding import Finding
from mae_export.runtime.jetson import Jetson

CPUINFO = """\
processor\t: 0
model name\t: Fast CPU 9000 @ 3.00GHz
flags\t\t: fpu sse2 avx2 fma avx512f avx512_vnni avx512_bf16 amx_int8 amx_tile

processor\t: 1
model name\t: another name
flags\t\t: fpu
"""
ARM_CPUINFO = """\
processor\t: 0
Features\t: fp asimd asimdhp asimddp i8mm bf16
CPU implementer\t: 0x41
"""


def test_a_machine_that_hides_everything_is_still_described(machine) -> None:
    diagnosis = machine.diagnose()
    assert diagnosis.cpu.model == "x86_64"
    assert diagnosis.cpu.cores == os.cpu_count()
    assert diagnosis.cpu.flags == ()
    assert diagnosis.memory == Memory(total=None, available=None, limit=None)
    assert (diagnosis.gpus, diagnosis.jetson, diagnosis.packages, diagnosis.tensorrt) == ((), None, {}, {})
    assert [problem.what for problem in diagnosis.problems] == ["ONNX Runtime"]
    assert not diagnosis.runs_graphs


def test_python_is_this_one(machine) -> None:
    assert machine.diagnose().python == ".".join(map(str, sys.version_info[:3]))
    assert sys.executable in machine.finding("Python").found


def test_cpu_is_read_from_its_first_core(machine) -> None:
    machine.file("proc/cpuinfo", CPUINFO)
    cpu = machine.diagnose().cpu
    assert (cpu.model, cpu.cores, cpu.quota) == ("Fast CPU 9000 @ 3.00GHz", 2, None)
    assert cpu.flags == ("avx2", "fma", "avx512f", "avx512_vnni", "avx512_bf16", "amx_int8")
    assert machine.finding("processor").level == "ok"


def test_arm_cpu_lists_features(machine) -> None:
    machine.file("proc/cpuinfo", ARM_CPUINFO)
    machine.monkeypatch.setattr(platform, "machine", lambda: "aarch64")
    cpu = machine.diagnose().cpu
    assert (cpu.model, cpu.cores) == ("aarch64", 1)
    assert cpu.flags == ("asimd", "asimdhp", "asimddp", "i8mm", "bf16")
    assert machine.finding("processor").level == "ok"


def test_x86_without_avx2_is_noted(machine) -> None:
    machine.file("proc/cpuinfo", CPUINFO.replace("avx2", "avx"))
    finding = machine.finding("processor")
    assert finding.level == "note"
    assert "without AVX2 graphs run several times slower" in finding.fix


@pytest.mark.parametrize(
    ("text", "quota", "advice"),
    [
        ("150000 100000\n", 1.5, "may use 1.5 of the cores; pass --threads 1"),
        ("50000 100000", 0.5, "pass --threads 1"),
        ("max 100000", None, ""),
        ("400000 100000", 4.0, ""),
        ("1 0", None, ""),
        ("garbage", None, ""),
    ],
)
def test_cpu_quota_of_a_container(machine, text: str, quota: float | None, advice: str) -> None:
    machine.file("proc/cpuinfo", CPUINFO)
    machine.file("sys/fs/cgroup/cpu.max", text)
    assert machine.diagnose().cpu.quota == quota
    finding = machine.finding("processor")
    assert (advice in finding.fix) if advice else finding.fix == ""


def test_memory_in_bytes(machine) -> None:
    machine.file("proc/meminfo", "MemTotal:       16777216 kB\nMemFree: 1 kB\nMemAvailable:    8388608 kB\n")
    machine.file("sys/fs/cgroup/memory.max", "max\n")
    assert machine.diagnose().memory == Memory(total=16 * 2**30, available=8 * 2**30, limit=None)
    finding = machine.finding("memory")
    assert (finding.found, finding.level) == ("16.0 GiB in all, 8.0 GiB available", "ok")


def test_small_memory_limit_is_noted(machine) -> None:
    machine.file("proc/meminfo", "MemTotal: 16777216 kB\nMemAvailable: 8388608 kB\n")
    machine.file("sys/fs/cgroup/memory.max", str(2**30))
    finding = machine.finding("memory")
    assert finding.level == "note"
    assert finding.found.endswith("1.0 GiB container limit")
    assert "too little for ViT-L" in finding.fix


def test_export_packages(machine) -> None:
    machine.package("torch", "2.13.0")
    finding = machine.finding("export")
    assert (finding.found, finding.level) == ("torch 2.13.0", "note")
    assert "pip install 'mae-export[export]'" in finding.fix
    machine.package("onnx", "1.23.2")
    assert machine.finding("export") == Finding(what="export", found="torch 2.13.0, onnx 1.23.2")


def test_gpus_are_listed_and_used_only_by_a_runtime_that_can(machine) -> None:
    machine.nvidia_smi("printf 'NVIDIA H100 80GB HBM3, 9.0, 81559 MiB, 580.95\\nNVIDIA T4, 7.5, 15360 MiB, 580.95\\n'")
    h100 = Gpu(name="NVIDIA H100 80GB HBM3", compute_capability="9.0", memory_mib=81559, driver="580.95")
    t4 = Gpu(name="NVIDIA T4", compute_capability="7.5", memory_mib=15360, driver="580.95")
    assert nvidia_gpus() == machine.diagnose().gpus == (h100, t4)
    finding = machine.finding("NVIDIA GPU")
    assert finding.found.startswith("NVIDIA H100 80GB HBM3, compute capability 9.0, 80 GiB, driver 580.95; NVIDIA T4")
    assert "no runtime here can use it" in finding.fix
    machine.onnxruntime("CUDAExecutionProvider")
    assert machine.finding("NVIDIA GPU").level == "ok"


def test_gpu_query_asks_for_what_is_parsed(machine) -> None:
    machine.nvidia_smi('echo "$*" > "$0.arguments"')
    assert nvidia_gpus() == ()
    asked = (machine.commands / "nvidia-smi.arguments").read_text().strip()
    assert asked == "--query-gpu=name,compute_cap,memory.total,driver_version --format=csv,noheader"


@pytest.mark.parametrize(
    ("script", "said"),
    [
        (
            "echo 'Failed to initialize NVML: Driver/library version mismatch'; exit 18",
            "Driver/library version mismatch",
        ),
        ("exit 9", "exit code 9"),
        ("exec sleep 20", "timed out after 0.2 seconds"),
    ],
)
def test_driver_that_does_not_answer_is_a_note(machine, script: str, said: str) -> None:
    machine.monkeypatch.setattr("mae_export.runtime.doctor.NVIDIA_SMI_SECONDS", 0.2)
    machine.monkeypatch.setenv("PATH", os.pathsep.join([str(machine.commands), os.defpath]))
    machine.nvidia_smi(script)
    finding = machine.finding("NVIDIA GPU")
    assert finding.level == "note"
    assert said in finding.found
    assert nvidia_gpus() == ()


def test_command_that_cannot_be_executed_is_no_crash(machine) -> None:
    machine.nvidia_smi("echo")
    (machine.commands / "nvidia-smi").write_bytes(b"\x7fELF not for this machine")
    assert "Exec format error" in machine.finding("NVIDIA GPU").found


def test_nonsense_from_the_driver_lists_nothing(machine) -> None:
    machine.nvidia_smi("printf 'No devices were found\\n\\377\\376 , \\n'")
    assert machine.diagnose().gpus == ()


def test_jetson_shares_its_memory(machine) -> None:
    machine.monkeypatch.setattr("mae_export.runtime.jetson.PYTHON", (3, 10))
    machine.file(
        "etc/nv_tegra_release", "# R36 (release), REVISION: 4.3, GCID: 38968081, BOARD: generic, EABI: aarch64\n"
    )
    machine.file("proc/device-tree/model", "NVIDIA Jetson Orin Nano Developer Kit\0")
    machine.nvidia_smi("echo 'Orin (nvgpu), 8.7, [N/A], 540.4.0'")
    diagnosis = machine.diagnose()
    assert diagnosis.jetson == Jetson(model="NVIDIA Jetson Orin Nano Developer Kit", l4t="36.4.3")
    assert diagnosis.gpus[0].memory_mib is None
    assert machine.finding("NVIDIA GPU").found == "Orin (nvgpu), compute capability 8.7, driver 540.4.0"
    assert machine.finding("Jetson").level == "ok"
    assert "--system-site-packages" in machine.finding("TensorRT").fix


def test_jetson_with_an_old_release_is_noted(machine) -> None:
    machine.file("etc/nv_tegra_release", "# R35 (release), REVISION: 5.0, GCID: 35550185\n")
    finding = machine.finding("Jetson")
    assert (finding.found, finding.level) == ("unknown board, L4T 35.5.0 (JetPack 5)", "note")
    assert "flash JetPack 6" in finding.fix


def test_rows_of_a_board_follow_the_others(machine) -> None:
    machine.file("proc/device-tree/model", "NVIDIA Jetson AGX Orin\0")
    machine.file("proc/meminfo", "MemTotal: 64325600 kB\n")
    machine.file("etc/nvpmodel.conf", "< POWER_MODEL ID=0 NAME=MAXN >\n< PM_CONFIG DEFAULT=0 >\n")
    assert [row.what for row in machine.diagnose().findings][-3:] == ["Jetson", "power mode", "swap"]


def test_known_faults_are_those_of_this_gpu(machine) -> None:
    machine.package("tensorrt", "10.13.3", module="tensorrt")
    machine.nvidia_smi("echo 'NVIDIA RTX PRO 6000, 12.0, 97887 MiB, 580.95'")
    assert "fused attention on this GPU" in machine.finding("TensorRT version").fix


def test_jetson_seen_from_a_container(machine) -> None:
    machine.file("proc/device-tree/model", "NVIDIA Jetson AGX Orin\0")
    assert machine.diagnose().jetson == Jetson(model="NVIDIA Jetson AGX Orin", l4t="")
    assert machine.finding("Jetson").found == "NVIDIA Jetson AGX Orin, L4T unknown"


def test_other_boards_are_no_jetson(machine) -> None:
    machine.file("proc/device-tree/model", "Raspberry Pi 5 Model B\0")
    assert machine.diagnose().jetson is None


def test_json_and_rows_carry_the_findings(machine) -> None:
    machine.file("proc/cpuinfo", CPUINFO)
    diagnosis = machine.diagnose()
    assert json.loads(diagnosis.to_json())["cpu"] == {
        "model": "Fast CPU 9000 @ 3.00GHz",
        "cores": 2,
        "quota": None,
        "flags": list(diagnosis.cpu.flags),
    }
    assert diagnosis.rows() == [(f.what, f.found, f.fix) for f in diagnosis.findings]
    assert all(finding.fix for finding in diagnosis.findings if finding.level != "ok")


def test_this_machine_can_be_diagnosed() -> None:
    diagnosis = doctor()
    assert diagnosis.runs_graphs
    assert "CPUExecutionProvider" in diagnosis.providers
    assert diagnosis.packages["onnx"]
