"""From file to encoder: what is used, ignored or cast is reported, and what does not fit is refused by name."""

import dataclasses
import hashlib
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from mae_export.encoders import load
from mae_export.encoders.checkpoint import read_checkpoint
from mae_export.encoders.families import FAMILIES
from mae_export.encoders.load import LoadReport, load_encoder
from mae_export.encoders.overrides import Overrides
from mae_export.encoders.vit import ViT
from mae_export.errors import CheckpointError, LayoutError, MaeExportError, UsageError

STATED = Overrides(heads=4, decoder_heads=4)
State = dict[str, torch.Tensor]
HEAD = "classifier, not part of the encoder"
BATCH_NORM = ("running_mean", "running_var", "num_batches_tracked")
TRAINING = ("not used: 'optimizer', 'epoch', 'scaler'",)


def told(report: LoadReport) -> tuple[str, ...]:
    """Notes of the report but for the one that every file of MAE's layout gets."""
    return tuple(note for note in report.notes if not note.startswith("files of "))


@pytest.fixture(scope="module")
def stored(fixture_dir: Path) -> Callable[[], State]:
    """Fresh copies of the 50 tensors of a file with decoder."""
    tensors = read_checkpoint(fixture_dir / "mae" / "checkpoint.pth").tensors
    return lambda: {name: tensor.clone() for name, tensor in tensors.items()}


def saved(folder: Path, content: Any) -> Path:
    torch.save(content, folder / "c.pth")
    return folder / "c.pth"


def refusal(folder: Path, content: Any, kind: type[MaeExportError]) -> str:
    """What the loader says of a file, without its path."""
    with pytest.raises(kind) as caught:
        load_encoder(saved(folder, content), overrides=STATED)
    assert type(caught.value) is kind
    return str(caught.value).replace(str(folder / "c.pth"), "FILE")


def same(first: ViT, second: ViT) -> bool:
    one, two = first.state_dict(), second.state_dict()
    return first.spec == second.spec and one.keys() == two.keys() and all(torch.equal(one[n], two[n]) for n in one)


@pytest.mark.parametrize(
    ("file", "used", "ignored", "notes"),
    [
        ("mae/checkpoint.pth", 50, [], TRAINING),
        ("mae/checkpoint_release.pth", 30, [], ()),
        ("mae_finetune/checkpoint.pth", 30, ["head.weight", "head.bias"], TRAINING),
        ("mae_finetune/checkpoint_release.pth", 30, ["head.weight", "head.bias"], ()),
        (
            "mae_linprobe/checkpoint.pth",
            30,
            [*(f"head.0.{name}" for name in BATCH_NORM), "head.1.weight", "head.1.bias"],
            TRAINING,
        ),
    ],
)
def test_the_report_accounts_for_every_tensor(
    fixture_dir: Path, file: str, used: int, ignored: list[str], notes: tuple[str, ...]
) -> None:
    encoder, report = load_encoder(fixture_dir / file, overrides=STATED)
    checkpoint = read_checkpoint(fixture_dir / file)
    assert (report.family, report.layout, report.licence) == ("mae", "facebookresearch/mae", "CC-BY-NC-4.0")
    assert report.path == fixture_dir / file
    assert report.sha256 == hashlib.sha256((fixture_dir / file).read_bytes()).hexdigest()
    assert len(report.used) == used
    assert report.ignored == tuple((name, HEAD) for name in ignored)
    assert set(report.used) | set(ignored) == set(checkpoint.tensors)
    assert report.missing == ()
    assert told(report) == notes
    assert report.spec is encoder.spec
    state = encoder.state_dict()
    for name in set(report.used) & set(state):
        assert torch.equal(state[name], checkpoint.tensors[name]), name
    assert {value.dtype for value in state.values()} == {torch.float32}
    assert not encoder.training


