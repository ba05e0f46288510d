"""What `export_graph` writes, what it refuses, and what is left behind when it refuses."""

from functools import partial

import numpy as np
import onnx
import pytest
import torch

from mae_export import graph
from mae_export.encoders.load import load_encoder
from mae_export.encoders.overrides import Overrides
from mae_export.errors import GraphError, InputError, UsageError, VerificationError
from mae_export.export import trace
from mae_export.export.options import TraceOptions
from mae_export.files import sha256_files
from mae_export.runtime.golden import check_golden
from mae_export.runtime.session import open_session

FORBIDDEN = {"NonZero", "TopK", "RandomUniformLike", "RandomNormalLike", "RandomUniform", "RandomNormal", "Loop", "If"}
ALL = ("class_token", "pooled", "mean_patch", "patch_tokens", "layer_0", "attention_1", "reconstruction")


@pytest.fixture
def loaded(fixture_dir):
    return load_encoder(fixture_dir / "mae/checkpoint.pth", overrides=Overrides(heads=4, decoder_heads=4))


def shapes(values):
    return {v.name: [d.dim_param or d.dim_value for d in v.type.tensor_type.shape.dim] for v in values}


@pytest.mark.parametrize(
    ("options", "inputs"),
    [
        (TraceOptions(features=ALL), {"images": ["batch", 64, 64, 3]}),
        (TraceOptions(mask="keep", features=ALL), {"images": ["batch", 64, 64, 3], "ids_keep": ["batch", "kept"]}),
        (
            TraceOptions(mask="patches", ragged=True, features=ALL),
            {"patches": ["batch", "kept", 192], "ids_keep": ["batch", "kept"], "num_keep": ["batch"]},
        ),
    ],
    ids=["none", "keep", "patches ragged"],
)
def test_graph_contract(exported, options, inputs):
    path = exported("mae/checkpoint.pth", options)
    model = onnx.load(path)
    assert shapes(model.graph.input) == inputs
    assert [value.name for value in model.graph.output] == list(ALL)
    assert model.opset_import[0].version == 20
    assert not FORBIDDEN & {node.op_type for node in model.graph.node}
    assert not {value.name for value in model.graph.output} & {tensor.name for tensor in model.graph.initializer}
    promised = graph.read_manifest(path)
    assert {spec.name: list(spec.shape) for spec in promised.inputs} == inputs
    found = shapes(model.graph.output)
    for spec in promised.outputs:
        assert [extent for extent in found[spec.name] if isinstance(extent, int)] == [
            extent for extent in spec.shape if isinstance(extent, int)
        ], spec.name


def test_manifest_says_everything_a_runtime_needs(exported, fixture_dir):
    path = exported("mae/checkpoint.pth", TraceOptions(mask="keep", features=ALL))
    manifest = graph.read_manifest(path)
    assert (manifest.family, manifest.mask_mode, manifest.ragged, manifest.precision) == ("mae", "keep", False, "fp32")
    assert manifest.image.size == (64, 64)
    assert manifest.image.mean == (0.485, 0.456, 0.406)
    assert (manifest.patches.patch, manifest.patches.grid, manifest.patches.prefix_tokens) == ((1, 8, 8), (1, 8, 8), 1)
    assert manifest.made_from[0].sha256 == sha256_files(fixture_dir / "mae/checkpoint.pth")
    assert "main_linprobe.py" in manifest.output("pooled").note
    assert "patch-normalised" in manifest.output("reconstruction").note
    assert manifest.encoder["eps"] == 1e-6
    assert manifest.verification is not None
    assert manifest.verification.error <= manifest.verification.limit == 1e-4
    assert manifest.tools["torch"] == torch.__version__
    with open_session(path) as session:
        check_golden(session)


def test_graph_holds_no_path_of_this_machine_and_names_nodes_after_the_encoder(exported, fixture_dir):
    path = exported("mae/checkpoint.pth", TraceOptions(mask="keep", features=ALL))
    content = path.read_bytes()
    for folder in {str(fixture_dir.parents[1]), str(path.parent), "site-packages"}:
        assert folder.encode() not in content, folder
    names = [node.name for node in onnx.load(path).graph.node]
    assert len(names) == len(set(names))
    assert sum(name.startswith("blocks.1.mlp.fc2/MatMul") for name in names) == 1
    assert sum(name.startswith("decoder.pred/") for name in names) == 2


