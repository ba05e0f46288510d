"""What goes into a bundle, what is refused, and that nothing half-written is ever there."""

import dataclasses
import hashlib
import json
import shutil
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from mae_export import __version__
from mae_export.errors import InputError, SecurityError, UsageError, VerificationError
from mae_export.manifest import Golden
from mae_export.runtime import bundle_app, bundle_writer
from mae_export.runtime.bundle import BundledModel, changed_files, read_bundle
from mae_export.runtime.bundle_writer import write_bundle
from mae_export.runtime.engine_file import read_sidecar
from mae_export.runtime.probes import golden_feeds
from tests.runtime.bundled import checkpoint, make_engine, make_graph
from tests.runtime.test_ort import write_graph


@pytest.fixture
def manifest(make_manifest):
    return make_manifest("keep", outputs=("pooled",))


@pytest.fixture
def graph(tmp_path, manifest):
    return make_graph(tmp_path / "vit.onnx", manifest)


@pytest.fixture
def engine(tmp_path, manifest):
    return make_engine(tmp_path / "vit.engine", manifest)


def names(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


def test_a_bundle_holds_all_that_its_device_needs(tmp_path, manifest, graph, engine):
    written = write_bundle([graph, engine], tmp_path / "out")
    out = tmp_path / "out"
    golden = {"golden/images.npy", "golden/ids_keep.npy", "golden/values.json"}
    assert names(out) == {"vit.onnx", "vit.engine", "vit.engine.json", "app.py", "README.md", "manifest.json", *golden}
    assert read_bundle(out) == written
    assert (written.family, written.mask_mode, written.features, written.checkpoint) == (
        *("mae", "keep", ("pooled",)),
        checkpoint("vit"),
    )
    assert written.models == (
        BundledModel(
            file="vit.engine",
            runtime="tensorrt",
            version="10.3.0.30",
            targets=("sm87",),
            precision="fp32",
            proven=False,
        ),
        BundledModel(file="vit.onnx", runtime="onnxruntime", version="", targets=(), precision="fp32", proven=True),
    ), "engines come first"
    assert set(written.files) == names(out) - {"manifest.json"}
    for name, digest in written.files.items():
        assert hashlib.sha256((out / name).read_bytes()).hexdigest() == digest
    for path in (graph, engine):
        assert (out / path.name).read_bytes() == path.read_bytes()
    assert (out / "app.py").read_bytes() == Path(bundle_app.__file__).read_bytes()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "vit.engine", "vit.engine.json", "vit.onnx"]


def test_golden_files_are_those_of_the_check(tmp_path, manifest, graph, engine):
    write_bundle([graph, engine], tmp_path / "out")
    golden = tmp_path / "out/golden"
    for name, array in golden_feeds(manifest).items():
        np.testing.assert_array_equal(np.load(golden / f"{name}.npy"), array)
    values = json.loads((golden / "values.json").read_text())
    assert set(values) == {"vit.onnx"}, "an engine without golden values has none to store"
    pixels = np.load(golden / "images.npy").astype(np.float64)
    expected = np.tile(pixels.mean(axis=(1, 2))[0], 2)  # what the graph computes
    np.testing.assert_allclose(values["vit.onnx"]["values"]["pooled"], expected, rtol=1e-5)
    assert 0 < values["vit.onnx"]["tolerance"] < 1


def test_models_without_golden_values_have_no_feeds(tmp_path, manifest):
    bare = dataclasses.replace(manifest, made_from=(checkpoint("vit"),))
    written = write_bundle([write_graph(tmp_path / "vit.onnx", bare)], tmp_path / "out")
    assert json.loads((tmp_path / "out/golden/values.json").read_text()) == {}
    assert sorted(written.files) == ["README.md", "app.py", "golden/values.json", "vit.onnx"]
    assert [model.file for model in written.unproven] == ["vit.onnx"]


def test_its_readme_says_what_to_install_and_what_is_unproven(tmp_path, graph, engine, manifest):
    proven = make_engine(tmp_path / "proven.engine", manifest, proven=True)
    bundle = write_bundle([graph, engine, proven], tmp_path / "out")
    text = (tmp_path / "out/README.md").read_text()
    assert f"| vit.onnx | fp32 | any machine | `pip install 'mae-export[cpu]=={__version__}'` | yes |" in text
    assert "| vit.engine | fp32 | sm87 with tensorrt 10.3.0.30 |" in text
    assert f"pip install 'mae-export=={__version__}' 'cuda-python>=12.6,<13'" in text
    assert "VERSION" not in text
    assert [
        line.rpartition("|")[0].rpartition("|")[2].strip() for line in text.splitlines() if ".engine |" in line
    ] == [
        "no: only its golden check, on your machine",
        "yes",
    ]
    assert [model.file for model in bundle.unproven] == ["vit.engine"]


