"""Reads the pickled structure of a checkpoint without building any object.

An ordinary unpickler imports and calls what the file names, which is how a checkpoint can run code. This one only
records: numbers, text, lists and dicts come back as themselves, and everything else as `Made`, a note of what the
file wanted to make from what. Nothing that the file names is imported, looked up or called. Names outside the given
table are refused all the same, because a data file has no use for them.
"""

from __future__ import annotations

import mmap
import struct
from collections.abc import Callable, Hashable
from dataclasses import dataclass, field
from pickletools import genops
from typing import IO, Any, cast

from mae_export.errors import CheckpointError, SecurityError

MAX_OPERATIONS = 3_000_000  # a training state of 3000 tensors takes 140 thousand; three million take seconds
MAX_KEY = 4096  # characters of a key
LISTED = 8  # names in one message


@dataclass(frozen=True, kw_only=True)
class Global:
    """A function or class that the file names, such as `argparse.Namespace`; never looked up."""

    name: str


@dataclass(frozen=True, kw_only=True, eq=False)
class Reference:
    """Something kept outside the pickle; `key` is the file's description of it."""

    key: Any


@dataclass(kw_only=True, eq=False)
class Made:
    """What the file wanted to make: `maker(*args)`, then filled. Filled while reading, hence not frozen.

    Attributes:
        maker: the callable.
        args: its arguments.
        items: entries set by key.
        values: entries appended.
        state: what the object's `__setstate__` or `__dict__` would have been given.
    """

    maker: Any
    args: tuple[Any, ...] = ()
    items: dict[Any, Any] = field(default_factory=dict)
    values: list[Any] = field(default_factory=list)
    state: Any = None

    @property
    def name(self) -> str:
        """Dotted name of the maker, empty when it was itself made."""
        return self.maker.name if isinstance(self.maker, Global) else ""


@dataclass(frozen=True, kw_only=True)
class Pickled:
    """One pickle: its top value and every reference in it."""

    root: Any
    references: tuple[Reference, ...]


def read_pickle(source: bytes | mmap.mmap, allowed: frozenset[str], where: str) -> Pickled:
    """Read one pickle; a mapped file is left after its end.

    Args:
        source: the pickle, or a mapped file positioned at it.
        allowed: dotted names that the file may mention.
        where: the file, for messages.

    Raises:
        SecurityError: when the file mentions other names, or is absurdly long.
        CheckpointError: when it is damaged.
    """
    machine = _Machine()
    damage: Exception | None = None
    root = None
    try:
        root = machine.run(source)
    except (ValueError, KeyError, IndexError, TypeError, OverflowError, struct.error, Warning) as error:
        damage = error  # a Warning: Python deprecates the odd escapes of damaged texts, and warnings may be errors
    refused = [name for name in machine.globals if name not in allowed]
    if refused:
        raise SecurityError(_refusal(refused, where))
    if machine.too_long:
        raise SecurityError(
            f"{where} holds a pickle of more than {MAX_OPERATIONS} operations; no checkpoint needs so many. "
            "Save only the tensors: torch.save(model.state_dict(), ...)"
        )
    if damage:
        raise CheckpointError(f"{where} holds a damaged pickle ({damage}); get the file again")
    return Pickled(root=root, references=tuple(machine.references))


def _refusal(names: list[str], where: str) -> str:
    listed = ", ".join(ascii(name)[1:-1][:100] for name in names[:LISTED])
    more = f" and {len(names) - LISTED} more" if len(names) > LISTED else ""
    what = "wants to import or run code that no checkpoint needs"
    if any(name.startswith("torch.nn.modules.") for name in names):
        what = "is a whole pickled module, not a state dict, and wants to import its code"
    return (
        f"{where} {what}: {listed}{more}. Nothing was run. If you trust its origin, load it where it was made and save "
        "the tensors alone: torch.save(model.state_dict(), 'weights.pth') or safetensors.torch.save_file(...)"
    )


