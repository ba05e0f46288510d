"""The camera example on videos that are made here: a square moves over a still background, losslessly encoded."""

import dataclasses
import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import ClassVar

import av
import numpy as np
import pytest

from mae_export.manifest import Manifest, Patches, TensorSpec
from mae_export.runtime.app import FeatureSession
from mae_export.runtime.bundle_writer import write_bundle
from mae_export.runtime.fake import FakeSession
from mae_export.runtime.providers import Choice
from mae_export.spec import ImageSpec
from tests.runtime.bundled import make_graph
from tests.runtime.test_ort import write_graph

ROOT = Path(__file__).parents[2]
EXAMPLE = ROOT / "examples" / "jetson_camera.py"
SIZE, PATCH, GRID = 32, 8, 4
PATH = (0, 1, 5, 6, 10, 15)  # patch that the square covers in each frame


@pytest.fixture(scope="module")
def camera():
    spec = importlib.util.spec_from_file_location("jetson_camera", EXAMPLE)
    module = importlib.util.module_from_spec(spec)
    sys.modules["jetson_camera"] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def manifest():
    return Manifest(
        family="mae",
        encoder={},
        image=ImageSpec(size=(SIZE, SIZE), crop_fraction=1.0),
        patches=Patches(patch=(1, PATCH, PATCH), grid=(1, GRID, GRID), prefix_tokens=1),
        mask_mode="keep",
        ragged=False,
        inputs=(
            TensorSpec(name="images", dtype="uint8", shape=("B", SIZE, SIZE, 3)),
            TensorSpec(name="ids_keep", dtype="int64", shape=("B", "K")),
        ),
        outputs=(TensorSpec(name="pooled", dtype="float32", shape=("B", 6)),),
        precision="fp32",
        made_from=(),
    )


@pytest.fixture(scope="module")
def frames():
    """uint8 [6, 32, 32, 3]: faint noise that never changes, and a bright square of one patch."""
    still = np.random.default_rng(0).integers(0, 60, (SIZE, SIZE, 3), dtype=np.uint8)
    images = np.stack([still] * len(PATH))
    for image, patch in zip(images, PATH, strict=True):
        row, column = (PATCH * at for at in divmod(patch, GRID))
        image[row : row + PATCH, column : column + PATCH] = 250
    return images


@pytest.fixture(scope="module")
def video(tmp_path_factory, frames):
    path = tmp_path_factory.mktemp("video") / "square.mkv"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("ffv1", rate=10)
        stream.width, stream.height, stream.pix_fmt = SIZE, SIZE, "bgr0"
        for image in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
        container.mux(stream.encode())
    return path


@pytest.fixture(scope="module")
def model(tmp_path_factory, manifest):
    return make_graph(tmp_path_factory.mktemp("model") / "vit.onnx", manifest)


