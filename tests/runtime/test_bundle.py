"""Opening a bundle: bytes first, then the best model that runs here and is right."""

import dataclasses
import json
import logging

import pytest

from mae_export.errors import InputError, MachineError, SecurityError, VerificationError
from mae_export.manifest import Golden
from mae_export.runtime import bundle as module
from mae_export.runtime.bundle import BundleManifest, changed_files, is_bundle, open_bundle, read_bundle
from mae_export.runtime.fake import FakeSession
from mae_export.runtime.golden import golden_of
from mae_export.runtime.probes import golden_feeds
from tests.runtime.bundled import make_bundle


@pytest.fixture
def bundle(tmp_path, make_manifest):
    return make_bundle(tmp_path, make_manifest("keep", outputs=("pooled",)))


def test_a_model_that_does_not_run_here_is_passed_over(bundle, caplog):
    caplog.set_level(logging.INFO, "mae_export")
    with open_bundle(bundle, threads=1) as session:
        assert session.name == "vit.onnx"
        assert session.run(golden_feeds(session.manifest))["pooled"].shape == (1, 6)
    assert "vit.engine is passed over: " in caplog.text
    assert caplog.records[0].levelname == "INFO", "that is what bundles are for"


class Opener:
    """Stands in for `open_session`: a fake session for each model, or an error."""

    def __init__(self, manifest, monkeypatch):
        self.outcomes, self.sessions = {}, []
        self.golden = golden_of(FakeSession(manifest).run(golden_feeds(manifest)))
        self.manifest = manifest
        monkeypatch.setattr(module, "open_as_is", self)

    def __call__(self, path, *, threads):
        outcome = self.outcomes.get(path.name, self.golden)
        if isinstance(outcome, Exception):
            raise outcome
        self.sessions.append(FakeSession(dataclasses.replace(self.manifest, golden=outcome)))
        return self.sessions[-1]


@pytest.fixture
def opener(make_manifest, monkeypatch):
    return Opener(make_manifest("keep", outputs=("pooled",)), monkeypatch)


WRONG = Golden(recipe="pattern-1", values={"pooled": (9.0,) * 6})


def test_the_first_that_is_right_is_taken(bundle, opener):
    session = open_bundle(bundle)
    assert opener.sessions == [session]


def test_a_model_that_gives_wrong_values_is_passed_over_aloud(bundle, opener, caplog):
    opener.outcomes["vit.engine"] = WRONG
    session = open_bundle(bundle)
    assert session is opener.sessions[1]
    assert "vit.engine is passed over: fake session gives" in caplog.text
    assert caplog.records[0].levelname == "WARNING"
    with pytest.raises(Exception, match="the session is closed"):
        opener.sessions[0].run({})


@pytest.mark.parametrize(
    ("engine", "graph", "kind", "said"),
    [
        (MachineError("no TensorRT"), MachineError("no ONNX Runtime"), MachineError, "no TensorRT | no ONNX Runtime"),
        (VerificationError("NaN"), MachineError("no ONNX Runtime"), VerificationError, "NaN | no ONNX Runtime"),
        (MachineError("no TensorRT"), WRONG, VerificationError, "no TensorRT | fake session gives"),
    ],
)
def test_when_none_is_left_every_reason_is_given(bundle, opener, engine, graph, kind, said):
    opener.outcomes.update({"vit.engine": engine, "vit.onnx": graph})
    with pytest.raises(kind) as caught:
        open_bundle(bundle)
    assert said in str(caught.value)


def test_bytes_that_changed_are_never_opened(bundle, opener):
    (bundle / "vit.engine").write_bytes(b"other code")
    (bundle / "README.md").unlink()
    with pytest.raises(SecurityError, match=r"2 of 8 files of the bundle .* have changed, first README\.md: .*Copy it"):
        open_bundle(bundle)
    assert opener.sessions == []
    wrong = changed_files(bundle, read_bundle(bundle))
    assert set(wrong) == {"README.md", "vit.engine"}
    assert "expected" in wrong["vit.engine"]
    assert "cannot be read" in wrong["README.md"]


def edited(bundle, **changes):
    content = json.loads((bundle / "manifest.json").read_text()) | changes
    (bundle / "manifest.json").write_text(json.dumps(content))


@pytest.mark.parametrize("name", ["../secret", "/etc/passwd", "a/../../b", "C:/x", "..\\x"])
def test_paths_outside_the_folder_are_refused(bundle, name):
    edited(bundle, files={name: "0" * 64})
    with pytest.raises(SecurityError, match="which lies outside its folder"):
        open_bundle(bundle)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"files": {}}, "has no SHA-256 for vit.engine"),
        ({"models": []}, "has no model"),
        ({"schema": 2}, "has schema 2, this version reads 1"),
        ({"colour": "red"}, "has an unknown key 'colour'"),
        ({"kind": "features"}, "is 'features'; expected one of 'bundle'"),
    ],
)
def test_manifests_that_make_no_sense(bundle, changes, said):
    edited(bundle, **changes)
    with pytest.raises(InputError) as caught:
        read_bundle(bundle)
    assert said in str(caught.value)


def test_what_is_no_bundle(tmp_path, bundle):
    assert is_bundle(bundle)
    for text in (None, "", "[]", '{"kind": "features"}', "[" * 100_000, "\udcff"):
        if text is not None:
            (tmp_path / "manifest.json").write_text(text, encoding="utf-8", errors="surrogateescape")
        assert not is_bundle(tmp_path)
        with pytest.raises(InputError):
            open_bundle(tmp_path)


def test_a_manifest_survives_json(bundle):
    manifest = read_bundle(bundle)
    assert isinstance(manifest, BundleManifest)
    assert manifest.to_json() == (bundle / "manifest.json").read_text()
    assert [model.extra for model in manifest.models] == ["tensorrt", "cpu"]