@pytest.mark.parametrize(
    ("mask", "extents"), [("none", {64, 65}), ("keep", {"kept", "kept + 1"}), ("patches", {"kept", "kept + 1"})]
)
def test_everything_after_the_gather_runs_along_kept_plus_prefix_tokens(exported, mask, extents):
    """The cost follows what is visible: no product, norm or activation is longer than K + 1 tokens."""
    path = exported("mae/checkpoint.pth", TraceOptions(mask=mask, features=("pooled", "patch_tokens")))
    model = onnx.shape_inference.infer_shapes(onnx.load(path), data_prop=True)
    known = shapes(model.graph.value_info) | shapes(model.graph.output)
    kinds = ("MatMul", "LayerNormalization", "Softmax", "Gelu")
    heavy = [node.output[0] for node in model.graph.node if node.op_type in kinds]
    assert len(heavy) == 1 + 2 * (6 + 2 + 1 + 1) + 1  # the embedding, two blocks, the final norm
    assert {known[name][-2] for name in heavy} == extents


def test_patches_mode_has_no_full_image_input(exported):
    path = exported("mae/checkpoint.pth", TraceOptions(mask="patches", features=("pooled",)))
    assert shapes(onnx.load(path).graph.input) == {"patches": ["batch", "kept", 192], "ids_keep": ["batch", "kept"]}


@pytest.mark.parametrize("opset", [18, 22])
def test_other_opsets(exported, opset):
    path = exported("mae/checkpoint_release.pth", TraceOptions(opset=opset))
    assert onnx.load(path).opset_import[0].version == opset


def test_large_weights_go_into_one_file_next_to_the_graph(loaded, tmp_path, monkeypatch):
    monkeypatch.setattr(graph, "save", partial(graph.save, embedded=1000))
    encoder, report = loaded
    out = tmp_path / "big.onnx"
    trace.export_graph(encoder, report, out)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["big.onnx", "big.onnx.data"]
    assert out.stat().st_size < (tmp_path / "big.onnx.data").stat().st_size
    with open_session(out) as session:
        check_golden(session)
        assert session.digest == sha256_files(out, tmp_path / "big.onnx.data")
    monkeypatch.undo()  # a smaller graph in its place leaves no data file behind
    trace.export_graph(encoder, report, out, options=TraceOptions(force=True))
    assert [path.name for path in tmp_path.iterdir()] == ["big.onnx"]


def test_existing_graph_is_kept_without_force(loaded, tmp_path):
    out = tmp_path / "g.onnx"
    out.write_text("precious")
    with pytest.raises(UsageError, match=r"g\.onnx exists; add --force"):
        trace.export_graph(*loaded, out)
    assert out.read_text() == "precious"


@pytest.mark.parametrize(
    ("features", "text"),
    [
        (("pooledd",), "there is no output 'pooledd'; did you mean 'pooled'"),
        (("layer_2",), "there is no 'layer_2': blocks are numbered 0 to 1"),
        (("attention_9",), "there is no 'attention_9'"),
        (("xyzzy",), "known: class_token, pooled"),
    ],
)
def test_unknown_features_are_refused(loaded, tmp_path, features, text):
    with pytest.raises(UsageError, match=text):
        trace.export_graph(*loaded, tmp_path / "g.onnx", options=TraceOptions(features=features))
    assert not list(tmp_path.iterdir())


def test_reconstruction_needs_a_decoder(fixture_dir, tmp_path):
    loaded = load_encoder(fixture_dir / "mae/checkpoint_release.pth", overrides=Overrides(heads=4))
    with pytest.raises(UsageError, match="this checkpoint holds no decoder"):
        trace.export_graph(*loaded, tmp_path / "g.onnx", options=TraceOptions(features=("reconstruction",)))


