"""8-bit engines: real builds whose log must show every product in 8 bits and every attention fused, and the limits."""

from dataclasses import replace

import onnx
import onnx_ir as ir
import pytest
from onnx import TensorProto, helper, numpy_helper

from benchmarks.sizes import spec_of
from mae_export import graph
from mae_export.calibration.wanted import QuantizeOptions
from mae_export.encoders.load import load_encoder
from mae_export.errors import GraphError, InputError, VerificationError
from mae_export.export import flavour, trace
from mae_export.export.achieved import Asked, judge, read_asked
from mae_export.export.build_log import BuildLog, PlannedLayer, PlannedTensor
from mae_export.export.eight_bit import QuantizedAttention, require_tokens
from mae_export.export.engine import build
from mae_export.export.options import TraceOptions
from mae_export.export.plan import EnginePlan, parse_profile
from mae_export.export.retype import retype
from mae_export.runtime.engine_file import Profile
from mae_export.training.checkpoint import save_checkpoint
from mae_export.training.initialise import initialise

needs_builder = pytest.mark.skipif(
    flavour.find_module("rtx") is None, reason="tensorrt-rtx-cu13-bindings and -libs are not installed"
)
KEEP = TraceOptions(mask="keep")
RAGGED = TraceOptions(mask="patches", ragged=True)
USUAL = parse_profile("batch=1:2:8,keep=49:49:196")
DEPTH = 4  # blocks at most, all alike
WIDE = parse_profile("batch=1:2:8,keep=1:49:196")


@pytest.fixture(scope="module")
def encoder(tmp_path_factory):
    """Random encoders with heads of width 64 as float32 graphs, unproven: what is built from them matters."""
    folder = tmp_path_factory.mktemp("encoders")
    made = {}

    def export(size, options):
        if (size, options) not in made:
            path = folder / f"{size}-{len(made)}.onnx"
            spec = replace(spec_of(size), depth=min(DEPTH, spec_of(size).depth))
            loaded = load_encoder(save_checkpoint(initialise(spec, seed=0), folder / f"{size}.pth"))
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(trace, "_prove", lambda staged, encoder, manifest, digest: manifest)
                trace.export_graph(*loaded, path, options=options)
            made[size, options] = path
        return made[size, options]

    return export


@pytest.fixture
def quantized(encoder, eight_bit, tmp_path):
    """Such an encoder in 8 bits, the rest in half precision."""

    def make(options, *, size="tiny", traced=KEEP):
        source = encoder(size, traced)
        return eight_bit(source, tmp_path / "q.onnx", options, lambda model: retype(model, "fp16", ()))

    return make


@needs_builder
@pytest.mark.parametrize(
    ("precision", "preset", "traced", "targets", "kind"),
    [
        ("int8", "linear", KEEP, ("sm86",), "Int8"),
        ("int8", "linear", KEEP, ("sm89",), "Int8"),
        ("int8", "linear", RAGGED, ("sm120",), "Int8"),
        ("int8", "full", KEEP, ("sm86",), "Int8"),
        ("int8", "full", RAGGED, ("sm89",), "Int8"),
        ("int8", "full", KEEP, ("sm120",), "Int8"),
        ("fp8", "linear", KEEP, ("sm89",), "FP8"),
        ("fp8", "linear", KEEP, ("sm120",), "FP8"),
        ("fp8", "full", RAGGED, ("sm89",), "FP8"),
        ("fp8", "full", KEEP, ("sm120",), "FP8"),
    ],
)
def test_every_product_runs_in_8_bits(quantized, tmp_path, precision, preset, traced, targets, kind):
    source = quantized(QuantizeOptions(precision=precision, preset=preset), traced=traced)
    plan = EnginePlan(backend="rtx", profiles=(USUAL,), targets=targets, strict=True)
    achieved = build(source, tmp_path / "q.engine", plan=plan).achieved
    assert achieved.gemms == {kind: 8, "Half": 1}  # 4 in each of 2 blocks; the embedding of pixels stays as it was
    assert (achieved.fused, achieved.attention, achieved.fallbacks) == (2, 2, ())
    attention = {layer.inputs[0] for layer in achieved.layers if "mha" in layer.name}
    assert attention == {kind if preset == "full" else "Half"}


@needs_builder
def test_blocks_of_vit_base_in_one_engine_for_three_gpus(quantized, tmp_path):
    source = quantized(QuantizeOptions(precision="int8", preset="full"), size="base")
    plan = EnginePlan(backend="rtx", profiles=(WIDE,), targets=("sm86", "sm89", "sm120"), strict=True)
    sidecar = build(source, tmp_path / "q.engine", plan=plan)
    assert sidecar.achieved.gemms == {"Int8": 16, "Half": 1}
    assert (sidecar.achieved.fused, sidecar.achieved.attention) == (4, 4)
    assert sidecar.size == pytest.approx(4 * 12 * 768**2 + 2 * 768**2, rel=0.15), "a byte for each weight of a block"


@needs_builder
def test_one_kept_product_is_one_fewer(quantized, tmp_path):
    source = quantized(QuantizeOptions(precision="int8", keep=("blocks.1.mlp.fc2",)))
    plan = EnginePlan(backend="rtx", profiles=(USUAL,), targets=("sm86",), strict=True)
    assert build(source, tmp_path / "q.engine", plan=plan).achieved.gemms == {"Int8": 7, "Half": 2}


