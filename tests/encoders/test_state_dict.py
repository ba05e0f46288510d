"""Which dict holds the weights: nested, several, wrapped, beside training state."""

from __future__ import annotations

import mmap
from typing import Any

import pytest
import torch

from mae_export.encoders.pickled import Global, Made
from mae_export.encoders.state_dict import choose
from mae_export.encoders.stored import StoredTensor
from mae_export.errors import LayoutError, SecurityError

DATA = mmap.mmap(-1, 64)


def matrix(*shape: int) -> StoredTensor:
    return StoredTensor(
        data=DATA, dtype=torch.float32, nbytes=64, shape=shape or (2, 2), stride=(1,) * len(shape or "xx")
    )


def state(prefix: str = "") -> dict[str, Any]:
    return {f"{prefix}blocks.0.weight": matrix(), f"{prefix}norm.bias": matrix(2)}


def made(name: str, **fields: Any) -> Made:
    return Made(maker=Global(name=name), **fields)


@pytest.mark.parametrize("names", [(), ("model",), ("module",), ("model_state",), ("a", "b"), ("a", "b", "teacher")])
def test_weights_are_found_at_any_depth_up_to_three(names: tuple[str, ...]) -> None:
    root: Any = state()
    for name in reversed(names):
        root = {name: root, "epoch": 3}
    found = choose(root, weights=None, where="x.pth")
    assert found.container == "/".join(names)
    assert list(found.tensors) == ["blocks.0.weight", "norm.bias"]


def test_a_context_encoder_brings_its_predictor() -> None:
    root = {"encoder": state("module."), "predictor": state("module.predictor_"), "target_encoder": state("module.")}
    found = choose(root | {"epoch": 3}, weights="encoder", where="x.pth")
    assert (found.container, found.stripped) == ("encoder", ("module.",))
    assert list(found.tensors) == [
        "blocks.0.weight",
        "norm.bias",
        "predictor.predictor_blocks.0.weight",
        "predictor.predictor_norm.bias",
    ]
    assert found.notes == ("not used: 'target_encoder', 'epoch'",)


@pytest.mark.parametrize("weights", ["target_encoder", None])
def test_any_other_encoder_does_not(weights: str | None) -> None:
    root = {"encoder": state(), "predictor": state("predictor_"), "target_encoder": state()}
    assert list(choose(root, weights=weights, where="x.pth").tensors) == ["blocks.0.weight", "norm.bias"]
    alone = choose({"encoder": state()}, weights=weights and "encoder", where="x.pth")
    assert list(alone.tensors) == ["blocks.0.weight", "norm.bias"]


def test_four_dicts_deep_is_too_deep() -> None:
    with pytest.raises(LayoutError, match="holds no weights"):
        choose({"a": {"b": {"c": {"d": state()}}}}, weights=None, where="x.pth")


@pytest.mark.parametrize(
    "name", ["optimizer", "optim", "opt", "lr_scheduler", "scaler", "loss_scaler", "cuda_rng_state"]
)
def test_training_state_is_no_candidate(name: str) -> None:
    root = {"model": state(), name: {"state": {"blocks.0.weight": matrix()}, "matrix": matrix()}}
    assert choose(root, weights=None, where="x.pth").container == "model"


def test_optimiser_state_by_number_and_small_tensors_are_no_candidates() -> None:
    root = {
        "model": state(),
        "adam": {"state": {0: {"exp_avg": matrix()}}},  # kept as metadata
        "stats": {"mean": matrix(3)},
        "step": matrix(1),
    }
    found = choose(root, weights=None, where="x.pth")
    assert found.container == "model"
    assert found.notes == ("not used: 'stats', 'step'",)


def test_a_text_called_model_is_no_candidate() -> None:
    root = {"model": "mae_vit_base_patch16", "state_dict": state("module.")}
    found = choose(root, weights=None, where="x.pth")
    assert (found.container, found.stripped) == ("state_dict", ("module.",))


def test_one_dict_under_two_names_is_one_candidate() -> None:
    shared = state()
    assert choose({"model": shared, "module": shared}, weights=None, where="x.pth").container == "model"


# What authors save beside the weights that they use themselves: (what is saved, which is taken, what is left).
KNOWN = [
    ({"model": state(), "model_ema": state()}, "model", "'model_ema'"),
    ({"model": {**state(), "_ema": state()}}, "model", "'model/_ema'"),
    ({"module": state("module."), "model_ema": state()}, "module", "'model_ema'"),
    ({"state_dict": state("module."), "ema_state_dict": state(), "model": "vit"}, "state_dict", "'ema_state_dict'"),
    (
        {"encoder": state(), "predictor": state(), "target_encoder": state()},
        "target_encoder",
        "'encoder', 'predictor'",
    ),
]


@pytest.mark.parametrize(("root", "taken", "left"), KNOWN)
def test_of_known_companions_the_authors_choice_is_taken_and_said(root: dict[str, Any], taken: str, left: str) -> None:
    found = choose(root, weights=None, where="x.pth")
    assert (found.container, list(found.tensors)) == (taken, ["blocks.0.weight", "norm.bias"])
    assert found.notes[0] == (
        f"the weights are those under {taken!r}, which its authors use; beside them are {left}; "
        "--set weights=NAME takes another"
    )
    assert found.notes[1:] in ((), ("not used: 'model'",))
    assert choose(dict(reversed(root.items())), weights=None, where="x.pth").container == taken