class _Machine:
    """The stack, marks and memo that pickle opcodes work on."""

    def __init__(self) -> None:
        self.stack: list[Any] = []
        self.marks: list[int] = []
        self.memo: dict[int, Any] = {}
        self.globals: dict[str, None] = {}  # in the order of first mention
        self.references: list[Reference] = []
        self.too_long = False

    def run(self, source: bytes | mmap.mmap) -> Any:
        # A mapped file reads like any other, but is not declared as IO[bytes].
        for count, (opcode, argument, _) in enumerate(genops(cast("IO[bytes] | bytes", source))):
            if count >= MAX_OPERATIONS:
                self.too_long = True
                break
            name = opcode.name
            if name in _ACTIONS:
                _ACTIONS[name](self, argument)
            elif name in _EMPTY:
                self.stack.append(_EMPTY[name]())
            elif name in _IGNORED:
                continue
            elif argument is not None:  # what is left with an argument is a number, a text or bytes
                self.stack.append(argument)
            else:
                raise ValueError(f"unsupported operation {name}")
        return self.stack.pop()

    def pop_mark(self) -> list[Any]:
        start = self.marks.pop()
        items = self.stack[start:]
        del self.stack[start:]
        return items

    def mark(self, _: Any) -> None:
        self.marks.append(len(self.stack))

    def pop(self, _: Any) -> None:
        if self.marks and self.marks[-1] == len(self.stack):
            self.marks.pop()
        else:
            self.stack.pop()

    def drop(self, _: Any) -> None:
        self.pop_mark()

    def put(self, index: Any) -> None:
        self.memo[len(self.memo) if index is None else index] = self.stack[-1]

    def get(self, index: Any) -> None:
        self.stack.append(self.memo[index])

    def collect(self, kind: Callable[[list[Any]], Any]) -> None:
        self.stack.append(kind(self.pop_mark()))

    def tuple_of(self, count: int) -> None:
        items = tuple(self.stack[-count:])
        if len(items) < count:
            raise IndexError("stack is empty")
        self.stack[-count:] = [items]

    def name_global(self, name: str) -> None:
        module, _, attribute = name.partition(" ")
        module = _PYTHON_2_MODULES.get(module, module)
        self.globals.setdefault(f"{module}.{attribute}")
        self.stack.append(Global(name=f"{module}.{attribute}"))

    def stack_global(self, _: Any) -> None:
        attribute, module = self.stack.pop(), self.stack.pop()
        if not isinstance(attribute, str) or not isinstance(module, str):
            raise TypeError("a name is not text")
        self.name_global(f"{module} {attribute}")

    def extension(self, code: Any) -> None:
        self.name_global(f"copyreg extension_{code}")

    def make(self, keywords: bool) -> None:
        if keywords:
            self.stack.pop()
        args, maker = self.stack.pop(), self.stack.pop()
        if not isinstance(args, tuple) or not isinstance(maker, (Global, Made)):
            raise TypeError("something uncallable is called")
        self.stack.append(Made(maker=maker, args=args))

    def instance(self, name: Any) -> None:
        args = self.pop_mark()
        if name is None:
            maker = args.pop(0)
            self.stack.append(maker)
        else:
            self.name_global(name)
        self.stack.append(tuple(args))
        self.make(keywords=False)

    def build(self, _: Any) -> None:
        state = self.stack.pop()
        if not isinstance(self.stack[-1], Made):
            raise TypeError("a plain value is given a state")
        self.stack[-1].state = state

    def extend(self, items: list[Any]) -> None:
        target = self.stack[-1]
        if not isinstance(target, (list, Made)):
            raise TypeError("something that is no list is appended to")
        (target if isinstance(target, list) else target.values).extend(items)

    def set_items(self, items: list[Any]) -> None:
        target = self.stack[-1]
        if not isinstance(target, (dict, Made)):
            raise TypeError("something that is no dict is given items")
        (target if isinstance(target, dict) else target.items).update(_pairs(items))

    def refer(self, key: Any) -> None:
        self.references.append(Reference(key=key))
        self.stack.append(self.references[-1])


def _key(value: Any) -> Hashable:
    """Refuse keys that take long to hash or compare: a file can use one a million times."""
    if isinstance(value, (str, bytes)) and len(value) <= MAX_KEY:
        return value
    if isinstance(value, int) and value.bit_length() <= 64:
        return value
    if isinstance(value, (float, type(None), Global, Made, Reference)):
        return value
    if isinstance(value, tuple) and len(value) <= 8 and not any(isinstance(part, tuple) for part in value):
        return tuple(map(_key, value))
    raise TypeError(f"a long {type(value).__name__} is used as a key")


def _pairs(items: list[Any]) -> dict[Any, Any]:
    return {_key(key): value for key, value in zip(items[::2], items[1::2], strict=True)}


_PYTHON_2_MODULES = {"__builtin__": "builtins", "copy_reg": "copyreg"}

_IGNORED = frozenset({"PROTO", "FRAME", "STOP"})
_EMPTY: dict[str, Callable[[], Any]] = {
    "NONE": lambda: None,
    "NEWTRUE": lambda: True,
    "NEWFALSE": lambda: False,
    "EMPTY_DICT": dict,
    "EMPTY_LIST": list,
    "EMPTY_SET": list,
    "EMPTY_TUPLE": tuple,
}
_ACTIONS: dict[str, Callable[[_Machine, Any], None]] = {
    "MARK": _Machine.mark,
    "POP": _Machine.pop,
    "POP_MARK": _Machine.drop,
    "DUP": lambda machine, _: machine.stack.append(machine.stack[-1]),
    **dict.fromkeys(("PUT", "BINPUT", "LONG_BINPUT", "MEMOIZE"), _Machine.put),
    **dict.fromkeys(("GET", "BINGET", "LONG_BINGET"), _Machine.get),
    "TUPLE": lambda machine, _: machine.collect(tuple),
    "TUPLE1": lambda machine, _: machine.tuple_of(1),
    "TUPLE2": lambda machine, _: machine.tuple_of(2),
    "TUPLE3": lambda machine, _: machine.tuple_of(3),
    "LIST": lambda machine, _: machine.collect(list),
    "DICT": lambda machine, _: machine.collect(_pairs),
    "FROZENSET": lambda machine, _: machine.collect(tuple),
    "GLOBAL": _Machine.name_global,
    "STACK_GLOBAL": _Machine.stack_global,
    **dict.fromkeys(("EXT1", "EXT2", "EXT4"), _Machine.extension),
    "REDUCE": lambda machine, _: machine.make(keywords=False),
    "NEWOBJ": lambda machine, _: machine.make(keywords=False),
    "NEWOBJ_EX": lambda machine, _: machine.make(keywords=True),
    "INST": _Machine.instance,
    "OBJ": _Machine.instance,
    "BUILD": _Machine.build,
    "APPEND": lambda machine, _: machine.extend([machine.stack.pop()]),
    **dict.fromkeys(("APPENDS", "ADDITEMS"), lambda machine, _: machine.extend(machine.pop_mark())),
    "SETITEM": lambda machine, _: machine.set_items([machine.stack.pop(-2), machine.stack.pop()]),
    "SETITEMS": lambda machine, _: machine.set_items(machine.pop_mark()),
    "PERSID": _Machine.refer,
    "BINPERSID": lambda machine, _: machine.refer(machine.stack.pop()),
}
