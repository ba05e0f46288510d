"""Entries of this machine's cache: found when they fit, and never a reason not to open a graph."""

import dataclasses
import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from mae_export.export.options import TraceOptions
from mae_export.files import sha256_files
from mae_export.graph import read_manifest
from mae_export.runtime import prepared, private_folder
from mae_export.runtime.prepared import ENTRY, Cleared, Fit, adding, clear, find, fit_here, known
from mae_export.runtime.probes import golden_feeds
from mae_export.runtime.session import open_as_is, open_session, open_to_judge
from tests.runtime.cuda_double import CudaDouble
from tests.runtime.tensorrt_double import VERSION, install, profile, write_engine

ROOT = Path(__file__).parents[2]


@pytest.fixture
def cache(monkeypatch, tmp_path):
    monkeypatch.setenv("MAE_EXPORT_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def graph(exported, tmp_path, cache):
    return shutil.copy(exported("mae/checkpoint.pth", TraceOptions(mask="keep")), tmp_path / "vit.onnx")


def put(graph, fit, make):
    """An entry, whose model `make` writes into the folder that it is given."""
    with private_folder.locked(fit.key), adding(graph, fit) as folder:
        make(folder)
    return known(fit)


def put_graph(graph, other=None):
    """An entry for ONNX Runtime whose model is a copy of a graph."""
    fit = fit_here(sha256_files(graph), "onnxruntime")
    return put(graph, fit, lambda folder: shutil.copy(other or graph, folder / "vit.onnx"))


@pytest.fixture
def other(exported):
    """A graph of another digest."""
    return exported("mae/checkpoint.pth", TraceOptions(mask="keep", features=("pooled", "patch_tokens")))


def require_plain(graph, remark):
    with open_session(graph) as session:
        assert session.digest == sha256_files(graph)
        assert remark in session.choice.reason
        return session.choice


def test_without_a_cache_nothing_is_hashed(graph, cache, monkeypatch):
    monkeypatch.setattr(prepared, "sha256_files", None)
    assert find(graph) == (None, "")
    another = Fit(source="0" * 64, library="rtx", version="1", device="none")
    monkeypatch.setattr(prepared, "sha256_files", sha256_files)
    with private_folder.locked(another.key), adding(graph, another) as folder:
        shutil.copy(graph, folder / "x.onnx")
    entry = cache / another.key / ENTRY
    entry.write_text(json.dumps({**json.loads(entry.read_text()), "size": 1}))
    monkeypatch.setattr(prepared, "sha256_files", None)
    assert find(graph) == (None, "")


def test_what_was_prepared_is_opened_and_says_so(graph, other):
    path = put_graph(graph, other)
    assert find(graph) == (path, "")
    with open_session(graph) as session:
        assert str(session.choice) == "cpu: prepared on this machine from vit.onnx"
        assert (session.digest, len(session.manifest.outputs)) == (sha256_files(other), 2)
    for openly in (open_as_is, open_to_judge):
        with openly(graph) as session:
            assert session.digest == sha256_files(graph)
    with open_session(graph, backend="cpu") as session:
        assert session.digest == sha256_files(graph)


def test_another_graph_of_that_size_is_not_it(graph, other):
    put_graph(graph, other)
    graph.write_bytes(graph.read_bytes().replace(b"pooled", b"pOoled"))
    assert find(graph) == (None, "")


def test_an_entry_says_what_it_is(graph, cache):
    path = put_graph(graph)
    entry = json.loads((path.parent / ENTRY).read_text())
    assert path.parent.parent == cache
    assert (entry["model"], entry["size"]) == ("vit.onnx", graph.stat().st_size)
    assert entry["fit"]["source"] == entry["sha256"] == sha256_files(graph)
    assert entry["made"].endswith("+00:00")


@pytest.mark.parametrize("changed", [{"version": "0.1"}, {"device": "Z80"}])
def test_entries_of_other_versions_and_machines_are_ignored_with_a_remark(graph, other, changed):
    fit = dataclasses.replace(fit_here(sha256_files(graph), "onnxruntime"), **changed)
    put(graph, fit, lambda folder: shutil.copy(other, folder / "vit.onnx"))
    require_plain(graph, "another machine or version; run `mae-export prepare` again")
    put_graph(graph, other)
    assert find(graph)[1] == ""


def damage_model(folder):
    (folder / "vit.onnx").write_bytes(b"x")


def lose_model(folder):
    (folder / "vit.onnx").unlink()


def damage_entry(folder):
    (folder / ENTRY).write_text("{")


def leave_the_folder(folder):
    entry = json.loads((folder / ENTRY).read_text())
    (folder / ENTRY).write_text(json.dumps({**entry, "model": "../vit.onnx"}))


@pytest.mark.parametrize(
    ("harm", "remark"),
    [
        (damage_model, "what was prepared is damaged; run `mae-export prepare` again with --force"),
        (lose_model, "what was prepared cannot be used"),
        (damage_entry, "not valid JSON"),
        (leave_the_folder, "names a model outside its folder"),
    ],
)
def test_damaged_entries_are_ignored_with_a_remark(graph, other, harm, remark):
    path = put_graph(graph, other)
    harm(path.parent)
    require_plain(graph, remark)
    assert known(fit_here(sha256_files(graph), "onnxruntime")) is None
    assert find(put_graph(graph, other)) == (None, "")
    assert find(graph)[0] == path


def test_a_folder_that_others_may_write_in_is_not_looked_at(graph, other, cache):
    put_graph(graph, other)
    cache.chmod(0o777)
    require_plain(graph, "what was prepared is not looked at (others may write in")


def test_what_fails_leaves_nothing(graph, cache):
    fit = fit_here(sha256_files(graph), "onnxruntime")

    def fail(folder):
        shutil.copy(graph, folder / "vit.onnx")
        raise ValueError("stop")

    with pytest.raises(ValueError, match="stop"):
        put(graph, fit, fail)
    assert put(graph, fit, lambda folder: None) is None
    assert not list(cache.iterdir())


def test_clear_removes_entries_and_rests_but_nothing_else(graph, cache):
    assert clear() == Cleared()
    put_graph(graph)
    (cache / f".{'0' * 64}.abc.tmp").mkdir()
    (cache / "mine").mkdir()
    assert clear() == Cleared(removed=1)
    assert [path.name for path in cache.iterdir()] == ["mine"]


MAKER = """
import shutil, sys
from pathlib import Path
from mae_export.files import sha256_files
from mae_export.runtime import private_folder
from mae_export.runtime.prepared import adding, fit_here, known

graph = Path(sys.argv[1])
fit = fit_here(sha256_files(graph), "onnxruntime")
with private_folder.locked(fit.key), adding(graph, fit) as folder:
    print("making", flush=True)
    sys.stdin.readline()
    shutil.copy(graph, folder / "vit.onnx")
print(known(fit), flush=True)
"""


@pytest.fixture
def maker(graph):
    """Another process that is in the middle of making the graph's entry, until a line is written to it."""
    process = subprocess.Popen(
        [sys.executable, "-c", MAKER, graph], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=ROOT
    )
    assert process.stdout.readline() == "making\n"
    yield process
    process.kill()
    process.communicate()


def test_clear_leaves_what_another_process_is_making(graph, other, cache, maker):
    done = put_graph(other)
    assert clear() == Cleared(removed=1, busy=1)
    assert not done.exists()
    assert len(list(cache.glob(".*.tmp"))) == 1, "its private folder is still there"
    out, _ = maker.communicate("go on\n")
    assert Path(out.strip()) == find(graph)[0]
    assert clear() == Cleared(removed=1)
    assert not list(cache.iterdir())


def test_what_a_killed_process_leaves_is_removed(graph, cache, maker):
    maker.kill()
    maker.wait()
    assert len(list(cache.glob(".*.tmp"))) == 1
    assert clear() == Cleared()
    assert not list(cache.iterdir())


def test_an_entry_that_is_being_removed_is_not_found(graph, cache):
    path = put_graph(graph)
    path.parent.rename(cache / f".{path.parent.name}.removed.tmp")
    assert find(graph) == (None, "")


# Engines


@pytest.fixture
def prepared_engine(graph, monkeypatch, behaviour):
    """An engine of the graph in the cache."""

    def make(folder):
        write_engine(folder / "vit.engine", read_manifest(graph), (profile("1:4:8", "1:4:16"),), graph=graph)

    return put(graph, fit_here(sha256_files(graph), "tensorrt"), make)


def test_a_prepared_engine_runs(graph, prepared_engine, behaviour):
    with open_session(graph) as session, open_as_is(graph, backend="cpu") as plain:
        assert str(session.choice) == "engine: prepared on this machine from vit.onnx"
        assert (session.name, session.digest) == ("vit.engine", sha256_files(prepared_engine))
        fed = golden_feeds(plain.manifest)
        np.testing.assert_array_equal(session.run(fed)["pooled"], plain.run(fed)["pooled"])


def test_a_damaged_engine_is_never_loaded(graph, prepared_engine, behaviour):
    prepared_engine.write_bytes(prepared_engine.read_bytes() + b" ")
    require_plain(graph, "what was prepared does not open (the bytes of vit.engine")
    assert behaviour.gpu.issued == []


def test_engines_belong_to_gpu_and_version(graph, prepared_engine, monkeypatch):
    install(monkeypatch, gpu=CudaDouble(name="NVIDIA A10", capability=(8, 6)))
    require_plain(graph, "prepared for tensorrt 10.13.3.9 on another machine")
    monkeypatch.setitem(VERSION, "tensorrt", "10.14.1.48")
    install(monkeypatch)
    require_plain(graph, "prepared for tensorrt 10.13.3.9 on another machine or version")


def test_without_the_gpu_the_graph_runs(graph, prepared_engine, monkeypatch, behaviour):
    monkeypatch.setattr(behaviour.gpu, "count", 0)
    require_plain(graph, "what was prepared cannot be used (CUDA failed while opening the GPU")