def restricted(monkeypatch, **changes):
    """The next graphs that are looked at have these differences in their manifests; nothing here runs bf16 for real."""
    real = bundle_writer.open_as_is

    @contextmanager
    def opened(path):
        with real(path) as session:
            manifest = dataclasses.replace(session.manifest, **(changes if path.name != "plain.onnx" else {}))
            yield SimpleNamespace(manifest=manifest, digest=session.digest)

    monkeypatch.setattr(bundle_writer, "open_as_is", opened)
    monkeypatch.setattr(bundle_writer, "check_golden", lambda session: None)


@pytest.mark.parametrize(
    ("changes", "runtime", "where"),
    [
        ({"precision": "bf16"}, "openvino", "CPUs with OpenVINO, NVIDIA GPUs with ONNX Runtime's CUDA provider"),
        ({"precision": "int8", "tools": {"lowered": "ONNX Runtime, CPU"}}, "onnxruntime", "CPUs with ONNX Runtime"),
    ],
)
def test_graphs_that_do_not_run_everywhere_say_what_runs_them(tmp_path, manifest, monkeypatch, changes, runtime, where):
    restricted(monkeypatch, **changes)
    models = [make_graph(tmp_path / name, manifest) for name in ("vit.onnx", "plain.onnx")]
    for count, anywhere in ((1, False), (2, True)):
        bundle = write_bundle(models[:count], tmp_path / str(count))
        assert bundle == read_bundle(tmp_path / str(count))
        first = bundle.models[0]
        assert (first.file, first.runtime, first.where) == ("vit.onnx", runtime, where)
        assert (first.anywhere, bundle.anywhere) == (False, anywhere)
        text = (tmp_path / str(count) / "README.md").read_text()
        assert f"| vit.onnx | {changes['precision']} | {where} | `pip install 'mae-export[{first.extra}]==" in text
        assert ("No graph in it runs everywhere" in text) is not anywhere
    assert [model.where for model in bundle.models] == [where, "any machine"]


@pytest.mark.parametrize("precision", ["fp32", "fp16", "int8", "fp8"])
def test_plain_graphs_run_everywhere(tmp_path, manifest, monkeypatch, precision):
    restricted(monkeypatch, precision=precision)
    bundle = write_bundle([make_graph(tmp_path / "vit.onnx", manifest)], tmp_path / "out")
    assert bundle.anywhere
    assert (bundle.models[0].where, bundle.models[0].runtime) == ("any machine", "onnxruntime")


def test_the_data_file_travels_with_its_graph(tmp_path, manifest):
    graph = make_graph(tmp_path / "big.onnx", manifest, external=True)
    written = write_bundle([graph], tmp_path / "out")
    assert set(written.files) >= {"big.onnx", "big.onnx.data"}
    assert (tmp_path / "out/big.onnx.data").read_bytes() == (tmp_path / "big.onnx.data").read_bytes()


def test_models_keep_the_order_in_which_they_were_given(tmp_path, manifest):
    graphs = [make_graph(tmp_path / f"{name}.onnx", manifest) for name in ("b", "a")]
    engines = [make_engine(tmp_path / f"{name}.engine", manifest) for name in ("d", "c")]
    written = write_bundle([*graphs, *engines], tmp_path / "out")
    assert [model.file for model in written.models] == ["d.engine", "c.engine", "b.onnx", "a.onnx"]


def test_mixtures_are_refused(tmp_path, graph, manifest):
    other = make_engine(tmp_path / "other.engine", manifest, of="other")
    with pytest.raises(InputError, match=r"other\.engine was made from other\.pth .*, vit\.onnx from vit\.pth"):
        write_bundle([graph, other], tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"ragged": True}, r"has ragged rows False, odd\.engine has True"),
        ({"mask_mode": "none"}, r"has mask mode keep, odd\.engine has none"),
        ({"outputs": ()}, r"has outputs pooled, odd\.engine has "),
    ],
)
def test_models_that_cannot_stand_in_for_each_other_are_refused(tmp_path, graph, manifest, changes, said):
    odd = make_engine(tmp_path / "odd.engine", dataclasses.replace(manifest, **changes))
    with pytest.raises(InputError, match=said):
        write_bundle([graph, odd], tmp_path / "out")