@pytest.mark.parametrize(
    ("folder", "mask", "features", "text"),
    [
        (
            "ijepa",
            "none",
            "prediction",
            r"'prediction' is of hidden patches here, and --mask none drops none: use --mask k",
        ),
        ("cae", "none", "prediction", r"--mask none drops none: use --mask keep or --mask patches"),
        (
            "cae",
            "keep",
            "reconstruction",
            r"there is no 'reconstruction': this checkpoint predicts token-logits; ask for",
        ),
        ("caev2", "keep", "reconstruction", r"this checkpoint predicts teacher-features; ask for 'prediction'"),
        (
            "data2vec2",
            "mask-token",
            "prediction",
            r"--mask mask-token needs a learned mask token, which this data2vec2",
        ),
    ],
)
def test_predictions_that_cannot_be_are_refused(fixture_dir, tmp_path, folder, mask, features, text):
    weights = "encoder" if folder == "ijepa" else None
    stated = Overrides(heads=4, decoder_heads=4, weights=weights)
    loaded = load_encoder(fixture_dir / folder / "checkpoint.pth", overrides=stated)
    with pytest.raises(UsageError, match=text):
        trace.export_graph(*loaded, tmp_path / "g.onnx", options=TraceOptions(mask=mask, features=(features,)))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("family", ["ijepa", "dmtjepa"])
def test_a_target_encoder_predicts_nothing_and_says_what_to_pass(fixture_dir, tmp_path, family):
    loaded = load_encoder(fixture_dir / "ijepa/checkpoint.pth", family=family, overrides=Overrides(heads=4))
    text = "the predictor works on the context encoder's tokens; where a file holds both, --set weights=encoder takes"
    with pytest.raises(UsageError, match=f"there is no 'prediction': {text}"):
        trace.export_graph(*loaded, tmp_path / "g.onnx", options=TraceOptions(mask="keep", features=("prediction",)))


@pytest.mark.parametrize("folder", ["caev2", "data2vec2"])
def test_what_is_predicted_of_visible_patches_too_needs_no_mask(fixture_dir, tmp_path, folder):
    stated = Overrides(heads=4, decoder_heads=4)
    loaded = load_encoder(fixture_dir / folder / "checkpoint.pth", overrides=stated)
    manifest = trace.export_graph(*loaded, tmp_path / "g.onnx", options=TraceOptions(features=("prediction",)))
    assert manifest.output("prediction").shape[:2] == ("batch", 16)
    with open_session(tmp_path / "g.onnx") as session:
        check_golden(session)
        found = session.run({"images": np.zeros((3, 64, 64, 3), np.uint8)})["prediction"]
    lengths = np.linalg.norm(found, axis=-1)
    assert (np.abs(lengths - 1).max() < 1e-5) == (folder == "caev2")


def test_a_prediction_of_features_is_asked_for_by_its_own_name(fixture_dir, tmp_path):
    stated = Overrides(heads=4, decoder_heads=4)
    loaded = load_encoder(fixture_dir / "dbot/checkpoint.pth", overrides=stated)
    with pytest.raises(
        UsageError, match=r"there is no 'reconstruction': this checkpoint predicts teacher-features; ask"
    ):
        trace.export_graph(*loaded, tmp_path / "g.onnx", options=TraceOptions(features=("reconstruction",)))
    manifest = trace.export_graph(*loaded, tmp_path / "g.onnx", options=TraceOptions(features=("prediction",)))
    assert manifest.output("prediction").shape == ("batch", 16, 64)
    assert manifest.output("prediction").note.endswith("; target: teacher-features")
    assert manifest.licence == "not stated (code: Apache-2.0)"


def test_an_encoder_without_class_token_has_patches_only(fixture_dir, tmp_path):
    loaded = load_encoder(fixture_dir / "ijepa/checkpoint.pth", overrides=Overrides(heads=4))
    assert not loaded[0].spec.class_token
    with pytest.raises(UsageError, match="there is no 'class_token': this encoder has none; 'pooled' is the authors'"):
        trace.export_graph(*loaded, tmp_path / "g.onnx", options=TraceOptions(features=("class_token",)))
    options = TraceOptions(mask="keep", ragged=True, features=("pooled", "patch_tokens", "layer_0", "attention_0"))
    manifest = trace.export_graph(*loaded, tmp_path / "g.onnx", options=options)
    assert manifest.patches.prefix_tokens == 0
    for name in ("patch_tokens", "layer_0"):
        assert manifest.output(name).shape[:2] == ("batch", "kept")
    assert manifest.output("attention_0").shape == ("batch", 4, "kept", "kept")
    with open_session(tmp_path / "g.onnx") as session:
        check_golden(session)


def test_image_size_must_fit_the_patch(loaded, tmp_path):
    with pytest.raises(InputError, match=r"height 65 is not a multiple of the patch's 8; choose 64 or 72"):
        trace.export_graph(*loaded, tmp_path / "g.onnx", options=TraceOptions(image_size=(65, 64)))