@needs_builder
def test_older_gpus_have_no_fp8(quantized, tmp_path):
    source = quantized(QuantizeOptions(precision="fp8"))
    with pytest.raises(GraphError, match=r"cannot build q\.onnx \(fp8\) for sm86: .*fp8_e4m3"):
        build(source, tmp_path / "q.engine", plan=EnginePlan(backend="rtx", profiles=(USUAL,), targets=("sm86",)))


@needs_builder
def test_attention_quantized_in_part_falls_back_and_fails(quantized, tmp_path):
    """Without 8 bits behind the softmax no builder fuses the rest: the engine must not pass for an INT8 one."""
    source = quantized(QuantizeOptions(precision="int8", preset="full"))
    model = ir.load(source)
    for node in [node for node in model.graph if "DequantizeLinear_value" in (node.name or "")]:
        user = node.outputs[0].consumers()[0]
        user.replace_input_with(1, node.inputs[0].producer().inputs[0])
    graph.save(model, tmp_path / "broken.onnx")
    plan = EnginePlan(backend="rtx", profiles=(USUAL,), targets=("sm86",), strict=True)
    with pytest.raises(VerificationError, match=r"2 of 2 attention blocks (are not fused|do not run in Int8)"):
        build(tmp_path / "broken.onnx", tmp_path / "q.engine", plan=plan)


@pytest.mark.parametrize(
    ("precision", "profile", "text"),
    [
        ("int8", "batch=1:2:8,keep=49:49:196", None),
        ("fp8", "batch=1:2:8,keep=31:49:196", None),
        ("fp8", "batch=1:2:8,keep=30:49:196", r"31 to 197 tokens \(1 before the patches\); FP8 .* with at least 32"),
    ],
)
def test_profiles_are_held_to_what_builders_fuse(quantized, precision, profile, text):
    source = quantized(QuantizeOptions(precision=precision, preset="full"))
    asked, manifest = read_asked(source), graph.read_manifest(source)
    assert [block.dtype for block in asked.quantized] == [{"int8": "Int8", "fp8": "FP8"}[precision]] * 2
    if text is None:
        require_tokens(asked.quantized, [parse_profile(profile)], manifest)
    else:
        with pytest.raises(InputError, match=text):
            require_tokens(asked.quantized, [parse_profile(profile)], manifest)


@pytest.mark.parametrize(
    ("dtype", "tokens", "keep", "refused"),
    [
        ("Int8", None, 511, False),
        ("Int8", None, 512, True),
        ("Int8", 49, 4096, False),  # windows have their own number
        ("Int8", 577, None, True),
        ("FP8", 17, None, True),
        ("FP8", None, 4096, False),
    ],
)
def test_limits_hold_for_the_tokens_of_the_attention(quantized, dtype, tokens, keep, refused):
    manifest = graph.read_manifest(quantized(QuantizeOptions(precision="int8")))
    block = QuantizedAttention(softmax="a/Softmax", dtype=dtype, tokens=tokens)
    profile = Profile(batch=USUAL.batch, keep=None if keep is None else replace(USUAL.keep, typical=64, maximum=keep))
    if refused:
        with pytest.raises(InputError, match=r"Narrow --keep, or quantize with --preset linear"):
            require_tokens([block], [profile], manifest)
    else:
        require_tokens([block], [profile], manifest)


def test_linear_asks_nothing_of_attention(quantized):
    asked = read_asked(quantized(QuantizeOptions(precision="int8")))
    assert asked.quantized == ()
    assert sorted(asked.products.values()) == ["Half", *["Int8"] * 8]


def test_fixed_tokens_are_read_from_the_graph(tmp_path):
    nodes = [
        helper.make_node("Softmax", ["x"], ["p"], name="a/Softmax"),
        helper.make_node("QuantizeLinear", ["p", "s", "z"], ["q"], name="a/Q"),
        helper.make_node("DequantizeLinear", ["q", "s", "z"], ["d"], name="a/DQ"),
        helper.make_node("MatMul", ["d", "x"], ["y"], name="a/MatMul"),
    ]
    shape = ["B", 49, 49]
    made = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, shape)],
        [
            numpy_helper.from_array(numpy_helper.np.array(0.1, "float32"), "s"),
            numpy_helper.from_array(numpy_helper.np.array(0, "int8"), "z"),
        ],
        value_info=[helper.make_tensor_value_info("p", TensorProto.FLOAT, shape)],
    )
    onnx.save(helper.make_model(made), tmp_path / "g.onnx")
    assert read_asked(tmp_path / "g.onnx").quantized == (
        QuantizedAttention(softmax="a/Softmax", dtype="Int8", tokens=49),
    )


@pytest.mark.parametrize(("found", "sentences"), [("Int8", 0), ("Half", 1)])
def test_fused_attention_in_another_type_is_reported(found, sentences):
    tensor = PlannedTensor(dtype=found, shape=(-1, 8))
    layer = PlannedLayer(
        name="_gemm_mha_v2", kind="gemm", inputs=(tensor,), constants=(), outputs=(tensor,), nodes=("a/Softmax",)
    )
    block = QuantizedAttention(softmax="a/Softmax", dtype="Int8", tokens=None)
    asked = Asked(operators={}, attention=("a/Softmax",), products={}, quantized=(block,))
    judged = judge(asked, BuildLog(layers=(layer,), activation_bytes=(), weights_bytes=0), profiles=1)
    assert len(judged.fallbacks) == sentences
    if sentences:
        assert judged.fallbacks == ("1 of 1 attention blocks do not run in Int8 as the graph asks",)
