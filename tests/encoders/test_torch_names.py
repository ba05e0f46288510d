"""The table of names that a torch file may mention: all that torch writes for tensors, nothing that runs code."""

from __future__ import annotations

import argparse
import collections
import enum
import io
import pathlib
import pickletools
import zipfile
from typing import Any

import numpy as np
import pytest
import torch

from mae_export.encoders.torch_names import ALLOWED, DTYPES, STORAGE_DTYPES


def names(value: Any) -> set[str]:
    """Dotted names in what torch.save writes for `value`."""
    buffer = io.BytesIO()
    torch.save(value, buffer)
    with zipfile.ZipFile(buffer) as archive:
        operations = pickletools.genops(archive.read("archive/data.pkl"))
        found = {str(argument) for opcode, argument, _ in operations if opcode.name == "GLOBAL"}
    return {name.replace("__builtin__", "builtins").replace(" ", ".", 1) for name in found}


VALUES = {
    "parameter": torch.nn.Parameter(torch.ones(1)),
    "namespace": argparse.Namespace(a=1),
    "ordered": collections.OrderedDict(a=1),
    "defaultdict of lists": collections.defaultdict(list),
    "defaultdict of numbers": collections.defaultdict(int),
    "counter": collections.Counter("a"),
    "set": {1},
    "bytes": b"a",
    "path": pathlib.PurePosixPath("a"),
    "array": np.ones(3),
    "scalar": np.float64(1),
    "dtype": torch.float16,
    "size": torch.Size([1]),
    "device": torch.device("cpu"),
    "sparse": torch.eye(2).to_sparse(),
    "meta": torch.ones(1, device="meta"),
}


@pytest.mark.parametrize("value", VALUES.values(), ids=list(VALUES))
def test_what_training_scripts_save_is_allowed(value: Any) -> None:
    assert names(value) <= ALLOWED


@pytest.mark.parametrize(
    "dtype",
    [torch.float32, torch.float64, torch.float16, torch.bfloat16, torch.int64, torch.uint8, torch.bool, torch.uint16],
)
def test_storage_names_give_the_type_that_torch_means(dtype: torch.dtype) -> None:
    mentioned = names(torch.zeros(1, dtype=dtype))
    assert mentioned <= ALLOWED
    kinds = {STORAGE_DTYPES.get(name) for name in mentioned} | {DTYPES.get(name) for name in mentioned}
    assert dtype in kinds


def test_both_spellings_of_numpy() -> None:
    assert {"numpy.core.multiarray._reconstruct", "numpy._core.multiarray._reconstruct"} <= ALLOWED


def test_nothing_that_runs_code_is_allowed() -> None:
    modules = ("os", "posix", "nt", "sys", "subprocess", "runpy", "importlib", "pkgutil", "pickle", "torch.nn.modules")
    assert not [name for name in ALLOWED if name.startswith(tuple(f"{module}." for module in modules))]
    assert not {"builtins.eval", "builtins.exec", "builtins.compile", "builtins.open", "builtins.__import__"} & ALLOWED


def test_a_class_of_ones_own_is_not_allowed() -> None:
    class Colour(enum.Enum):
        RED = 1

    Colour.__qualname__ = "Colour"
    globals()["Colour"] = Colour
    assert not names(Colour.RED) <= ALLOWED
