import numpy as np
import pytest

from mae_export.export.islands import choose_fp32
from mae_export.export.ranges import measure

IMAGES = {"images": np.array([[1, 2, 3, 250]], np.uint8)}


@pytest.fixture
def chosen(model_of, tmp_path):
    """Choose islands of a small model whose input is behind an embedding: `a` is [1, 4] with values 1, 2, 3, 250."""

    def choose(nodes, weights, half="fp16", headroom=4.0):
        start = [
            ("pixels", "Cast", ["images"], ["f"], {"to": 1}),
            ("embed", "MatMul", ["f", "eye"], ["e"], {}),
            ("bias", "Add", ["e", "zero"], ["a"], {}),
        ]
        weights = {"eye": np.eye(4, dtype=np.float32), "zero": np.zeros(4, np.float32)} | weights

        def build():
            return model_of([*start, *nodes], weights=weights, inputs={"images": [1, 4]})

        ranges, _ = measure(build(), tmp_path / "m.onnx", [IMAGES])
        return choose_fp32(build(), ranges, half=half, headroom=headroom)

    return choose


START = {"pixels": "stands between float32 nodes", "embed": "embeds raw pixels", "bias": "embeds raw pixels"}


@pytest.mark.parametrize(
    ("factor", "headroom", "kept"),
    [(65, 4.0, False), (66, 4.0, True), (66, 3.9, False), (262, 1.0, False), (263, 1.0, True)],
)
def test_headroom_decides_at_the_exact_value(chosen, factor, headroom, kept):
    """250 * 65 * 4 = 65000 fits into 65504 and 250 * 66 * 4 = 66000 does not."""
    nodes = [("large", "Mul", ["a", "k"], ["l"], {}), ("down", "Mul", ["l", "tiny"], ["m"], {}),
             ("end", "MatMul", ["m", "eye"], ["y"], {})]  # fmt: skip
    weights = {"k": np.array(factor, np.float32), "tiny": np.array(2**-10, np.float32)}
    found = chosen(nodes, weights, headroom=headroom)
    reason = f"l reaches {250 * factor:.3g}"
    assert found == START | ({"large": reason, "down": reason} if kept else {})


def test_bf16_never_overflows(chosen):
    weights = {"k": np.array(1e9, np.float32)}
    nodes = [("large", "Mul", ["a", "k"], ["l"], {}), ("end", "MatMul", ["l", "eye"], ["y"], {})]
    assert chosen(nodes, weights, half="bf16") == START
    assert "large" in chosen(nodes, weights)


@pytest.mark.parametrize("half", ["fp16", "bf16"])
def test_convolutions_are_no_bf16(chosen, half):
    """`Conv` of operator set 11, which graphs of opset 20 have, takes float16 and wider only."""
    weights = {"map": np.array([1, 1, 2, 2]), "kernel": np.ones((1, 1, 1, 1), np.float32)}
    nodes = [("flat", "Reshape", ["a", "map"], ["m"], {}), ("conv", "Conv", ["m", "kernel"], ["y"], {})]
    reason = "ONNX has no bf16 convolution before operator set 22"
    assert chosen(nodes, weights, half=half).get("conv") == (reason if half == "bf16" else None)


@pytest.mark.parametrize(("weight", "kept"), [(131.0, False), (132.0, True)])
def test_running_sums_of_a_convolution_are_bounded(chosen, weight, kept):
    """The sum is near zero; on the way it may reach 250 * (w + w), which fits below w = 131.008."""
    weights = {"map": np.array([1, 1, 1, 4]), "kernel": np.array([[[[weight, -weight]]]], np.float32)}
    nodes = [("flat", "Reshape", ["a", "map"], ["m"], {}), ("conv", "Conv", ["m", "kernel"], ["c"], {}),
             ("down", "Mul", ["c", "tiny"], ["y"], {})]  # fmt: skip
    weights["tiny"] = np.array(2**-10, np.float32)
    found = chosen(nodes, weights, headroom=1.0)
    assert found.get("conv") == (f"running sums reach {500 * weight:.3g}" if kept else None)


