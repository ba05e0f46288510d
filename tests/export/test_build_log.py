"""Reading the builder's list of layers, in the form in which the builder prints it."""

import pytest

from mae_export.export.build_log import parse_build_log


def tensors(*items):
    return ", ".join(
        f"{{ Name: t, Dimensions: [{shape}], Strides: [3,1], StrideOrder: [1,0], Datatype: {dtype}, "
        "Format: (Arbitrary) Format with stride order = [1,2,0] }"
        for shape, dtype in items
    )


def layer(name, kind, *, inputs=(), constants=(), outputs=(), nodes=()):
    return (
        f"Name: {name}, LayerType: {kind}, Inputs: [ {tensors(*inputs)}], Constants: [ {tensors(*constants)}], "
        f"Outputs: [ {tensors(*outputs)}], TacticName: x, StreamId: 0, Metadata: "
        + "".join(f"[ONNX Layer: {node}]" for node in nodes)
    )


GEMM = layer(
    "__myl_FcAdd_myl0_2",
    "runtime_fusion",
    inputs=[("-1,192", "Half")],
    constants=[("1,48", "Half"), ("192,48", "Half")],
    outputs=[("-1,48", "Half")],
    nodes=["view/MatMul_5", "view/Add_6"],
)
MHA = layer(
    "_gemm_mha_v2_myl0_6",
    "kgen",
    inputs=[("-1,65,16", "Half")] * 3,
    outputs=[("-1,65,16", "Int8")],
    nodes=["blocks.0.attn/MatMul_35"],
)
SHAPES = "Name: __mye9_myl0_0, LayerType: shape_call, Inputs: [], Constants: [], Outputs: [], TacticName: , Metadata: "
LOG = f"""Total Activation Memory: 8641536 bytes
Total Activation Memory: 120 bytes
Total Weights Memory: 139104 bytes
Layers:
{SHAPES}
{GEMM}
{MHA}

I/O Tensors:
 Name: images, IOMode: Input, DataType: UInt8, Dimensions: [-1,64,64,3]
"""


def test_layers_and_memory():
    log = parse_build_log(LOG)
    assert [found.name for found in log.layers] == ["__mye9_myl0_0", "__myl_FcAdd_myl0_2", "_gemm_mha_v2_myl0_6"]
    assert [found.kind for found in log.layers] == ["shape_call", "runtime_fusion", "kgen"]
    assert (log.activation_bytes, log.weights_bytes) == ((8641536, 120), 139104)
    shapes, gemm, mha = log.layers
    assert (shapes.inputs, shapes.constants, shapes.nodes, shapes.weight) == ((), (), (), None)
    assert gemm.nodes == ("view/MatMul_5", "view/Add_6")
    assert (gemm.weight.shape, gemm.inputs[0].shape, gemm.outputs[0].dtype) == ((192, 48), (-1, 192), "Half")
    assert [found.fused_attention for found in log.layers] == [False, False, True]
    assert [tensor.dtype for tensor in mha.outputs] == ["Int8"]


@pytest.mark.parametrize(
    ("inputs", "constants", "expected"),
    [
        ([("-1,48", "Half")], [("48,48", "Half")], "Half"),
        ([("-1,48", "Half"), ("-1,48", "Int8")], [("48,48", "Int8"), ("1", "Float")], "Int8"),
        ([("-1,48", "Int8")], [("48,48", "Half"), ("1", "Float")], "Half"),
        ([("-1,48", "Half")], [("48,48", "Int8")], "Half"),
        ([("-1,48", "BFloat16")], [("48,48", "Int8")], "BFloat16"),
        ([("-1,48", "Half")], [("1,48", "Half")], ""),
    ],
)
def test_type_of_a_product(inputs, constants, expected):
    (found,) = parse_build_log(layer("g", "gemm", inputs=inputs, constants=constants)).layers
    assert found.product_dtype == expected


@pytest.mark.parametrize("text", ["", "Layers:\n", "Name: cut, LayerType: gemm, Inputs: [ { Name", "Name: x\n" * 3])
def test_what_is_no_layer_is_passed_over(text):
    assert parse_build_log(text).layers == ()
