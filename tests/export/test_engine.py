"""Real builds with TensorRT-RTX, whose builder needs no GPU; the counts of fused attention come from its log."""

import signal
import subprocess
import sys
from dataclasses import replace

import onnx
import onnx_ir
import psutil
import pytest

from benchmarks.sizes import spec_of
from mae_export import graph
from mae_export.encoders.load import LoadReport, load_encoder
from mae_export.errors import GraphError, InputError, MachineError, ResourceError, UsageError, VerificationError
from mae_export.export import flavour, trace
from mae_export.export.engine import build, estimate
from mae_export.export.options import TraceOptions
from mae_export.export.plan import EnginePlan, parse_profile
from mae_export.export.retype import retype
from mae_export.files import sha256_files
from mae_export.runtime.doctor import nvidia_gpus
from mae_export.runtime.engine_file import load_plan, read_sidecar
from mae_export.runtime.session import open_session
from mae_export.training.checkpoint import save_checkpoint
from mae_export.training.initialise import initialise

pytestmark = pytest.mark.skipif(
    flavour.find_module("rtx") is None, reason="tensorrt-rtx-cu13-bindings and -libs are not installed"
)
NONE, KEEP = TraceOptions(), TraceOptions(mask="keep")
RAGGED = TraceOptions(mask="patches", ragged=True)
PLAN = EnginePlan(backend="rtx", profiles=(parse_profile("batch=1:2:8"),), targets=("sm86",))
SEVERAL = (parse_profile("batch=1"), parse_profile("batch=1:8:16,keep=16:16:32"), parse_profile("batch=1:8:16"))


def halved(source, out, precision="fp16"):
    """The graph with every tensor in half precision, unproven: what is built from it is all that matters here."""
    model = onnx_ir.load(source)
    retype(model, precision, ())
    onnx_ir.save(model, out)
    graph.write_manifest(out, replace(graph.read_manifest(source), precision=precision))
    return out


@pytest.fixture
def small(exported, tmp_path):
    """A small encoder of two blocks as a graph, in a folder of its own."""

    def make(options=NONE, precision="fp16"):
        source = exported("mae/checkpoint.pth", options)
        (tmp_path / "graphs").mkdir(exist_ok=True)
        return source if precision == "fp32" else halved(source, tmp_path / "graphs" / "vit.onnx", precision)

    return make


@pytest.fixture
def out(tmp_path):
    (tmp_path / "engines").mkdir()
    return tmp_path / "engines" / "vit.engine"


def left(out):
    return sorted(path.name for path in out.parent.iterdir())


@pytest.mark.parametrize(
    ("options", "precision", "targets", "profiles", "attention", "products"),
    [
        (NONE, "fp16", ("sm86",), PLAN.profiles, 2, {"Half": 9}),
        (NONE, "fp16", ("sm89",), PLAN.profiles, 2, {"Half": 9}),
        (NONE, "fp16", ("sm120",), PLAN.profiles, 2, {"Half": 9}),
        (KEEP, "fp16", ("sm86", "sm89", "sm120"), PLAN.profiles, 2, {"Half": 9}),
        (RAGGED, "fp16", ("sm86", "sm89", "sm120"), PLAN.profiles, 2, {"Half": 9}),
        (RAGGED, "fp16", ("sm89",), SEVERAL, 6, {"Half": 27}),
        (NONE, "bf16", ("sm86",), PLAN.profiles, 2, {"BFloat16": 9}),
    ],
    ids=["sm86", "sm89", "sm120", "keep", "patches ragged", "three profiles", "bf16"],
)
def test_attention_is_fused(small, out, options, precision, targets, profiles, attention, products):
    source = small(options, precision)
    sidecar = build(source, out, plan=replace(PLAN, targets=targets, profiles=profiles, strict=True))
    achieved = sidecar.achieved
    assert (achieved.fused, achieved.attention, achieved.fallbacks) == (attention, attention, ())
    assert achieved.gemms == products
    assert len(achieved.activation_bytes) == len(profiles)
    assert sidecar.targets == targets