def test_other_images_are_refused(tmp_path, graph, manifest):
    image = dataclasses.replace(manifest.image, mean=(0.1, 0.2, 0.3))
    odd = make_engine(tmp_path / "odd.engine", dataclasses.replace(manifest, image=image))
    with pytest.raises(InputError, match=r"vit\.onnx has images of .*, odd\.engine has"):
        write_bundle([graph, odd], tmp_path / "out")


def test_an_engine_that_is_not_its_sidecars_is_refused(tmp_path, graph, engine):
    engine.write_bytes(b"something else")
    with pytest.raises(SecurityError, match=r"bytes of vit\.engine are not those that vit\.engine\.json was about"):
        write_bundle([graph, engine], tmp_path / "out")
    assert not (tmp_path / "out").exists()
    assert not list(tmp_path.glob(".out*")), "nothing is left behind"


def test_a_graph_that_changes_under_way_is_refused(tmp_path, graph, monkeypatch):
    copy = shutil.copyfile

    def racing(source, target):
        graph.write_bytes(graph.read_bytes() + b"\0")
        return copy(source, target)

    monkeypatch.setattr(bundle_writer.shutil, "copyfile", racing)
    with pytest.raises(SecurityError, match=r"bytes of vit\.onnx are not those that its golden check was about"):
        write_bundle([graph], tmp_path / "out")


def test_a_graph_that_is_wrong_here_is_refused(tmp_path, manifest, graph):
    golden = Golden(recipe="pattern-1", values={"pooled": (0.0,) * 6})
    write_graph(graph, dataclasses.replace(manifest, made_from=(checkpoint("vit"),), golden=golden))
    with pytest.raises(VerificationError, match="on the golden image; expected 0 within"):
        write_bundle([graph], tmp_path / "out")


def test_a_model_of_unknown_origin_is_refused(tmp_path, manifest, graph):
    write_graph(tmp_path / "lost.onnx", manifest)
    with pytest.raises(InputError, match=r"lost\.onnx does not say which checkpoint it was made from"):
        write_bundle([graph, tmp_path / "lost.onnx"], tmp_path / "out")


def test_a_bundle_needs_a_graph(tmp_path, engine):
    with pytest.raises(UsageError, match="a bundle needs a graph"):
        write_bundle([engine], tmp_path / "out")


def test_equal_names_are_refused(tmp_path, graph, manifest):
    (tmp_path / "deep").mkdir()
    make_graph(tmp_path / "deep/vit.onnx", manifest)
    with pytest.raises(UsageError, match=r"two of the models have one name among vit\.onnx, vit\.onnx"):
        write_bundle([graph, tmp_path / "deep/vit.onnx"], tmp_path / "out")


def test_what_is_there_is_kept_unless_it_is_a_bundle(tmp_path, graph, engine):
    out = tmp_path / "out"
    out.write_text("a file")
    with pytest.raises(UsageError, match="out is a file; give a folder"):
        write_bundle([graph], out, force=True)
    out.unlink()
    out.mkdir()
    (out / "thesis.txt").write_text("precious")
    for force in (False, True):
        with pytest.raises(UsageError, match="out is not empty and no bundle, which is all that --force replaces"):
            write_bundle([graph], out, force=force)
    assert (out / "thesis.txt").read_text() == "precious"
    (out / "thesis.txt").unlink()
    write_bundle([graph, engine], out)
    with pytest.raises(UsageError, match="out holds a bundle; add --force to replace it, or choose another folder"):
        write_bundle([graph], out)
    written = write_bundle([graph], out, force=True)
    assert not (out / "vit.engine").exists()
    assert changed_files(out, written) == {}
    with pytest.raises(UsageError, match="is no folder; create it"):
        write_bundle([graph], tmp_path / "no/out")


def test_a_failed_replacement_keeps_the_old_bundle(tmp_path, graph, engine):
    out = tmp_path / "out"
    written = write_bundle([graph], out)
    engine.write_bytes(b"something else")
    with pytest.raises(SecurityError):
        write_bundle([graph, engine], out, force=True)
    assert (read_bundle(out), changed_files(out, written)) == (written, {})


def test_sidecars_stay_readable(tmp_path, graph, engine):
    write_bundle([graph, engine], tmp_path / "out")
    assert read_sidecar(tmp_path / "out/vit.engine") == read_sidecar(engine)
