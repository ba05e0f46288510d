"""Models to a bundle: only what belongs together is packed, and what nothing was compared with is marked so.

Nothing here needs torch or onnx: a graph's manifest is read through its session and an engine's from its sidecar, so a
bundle can be made on the device that built the engine.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np

from mae_export import __version__
from mae_export.artefacts import ENGINE_SUFFIX
from mae_export.errors import InputError, SecurityError, UsageError
from mae_export.files import model_files, sha256_files, staging
from mae_export.manifest import Ancestor, Manifest
from mae_export.runtime.bundle import MANIFEST, BundledModel, BundleManifest, is_bundle
from mae_export.runtime.engine_file import read_sidecar, sidecar_path
from mae_export.runtime.golden import check_golden
from mae_export.runtime.probes import golden_feeds
from mae_export.runtime.session import open_as_is
from mae_export.runtime.thresholds import limits_of

APP, README, GOLDEN = "app.py", "README.md", "golden"
INTERFACE = ("images of", "patches of", "mask mode", "ragged rows", "outputs")
USE = """\
Python 3.10 or newer and one line of the table are all that it needs: neither torch nor onnx. On a Jetson, TensorRT is
part of JetPack; never install it with pip. There, engines need:

```sh
python3 -m venv --system-site-packages env && . env/bin/activate
pip install 'mae-export==VERSION' 'cuda-python>=12.6,<13'   # JetPack 6; >=13 on JetPack 7
```

Then, in this folder:

```sh
python app.py photos/ -o features          # folders, files, .txt lists or .tar files
ls photos/*.jpg | python app.py            # or names on standard input
python app.py photos/ --visible random:0.25
```

The app takes the first model that runs, after it compared every file with the SHA-256 in `manifest.json`, and the
model's values for the golden image with those stored. `mae-export doctor` says what is missing on a machine, and
`mae-export inspect` on this folder whether its bytes are still those that were packed.

