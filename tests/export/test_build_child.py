"""The child process: what it says on standard output, and when it stops."""

import dataclasses
import json
import subprocess
import sys

import pytest

from mae_export.export import build_child, flavour
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


def test_a_builder_that_does_nothing_is_given_up(monkeypatch):
    seconds = iter([0.0, 1.0, 1.0, 1.001, 2.0, *[2.004] * 9])
    monkeypatch.setattr(build_child.time, "process_time", lambda: next(seconds))
    monkeypatch.setattr(build_child, "LOOKS", 4)
    given_up = []
    build_child.watch_work(lambda: given_up.append(len(list(seconds))), seconds=0)
    assert given_up == [5]  # 4 looks in a row without work, after two with some


STUCK = """
import sys, time
from pathlib import Path
from types import SimpleNamespace
from mae_export.export import build_child

build_child.LOOKS = build_child.SECONDS_TO_STOP = 1
build_child.flavour = SimpleNamespace(load=lambda backend: SimpleNamespace(__version__="1.7"))
build_child.compile_plan = lambda job, report, stop: time.sleep(600)
build_child.main(Path(sys.argv[1]))
"""


@pytest.mark.parametrize("abandoned", [False, True])
def test_a_stuck_builder_ends(tmp_path, job, abandoned):
    """Whether its caller still listens or is gone: then nobody is told, and it must not stay for ever."""
    path = tmp_path / "job.json"
    path.write_text(json.dumps(dataclasses.asdict(job)))
    source = STUCK.replace("LOOKS = build_child.", "") if abandoned else STUCK
    with subprocess.Popen(
        [sys.executable, "-c", source, str(path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as child:
        if abandoned:
            child.stdin.close()
        assert child.wait(60) == 1
        said = [json.loads(line) for line in child.stdout]
    if abandoned:
        assert said == []
    else:
        assert said[-1]["error"] == "ResourceError"
        assert said[-1]["message"].startswith("the builder has done nothing for 1 seconds")
