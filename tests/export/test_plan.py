"""What plans mean, and which make no sense: refused before anything is built."""

from dataclasses import replace

import pytest

from mae_export import graph
from mae_export.errors import InputError, UsageError
from mae_export.export.options import TraceOptions
from mae_export.export.plan import (
    EnginePlan,
    estimate_memory,
    input_shapes,
    parse_profile,
    parse_size,
    resolve_profiles,
)
from mae_export.manifest import Range, TensorSpec
from mae_export.runtime.engine_file import Profile


@pytest.fixture
def none(exported):
    return graph.read_manifest(exported("mae/checkpoint.pth", TraceOptions()))


@pytest.fixture
def ragged(exported):
    return graph.read_manifest(exported("mae/checkpoint.pth", TraceOptions(mask="patches", ragged=True)))


def test_profiles_and_sizes_as_text():
    assert parse_profile("batch=1:8:64") == Profile(batch=Range.parse("1:8:64"))
    assert parse_profile("keep=49:98:196, batch=4") == Profile(batch=Range.parse("4"), keep=Range.parse("49:98:196"))
    assert [parse_size(text) for text in ("4GiB", "512 MiB", "3KiB", "77")] == [4 << 30, 512 << 20, 3 << 10, 77]


@pytest.mark.parametrize("text", ["", "1:8:64", "keep=1", "batch=1,batch=2", "batch=1,tokens=3", "batch=64:8:1"])
def test_bad_profiles(text):
    with pytest.raises(InputError, match=r"is not batch=min:typical:max|must satisfy 0 <= min"):
        parse_profile(text)


@pytest.mark.parametrize("text", ["", "4GB", "-1", "1.5GiB", "GiB", "9" * 400])
def test_bad_sizes(text):
    with pytest.raises(InputError, match="is not a number of bytes; write for example 4GiB"):
        parse_size(text)


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"profiles": ()}, "an engine needs a profile"),
        ({"level": 6}, "optimization level 6 does not exist; expected 0 to 5"),
        ({"workspace": 4096}, "a workspace of 4096 bytes holds no kernel"),
        ({"targets": ("ampere",)}, "target 'ampere' is no GPU"),
        ({"targets": ("sm86", "sm86")}, "must name each GPU once"),
        ({"targets": ("this", "sm86")}, "`this` alone"),
    ],
)
def test_plans_without_sense(options, text):
    with pytest.raises(UsageError, match=text):
        EnginePlan(**options)


def test_k_spans_all_counts_unless_given(none, ragged):
    plan = EnginePlan(profiles=(parse_profile("batch=1:2:4"), parse_profile("batch=1,keep=16")))
    assert [str(p) for p in resolve_profiles(plan, ragged)] == ["batch=1:2:4,keep=1:16:64", "batch=1:1:1,keep=16:16:16"]
    assert [str(p) for p in resolve_profiles(EnginePlan(), none)] == ["batch=1:8:64"]


def test_profiles_that_do_not_fit_the_graph(none, ragged):
    with pytest.raises(InputError, match="keep 1:2:3 means nothing to a graph without ids_keep"):
        resolve_profiles(EnginePlan(profiles=(parse_profile("batch=1,keep=1:2:3"),)), none)
    with pytest.raises(InputError, match="keep 1:2:65 exceeds the 64 patches of an image"):
        resolve_profiles(EnginePlan(profiles=(parse_profile("batch=1,keep=1:2:65"),)), ragged)


def test_every_input_follows_the_same_ranges(ragged):
    shapes = input_shapes(ragged, parse_profile("batch=1:2:4,keep=8:16:32"))
    assert shapes == {
        "patches": ((1, 8, 192), (2, 16, 192), (4, 32, 192)),
        "ids_keep": ((1, 8), (2, 16), (4, 32)),
        "num_keep": ((1,), (2,), (4,)),
    }
    other = replace(ragged, inputs=(TensorSpec(name="frames", dtype="uint8", shape=("batch", "time")),))
    with pytest.raises(InputError, match="input 'frames' has a free dimension 'time'"):
        input_shapes(other, parse_profile("batch=1"))


def test_low_memory_caps_the_workspace_unless_it_is_given():
    assert EnginePlan().workspace_limit is None
    assert EnginePlan(low_memory=True).workspace_limit == 1 << 30
    assert EnginePlan(low_memory=True, workspace=1 << 29).workspace_limit == 1 << 29


def test_estimate_of_vit_base(none):
    """For 64 images of float16 ViT-B/16 the builder reported 174,292,992 bytes of activations and peaked at 0.88 GB."""
    manifest = replace(
        none,
        encoder={"dim": 768},
        precision="fp16",
        patches=replace(none.patches, patch=(1, 16, 16), grid=(1, 14, 14)),
    )
    weights = 172_745_629
    found = estimate_memory(manifest, weights, (parse_profile("batch=1:8:64"),))
    assert found.run - weights == pytest.approx(174_292_992, rel=0.01)
    assert found.build == pytest.approx(0.88e9, rel=0.2)
    assert str(found) == "about 1.0 GB to build and 0.3 GB to run"
    assert estimate_memory(manifest, weights, (parse_profile("batch=1"),) * 4).build > found.build
