"""Models to put into bundles: a real graph that knows its golden values, and an engine that is bytes and a sidecar."""

import dataclasses
import hashlib
from pathlib import Path

from mae_export.manifest import Ancestor, Manifest, Range, Verification
from mae_export.runtime.bundle_writer import write_bundle
from mae_export.runtime.engine_file import Achieved, EngineSidecar, Profile, sidecar_path
from mae_export.runtime.golden import golden_of
from mae_export.runtime.probes import golden_feeds
from mae_export.runtime.session import open_session
from tests.runtime.test_ort import write_graph

PROOF = Verification(reference="checkpoint.pth", worst_output="pooled", error=1e-7, limit=1e-4, checks=3)


def checkpoint(name: str) -> Ancestor:
    return Ancestor(kind="checkpoint", name=f"{name}.pth", sha256=hashlib.sha256(name.encode()).hexdigest())


def make_graph(path: Path, manifest: Manifest, *, of: str = "vit", external: bool = False) -> Path:
    """A graph with output `pooled` of the manifest's inputs, proven and with golden values."""
    manifest = dataclasses.replace(manifest, made_from=(checkpoint(of),), verification=PROOF)
    write_graph(path, manifest)
    with open_session(path) as session:
        golden = golden_of(session.run(golden_feeds(manifest)))
    return write_graph(path, dataclasses.replace(manifest, golden=golden), external=external)


def make_engine(path: Path, manifest: Manifest, *, of: str = "vit", proven: bool = False) -> Path:
    """An engine of bytes that no library would take, with the sidecar that belongs to them."""
    plan = f"plan of {path.name}".encode() * 1000
    ancestors = (checkpoint(of), Ancestor(kind="graph", name="vit.onnx", sha256="0" * 64))
    sidecar = EngineSidecar(
        sha256=hashlib.sha256(plan).hexdigest(),
        size=len(plan),
        backend="tensorrt",
        version="10.3.0.30",
        targets=("sm87",),
        device="Orin",
        profiles=(Profile(batch=Range.parse("1:8:64")),),
        workspace=None,
        level=None,
        low_memory=False,
        warnings=(),
        achieved=Achieved(
            attention=0, fused=0, gemms={}, fallbacks=(), activation_bytes=(1,), weights_bytes=1, layers=()
        ),
        manifest=dataclasses.replace(manifest, made_from=ancestors, verification=PROOF if proven else None),
    )
    path.write_bytes(plan)
    sidecar_path(path).write_text(sidecar.to_json())
    return path


def make_bundle(folder: Path, manifest: Manifest) -> Path:
    """A bundle in a folder: an engine for another machine, preferred to a graph for any."""
    models = [make_engine(folder / "vit.engine", manifest), make_graph(folder / "vit.onnx", manifest)]
    write_bundle(models, folder / "bundle")
    return folder / "bundle"
