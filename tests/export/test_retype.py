import numpy as np
import onnx_ir as ir
import pytest

from mae_export.errors import GraphError
from mae_export.export.retype import retype

F32, F16, BF16 = ir.DataType.FLOAT, ir.DataType.FLOAT16, ir.DataType.BFLOAT16
CHAIN = [
    ("pixels", "Cast", ["images"], ["f"], {"to": 1}),
    ("first", "MatMul", ["f", "w"], ["a"], {}),
    ("second", "Add", ["a", "b"], ["c"], {}),
    ("third", "Mul", ["c", "b"], ["d"], {}),
    ("fourth", "Sub", ["d", "c"], ["y"], {}),
]
WEIGHTS = {"w": np.eye(3, dtype=np.float32), "b": np.array([1, 2, 3], np.float32)}


@pytest.fixture
def chain(model_of):
    return model_of(CHAIN, weights=WEIGHTS, inputs={"images": [2, 3]}, outputs=("y", "c"))


def casts(model):
    return [
        (node.name, node.inputs[0].name, node.inputs[0].dtype, node.outputs[0].name, node.outputs[0].dtype)
        for node in model.graph
        if node.op_type == "Cast"
    ]


@pytest.mark.parametrize(("half", "dtype"), [("fp16", F16), ("bf16", BF16)])
def test_without_islands_only_the_ends_are_cast(chain, half, dtype):
    retype(chain, half, ())
    assert casts(chain) == [
        ("pixels", "images", ir.DataType.UINT8, "f", dtype),
        (f"second_{half}".replace(half, "fp32"), f"c_{half}", dtype, "c", F32),
        ("fourth_fp32", f"y_{half}", dtype, "y", F32),
    ]
    assert [(value.name, value.dtype) for value in chain.graph.outputs] == [("y", F32), ("c", F32)]
    assert {value.dtype for value in chain.graph.initializers.values()} == {dtype}  # the float32 ones are gone


def test_an_island_is_cast_once_at_each_shore(chain):
    retype(chain, "fp16", {"second", "third"})
    assert [(name, source, target) for name, source, _, target, _ in casts(chain)] == [
        ("pixels", "images", "f"),
        ("first_fp32", "a", "a_fp32"),
        ("second_fp16", "c", "c_fp16"),  # for the last node; the output `c` is float32 already
        ("third_fp16", "d", "d_fp16"),
        ("fourth_fp32", "y_fp16", "y"),
    ]
    types = {node.name: node.outputs[0].dtype for node in chain.graph}
    assert [types[name] for name in ("first", "second", "third", "fourth")] == [F16, F32, F32, F16]
    assert {name: value.dtype for name, value in chain.graph.initializers.items()} == {"w_fp16": F16, "b": F32}


def test_weights_used_in_both_types_exist_twice(chain):
    retype(chain, "fp16", {"third"})
    kept = {name: value.const_value.numpy() for name, value in chain.graph.initializers.items()}
    assert {name: array.dtype for name, array in kept.items()} == {
        "w_fp16": np.float16,
        "b": np.float32,
        "b_fp16": np.float16,
    }
    np.testing.assert_array_equal(kept["b_fp16"], kept["b"])


def test_integers_become_either_type_directly(model_of):
    model = model_of(
        [
            ("pixels", "Cast", ["images"], ["f"], {"to": 1}),
            ("half", "Neg", ["f"], ["y"], {}),
            ("single", "Abs", ["f"], ["z"], {}),
        ],
        inputs={"images": [2, 3]},
        outputs=("y", "z"),
    )
    retype(model, "fp16", {"single"})
    assert casts(model)[:2] == [
        ("pixels", "images", ir.DataType.UINT8, "f", F16),
        ("pixels_fp32", "images", ir.DataType.UINT8, "f_fp32", F32),
    ]


def test_shapes_are_taken_of_any_type(model_of):
    model = model_of(
        [
            ("pixels", "Cast", ["images"], ["f"], {"to": 1}),
            ("shape", "Shape", ["f"], ["s"], {}),
            ("back", "Expand", ["f", "s"], ["y"], {}),
        ],
        inputs={"images": [2, 3]},
    )
    retype(model, "fp16", ())
    assert len(casts(model)) == 2
    assert next(node for node in model.graph if node.op_type == "Shape").inputs[0].dtype == F16


def test_other_graphs_are_refused(model_of):
    half = model_of(CHAIN, weights=WEIGHTS, inputs={"images": [2, 3]})
    retype(half, "fp16", ())
    with pytest.raises(GraphError, match=r"tensor '\w+' has type FLOAT16; expected a float32 graph"):
        retype(half, "fp16", ())
    untyped = model_of(CHAIN, weights=WEIGHTS, inputs={"images": [2, 3]})
    next(iter(untyped.graph)).outputs[0].type = None
    with pytest.raises(GraphError, match="tensor 'f' has no type; expected a float32 graph"):
        retype(untyped, "fp16", ())
    floats = model_of([("n", "Neg", ["x"], ["y"], {})], inputs={"x": [2]})
    with pytest.raises(GraphError, match="input 'x' is FLOAT; expected integer inputs"):
        retype(floats, "fp16", ())
