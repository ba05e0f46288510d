"""How the lists of names beside this file were made: `python list_api_names.py tensorrt_bindings OUT.json`.

`tensorrt_11_names.json` lists the bindings of TensorRT 11.4. They import without TensorRT itself: nine functions that
they look up at once (`createInferRuntime_INTERNAL` and its like) were given as empty ones in libraries of the names
that they load. `cuda_python_names.json` holds what the lists of `cuda.bindings.runtime` of two versions share.
"""

import importlib
import importlib.metadata
import json
import sys
from pathlib import Path

DISTRIBUTIONS = {"cuda.bindings.runtime": "cuda-python"}


def names_of(module):
    """Public names, each with its own where it is a class."""
    for name in sorted(dir(module)):
        if not name.startswith("_"):
            value = getattr(module, name)
            own = getattr(value, "__members__", None) or dir(value)
            yield name, sorted(n for n in own if not n.startswith("_")) if isinstance(value, type) else []


def main(name, out):
    module = importlib.import_module(name)
    distribution = DISTRIBUTIONS.get(name)
    version = importlib.metadata.version(distribution) if distribution else module.__version__
    lines = ",\n".join(f"  {json.dumps(key)}: {json.dumps(own)}" for key, own in names_of(module))
    Path(out).write_text(f'{{\n "version": {json.dumps(version)},\n "names": {{\n{lines}\n }}\n}}\n', encoding="utf-8")


if __name__ == "__main__":
    main(*sys.argv[1:])