def test_a_companion_can_be_chosen() -> None:
    root = {"model": {**state(), "_ema": state()}}
    plain = choose(root, weights="model", where="x.pth")
    assert list(plain.tensors) == ["blocks.0.weight", "norm.bias"]
    assert plain.metadata == {}
    assert plain.notes == ("not used: '_ema'",)
    assert choose(root, weights="model/_ema", where="x.pth").container == "model/_ema"


@pytest.mark.parametrize(
    "names",
    [
        ("model", "state_dict"),
        ("model", "model_ema", "student"),
        ("encoder", "predictor"),
        ("model_ema", "ema_state_dict"),
        ("target_encoder", "model"),
    ],
)
def test_any_other_company_is_the_users_choice(names: tuple[str, ...]) -> None:
    root = {name: state() for name in names}
    shown = ", ".join(f"'{name}' (2 entries)" for name in names)
    with pytest.raises(LayoutError) as caught:
        choose(root, weights=None, where="x.pth")
    assert str(caught.value) == (
        f"x.pth holds {len(names)} sets of weights: {shown}. Choose one with --set weights=NAME, for example --set "
        f"weights={names[0]}"
    )


def test_unknown_name_lists_the_known_ones() -> None:
    with pytest.raises(LayoutError, match=r"no weights named 'ema'; it holds 'model' \(2 entries\)"):
        choose({"model": state()}, weights="ema", where="x.pth")


@pytest.mark.parametrize(
    ("prefixes", "stripped"),
    [
        (("module.",), ("module.",)),
        (("_orig_mod.", "module."), ("_orig_mod.", "module.")),
        (("model.", "encoder."), ("model.", "encoder.")),
        (("backbone.",), ("backbone.",)),
        (("visual.",), ()),
    ],
)
def test_wrapper_prefixes(prefixes: tuple[str, ...], stripped: tuple[str, ...]) -> None:
    prefix = "".join(prefixes)
    found = choose(state(prefix), weights=None, where="x.pth")
    kept = prefix.removeprefix("".join(stripped))
    assert found.stripped == stripped
    assert list(found.tensors) == [f"{kept}blocks.0.weight", f"{kept}norm.bias"]


def test_prefixes_stay_unless_every_name_has_them() -> None:
    root = {**state("encoder."), "decoder.weight": matrix()}
    found = choose(root, weights=None, where="x.pth")
    assert found.stripped == ()
    assert set(found.tensors) == set(root)


def test_prefixes_without_end_are_stripped_eight_times() -> None:
    found = choose(state("module." * 500), weights=None, where="x.pth")
    assert found.stripped == ("module.",) * 8


def test_a_name_is_never_stripped_to_nothing() -> None:
    assert list(choose({"model.": matrix()}, weights=None, where="x.pth").tensors) == ["model."]


def test_metadata_is_plain() -> None:
    config = made("yacs.config.CfgNode", items={"MODEL": made("yacs.config.CfgNode", items={"TYPE": "swin"})})
    args = made("argparse.Namespace", state={"lr": 0.1, "out": made("pathlib.PosixPath", args=("/", "tmp", "x"))})
    value = made("omegaconf.nodes.AnyNode", state={"_val": 3, "_metadata": None})
    conf = made("omegaconf.dictconfig.DictConfig", state={"_content": {"depth": value}, "_metadata": 0})
    others = {
        "kinds": made("builtins.set", args=([1],)),
        "dtype": Global(name="torch.float16"),
        "big": 2**70,
        "w": [matrix()],
    }
    others |= {"raw": b"x", "pair": (1, None), 3: "three", "history": made("numpy.ndarray")}
    root = {"model": state(), "config": config, "args": args, "cfg": conf, "others": others, "optimizer": {"lr": 1}}
    assert choose(root, weights=None, where="x.pth").metadata == {
        "config": {"MODEL": {"TYPE": "swin"}},
        "args": {"lr": 0.1, "out": "/tmp/x"},
        "cfg": {"depth": 3},
        "others": {
            "kinds": [1],
            "dtype": "<torch.float16>",
            "big": "...",
            "w": ["<tensor>"],
            "raw": "<bytes>",
            "pair": [1, None],
            "3": "three",
            "history": "<numpy.ndarray>",
        },
    }


def test_a_table_among_the_weights_is_metadata() -> None:
    found = choose({"module": {**state(), "config": {"sbn": True}}, "args": "x"}, weights=None, where="x.pth")
    assert found.metadata == {"config": {"sbn": True}}
    assert found.notes == ("not used: 'args'",)


def test_absurdly_many_tensors() -> None:
    tensor = matrix()
    with pytest.raises(SecurityError, match="holds 100001 tensors"):
        choose({f"t{index}": tensor for index in range(100_001)}, weights=None, where="x.pth")


@pytest.mark.parametrize("root", [None, 3, [matrix()], {}, {"a": 1}, {0: matrix()}])
def test_no_weights(root: Any) -> None:
    with pytest.raises(LayoutError, match="expected a dict from names to tensors"):
        choose(root, weights=None, where="x.pth")
