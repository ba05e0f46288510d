"""What a bundle is, and how a device opens one: the best model that runs there, its bytes and values checked.

A bundle is a folder with the models of one encoder, `manifest.json` with the SHA-256 of every other file, the feeds and
values of the golden check, and an app. Its manifest lists models in order of preference: engines first, then graphs.
"""

from __future__ import annotations

import dataclasses
import json
import logging
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Literal

from mae_export.errors import InputError, MachineError, SecurityError, VerificationError
from mae_export.files import sha256_files
from mae_export.manifest import SCHEMA, Ancestor, MaskMode, read_json
from mae_export.runtime.golden import check_golden
from mae_export.runtime.session import open_as_is

if TYPE_CHECKING:
    from mae_export.runtime.app import FeatureSession

MANIFEST = "manifest.json"
EXTRA_OF = {"onnxruntime": "cpu", "openvino": "openvino", "tensorrt": "tensorrt", "rtx": "rtx"}
_log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class BundledModel:
    """One model of a bundle.

    Attributes:
        file: its name in the folder.
        runtime: what runs it; of a graph that several run, the first to install.
        version: the only version of the runtime that runs it; "" for graphs, which any version runs.
        targets: GPUs that run it, such as `sm87`; empty for graphs.
        precision: of weights and activations.
        proven: whether it was compared with what it was made from.
        lowered: whether a graph is in the form of ONNX Runtime's CPU kernels, which nothing else reads.
    """

    file: str
    runtime: Literal["onnxruntime", "openvino", "tensorrt", "rtx"]
    version: str
    targets: tuple[str, ...]
    precision: str
    proven: bool
    lowered: bool = False

    @property
    def extra(self) -> str:
        """The extra of mae-export that installs the runtime."""
        return EXTRA_OF[self.runtime]

    @property
    def anywhere(self) -> bool:
        """Whether it runs on every machine with the base install and ONNX Runtime."""
        return not self.targets and not self.lowered and self.precision != "bf16"

    @property
    def where(self) -> str:
        """What runs it, in words."""
        if self.targets:
            return f"{', '.join(self.targets)} with {self.runtime} {self.version}"
        if self.lowered:
            return "CPUs with ONNX Runtime"
        if self.precision == "bf16":
            return "CPUs with OpenVINO, NVIDIA GPUs with ONNX Runtime's CUDA provider"
        return "any machine"


@dataclass(frozen=True, kw_only=True)
class BundleManifest:
    """What a bundle holds.

    Attributes:
        kind: tells it from manifests of other folders.
        family: of the encoder.
        checkpoint: the file that all models descend from.
        mask_mode: which inputs choose what is visible.
        features: outputs that all models have.
        models: in order of preference.
        files: SHA-256 of each file but the manifest, by its path in the folder.
        version: of mae-export.
        schema: version of this structure.

    Raises:
        SecurityError: when a path leads outside the folder.
        InputError: when a model is not among the files, or there is none.
    """

    kind: Literal["bundle"]
    family: str
    checkpoint: Ancestor
    mask_mode: MaskMode
    features: tuple[str, ...]
    models: tuple[BundledModel, ...]
    files: dict[str, str]
    version: str
    schema: int = SCHEMA

    def __post_init__(self) -> None:
        for name in self.files:
            path = PurePosixPath(name)
            if path.is_absolute() or ".." in path.parts or "\\" in name or ":" in name:
                raise SecurityError(f"the bundle lists {name!r}, which lies outside its folder; do not use it")
        missing = [model.file for model in self.models if model.file not in self.files]
        if missing or not self.models:
            what = f"no SHA-256 for {missing[0]}" if missing else "no model"
            raise InputError(f"the bundle's {MANIFEST} has {what}; make the bundle again")

    @property
    def anywhere(self) -> bool:
        """Whether some model runs on every machine with the base install and ONNX Runtime."""
        return any(model.anywhere for model in self.models)

    @property
    def unproven(self) -> tuple[BundledModel, ...]:
        """Models that nothing was compared with; each passes its golden check before it runs."""
        return tuple(model for model in self.models if not model.proven)

    def to_json(self) -> str:
        """Serialise; the result is stable for equal bundles."""
        return json.dumps(dataclasses.asdict(self), indent=1, sort_keys=True)


def is_bundle(folder: Path) -> bool:
    """Whether a folder holds a bundle rather than features or a checkpoint; damaged ones count."""
    try:
        value = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return False
    return isinstance(value, dict) and value.get("kind") == "bundle"


def read_bundle(folder: Path) -> BundleManifest:
    """Read the manifest of a bundle.

    Raises:
        InputError: when it is missing, damaged, or from another version.
        SecurityError: when it lists files outside the folder.
    """
    try:
        text = (folder / MANIFEST).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(
            f"{folder} is no bundle ({error}); expected a folder written by `mae-export bundle`"
        ) from error
    return read_json(text, BundleManifest, f"manifest of the bundle {folder}")


def changed_files(folder: Path, manifest: BundleManifest) -> dict[str, str]:
    """Files whose bytes are not those that the manifest lists, with what is wrong; empty when all match."""
    found = {name: _state(folder / name, expected) for name, expected in manifest.files.items()}
    return {name: state for name, state in found.items() if state}


def _state(path: Path, expected: str) -> str:
    try:
        found = sha256_files(path)
    except InputError as error:
        return str(error)
    return "" if found == expected else f"SHA-256 {found[:12]}..., expected {expected[:12]}..."


def open_bundle(folder: str | Path, *, threads: int = 0) -> FeatureSession:
    """Open the first model of a bundle that runs here and gives its golden values.

    Args:
        folder: the bundle.
        threads: CPU threads for a graph; 0 lets the runtime choose.

    Raises:
        InputError: when the folder holds no bundle.
        SecurityError: when a file is missing or its bytes have changed; nothing was loaded.
        VerificationError: when none is left and a model gave wrong values.
        MachineError: when nothing here runs any of the models.
    """
    folder = Path(folder)
    manifest = read_bundle(folder)
    wrong = changed_files(folder, manifest)
    if wrong:
        name, what = next(iter(wrong.items()))
        raise SecurityError(
            f"{len(wrong)} of {len(manifest.files)} files of the bundle {folder} have changed, first {name}: {what}. "
            "Copy it again"
        )
    errors: list[MachineError | VerificationError] = []
    for model in manifest.models:
        opened = _open(folder / model.file, threads)
        if not isinstance(opened, MachineError | VerificationError):
            return opened
        errors.append(opened)
    kind = VerificationError if any(isinstance(error, VerificationError) for error in errors) else MachineError
    raise kind(f"no model of the bundle {folder} can be used here. {' | '.join(map(str, errors))}")


def _open(path: Path, threads: int) -> FeatureSession | MachineError | VerificationError:
    """A session that gives its golden values, or why there is none."""
    session: FeatureSession | None = None
    try:
        session = open_as_is(path, threads=threads)
        check_golden(session)
    except (MachineError, VerificationError) as error:
        if session is not None:
            session.close()
        level = logging.WARNING if isinstance(error, VerificationError) else logging.INFO
        _log.log(level, "%s is passed over: %s", path.name, error)
        return error
    return session
