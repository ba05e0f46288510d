"""Which of the dicts in a checkpoint are the weights, what their tensors are called, and what else is worth keeping.

A dict is a candidate when it holds a matrix: optimiser state, scaler state, running statistics and random state hold
none or lie under a name that says what they are. Of several candidates one is taken only where all others are its
known companions, such as an average beside the weights it was made of; anything else is the user's choice, never ours.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from mae_export.encoders.pickled import Global, Made
from mae_export.encoders.stored import StoredTensor
from mae_export.errors import LayoutError, SecurityError

MAX_DEPTH = 3  # dicts around the weights
MAX_TENSORS = 100_000
MAX_VALUES = 20_000  # in the metadata of one checkpoint
LISTED = 8  # names in one message
MAX_WRAPPERS = 8  # one in another; published files have two
WRAPPERS = ("module.", "_orig_mod.", "model.", "encoder.", "backbone.")
# What authors save beside the weights that their own evaluation reads: averages, and the other halves of I-JEPA.
COMPANIONS = {
    "model": {"model_ema", "model/_ema"},
    "module": {"model_ema", "module_ema"},
    "state_dict": {"ema_state_dict"},
    "target_encoder": {"encoder", "predictor"},
}
# Whose tokens another container's weights predict from: chosen, it brings those along, under their container's name.
PREDICTORS = {"encoder": "predictor"}
_TRAINING_STATE = re.compile(r"optim|sched|scaler|rng|^opt$|^amp$")


@dataclass(frozen=True, kw_only=True)
class StateDict:
    """The weights of a checkpoint, described.

    Attributes:
        container: path of keys to where they were found, joined by "/"; "" at the top level.
        tensors: by name, without wrapper prefixes; those of its predictor, where there is one, as `predictor.NAME`.
        stripped: the prefixes that were removed, outermost first.
        metadata: plain tables found beside the weights or among them, by key.
        notes: what was left aside.
    """

    container: str
    tensors: dict[str, StoredTensor]
    stripped: tuple[str, ...]
    metadata: dict[str, Any]
    notes: tuple[str, ...]


def choose(root: Any, *, weights: str | None, where: str) -> StateDict:
    """Find the weights in what was saved.

    Args:
        root: what was saved, with a StoredTensor for each tensor.
        weights: the container to use; None when there is no choice.
        where: the file, for messages.

    Raises:
        LayoutError: when there are no weights, several candidates and no choice, or no container of that name.
        SecurityError: when there are absurdly many tensors.
    """
    containers = _containers(root) if isinstance(root, dict) else {}
    container, left = _only(containers, weights, where)
    chosen = containers[container]
    predictor = PREDICTORS.get(container)
    tensors = _tensors(chosen)
    predicting = {} if predictor is None else _tensors(containers.get(predictor, {}))
    if len(tensors) + len(predicting) > MAX_TENSORS:
        found = len(tensors) + len(predicting)
        raise SecurityError(f"{where} holds {found} tensors; expected at most {MAX_TENSORS}")
    named, stripped = _strip(tensors)
    named |= {f"{predictor}.{name}": tensor for name, tensor in _strip(predicting)[0].items()}
    metadata = _metadata(root, "", containers) | _metadata(chosen, container and f"{container}/", containers)
    taken = {container.split("/")[0], *({predictor} if predicting else ())}
    beside = [key for key in (*root, *chosen) if key not in taken and key not in tensors]
    unused = [key for key in dict.fromkeys(beside) if key not in metadata and key not in map(_last, left)]
    notes = (f"not used: {_listed(unused)}",) if unused else ()
    if left:
        others = f"{_listed(left)}; --set weights=NAME takes another"
        notes = (f"the weights are those under {container!r}, which its authors use; beside them are {others}", *notes)
    return StateDict(container=container, tensors=named, stripped=stripped, metadata=metadata, notes=notes)


def _containers(root: dict[Any, Any]) -> dict[str, dict[Any, Any]]:
    """Every dict that holds tensors under text keys, by its path; training state left out."""
    found: dict[str, dict[Any, Any]] = {}
    seen: set[int] = set()
    waiting: list[tuple[tuple[str, ...], dict[Any, Any]]] = [((), root)]
    for path, table in waiting:  # grows while it is walked, nearest first
        if id(table) in seen:
            continue
        seen.add(id(table))
        texts = {key: value for key, value in table.items() if isinstance(key, str)}
        if any(isinstance(value, StoredTensor) for value in texts.values()):
            found["/".join(path)] = texts
        if len(path) < MAX_DEPTH:
            inner = ((key, value) for key, value in texts.items() if isinstance(value, dict))
            waiting += [((*path, key), value) for key, value in inner if not _TRAINING_STATE.search(key)]
    return found


def _only(containers: dict[str, dict[Any, Any]], weights: str | None, where: str) -> tuple[str, tuple[str, ...]]:
    """The path of the container to use, and its companions, which were left."""
    candidates = [path for path, table in containers.items() if any(map(_is_matrix, table.values()))]
    shown = ", ".join(f"{path!r} ({len(containers[path])} entries)" for path in candidates[:LISTED])
    if weights is not None:
        if weights not in containers:
            raise LayoutError(f"{where} holds no weights named {weights!r}; it holds {shown or 'none'}")
        return weights, ()
    if not candidates:
        raise LayoutError(f"{where} holds no weights: expected a dict from names to tensors, as state_dict() gives")
    for path in candidates:
        others = [other for other in candidates if other != path]
        if COMPANIONS.get(path, set()).issuperset(others):
            return path, tuple(others)
    raise LayoutError(
        f"{where} holds {len(candidates)} sets of weights: {shown}. Choose one with --set weights=NAME, "
        f"for example --set weights={candidates[0]}"
    )


def _tensors(table: dict[Any, Any]) -> dict[str, StoredTensor]:
    return {name: value for name, value in table.items() if isinstance(value, StoredTensor)}


def _last(path: str) -> str:
    return path.rpartition("/")[2]


def _is_matrix(value: Any) -> bool:
    return isinstance(value, StoredTensor) and (len(value.shape) >= 2 or value.unreadable != "")


def _strip(tensors: dict[str, StoredTensor]) -> tuple[dict[str, StoredTensor], tuple[str, ...]]:
    """Remove prefixes that every name carries."""
    stripped: list[str] = []
    for _ in range(MAX_WRAPPERS):
        prefix = next((p for p in WRAPPERS if all(n.startswith(p) and len(n) > len(p) for n in tensors)), "")
        if not prefix:
            break
        tensors = {name.removeprefix(prefix): tensor for name, tensor in tensors.items()}
        stripped.append(prefix)
    return tensors, tuple(stripped)


def _listed(keys: Iterable[Any]) -> str:
    names = [repr(key) if isinstance(key, (str, int, float)) else type(key).__name__ for key in keys]
    more = f" and {len(names) - LISTED} more" if len(names) > LISTED else ""
    return ", ".join(names[:LISTED]) + more


def _metadata(table: dict[Any, Any], prefix: str, containers: Iterable[str]) -> dict[str, Any]:
    """The plain tables among the entries of `table`, such as `args` and `config`; `prefix` is the path to it."""
    plain = _Plain()
    inner = {path.removeprefix(prefix).split("/")[0] for path in containers if path.startswith(prefix)}
    found = {}
    for key, value in table.items():
        if not isinstance(key, str) or _TRAINING_STATE.search(key):
            continue
        if isinstance(value, (dict, Made)) and key not in inner:
            entry = plain.value(value, 0)
            if isinstance(entry, dict) and entry:
                found[key] = entry
    return found


@dataclass
class _Plain:
    """Turns what a pickle recorded into plain data, up to a number of values: shared parts would multiply."""

    left: int = field(default=MAX_VALUES)

    def value(self, value: Any, depth: int) -> Any:
        self.left -= 1
        if self.left < 0 or depth > 12:
            return "..."
        if value is None or isinstance(value, (bool, float, str)):
            return value
        if isinstance(value, int):
            return value if abs(value) < 2**63 else "..."
        if isinstance(value, (list, tuple)):
            return [self.value(item, depth + 1) for item in value]
        if isinstance(value, dict):
            keys = [key for key in value if isinstance(key, (str, int, float))]
            return {str(key): self.value(value[key], depth + 1) for key in keys}
        return self._made(value, depth) if isinstance(value, Made) else _marker(value)

    def _made(self, made: Made, depth: int) -> Any:
        fields = made.items or made.state
        if isinstance(fields, dict) and fields:
            for inside in ("_content", "_val"):  # omegaconf's containers and values
                if inside in fields:
                    return self.value(fields[inside], depth + 1)
            return self.value(fields, depth)
        if made.name.startswith("pathlib."):
            return "/".join(str(part) for part in made.args).replace("//", "/", 1)
        if made.name == "builtins.set" and made.args:
            return self.value(made.args[0], depth + 1)
        return _marker(made)


def _marker(value: Any) -> str:
    if isinstance(value, StoredTensor):
        return "<tensor>"
    return f"<{value.name if isinstance(value, (Global, Made)) else type(value).__name__}>"
