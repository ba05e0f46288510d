"""Which versions are refused, which are warned about, and where the boundaries are."""

import pytest

from mae_export.errors import MachineError
from mae_export.runtime.known_bad import KNOWN_BAD, judge_version


@pytest.mark.parametrize(
    ("version", "report"), [("10.4.0", "4742"), ("10.4.0.26", "4742"), ("10.7.0.23", "4333"), ("10.7", "4333")]
)
@pytest.mark.parametrize("precision", ["fp32", "fp16", "bf16"])
def test_refused(version, report, precision):
    with pytest.raises(MachineError, match=rf"TensorRT {version} is known for .*/issues/{report}\); install another"):
        judge_version("tensorrt", version, precision=precision, targets=("sm86",))


@pytest.mark.parametrize(
    ("version", "precision", "targets", "report"),
    [
        ("10.3.0.30", "fp16", ("sm87",), "4723"),
        ("10.13.3.9", "bf16", ("sm120",), "4837"),
        ("10.16.1.11", "fp16", ("sm120",), "4837"),
        ("11.1.0.5", "fp32", ("sm89",), "4813"),
    ],
)
def test_warned(version, precision, targets, report):
    (warning,) = judge_version("tensorrt", version, precision=precision, targets=targets)
    assert f"/issues/{report})" in warning
    assert "compare the engine with its graph" in warning


@pytest.mark.parametrize(
    ("backend", "version", "precision", "targets"),
    [
        ("tensorrt", "10.3.0.30", "fp32", ("sm87",)),
        ("tensorrt", "10.2.0", "fp16", ("sm87",)),
        ("tensorrt", "10.5.0", "fp32", ("sm86",)),
        ("tensorrt", "10.6.0", "fp16", ("sm86",)),
        ("tensorrt", "10.16.2", "fp16", ("sm120",)),
        ("tensorrt", "10.13.3.9", "fp16", ("sm89",)),
        ("tensorrt", "10.13.3.9", "fp32", ("sm120",)),
        ("tensorrt", "11.2.0", "fp32", ("sm89",)),
        ("tensorrt", "11.4.0.106", "fp16", ("sm120",)),
        ("rtx", "1.7.1.116", "fp16", ("sm120",)),
    ],
)
def test_nothing_known(backend, version, precision, targets):
    assert judge_version(backend, version, precision=precision, targets=targets) == ()


def test_every_entry_names_its_source():
    assert all(
        entry.report.startswith("github.com/NVIDIA/TensorRT/issues/") and entry.first < entry.fixed
        for entry in KNOWN_BAD
    )
