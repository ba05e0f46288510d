"""What a file promises: the one self-description that graphs, engines and features carry, as JSON in and out.

Pure standard library, so that the deployed half reads it with nothing installed. Unknown keys are errors: a reader
that skips what it does not know would serve wrong features from a newer file.
"""

from __future__ import annotations

import dataclasses
import difflib
import json
import math
import types
import typing
from dataclasses import dataclass, field
from typing import Any, Literal, TypeVar

from mae_export.errors import InputError, UsageError
from mae_export.spec import ImageSpec

SCHEMA = 1
METADATA_KEY = "mae_export.manifest"
MAX_EXACT = 2**53  # largest integer up to which every one is a float
MAX_DIGITS = 18  # of an extent; no dimension needs more, and int() refuses thousands with an error of its own
MaskMode = Literal["none", "keep", "patches", "mask-token"]
T = TypeVar("T")


@dataclass(frozen=True, kw_only=True)
class TensorSpec:
    """One input or output: its name, numpy dtype name, shape with symbolic dimensions, and what it holds."""

    name: str
    dtype: str
    shape: tuple[int | str, ...]
    note: str = ""


@dataclass(frozen=True, kw_only=True)
class Range:
    """Smallest, usual and largest extent of a dynamic dimension, written `1:8:64`.

    Raises:
        InputError: unless 0 <= minimum <= typical <= maximum.
    """

    minimum: int
    typical: int
    maximum: int

    def __post_init__(self) -> None:
        if not 0 <= self.minimum <= self.typical <= self.maximum:
            raise InputError(f"range {self} must satisfy 0 <= min <= typical <= max, for example 1:8:64")

    def __str__(self) -> str:
        return f"{self.minimum}:{self.typical}:{self.maximum}"

    @classmethod
    def parse(cls, text: str) -> Range:
        """Read `min:typical:max`, or one number for all three.

        Raises:
            InputError: when the text is not that.
        """
        parts = text.split(":")
        if len(parts) not in (1, 3) or not all(part.strip().isdecimal() and len(part) <= MAX_DIGITS for part in parts):
            raise InputError(f"range {text!r} is not min:typical:max; write for example 1:8:64")
        numbers = [int(part) for part in parts]
        return cls(minimum=numbers[0], typical=numbers[len(numbers) // 2], maximum=numbers[-1])


@dataclass(frozen=True, kw_only=True)
class Patches:
    """Patch geometry: pixels per patch and patches per sample, each along time, rows and columns."""

    patch: tuple[int, int, int]
    grid: tuple[int, int, int]
    prefix_tokens: int

    @property
    def count(self) -> int:
        """Number N of patches of a full sample."""
        return self.grid[0] * self.grid[1] * self.grid[2]


@dataclass(frozen=True, kw_only=True)
class Ancestor:
    """One file that this one was made from."""

    kind: str
    name: str
    sha256: str


@dataclass(frozen=True, kw_only=True)
class Verification:
    """The result of comparing the file with the one before it: relative error of the worst output, and its limit."""

    reference: str
    worst_output: str
    error: float
    limit: float
    checks: int


@dataclass(frozen=True, kw_only=True)
class Golden:
    """First values of each output for the procedural image of `mae_export.runtime.probes.golden_feeds`."""

    recipe: str
    values: dict[str, tuple[float, ...]]


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """Everything a runtime needs to know about a graph or an engine.

    Attributes:
        family: family of the checkpoint.
        encoder: the encoder spec, opaque to the runtime.
        image: how images are prepared.
        patches: patch geometry.
        mask_mode: which inputs choose what is visible.
        ragged: whether rows may keep different numbers of patches (`num_keep`).
        inputs: in order.
        outputs: in order.
        precision: of the graph's weights and activations.
        made_from: the chain of files, oldest first.
        tools: versions of the programs that wrote it.
        verification: comparison with the file before; None only before it was verified.
        golden: values to check on any machine; None only before it was verified.
        target: the GPU an engine is for; None for graphs.
        fp32_nodes: nodes of a half-precision graph that stay in float32, by name, each with the reason.
        licence: of the weights that the family's authors published; of other weights it says nothing.
        schema: version of this structure.
    """

    family: str
    encoder: dict[str, Any]
    image: ImageSpec
    patches: Patches
    mask_mode: MaskMode
    ragged: bool
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    precision: str
    made_from: tuple[Ancestor, ...]
    tools: dict[str, str] = field(default_factory=dict)
    verification: Verification | None = None
    golden: Golden | None = None
    target: dict[str, Any] | None = None
    fp32_nodes: dict[str, str] = field(default_factory=dict)
    licence: str = ""
    schema: int = SCHEMA

    def output(self, name: str) -> TensorSpec:
        """The output of that name.

        Raises:
            UsageError: when the file has no such output; the message lists those it has.
        """
        for spec in self.outputs:
            if spec.name == name:
                return spec
        names = ", ".join(spec.name for spec in self.outputs)
        raise UsageError(f"there is no output {name!r}; this file has: {names}. Others need another export --features")

    def to_json(self) -> str:
        """Serialise; the result is stable for equal manifests."""
        return json.dumps(dataclasses.asdict(self), indent=1, sort_keys=True, ensure_ascii=True, allow_nan=False)

    @classmethod
    def from_json(cls, text: str) -> Manifest:
        """Read what `to_json` wrote.

        Raises:
            InputError: when the text is not JSON, is of another schema, lacks a key, has an unknown one, or holds a
                value of the wrong type.
        """
        return read_json(text, cls, "manifest")


def read_json(text: str, kind: type[T], what: str) -> T:
    """Read a frozen dataclass from JSON, strictly.

    Raises:
        InputError: on anything but exactly the fields of `kind`.
    """
    try:
        value = json.loads(text, object_pairs_hook=_unique_keys, parse_float=_finite, parse_constant=_finite)
    except (ValueError, RecursionError) as error:
        raise InputError(f"the {what} is not valid JSON ({error}); the file is damaged or not ours") from error
    if isinstance(value, dict) and value.get("schema", SCHEMA) != SCHEMA:
        raise InputError(
            f"the {what} has schema {value['schema']!r}, this version reads {SCHEMA}; install a matching mae-export"
        )
    result: T = _decode(value, kind, what)
    return result


def _unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in pairs:
        if key in found:
            raise ValueError(f"key {key!r} appears twice")
        found[key] = value
    return found


def _finite(text: str) -> float:
    number = float(text)
    if not math.isfinite(number):
        raise ValueError(f"{text} is no finite number")
    return number


def _decode(value: Any, kind: Any, where: str) -> Any:
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if kind is Any:
        return value
    if dataclasses.is_dataclass(kind):
        return _decode_dataclass(value, kind, where)
    if origin in (typing.Union, types.UnionType):
        return _decode_union(value, arguments, where)
    if origin is Literal:
        if value not in arguments:
            raise InputError(f"{where} is {value!r}; expected one of {', '.join(map(repr, arguments))}")
        return value
    if origin is tuple:
        return _decode_tuple(value, arguments, where)
    if origin is dict:
        if not isinstance(value, dict):
            raise InputError(f"{where} is {type(value).__name__}; expected an object")
        return {key: _decode(item, arguments[1], f"{where}.{key}") for key, item in value.items()}
    return _decode_scalar(value, kind, where)


def _decode_scalar(value: Any, kind: Any, where: str) -> Any:
    if kind is float and type(value) is int and abs(value) <= MAX_EXACT:
        return float(value)
    if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
        raise InputError(f"{where} is {value!r}; expected {kind.__name__}")
    return value


def _decode_union(value: Any, kinds: tuple[Any, ...], where: str) -> Any:
    if value is None and type(None) in kinds:
        return None
    first_error: InputError | None = None
    for kind in kinds:
        if kind is type(None):
            continue
        try:
            return _decode(value, kind, where)
        except InputError as error:
            first_error = first_error or error
    raise first_error or InputError(f"{where} is {value!r}, which fits none of {kinds}")


def _decode_tuple(value: Any, kinds: tuple[Any, ...], where: str) -> Any:
    if not isinstance(value, list):
        raise InputError(f"{where} is {type(value).__name__}; expected a list")
    if len(kinds) == 2 and kinds[1] is Ellipsis:
        return tuple(_decode(item, kinds[0], f"{where}[{i}]") for i, item in enumerate(value))
    if len(value) != len(kinds):
        raise InputError(f"{where} has {len(value)} items; expected {len(kinds)}")
    return tuple(_decode(item, kind, f"{where}[{i}]") for i, (item, kind) in enumerate(zip(value, kinds, strict=True)))


def _decode_dataclass(value: Any, kind: Any, where: str) -> Any:
    if not isinstance(value, dict):
        raise InputError(f"{where} is {type(value).__name__}; expected an object")
    hints = typing.get_type_hints(kind)
    fields = {f.name: f for f in dataclasses.fields(kind)}
    for key in value:
        if key not in fields:
            near = difflib.get_close_matches(key, fields, 1)
            hint = f"; did you mean {near[0]!r}?" if near else ""
            raise InputError(f"{where} has an unknown key {key!r}{hint}")
    for name, item in fields.items():
        required = item.default is dataclasses.MISSING and item.default_factory is dataclasses.MISSING
        if required and name not in value:
            raise InputError(f"{where} lacks the key {name!r}; the file is damaged or from another version")
    return kind(**{key: _decode(item, hints[key], f"{where}.{key}") for key, item in value.items()})