def test_sidecar_says_what_was_built(small, out):
    source = small(RAGGED)
    sidecar = build(source, out, plan=PLAN)
    assert left(out) == ["vit.engine", "vit.engine.json"]
    found, size = load_plan(out, len)
    assert found == sidecar == read_sidecar(out)
    assert (size, sidecar.sha256) == (out.stat().st_size, sha256_files(out))
    assert (sidecar.backend, sidecar.version.split(".")[0], sidecar.device) == ("rtx", "1", "")
    assert [str(profile) for profile in sidecar.profiles] == ["batch=1:2:8,keep=1:16:64"]
    manifest = sidecar.manifest
    assert not sidecar.proven
    assert manifest.target == {"backend": "rtx", "version": sidecar.version, "gpus": ["sm86"]}
    assert [ancestor.kind for ancestor in manifest.made_from] == ["checkpoint", "graph"]
    assert manifest.made_from[-1].sha256 == sha256_files(source)
    assert manifest.tools["TensorRT-RTX"] == sidecar.version
    assert manifest.golden == graph.read_manifest(source).golden is not None
    assert {"Half"} < {dtype for layer in sidecar.achieved.layers for dtype in (*layer.inputs, *layer.outputs)}


@pytest.mark.skipif(bool(nvidia_gpus()), reason="here is a GPU")
def test_opening_it_without_a_gpu_says_what_is_missing(small, out):
    build(small(), out, plan=PLAN)
    with pytest.raises(MachineError, match=r"cuda-python|engines need an NVIDIA GPU"):
        open_session(out)


def test_float32_attention_never_fuses(small, out):
    source = small(precision="fp32")
    sidecar = build(source, out, plan=PLAN)
    assert (sidecar.achieved.fused, sidecar.achieved.attention, sidecar.achieved.gemms) == (0, 2, {"Float": 9})
    assert sidecar.achieved.fallbacks == ("2 of 2 attention blocks are not fused into one kernel",)
    old = out.read_bytes()
    with pytest.raises(VerificationError, match="--strict allows no fallback: 2 of 2 attention blocks are not fused"):
        build(source, out, plan=replace(PLAN, strict=True, force=True))
    assert out.read_bytes() == old
    assert left(out) == ["vit.engine", "vit.engine.json"]


def test_heads_of_8_do_not_fuse(small, out):
    """The small decoder's heads are 8 wide, which no fused kernel takes; the encoder's 12 are padded to 16."""
    source = small(TraceOptions(features=("pooled", "reconstruction")))
    achieved = build(source, out, plan=PLAN).achieved
    assert (achieved.attention, achieved.fused) == (3, 2)
    assert achieved.fallbacks == ("1 of 3 attention blocks are not fused into one kernel",)


def test_progress_names_phases_and_counts_steps(small, out):
    seen = []
    build(small(), out, plan=PLAN, progress=lambda *step: seen.append(step) or True)
    assert seen[0] == ("Reading graph", 0, 1)
    assert {"Building engine", "Optimizing graph", "Computing profile costs"} <= {phase for phase, _, _ in seen}
    assert seen[-1] == ("Building engine", 6, 6)
    assert all(0 <= done <= total for _, done, total in seen)


class Interrupting:
    """A progress callback that does something to the build in one phase."""

    def __init__(self, action):
        self.action = action
        self.children = []

    def __call__(self, phase, done, total):
        if phase == "Optimizing graph" and not self.children:
            self.children = psutil.Process().children()
            return self.action(self.children)
        return True


def raise_interrupt(children):
    raise KeyboardInterrupt


@pytest.mark.parametrize("action", [lambda children: False, raise_interrupt], ids=["callback", "ctrl-c"])
def test_cancelling_leaves_nothing(small, out, action):
    interrupting = Interrupting(action)
    with pytest.raises(KeyboardInterrupt):
        build(small(), out, plan=PLAN, progress=interrupting)
    assert left(out) == []
    assert len(interrupting.children) == 1
    assert not interrupting.children[0].is_running()