`golden/` holds the feeds of that check as `.npy` files, and the first values of each output with their tolerance,
relative to max(1, |value|), for programs in other languages.
"""


@dataclass(frozen=True, kw_only=True)
class _Found:
    """A model that may go into a bundle; `digest` is the SHA-256 of the bytes of `weights`, one after another."""

    path: Path
    weights: tuple[Path, ...]
    digest: str
    manifest: Manifest
    model: BundledModel

    @property
    def checkpoint(self) -> Ancestor:
        for ancestor in self.manifest.made_from:
            if ancestor.kind == "checkpoint":
                return ancestor
        raise InputError(f"{self.path.name} does not say which checkpoint it was made from; export it again")


def write_bundle(models: Sequence[Path], out: Path, *, force: bool = False) -> BundleManifest:
    """Put models of one encoder into a folder from which `bundle_app.py` runs them.

    Args:
        models: graphs and engines, at least one graph, best one that runs anywhere (`BundleManifest.anywhere`). Engines
            are preferred to graphs, and otherwise the earlier one.
        out: folder to write; it appears whole or not at all.
        force: replace a bundle that is there.

    Returns:
        The bundle's manifest; `unproven` names models that nothing was compared with.

    Raises:
        UsageError: when `out` is taken, there is no graph, or two models have one name.
        InputError: when a file is no model of ours, or models do not belong together.
        SecurityError: when the bytes of an engine are not those that its sidecar describes.
        VerificationError: when a graph fails its golden check.
        MachineError: when ONNX Runtime, which reads graphs, is not installed.
        ResourceError: when the disk is full.
    """
    out = out.resolve()
    _require_place(out, force)
    names = [path.name for path in models]
    if len(set(names)) < len(names):
        raise UsageError(f"two of the models have one name among {', '.join(names)}; rename one")
    found = sorted(map(_look_at, models), key=lambda one: not one.model.targets)  # engines first, else as given
    if all(one.model.targets for one in found):
        raise UsageError("a bundle needs a graph: engines run on few GPUs and with one version; name the .onnx as well")
    _require_one_encoder(found)
    with staging(out) as folder:
        inside = folder / out.name
        inside.mkdir()
        for one in found:
            _copy(one, inside)
        _write_golden(inside / GOLDEN, found)
        shutil.copyfile(str(files(__package__) / "bundle_app.py"), inside / APP)
        (inside / README).write_text(_readme(found), encoding="utf-8")
        manifest = _manifest(inside, found)
        (inside / MANIFEST).write_text(manifest.to_json(), encoding="utf-8")
        if out.exists():
            out.replace(folder / "replaced")
        inside.replace(out)
    return manifest


def _require_place(out: Path, force: bool) -> None:
    if not out.parent.is_dir():
        raise UsageError(f"{out.parent} is no folder; create it, or write {out.name} somewhere else")
    if out.exists() and not out.is_dir():
        raise UsageError(f"{out} is a file; give a folder for the bundle")
    if not out.is_dir() or not any(out.iterdir()):
        return
    if not is_bundle(out):
        raise UsageError(f"{out} is not empty and no bundle, which is all that --force replaces; choose another folder")
    if not force:
        raise UsageError(f"{out} holds a bundle; add --force to replace it, or choose another folder")


def _look_at(path: Path) -> _Found:
    if path.suffix.lower() == ENGINE_SUFFIX:
        return _look_at_engine(path)
    with open_as_is(path) as session:
        check_golden(session)
        manifest, digest = session.manifest, session.digest
    model = BundledModel(
        file=path.name,
        runtime="openvino" if manifest.precision == "bf16" else "onnxruntime",
        version="",
        targets=(),
        precision=manifest.precision,
        proven=manifest.verification is not None,
        lowered="lowered" in manifest.tools,
    )
    return _Found(path=path, weights=model_files(path), digest=digest, manifest=manifest, model=model)


def _look_at_engine(path: Path) -> _Found:
    sidecar = read_sidecar(path)
    model = BundledModel(
        file=path.name,
        runtime=sidecar.backend,
        version=sidecar.version,
        targets=sidecar.targets,
        precision=sidecar.manifest.precision,
        proven=sidecar.proven,
    )
    return _Found(path=path, weights=(path,), digest=sidecar.sha256, manifest=sidecar.manifest, model=model)


def _require_one_encoder(found: Sequence[_Found]) -> None:
    """Whichever model runs, the app must get the same features."""
    first = found[0]
    for other in found[1:]:
        if other.checkpoint.sha256 != first.checkpoint.sha256:
            raise InputError(
                f"{first.path.name} was made from {_named(first.checkpoint)}, {other.path.name} from "
                f"{_named(other.checkpoint)}; a bundle holds models of one checkpoint. Make one bundle of each"
            )
        for what, value, expected in zip(INTERFACE, _interface(other), _interface(first), strict=True):
            if value != expected:
                raise InputError(
                    f"{other.path.name} has {what} {value}, {first.path.name} has {expected}; the models of a bundle "
                    "stand in for each other. Export them alike, or make one bundle of each"
                )


def _interface(found: _Found) -> tuple[Any, ...]:
    manifest = found.manifest
    outputs = sorted(spec.name for spec in manifest.outputs)
    return manifest.image, manifest.patches, manifest.mask_mode, manifest.ragged, ", ".join(outputs)


def _named(ancestor: Ancestor) -> str:
    return f"{ancestor.name} (SHA-256 {ancestor.sha256[:12]}...)"


def _copy(one: _Found, inside: Path) -> None:
    copies = [Path(shutil.copyfile(path, inside / path.name)) for path in one.weights]
    if one.model.targets:
        shutil.copyfile(sidecar_path(one.path), sidecar_path(inside / one.path.name))
    if sha256_files(*copies) != one.digest:
        known = sidecar_path(one.path).name if one.model.targets else "its golden check"
        raise SecurityError(
            f"the bytes of {one.path.name} are not those that {known} was about; wait until nothing writes the file, "
            "or make it again. No bundle was written"
        )


def _write_golden(folder: Path, found: Sequence[_Found]) -> None:
    """The feeds as arrays and the expected first values, for programs that know nothing of mae-export."""
    folder.mkdir()
    values = {
        one.path.name: {"tolerance": limits_of(one.model.precision).golden, "values": one.manifest.golden.values}
        for one in found
        if one.manifest.golden is not None
    }
    for name, array in golden_feeds(found[0].manifest).items() if values else ():
        np.save(folder / f"{name}.npy", array)
    (folder / "values.json").write_text(json.dumps(values, indent=1), encoding="utf-8")


def _manifest(inside: Path, found: Sequence[_Found]) -> BundleManifest:
    manifest = found[0].manifest
    paths = sorted(path for path in inside.rglob("*") if path.is_file())
    return BundleManifest(
        kind="bundle",
        family=manifest.family,
        checkpoint=found[0].checkpoint,
        mask_mode=manifest.mask_mode,
        features=tuple(spec.name for spec in manifest.outputs),
        models=tuple(one.model for one in found),
        files={path.relative_to(inside).as_posix(): sha256_files(path) for path in paths},
        version=__version__,
    )


def _readme(found: Sequence[_Found]) -> str:
    """What is inside and what to install, exactly."""
    lines = [
        f"# Features of {found[0].manifest.family} encoders",
        "",
        f"Made by mae-export {__version__} from {_named(found[0].checkpoint)}. In order of preference:",
        "",
        "| model | precision | runs on | install | proven |",
        "|---|---|---|---|---|",
    ]
    for model in (one.model for one in found):
        proof = "yes" if model.proven else "no: only its golden check, on your machine"
        extra = f"`pip install 'mae-export[{model.extra}]=={__version__}'`"
        lines.append(f"| {model.file} | {model.precision} | {model.where} | {extra} | {proof} |")
    if not any(one.model.anywhere for one in found):
        lines += ["", "No graph in it runs everywhere; the float32 graph that they were made from would."]
    return "\n".join([*lines, "", USE.replace("VERSION", __version__)])