def run(*arguments: object, cwd: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, EXAMPLE, *map(str, arguments)],
        cwd=cwd,
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def test_only_what_moved_is_seen(video, model, frames, tmp_path):
    done = run(model, video, "--keep", 2 / 16, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    lines = [json.loads(line) for line in (tmp_path / "features.jsonl").read_text().splitlines()]
    assert [line["frame"] for line in lines] == list(range(len(PATH)))
    assert [line["seconds"] for line in lines] == pytest.approx([0.1 * i for i in range(len(PATH))], abs=2e-3)
    for before, now, line in zip(PATH[:-1], PATH[1:], lines[1:], strict=True):
        assert line["ids_keep"] == sorted((before, now)), "where the square was, and where it is"
    assert 0 in lines[0]["ids_keep"], "at first, what stands out"
    for image, line in zip(frames, lines, strict=True):  # the graph computes the mean colour, twice
        np.testing.assert_allclose(line["feature"], np.tile(image.mean(axis=(0, 1)), 2), rtol=1e-5)
    assert done.stderr.startswith("vit.onnx: ONNX Runtime 1.")
    assert "2 of 16 patches" in done.stderr
    assert "6 frames in " in done.stderr
    assert " frames/s, " in done.stderr


def test_arrays_and_a_limit(video, model, tmp_path):
    assert run(model, video, "-o", "f.npy", "--frames", 3, "--threads", 1, cwd=tmp_path).returncode == 0
    features, ids = np.load(tmp_path / "f.npy"), np.load(tmp_path / "f.ids.npy")
    assert (features.shape, features.dtype, ids.shape, ids.dtype) == ((3, 6), np.float32, (3, 4), np.int64)
    assert (np.diff(ids, axis=1) > 0).all()


def test_a_bundle_is_a_model_too(video, model, tmp_path):
    write_bundle([model], tmp_path / "bundle")
    done = run(tmp_path / "bundle", video, "--frames", 1, cwd=tmp_path)
    assert (done.returncode, done.stderr.partition(":")[0]) == (0, "vit.onnx")


def test_equal_patches_are_taken_in_raster_order(camera):
    assert camera.moved(np.array([0.0, 3.0, 1.0, 3.0, 1.0]), 3).tolist() == [1, 2, 3]
    assert camera.moved(np.zeros(5), 2).tolist() == [0, 1]
    assert camera.moved(np.arange(5.0), 5).tolist() == [0, 1, 2, 3, 4]


def test_motion_is_the_mean_absolute_difference(camera, manifest):
    generator = np.random.default_rng(1)
    now, before = generator.integers(0, 256, (2, SIZE, SIZE, 3), dtype=np.uint8)
    expected = [
        sum(
            abs(int(now[y + dy, x + dx, c]) - int(before[y + dy, x + dx, c]))
            for dy, dx, c in np.ndindex(PATCH, PATCH, 3)
        )
        / (PATCH * PATCH * 3)
        for y in range(0, SIZE, PATCH)
        for x in range(0, SIZE, PATCH)
    ]
    np.testing.assert_allclose(camera.motion(now, before, manifest), expected)
    np.testing.assert_array_equal(camera.motion(now, now, manifest), np.zeros(16))
    flat = np.full((SIZE, SIZE, 3), 7, np.uint8)
    np.testing.assert_array_equal(camera.motion(flat, None, manifest), np.zeros(16))


def test_patches_mode_gets_the_pixels_that_moved(camera, manifest, frames):
    class Inner(FakeSession):
        feeds: ClassVar[list[dict[str, object]]] = []

        def run(self, feeds, outputs=None):
            self.feeds.append(dict(feeds))
            return super().run(feeds, outputs)

    pixels = TensorSpec(name="patches", dtype="uint8", shape=("B", "K", PATCH * PATCH * 3))
    inner = Inner(dataclasses.replace(manifest, mask_mode="patches", inputs=(pixels, manifest.inputs[1])))
    session = FeatureSession(inner, Choice(backend="cpu", reason="a test"))
    seen = [camera.Frame(index=i, seconds=0.0, pixels=image) for i, image in enumerate(frames)]
    list(camera.watch(session, seen, keep=1, feature="pooled"))
    for patch, before, feeds in zip(PATH[1:], PATH[:-1], inner.feeds[1:], strict=True):
        (chosen,) = feeds["ids_keep"][0]
        assert chosen in (patch, before)
        assert (feeds["patches"] == 250).all() == (chosen == patch)


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (["MODEL", "gone.mkv"], 3, "there is no video or camera at gone.mkv"),
        (["MODEL", "99"], 3, "there is no video or camera at /dev/video99"),
        (["MODEL", "text.mkv"], 3, "text.mkv cannot be read"),
        (["MODEL", "VIDEO", "--keep", "0"], 2, "--keep is 0.0; expected a fraction above 0"),
        (["MODEL", "VIDEO", "--feature", "dense"], 2, "there is no output 'dense'"),
        (["MODEL", "VIDEO", "--frames", "0"], 3, "gave no frame"),
        (["gone.onnx", "VIDEO"], 3, "there is no model at gone.onnx"),
        (["whole.onnx", "VIDEO"], 2, "whole.onnx always sees every patch"),
    ],
)
def test_what_is_wrong_is_said(video, model, manifest, tmp_path, arguments, code, said):
    (tmp_path / "text.mkv").write_text("no video")
    whole = dataclasses.replace(manifest, mask_mode="none", inputs=manifest.inputs[:1])
    write_graph(tmp_path / "whole.onnx", whole)
    names = {"MODEL": model, "VIDEO": video}
    done = run(*(names.get(argument, argument) for argument in arguments), cwd=tmp_path)
    assert (done.returncode, "Traceback" in done.stderr) == (code, False), done.stderr
    assert f"error: {said}" in done.stderr or said in done.stderr.rpartition("error: ")[2]


def test_pipelines_need_opencv(camera, monkeypatch):
    monkeypatch.setitem(sys.modules, "cv2", None)
    with pytest.raises(camera.MachineError, match="pipelines need JetPack's OpenCV"):
        next(camera.images_of("videotestsrc ! appsink"))