@pytest.mark.parametrize(
    ("number", "kind", "text"),
    [
        (signal.SIGKILL, ResourceError, "the builder was killed, as the system does when memory runs out"),
        (signal.SIGSEGV, MachineError, r"the builder crashed \(SIGSEGV\); nothing was written"),
    ],
)
def test_a_dead_builder_leaves_nothing(small, out, number, kind, text):
    def end(children):
        children[0].send_signal(number)
        return True

    with pytest.raises(kind, match=text):
        build(small(), out, plan=PLAN, progress=Interrupting(end))
    assert left(out) == []


STARVE = "import os, resource, sys; n = int(sys.argv[1]); resource.setrlimit(resource.RLIMIT_DATA, (n, n)); "
STARVE += "os.execv(sys.argv[2], sys.argv[2:])"


@pytest.fixture
def limit_memory(monkeypatch):
    """Let the building process have so many MiB of data; what it asks for beyond fails for real."""
    start = subprocess.Popen

    def limit(mib):
        def starved(command, **options):
            return start([sys.executable, "-c", STARVE, str(mib << 20), *command], **options)

        monkeypatch.setattr("mae_export.export.engine.subprocess.Popen", starved)

    return limit


@pytest.mark.skipif(sys.platform != "linux", reason="other systems do not limit a process's data")
@pytest.mark.parametrize("mib", [40, 80, 120, 200])
def test_memory_that_runs_out(small, out, limit_memory, mib):
    """While Python starts, while the library is loaded, and early and late in the build.

    The library now and then uses memory that it was refused, and dies of it; a crash leaves as little behind.
    """
    source = small()
    limit_memory(mib)
    with pytest.raises(
        (ResourceError, MachineError), match=r"too little memory|or got none|done nothing for|crashed \(SIG"
    ):
        build(source, out, plan=PLAN)
    assert left(out) == []
    assert not [child for child in psutil.Process().children() if child.name().startswith("python")]


@pytest.mark.skipif(sys.platform != "linux", reason="other systems do not limit a process's data")
def test_memory_that_suffices(small, out, limit_memory):
    limit_memory(4096)
    build(small(), out, plan=PLAN)
    assert left(out) == ["vit.engine", "vit.engine.json"]


def test_refused_nodes_are_named(small, out):
    source = small()
    model = onnx.load(source)
    for operator, name in (("NonZero", "blocks.0.attn/NonZero_90"), ("Unique", "blocks.1.mlp/Unique_91")):
        model.graph.node.append(onnx.helper.make_node(operator, ["pooled"], [operator], name=name))
        model.graph.output.append(onnx.helper.make_tensor_value_info(operator, onnx.TensorProto.INT64, None))
    onnx.save(model, source)
    with pytest.raises(GraphError, match=r"(?s)cannot read 2 nodes of vit\.onnx.*blocks\.0\.attn/NonZero_90") as caught:
        build(source, out, plan=PLAN)
    assert "blocks.1.mlp/Unique_91 (Unique): no such operator" in str(caught.value)
    assert left(out) == []


def test_too_little_workspace(small, out):
    with pytest.raises(ResourceError, match=r"too little memory to build vit\.onnx: .*within workspace limit"):
        build(small(), out, plan=replace(PLAN, workspace=1 << 20))
    assert left(out) == []


def test_a_type_that_the_target_lacks(small, out):
    with pytest.raises(GraphError, match=r"cannot build vit\.onnx \(bf16\) for sm75: .*datatypes: b16"):
        build(small(precision="bf16"), out, plan=replace(PLAN, targets=("sm75",)))
    assert left(out) == []


def test_low_memory(small, out):
    source = small()
    plan = replace(PLAN, low_memory=True)
    sidecar = build(source, out, plan=plan)
    assert (sidecar.low_memory, sidecar.workspace, sidecar.achieved.fused) == (True, 1 << 30, 2)
    assert estimate(source, plan).build > source.stat().st_size


