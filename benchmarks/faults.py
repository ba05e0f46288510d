"""Faults that exporters, converters and hands have made, as edits of saved graphs.

Each function changes one graph of ours in place, or raises `LookupError` where it cannot apply (a fault of padding in a
graph without padding). Faults of settings (the wrong GELU, eps, scale) are made in every block as the setting would;
faults of weights and wiring are made in the second block only.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx_ir as ir

from benchmarks import output_faults as outputs
from benchmarks.editing import Array, Edit
from benchmarks.eight_bit_faults import EIGHT_BIT_FAULTS
from mae_export.manifest import Manifest

BLOCK = 1


def _around_block(edit: Edit, block: int) -> tuple[ir.Value, ir.Value]:
    """Tokens before and after a block."""
    first, last = edit.nodes(f"blocks.{block}/", "Add")
    before, after = first.inputs[0], last.outputs[0]
    if before is None:
        raise LookupError(f"block {block} has no input")
    return before, after


def swapped(first: int, second: int) -> Callable[[Edit], None]:
    def fault(edit: Edit) -> None:
        order = [0, 1, 2]
        order[first], order[second] = second, first
        edit.qkv(BLOCK, lambda array: array[..., order, :, :])

    return fault


def heads_permuted(edit: Edit) -> None:
    edit.qkv(BLOCK, lambda array: np.stack([array[..., 0, :, :], array[..., 1, :, :], array[..., 2, ::-1, :]], axis=-3))


def qkv_interleaved(edit: Edit) -> None:
    """Read as [H, 3, D / H] what is [3, H, D / H]."""
    edit.qkv(BLOCK, lambda a: np.moveaxis(a.reshape(*a.shape[:-3], edit.heads, 3, -1), -2, -3))


def scaled(factor: Callable[[Edit], float]) -> Callable[[Edit], None]:
    """The scale of the logits multiplied; each of query and key takes its square root."""

    def fault(edit: Edit) -> None:
        for node in edit.blocks(".attn/", "Mul"):
            edit.change(node, lambda scale: scale * np.sqrt(factor(edit)))

    return fault


def gelu(kind: str) -> Callable[[Edit], None]:
    def fault(edit: Edit) -> None:
        for node in edit.blocks(".mlp/", "Gelu"):
            hidden, old = node.inputs[0], node.outputs[0]
            if kind == "tanh":
                node.attributes["approximate"] = ir.AttrString("approximate", "tanh")
            elif kind == "relu":
                edit.reuse(old, edit.add("Relu", hidden))
            else:
                gate = edit.add("Sigmoid", edit.add("Mul", hidden, edit.value(np.float32(1.702))))
                edit.reuse(old, edit.add("Mul", hidden, gate))

    return fault


def eps(value: float) -> Callable[[Edit], None]:
    def fault(edit: Edit) -> None:
        for node in edit.nodes("", "LayerNormalization"):
            node.attributes["epsilon"] = ir.AttrFloat32("epsilon", value)

    return fault


def norm_skipped(edit: Edit) -> None:
    node = edit.node(f"blocks.{BLOCK}.norm2/", "LayerNormalization")
    edit.reuse(node.outputs[0], edit.add("Identity", node.inputs[0]))


def norm_weight_ignored(edit: Edit) -> None:
    edit.change(edit.node(f"blocks.{BLOCK}.norm1/", "LayerNormalization"), np.ones_like, index=1)


def positions_shifted(edit: Edit) -> None:
    edit.positions(lambda table: np.roll(table, 1, axis=0))


def positions_transposed(edit: Edit) -> None:
    _, rows, columns = edit.manifest.patches.grid
    edit.positions(lambda table: table.reshape(rows, columns, -1).swapaxes(0, 1).reshape(table.shape))


def positions_left_out(edit: Edit) -> None:
    edit.positions(np.zeros_like)


def last_position_missing(edit: Edit) -> None:
    edit.positions(lambda table: np.concatenate([table[:-1], np.zeros_like(table[-1:])]))


def bgr(edit: Edit) -> None:
    edit.pixels(lambda weight: weight[:, :, ::-1])


def pixels_transposed(edit: Edit) -> None:
    edit.pixels(lambda weight: weight.swapaxes(0, 1))


def channels_first(edit: Edit) -> None:
    """Weights in (c, y, x) order for pixels in (y, x, c) order."""
    edit.pixels(lambda weight: weight.transpose(2, 0, 1, 3))


def not_divided(edit: Edit) -> None:
    edit.pixels(lambda weight: weight * 255)


def other_mean(mean: tuple[float, float, float]) -> Callable[[Edit], None]:
    def fault(edit: Edit) -> None:
        weight, right, _ = edit.unfolded()
        edit.shift_bias(np.einsum("yxcd,c->d", weight, right - np.array(mean)))

    return fault


def other_std(std: tuple[float, float, float]) -> Callable[[Edit], None]:
    def fault(edit: Edit) -> None:
        weight, mean, right = edit.unfolded()
        ratio = right / np.array(std)
        edit.shift_bias(np.einsum("yxcd,c->d", weight, mean * (1 - ratio)))
        edit.pixels(lambda folded: folded * ratio[None, None, :, None])

    return fault


def patches_by_column(edit: Edit) -> None:
    node = edit.node("view/", "Transpose")
    node.attributes["perm"] = ir.AttrInt64s("perm", (0, 3, 1, 2, 4, 5))


def weight_transposed(edit: Edit) -> None:
    edit.change(edit.node(f"blocks.{BLOCK}.attn.proj/", "MatMul"), np.transpose)


def block_skipped(edit: Edit) -> None:
    before, after = _around_block(edit, BLOCK)
    edit.reuse(after, edit.add("Identity", before))


def blocks_exchanged(edit: Edit) -> None:
    for end, op in (
        (".attn.qkv/", "MatMul"),
        (".attn.proj/", "MatMul"),
        (".mlp.fc1/", "MatMul"),
        (".mlp.fc2/", "MatMul"),
    ):
        pair = [edit.node(f"blocks.{index}{end}", op) for index in (0, 1)]
        arrays = [edit.constant(node)[1] for node in pair]
        for node, array in zip(pair, reversed(arrays), strict=True):
            edit.change(node, lambda _, array=array: array)  # type: ignore[misc]


def residual_dropped(edit: Edit) -> None:
    node = edit.nodes(f"blocks.{BLOCK}/", "Add")[1]
    edit.reuse(node.outputs[0], edit.add("Identity", node.inputs[1]))


def sign_flipped(edit: Edit) -> None:
    """Of one weight, of median size, in 36,864 or fewer."""

    def flip(weight: Array) -> Array:
        index = np.argsort(np.abs(weight), axis=None)[weight.size // 2]
        weight.flat[index] *= -1
        return weight

    edit.change(edit.node(f"blocks.{BLOCK}.attn.proj/", "MatMul"), flip)


def row_zeroed(edit: Edit) -> None:
    def zero(weight: Array) -> Array:
        weight[len(weight) // 2] = 0
        return weight

    edit.change(edit.node(f"blocks.{BLOCK}.mlp.fc2/", "MatMul"), zero)


def bias_missing(edit: Edit) -> None:
    edit.change(edit.node(f"blocks.{BLOCK}.mlp.fc1/", "Add"), np.zeros_like)


def softmax_axis(edit: Edit) -> None:
    for node in edit.blocks(".attn/", "Softmax"):
        node.attributes["axis"] = ir.AttrInt64("axis", -2)


def padding_attended(edit: Edit) -> None:
    for node in edit.blocks(".attn/", "Softmax"):
        logits = node.inputs[0]
        add = None if logits is None else logits.producer()
        if add is None or add.op_type != "Add":
            raise LookupError("no padding")
        node.replace_input_with(0, add.inputs[0])


def padding_counted(edit: Edit) -> None:
    node = edit.output("mean_patch").producer()
    if node is None or node.op_type != "Div":
        raise LookupError("no padding")
    count = edit.add("Cast", edit.extent(edit.input("ids_keep"), 1), to=ir.DataType.FLOAT)
    node.replace_input_with(1, count)


def class_token_averaged(edit: Edit) -> None:
    if "mean_patch" in [value.name for value in edit.graph.outputs]:
        node = edit.output("mean_patch").producer()
        if node is None or node.op_type != "Div":
            raise LookupError("no sum to add to")
        total = edit.add("Add", node.inputs[0], edit.output("pooled"))
        count = edit.add("Add", node.inputs[1], edit.value(np.float32(1)))
        edit.give(node.outputs[0], edit.add("Div", total, count))
        return
    mean = edit.node("view/", "ReduceMean")
    patches = mean.inputs[0]
    cut = None if patches is None else patches.producer()
    if cut is None or cut.op_type != "Slice":
        raise LookupError("no slice of patch tokens")
    mean.replace_input_with(0, cut.inputs[0])


def pooled_before_norm(edit: Edit) -> None:
    node = edit.output("pooled").producer()
    if node is None:
        raise LookupError("no pooled")
    if node.op_type == "Gather":  # class token after the norm
        norm = edit.node("norm/", "LayerNormalization")
        node.replace_input_with(0, norm.inputs[0])
        return
    mean = node.inputs[0].producer() if node.inputs[0] is not None else None  # norm after the mean: exchange them
    if mean is None or mean.op_type != "ReduceMean":
        raise LookupError("no mean")
    tokens = edit.add("LayerNormalization", mean.inputs[0], *node.inputs[1:], epsilon=1e-6, axis=-1)
    edit.give(node.outputs[0], edit.add("ReduceMean", tokens, mean.inputs[1], keepdims=0))


def first_patches(edit: Edit) -> None:
    """`ids_keep` is an input, and ignored."""
    ids = edit.input("ids_keep")
    order = edit.range(ids, 1)
    edit.reuse(ids, edit.add("Expand", order, edit.add("Shape", ids)))


def next_patches(edit: Edit) -> None:
    ids = edit.input("ids_keep")
    more = edit.add("Add", ids, edit.value(np.int64(1)))
    edit.reuse(ids, edit.add("Mod", more, edit.value(np.int64(edit.manifest.patches.count))))


def positions_in_order(edit: Edit) -> None:
    """Pixels follow `ids_keep`; positions are those of the first K patches."""
    ids = edit.input("ids_keep")
    for node, index in list(ids.uses()):
        if node.op_type == "Gather" and node.name and node.name.startswith("view/"):
            order = edit.range(ids, 1)
            node.replace_input_with(index, edit.add("Expand", order, edit.add("Shape", ids)))
            return
    raise LookupError("no positions taken by ids")


def rounded(kind: ir.DataType, scale: float) -> Callable[[Edit], None]:
    """One hidden tensor stored in half precision, after scaling as in models with large activations."""

    def fault(edit: Edit) -> None:
        old = edit.node(f"blocks.{BLOCK}.mlp/", "Gelu").outputs[0]
        large = edit.add("Mul", old, edit.value(np.float32(scale)))
        stored = edit.add("Cast", edit.add("Cast", large, to=kind), to=ir.DataType.FLOAT)
        edit.reuse(old, edit.add("Mul", stored, edit.value(np.float32(1 / scale))))

    return fault


def coarse(levels: int) -> Callable[[Edit], None]:
    """One weight matrix rounded to that many steps on each side of zero."""

    def fault(edit: Edit) -> None:
        def rounding(weight: Array) -> Array:
            step = np.abs(weight).max() / levels
            result: Array = np.round(weight / step) * step
            return result

        edit.change(edit.node(f"blocks.{BLOCK}.mlp.fc1/", "MatMul"), rounding)

    return fault


def mask_token_missing(edit: Edit) -> None:
    """The decoder's hidden patches start from zero."""
    value = edit.graph.initializers.get("encoder.decoder.mask_token")
    if value is None:
        raise LookupError("no decoder")
    edit.reuse(value, edit.value(np.zeros(value.shape, np.float32)))