def test_specs_of_the_fixtures(fixture_dir: Path) -> None:
    spec = load_encoder(fixture_dir / "mae" / "checkpoint.pth", overrides=STATED)[1].spec
    assert (spec.dim, spec.depth, spec.heads, spec.mlp_hidden, spec.eps) == (48, 2, 4, 192, 1e-6)
    assert (spec.image.size, spec.patch, spec.norm) == ((64, 64), (1, 8, 8), "tokens")
    assert spec.decoder is not None
    assert (spec.decoder.dim, spec.decoder.depth, spec.decoder.target) == (32, 1, "patch-normalised")
    tuned = load_encoder(fixture_dir / "mae_finetune" / "checkpoint.pth", overrides=STATED)[1].spec
    assert (tuned.norm, tuned.pooled, tuned.decoder) == ("pooled", "mean_patch", None)


def test_a_width_that_tells_no_heads_asks_for_them(fixture_dir: Path) -> None:
    with pytest.raises(CheckpointError, match=r"pass --set heads=N with the trained number"):
        load_encoder(fixture_dir / "mae" / "checkpoint.pth")


@pytest.mark.parametrize("prefixes", [("module.",), ("module.", "_orig_mod."), ("backbone.",)])
@pytest.mark.parametrize("keys", [(), ("state_dict",), ("model", "student")])
def test_wrappers_and_containers_are_seen_through(
    tmp_path: Path, fixture_dir: Path, stored: Callable[[], State], prefixes: tuple[str, ...], keys: tuple[str, ...]
) -> None:
    content: Any = {"".join(prefixes) + name: tensor for name, tensor in stored().items()}
    for key in reversed(keys):
        content = {key: content, "epoch": 7}
    encoder, report = load_encoder(saved(tmp_path, content), overrides=dataclasses.replace(STATED, norm_pix_loss=True))
    assert same(encoder, load_encoder(fixture_dir / "mae" / "checkpoint.pth", overrides=STATED)[0])
    assert len(report.used) == 50


def test_of_several_state_dicts_one_is_chosen(tmp_path: Path, stored: Callable[[], State]) -> None:
    content = {"model": stored(), "student": stored() | {"cls_token": torch.full((1, 1, 48), 2.0)}}
    assert "'model' (50 entries), 'student' (50 entries)" in refusal(tmp_path, content, LayoutError)
    chosen = dataclasses.replace(STATED, weights="student")
    assert load_encoder(saved(tmp_path, content), overrides=chosen)[0].cls_token.unique().tolist() == [2.0]


def test_an_unknown_layout_is_described(tmp_path: Path) -> None:
    content = {"model": {f"layer{index}.conv.weight": torch.zeros(2, 2) for index in range(12)}}
    found = refusal(tmp_path, content, LayoutError)
    assert found.startswith(
        "no family recognises FILE. It holds 12 tensors under 'model', such as layer0.conv.weight, "
        "layer1.conv.weight, layer10.conv.weight, layer11.conv.weight, layer2.conv.weight, layer3.conv.weight, "
        "layer4.conv.weight, layer5.conv.weight and 4 more. Nearest: "
    )
    assert found.endswith(". Expected a masked-image-modelling encoder as its authors published it")
    assert len(re.findall(r"\w+ \([^()]+, \d+%\)", found)) == 3
    assert "2 tensors at the top level, such as a, b. " in refusal(
        tmp_path, {"a": torch.zeros(2, 2), "b": torch.zeros(2, 2)}, LayoutError
    )


def test_families_are_chosen_by_name(fixture_dir: Path) -> None:
    path = fixture_dir / "mae" / "checkpoint.pth"
    assert load_encoder(path, family="mae", overrides=STATED)[1].family == "mae"
    with pytest.raises(UsageError, match=r"^family 'mea' is not known; known families: mae, dbot, "):
        load_encoder(path, family="mea")
    with pytest.raises(LayoutError, match=r"^colormae does not recognise .* Nearest: colormae \(mmpretrain, \d\d%\)\."):
        load_encoder(path, family="colormae")