def test_what_is_infinite_in_float32_is_kept(chosen):
    nodes = [("large", "Div", ["a", "zero"], ["l"], {}), ("end", "Tanh", ["l"], ["y"], {})]
    assert chosen(nodes, {}, half="bf16")["large"] == "l reaches inf"


def test_exact_constants_need_no_headroom(chosen):
    """An attention mask of -3e4 is far above 65504 / 4, but no image can change it."""
    nodes = [
        ("test", "Greater", ["f", "one"], ["t"], {}),
        ("mask", "Where", ["t", "none", "masked"], ["m"], {}),
        ("wide", "Unsqueeze", ["m", "axis"], ["w"], {}),
        ("logits", "Add", ["a", "w"], ["l"], {}),
        ("softmax", "Softmax", ["l"], ["y"], {}),
    ]
    weights = {"one": np.float32(1), "none": np.float32(0), "axis": np.array([0])}
    found = chosen(nodes, weights | {"masked": np.float32(-3e4)})
    assert not {"mask", "wide", "logits", "softmax"} & found.keys()
    found = chosen(nodes, weights | {"masked": np.float32(-64600)})  # 64600 + 4 * 250 > 65504
    assert {"logits", "softmax"} <= found.keys()
    assert "mask" not in found


def test_running_sums_that_cancel_in_the_end_are_kept(chosen):
    """The sum is zero, but half of it is 64000 and the bound of any part of it 128000."""
    nodes = [
        ("all", "Expand", ["row", "shape"], ["x"], {}),
        ("product", "MatMul", ["x", "big"], ["p"], {}),
        ("next", "MatMul", ["p", "one"], ["n"], {}),
        ("end", "Neg", ["n"], ["y"], {}),
    ]
    row = np.array([[16000, 16000, -16000, -16000]], np.float32)
    weights = {
        "big": np.full((4, 1), 2, np.float32),
        "row": row,
        "shape": np.array([1, 4]),
        "one": np.ones((1, 1), np.float32),
    }
    found = chosen(nodes, weights)  # |row| * |column| = 32000 * 4 = 128000
    assert found["product"] == "running sums reach 1.28e+05"
    assert not {"next", "end"} & found.keys()
    assert "product" not in chosen(nodes, weights | {"big": weights["big"] / 2})


def test_weights_that_half_precision_cannot_hold_are_kept(chosen):
    nodes = [("scale", "Mul", ["a", "k"], ["s"], {}), ("end", "MatMul", ["s", "eye"], ["y"], {})]
    fine = np.array([1, 2, 3, 1e-7], np.float32)  # one of them is lost, which is nothing beside the others
    assert chosen(nodes, {"k": fine}) == START
    tiny = fine * np.float32(1e-7)
    assert chosen(nodes, {"k": tiny}) == START | {"scale": "k loses precision in fp16"}
    assert chosen(nodes, {"k": tiny}, half="bf16") == START
    assert chosen(nodes, {"k": np.array([1, 1, 1, 7e4], np.float32)})["scale"] == "k reaches 7e+04"


def test_sums_and_what_stands_between_are_kept(chosen):
    nodes = [
        ("up", "Neg", ["a"], ["n"], {}),
        ("sum", "ReduceSum", ["n", "axis"], ["s"], {"keepdims": 1}),
        ("mean", "ReduceMean", ["n", "axis"], ["m"], {"keepdims": 1}),
        ("ratio", "Div", ["s", "m"], ["r"], {}),
        ("squeeze", "Squeeze", ["r", "axis"], ["q"], {}),
        ("last", "Exp", ["q"], ["y"], {}),
    ]
    between = "stands between float32 nodes"
    assert chosen(nodes, {"axis": np.array([1])}) == START | {
        "up": between,
        "sum": "sums over tokens",
        "mean": "sums over tokens",
        "ratio": between,
        "squeeze": between,
        "last": between,
    }