CLIP_MEAN, CLIP_STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
FAULTS: dict[str, Callable[[Edit], None]] = {
    "query and key exchanged": swapped(0, 1),
    "key and value exchanged": swapped(1, 2),
    "heads of the value in reverse order": heads_permuted,
    "qkv read as heads first": qkv_interleaved,
    "logits not scaled": scaled(lambda edit: (edit.dim / edit.heads) ** 0.5),
    "logits scaled by the whole width": scaled(lambda edit: edit.heads**-0.5),
    "GELU by tanh": gelu("tanh"),
    "GELU by sigmoid": gelu("sigmoid"),
    "ReLU for GELU": gelu("relu"),
    "eps 1e-5 for 1e-6": eps(1e-5),
    "eps 1e-3 for 1e-6": eps(1e-3),
    "a norm left out": norm_skipped,
    "a norm's weight ignored": norm_weight_ignored,
    "positions off by one": positions_shifted,
    "position table transposed": positions_transposed,
    "positions left out": positions_left_out,
    "position of the last patch missing": last_position_missing,
    "BGR for RGB": bgr,
    "patch pixels transposed": pixels_transposed,
    "weights in (c, y, x) order": channels_first,
    "pixels not divided by 255": not_divided,
    "mean 0.5": other_mean((0.5, 0.5, 0.5)),
    "CLIP's mean": other_mean(CLIP_MEAN),
    "std 0.5": other_std((0.5, 0.5, 0.5)),
    "CLIP's std": other_std(CLIP_STD),
    "patches by column": patches_by_column,
    "a square weight transposed": weight_transposed,
    "a block skipped": block_skipped,
    "weights of two blocks exchanged": blocks_exchanged,
    "a residual dropped": residual_dropped,
    "sign of one weight": sign_flipped,
    "one weight row zero": row_zeroed,
    "a bias missing": bias_missing,
    "softmax over the queries": softmax_axis,
    "padding attended": padding_attended,
    "padding counted in the mean": padding_counted,
    "class token in the mean": class_token_averaged,
    "pooled before the norm": pooled_before_norm,
    "ids_keep ignored": first_patches,
    "ids_keep off by one": next_patches,
    "positions not by ids_keep": positions_in_order,
    "two outputs exchanged": outputs.outputs_exchanged,
    "a layer returned for the next": outputs.stale_layer,
    "class token as first patch": outputs.tokens_shifted,
    "NaN in one token": outputs.nan_token,
    "one tensor in float16, overflowing": rounded(ir.DataType.FLOAT16, 2.0**15),
    "one tensor in float16": rounded(ir.DataType.FLOAT16, 1.0),
    "one tensor in bfloat16": rounded(ir.DataType.BFLOAT16, 1.0),
    "one weight matrix in 8 bits": coarse(127),
    "one weight matrix in 4 bits": coarse(7),
    "rows depend on their index": outputs.row_dependent,
    "wrong from the fifth row on": outputs.later_rows,
    "wrong at batch 1 only": outputs.batch_one,
    "black images give NaN": outputs.black_is_nan,
    "rows see their neighbours": outputs.neighbours_leak,
    "decoder without its mask token": mask_token_missing,
}


def seed(model: ir.Model, manifest: Manifest, fault: str) -> None:
    """Put a fault into a graph.

    Raises:
        LookupError: when the graph has no place for it.
    """
    (FAULTS | EIGHT_BIT_FAULTS)[fault](Edit(model, manifest))
    for node in model.graph:  # what was inferred about shapes and types may no longer hold
        for value in node.outputs:
            if value not in model.graph.outputs:
                value.shape = value.type = None
    model.graph.sort()