def test_a_file_that_fits_two_families_needs_a_choice(fixture_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    twin = dataclasses.replace(FAMILIES["mae"], name="twin", licence="MIT")
    monkeypatch.setattr(load, "families", lambda: {"mae": FAMILIES["mae"], "twin": twin})
    path = fixture_dir / "mae" / "checkpoint.pth"
    with pytest.raises(LayoutError) as caught:
        load_encoder(path, overrides=STATED)
    assert str(caught.value) == (
        f"{path} fits several layouts: mae (facebookresearch/mae), twin (facebookresearch/mae); choose one with "
        "--family NAME"
    )
    report = load_encoder(path, family="twin", overrides=STATED)[1]
    assert (report.family, report.licence) == ("twin", "MIT")


def test_families_whose_files_look_the_same_are_named_and_can_be_asked_for(fixture_dir: Path) -> None:
    path = fixture_dir / "mae" / "checkpoint_release.pth"
    report = load_encoder(path, overrides=STATED)[1]
    assert report.family == "mae"
    assert report.notes == (
        "files of dbot, hpm, lut, imae, eva_l name their tensors in the same way; if this is one of them, pass "
        "--family NAME for its preprocessing, licence and feature",
    )
    assert load_encoder(path, family="mae", overrides=STATED)[1].notes == ()
    eva = load_encoder(path, family="eva_l", overrides=STATED)[1]
    assert (eva.notes, eva.licence, eva.spec.family, eva.spec.pooled) == ((), "MIT", "eva_l", "fresh_norm_of_mean")
    assert eva.spec.image.mean == (0.48145466, 0.4578275, 0.40821073)


def test_a_decoder_of_another_family_is_explained(tmp_path: Path, stored: Callable[[], State]) -> None:
    content = stored() | {"decoder_pred.weight": torch.ones(96, 32).cumsum(0), "decoder_pred.bias": torch.ones(96)}
    found = refusal(tmp_path, content, CheckpointError)
    assert "decoder.pred.weight is [96, 32], expected [192, 32]; " in found
    assert "; files of hpm, lut, imae, eva_l name their tensors in the same way" in found
    spec = load_encoder(saved(tmp_path, content), family="eva_l", overrides=STATED)[1].spec
    assert spec.decoder is not None
    assert (spec.decoder.target, spec.decoder.values) == ("teacher-features", 96)


def test_tensors_that_mae_does_not_have(tmp_path: Path, stored: Callable[[], State]) -> None:
    content = stored() | {f"extra.{index:02}.weight": torch.zeros(2) for index in range(23)} | {"rope": torch.zeros(2)}
    listed = ", ".join(f"extra.{index:02}.weight" for index in range(20))
    assert refusal(tmp_path, content, LayoutError) == (
        f"FILE looks like mae but holds 24 tensors that mae does not have: {listed} and 4 more. If they may stay "
        "unused, pass --set ignore=PREFIX[,PREFIX...]; otherwise this is another model"
    )
    ignore = dataclasses.replace(STATED, ignore=("extra.", "rope"))
    report = load_encoder(saved(tmp_path, content), overrides=ignore)[1]
    assert len(report.used) == 50
    assert len(report.ignored) == 24
    assert ("rope", "asked to be ignored") in report.ignored


def test_a_decoder_can_be_left_out(tmp_path: Path, stored: Callable[[], State]) -> None:
    encoder, report = load_encoder(
        saved(tmp_path, stored()), overrides=Overrides(heads=4, ignore=("decoder_", "mask_token"))
    )
    assert encoder.decoder is None
    assert (len(report.used), len(report.ignored)) == (30, 20)


def test_missing_tensors_are_listed_up_to_twenty(tmp_path: Path, stored: Callable[[], State]) -> None:
    few = stored()
    del few["blocks.1.norm2.weight"], few["decoder_pred.bias"]
    assert refusal(tmp_path, few, CheckpointError) == (
        "FILE lacks 2 tensors of the encoder: blocks.1.norm2.weight, decoder.pred.bias"
    )
    kept = (
        r"cls_token|.*pos_embed|patch_embed.*|mask_token|decoder_embed.*|.*mlp\.fc1.*|blocks\.0\.attn\.qkv.*|norm\..*"
    )
    many = {name: tensor for name, tensor in stored().items() if re.fullmatch(kept, name)}
    gone = sorted(re.sub(r"^decoder_(blocks|norm|pred)", r"decoder.\1", name) for name in set(stored()) - set(many))
    assert len(gone) == 32
    assert refusal(tmp_path, many, CheckpointError) == (
        f"FILE lacks 32 tensors of the encoder: {', '.join(gone[:20])} and 12 more"
    )


def test_tensors_beyond_the_spec_are_not_dropped(tmp_path: Path, stored: Callable[[], State]) -> None:
    """A known name in the wrong place is not silently left out."""
    content = {name: value for name, value in stored().items() if not name.startswith("decoder_")}
    assert refusal(tmp_path, content, LayoutError) == (
        "FILE holds 1 tensors that no part of the encoder takes: decoder.mask_token"
    )
    assert refusal(tmp_path, stored() | {"fc_norm.weight": torch.ones(48)}, CheckpointError) == (
        "FILE lacks 1 tensors of the encoder: fc_norm.bias"
    )


@pytest.mark.parametrize(
    ("name", "shape", "message"),
    [
        ("norm.weight", [47], "1 tensors do not fit a width of 48, 2 blocks and a patch of 8x8: norm.weight is [47]"),
        ("pos_embed", [2, 65, 48], "pos_embed is [2, 65, 48], expected [1, 65, 48]"),
        ("decoder_pos_embed", [1, 64, 32], "decoder.pos_embed is [1, 64, 32], expected [1, 65, 32]"),
        ("decoder_pred.weight", [48, 32], "decoder.pred.weight is [48, 32], expected [192, 32]"),
        ("pos_embed", [65, 48], "FILE: pos_embed has shape [65, 48]; expected 3 dimensions above 0"),
        ("pos_embed", [1, 0, 48], "FILE: pos_embed has shape [1, 0, 48]; expected 3 dimensions above 0"),
        ("patch_embed.proj.weight", [48, 192], "patch_embed.proj.weight has shape [48, 192]; expected 4 dimensions"),
        ("patch_embed.proj.weight", [48, 3, 0, 8], "has shape [48, 3, 0, 8]; expected 4 dimensions above 0"),
        ("decoder_embed.weight", [], "decoder.embed.weight has shape []; expected 2 dimensions above 0"),
        ("pos_embed", [1, 61, 48], "the position table has 60 patch rows, which is no square"),
    ],
)  # fmt: skip
def test_shapes_that_do_not_fit(
    tmp_path: Path, stored: Callable[[], State], name: str, shape: list[int], message: str
) -> None:
    assert message in refusal(tmp_path, stored() | {name: torch.zeros(shape)}, CheckpointError)


@pytest.mark.parametrize("name", ["blocks.0.mlp.fc1.weight", "decoder_blocks.0.mlp.fc1.weight"])
def test_sizes_that_nothing_tells(tmp_path: Path, stored: Callable[[], State], name: str) -> None:
    content = stored()
    del content[name]
    found = refusal(tmp_path, content, CheckpointError)
    assert found == f"FILE lacks {name.replace('decoder_', 'decoder.')}; the encoder cannot be sized without it"


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_precisions_are_cast_and_said(tmp_path: Path, stored: Callable[[], State], dtype: torch.dtype) -> None:
    content = {name: tensor.to(dtype) for name, tensor in stored().items()}
    encoder, report = load_encoder(saved(tmp_path, content), overrides=STATED)
    assert told(report) == (f"50 {str(dtype).removeprefix('torch.')} tensors cast to float32",)
    for name, tensor in encoder.state_dict().items():
        assert tensor.dtype == torch.float32
        if name in content:
            assert torch.equal(tensor.double(), content[name].float().double()), name


def test_mixed_precisions_are_counted(tmp_path: Path, stored: Callable[[], State]) -> None:
    content = stored()
    for name, dtype in (("norm.weight", torch.float16), ("norm.bias", torch.float16), ("cls_token", torch.float64)):
        content[name] = content[name].to(dtype)
    report = load_encoder(saved(tmp_path, content), overrides=STATED)[1]
    assert sorted(told(report)) == ["1 float64 tensors cast to float32", "2 float16 tensors cast to float32"]


@pytest.mark.parametrize("dtype", [torch.int8, torch.int64, torch.bool])
def test_weights_that_are_no_floats_are_refused(
    tmp_path: Path, stored: Callable[[], State], dtype: torch.dtype
) -> None:
    content = stored() | {"norm.weight": torch.ones(48, dtype=dtype)}
    kind = str(dtype).removeprefix("torch.")
    assert refusal(tmp_path, content, CheckpointError) == f"norm.weight is {kind}; expected floating-point weights"


@pytest.mark.parametrize(
    ("value", "dtype"),
    [(float("nan"), torch.float32), (float("-inf"), torch.float16), (1e300, torch.float64)],  # the last casts to inf
)
def test_weights_that_are_not_finite_are_refused(
    tmp_path: Path, stored: Callable[[], State], value: float, dtype: torch.dtype
) -> None:
    weight = torch.ones(48, dtype=dtype)
    weight[5] = value
    found = refusal(tmp_path, stored() | {"norm.weight": weight}, CheckpointError)
    assert found.startswith("1 tensors hold NaN or infinite values: 'norm.weight' (1 of 48). Training diverged")


def test_what_is_ignored_may_be_anything(tmp_path: Path, stored: Callable[[], State]) -> None:
    content = stored() | {
        "head.weight": torch.full((2, 2), float("nan")),
        "head.0.num_batches_tracked": torch.tensor(3),
    }
    assert len(load_encoder(saved(tmp_path, content), overrides=STATED)[1].ignored) == 2


@pytest.fixture(scope="module")
def hugging_face(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A random ViTMAE saved by transformers, with the model it came from."""
    import transformers

    torch.manual_seed(0)
    config = transformers.ViTMAEConfig(
        hidden_size=48, num_hidden_layers=2, num_attention_heads=4, intermediate_size=96, image_size=32, patch_size=8,
        decoder_hidden_size=32, decoder_num_hidden_layers=1, decoder_num_attention_heads=2,
        decoder_intermediate_size=64, initializer_range=0.5,
    )  # fmt: skip
    model = transformers.ViTMAEForPreTraining(config).eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    folder = tmp_path_factory.mktemp("hf") / "saved"
    model.save_pretrained(folder)
    return folder, model


V4_NAMES = (
    (r"^vit\.layers\.", "vit.encoder.layer."),
    (r"attention\.(q|k|v)_proj", r"attention.attention.\1"),
    (r"attention\.q\.", "attention.query."),
    (r"attention\.k\.", "attention.key."),
    (r"attention\.v\.", "attention.value."),
    (r"attention\.o_proj", "attention.output.dense"),
    (r"mlp\.fc1", "intermediate.dense"),
    (r"mlp\.fc2", "output.dense"),
)


def in_folder(folder: Path, source: Path, state: State) -> Path:
    folder.mkdir()
    save_file({name: tensor.detach().clone() for name, tensor in state.items()}, folder / "model.safetensors")
    (folder / "config.json").write_bytes((source / "config.json").read_bytes())
    return folder


def v4(name: str) -> str:
    for pattern, replacement in V4_NAMES:
        name = re.sub(pattern, replacement, name)
    return name


def test_hugging_face_names_of_both_ages_give_the_same_encoder(tmp_path: Path, hugging_face: Any) -> None:
    folder, model = hugging_face
    encoder, report = load_encoder(folder)
    assert (report.layout, len(report.used), report.ignored) == ("Hugging Face ViTMAE", 62, ())
    assert (report.spec.heads, report.spec.eps, report.spec.decoder.heads) == (4, 1e-6, 2)
    assert report.notes[0].startswith("config.json says layer_norm_eps=1e-12, the library's default; ")
    new = model.state_dict()
    old = {v4(name): tensor for name, tensor in new.items()}
    assert "vit.layers.0.attention.q_proj.weight" in new
    assert "vit.encoder.layer.1.attention.attention.query.bias" in old
    assert "decoder.decoder_layers.0.output.dense.weight" in old
    for name, state in (("v5", new), ("v4", old)):
        found, found_report = load_encoder(in_folder(tmp_path / name, folder, state))
        assert same(found, encoder), name
        assert set(found_report.used) == set(state)
    query, key, value = (new[f"vit.layers.1.attention.{part}_proj.weight"] for part in "qkv")
    assert torch.equal(encoder.blocks[1].attn.qkv.weight, torch.cat([query, key, value]))
    assert torch.equal(encoder.decoder.pred.bias, new["decoder.decoder_pred.bias"])


def test_projections_that_do_not_fit_together(tmp_path: Path, hugging_face: Any) -> None:
    folder, model = hugging_face
    state, name = model.state_dict(), "vit.layers.0.attention.k_proj.weight"
    joined = "query, key and value of blocks.0.attn.qkv.weight are"
    cases = {
        "shape": (
            state | {name: torch.zeros(48, 47)},
            f"{joined} [48, 48] float32, [48, 47] float32, [48, 48] float32; expected three alike",
        ),
        "dtype": (
            state | {name: torch.zeros(48, 48, dtype=torch.int64)},
            f"{joined} [48, 48] float32, [48, 48] int64, [48, 48] float32; expected three alike",
        ),
        "missing": (
            {key: value for key, value in state.items() if key != name},
            "lacks 1 tensors of the encoder: blocks.0.attn.qkv.weight",
        ),
    }
    for case, (content, message) in cases.items():
        with pytest.raises(CheckpointError, match=re.escape(message) + "$"):
            load_encoder(in_folder(tmp_path / case, folder, content))


def test_two_names_for_one_tensor_are_a_conflict(tmp_path: Path, hugging_face: Any) -> None:
    folder, model = hugging_face
    state = model.state_dict()
    both = state | {"vit.encoder.layer.0.layernorm_before.bias": torch.zeros(48)}
    path = in_folder(tmp_path / "both", folder, both)
    with pytest.raises(LayoutError) as caught:
        load_encoder(path)
    assert "vit.encoder.layer.0.layernorm_before.bias" in str(caught.value)
    assert str(caught.value).endswith(
        "are both the encoder's blocks.0.norm1.bias; pass --set ignore=PREFIX for the one to leave out"
    )
    chosen = load_encoder(path, overrides=Overrides(ignore=("vit.encoder.",)))[0]
    assert torch.equal(chosen.blocks[0].norm1.bias, state["vit.layers.0.layernorm_before.bias"])


def test_other_models_of_hugging_face_are_named(tmp_path: Path, hugging_face: Any) -> None:
    folder, _ = hugging_face
    path = in_folder(tmp_path / "vit", folder, load_file(folder / "model.safetensors"))
    config = (path / "config.json").read_text().replace('"vit_mae"', '"vit"')
    (path / "config.json").write_text(config)
    with pytest.raises(
        LayoutError, match=r"no family recognises .*/vit\. config\.json says model_type='vit'\. It holds"
    ):
        load_encoder(path)


def ramp(shape: torch.Size) -> torch.Tensor:
    return torch.linspace(0.1, 1.0, shape.numel()).reshape(shape)


PEAK = """
import re, sys
from pathlib import Path
from mae_export.encoders.load import LoadReport, load_encoder

def peak():
    return int(re.search(r"VmHWM:\\s+(\\d+) kB", Path("/proc/self/status").read_text())[1]) * 1024

before = peak()
encoder, report = load_encoder(sys.argv[1])
print(peak() - before, sum(tensor.numel() for tensor in encoder.state_dict().values()))
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="peak memory is read from /proc")
@pytest.mark.parametrize(("dtype", "depth", "limit"), [(torch.float32, 8, 1.3), (torch.float16, 6, 2.2)])
def test_loading_takes_little_more_memory_than_the_weights(
    tmp_path: Path, fixture_dir: Path, dtype: torch.dtype, depth: int, limit: float
) -> None:
    """Float32 weights stay mapped in the file (300 MB here); of others there is a float32 copy beside the file."""
    spec = load_encoder(fixture_dir / "mae" / "checkpoint_release.pth", overrides=STATED)[1].spec
    with torch.device("meta"):
        shapes = ViT(dataclasses.replace(spec, dim=896, heads=14, depth=depth, mlp_hidden=3584)).state_dict()
    path = saved(tmp_path, {name: ramp(tensor.shape).to(dtype) for name, tensor in shapes.items()})
    size = path.stat().st_size
    done = subprocess.run([sys.executable, "-c", PEAK, str(path)], capture_output=True, text=True, check=False)
    path.unlink()
    assert done.returncode == 0, done.stderr
    used, values = map(int, done.stdout.split())
    assert size == pytest.approx(values * torch.finfo(dtype).bits // 8, rel=0.01)
    assert used < limit * size
