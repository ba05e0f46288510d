"""The child process: what it says on standard output, and when it stops."""

import dataclasses
import json
import subprocess
import sys

import pytest

from mae_export.export import flavour
from mae_export.export.build_plan import BuildJob


@pytest.fixture
def job(tmp_path):
    return BuildJob(
        backend="rtx",
        graph=str(tmp_path / "missing.onnx"),
        plan=str(tmp_path / "plan"),
        log=str(tmp_path / "log"),
        operators={},
        precision="fp16",
        targets=("sm86",),
        shapes=(),
        workspace=None,
        level=None,
        aux_streams=True,
        timing_cache=None,
    )


def run(text, tmp_path):
    """Run the child on a job; returns what it said and its exit code."""
    path = tmp_path / "job.json"
    path.write_text(text)
    done = subprocess.run(
        [sys.executable, "-m", "mae_export.export.build_child", str(path)], capture_output=True, text=True, input=""
    )
    return [json.loads(line) for line in done.stdout.splitlines()], done


def test_a_damaged_job_is_an_error_in_words(tmp_path):
    said, done = run("{}", tmp_path)
    assert said == [{"error": "InputError", "message": "build job lacks the key 'backend'; "
                     "the file is damaged or from another version"}]  # fmt: skip
    assert done.returncode == 0


@pytest.mark.skipif(flavour.find_module("tensorrt") is not None, reason="TensorRT is installed")
def test_a_missing_backend_is_an_error_in_words(tmp_path, job):
    said, _ = run(json.dumps(dataclasses.asdict(dataclasses.replace(job, backend="tensorrt"))), tmp_path)
    message = "TensorRT is not installed; run: pip install 'mae-export[tensorrt]'"
    assert said == [{"error": "MachineError", "message": message}]


@pytest.mark.skipif(flavour.find_module("rtx") is None, reason="tensorrt-rtx-cu13-bindings is not installed")
def test_what_the_library_prints_is_kept_apart(tmp_path, job):
    said, _ = run(json.dumps(dataclasses.asdict(job)), tmp_path)  # raises if a line is no JSON
    assert said[0] == {"phase": "Reading graph", "done": 0, "total": 1}
    assert said[-1]["error"] == "GraphError"
    assert "cannot read 1 nodes of missing.onnx" in said[-1]["message"]
    assert not (tmp_path / "plan").exists()