def test_name_must_end_in_onnx(loaded, tmp_path):
    with pytest.raises(UsageError, match=r"'g\.bin' must end in \.onnx"):
        trace.export_graph(*loaded, tmp_path / "g.bin")


class Seeded:
    """Faults put into the traced computation only, so that the reference stays right."""

    @staticmethod
    def wrong_gelu(monkeypatch):
        real = torch.nn.functional.gelu
        monkeypatch.setattr(
            "mae_export.export.trace._trace",
            Seeded.tracing_with(
                lambda m: m.setattr(torch.nn.functional, "gelu", lambda x: real(x, approximate="tanh") + 1e-3)
            ),
        )

    @staticmethod
    def swapped_channels(monkeypatch):
        def fault(m):
            real = trace.ExportView.cut
            m.setattr(trace.ExportView, "cut", lambda self, images, ids: real(self, images.flip(-1), ids))

        monkeypatch.setattr("mae_export.export.trace._trace", Seeded.tracing_with(fault))

    @staticmethod
    def rows_mixed(monkeypatch):
        def fault(m):
            real = trace.ExportView.cut
            m.setattr(trace.ExportView, "cut", lambda self, images, ids: real(self, images.flip(0), ids))

        monkeypatch.setattr("mae_export.export.trace._trace", Seeded.tracing_with(fault))

    @staticmethod
    def tracing_with(fault):
        real = trace._trace

        def traced(*arguments):
            with pytest.MonkeyPatch.context() as m:
                fault(m)
                real(*arguments)

        return traced


@pytest.mark.parametrize("fault", ["wrong_gelu", "swapped_channels", "rows_mixed"])
def test_a_wrong_graph_is_rejected_and_named(loaded, tmp_path, monkeypatch, fault):
    getattr(Seeded, fault)(monkeypatch)
    out = tmp_path / "g.onnx"
    with pytest.raises(VerificationError, match=r"output '(layer_1|pooled)' is off by .*limit .*g\.onnx\.rejected"):
        trace.export_graph(*loaded, out, options=TraceOptions(features=("pooled", "layer_1")))
    assert [path.name for path in tmp_path.iterdir()] == ["g.onnx.rejected"]


def test_a_rejected_graph_keeps_its_data_file_and_still_loads(loaded, tmp_path, monkeypatch):
    monkeypatch.setattr(graph, "save", partial(graph.save, embedded=1000))
    Seeded.swapped_channels(monkeypatch)
    with pytest.raises(VerificationError):
        trace.export_graph(*loaded, tmp_path / "g.onnx")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["g.onnx.rejected", "g.onnx.rejected.data"]
    onnx.checker.check_model(str(tmp_path / "g.onnx.rejected"))


def test_an_invalid_graph_is_rejected(loaded, tmp_path, monkeypatch):
    def refuse(path):
        raise GraphError(f"{path.name} is no valid ONNX model: seeded")

    monkeypatch.setattr(graph, "check", refuse)
    with pytest.raises(GraphError, match="is no valid ONNX model: seeded"):
        trace.export_graph(*loaded, tmp_path / "g.onnx")
    assert [path.name for path in tmp_path.iterdir()] == ["g.onnx.rejected"]


def test_an_old_graph_survives_a_rejected_replacement(loaded, tmp_path, monkeypatch):
    out = tmp_path / "g.onnx"
    trace.export_graph(*loaded, out)
    before = out.read_bytes()
    Seeded.swapped_channels(monkeypatch)
    with pytest.raises(VerificationError):
        trace.export_graph(*loaded, out, options=TraceOptions(force=True))
    assert out.read_bytes() == before


def test_interruption_leaves_nothing(loaded, tmp_path, monkeypatch):
    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(graph, "check", interrupted)
    with pytest.raises(KeyboardInterrupt):
        trace.export_graph(*loaded, tmp_path / "g.onnx")
    assert not list(tmp_path.iterdir())


def test_phases_are_told_in_order(loaded, tmp_path):
    told = []
    manifest = trace.export_graph(*loaded, tmp_path / "g.onnx", progress=told.append)
    assert told == ["tracing", "checking", "comparing with PyTorch"]
    assert graph.read_manifest(tmp_path / "g.onnx") == manifest