def test_timing_cache_is_kept(small, out, tmp_path, monkeypatch):
    """The calls that TensorRT honours; here they are tried on TensorRT-RTX, which takes them and ignores them."""
    monkeypatch.setattr(flavour, "refuse_unhonoured", lambda *_: None)
    plan = replace(PLAN, timing_cache=tmp_path / "kernels.cache", level=2, force=True)
    for _ in range(2):  # made by the first build, read and written by the second
        assert build(small(), out, plan=plan).level == 2
        assert plan.timing_cache.stat().st_size > 0
    with pytest.raises(InputError, match="is no folder; create it, or keep the timing cache elsewhere"):
        build(small(), out, plan=replace(plan, timing_cache=tmp_path / "no" / "kernels.cache"))


@pytest.mark.parametrize(
    ("name", "plan", "kind", "text"),
    [
        ("vit.plan", PLAN, UsageError, r"'vit\.plan' must end in \.engine"),
        ("vit.engine", replace(PLAN, level=3), UsageError, "TensorRT-RTX ignores --level"),
        ("vit.engine", replace(PLAN, targets=("sm90",)), UsageError, "cannot build for sm90"),
        ("vit.engine", replace(PLAN, profiles=SEVERAL), InputError, "means nothing to a graph without ids_keep"),
        ("no/vit.engine", PLAN, UsageError, "is no folder; create it"),
    ],
)
def test_refused_before_anything_is_built(small, out, monkeypatch, name, plan, kind, text):
    monkeypatch.setattr("mae_export.export.engine.subprocess.Popen", pytest.fail)
    with pytest.raises(kind, match=text):
        build(small(), out.parent / name, plan=plan)
    assert left(out) == []


def test_an_existing_engine_is_kept_without_force(small, out):
    out.write_text("precious")
    with pytest.raises(UsageError, match=r"vit\.engine exists; add --force"):
        build(small(), out, plan=PLAN)
    assert out.read_text() == "precious"
    build(small(), out, plan=replace(PLAN, force=True))
    load_plan(out, len)


def test_an_unreadable_graph(tmp_path, out):
    (tmp_path / "no.onnx").write_text("no graph")
    with pytest.raises(GraphError, match=r"no\.onnx"):
        build(tmp_path / "no.onnx", out, plan=PLAN)


@pytest.fixture(scope="module")
def vit_base(tmp_path_factory):
    """ViT-B/16 of random weights as a half-precision graph in one mode; PyTorch has been compared with smaller ones."""
    folder = tmp_path_factory.mktemp("base")
    encoder, report = load_encoder(save_checkpoint(initialise(spec_of("base"), seed=0), folder / "base.pth"))
    assert isinstance(report, LoadReport)

    def make(options, precision):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(trace, "_prove", lambda staged, encoder, manifest, digest: manifest)
            trace.export_graph(encoder, report, folder / "fp32.onnx", options=replace(options, force=True))
        return halved(folder / "fp32.onnx", folder / f"{precision}.onnx", precision)

    return make


BASE_PROFILES = (
    parse_profile("batch=1,keep=196"),
    parse_profile("batch=1:8:64,keep=49:49:98"),
    parse_profile("batch=1:8:64"),
)


@pytest.mark.parametrize(
    ("options", "precision", "targets", "profiles", "fused"),
    [
        (RAGGED, "fp16", ("sm86", "sm89", "sm120"), BASE_PROFILES[2:], 12),
        (NONE, "fp16", ("sm86",), BASE_PROFILES[2:], 12),
        (NONE, "fp16", ("sm120",), BASE_PROFILES[2:], 12),
        (NONE, "bf16", ("sm86", "sm89", "sm120"), BASE_PROFILES[2:], 12),
        (KEEP, "fp16", ("sm89",), BASE_PROFILES[2:], 12),
        (RAGGED, "fp16", ("sm86", "sm89", "sm120"), BASE_PROFILES, 36),
    ],
)
def test_vit_base(vit_base, out, options, precision, targets, profiles, fused):
    source = vit_base(options, precision)
    sidecar = build(source, out, plan=EnginePlan(targets=targets, profiles=profiles, strict=True))
    assert (sidecar.achieved.fused, sidecar.achieved.attention) == (fused, fused)
    assert sidecar.achieved.gemms == {"Half" if precision == "fp16" else "BFloat16": 49 * len(profiles)}
    assert sidecar.size == pytest.approx(2 * 85.8e6, rel=0.1)
