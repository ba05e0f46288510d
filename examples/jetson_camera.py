"""Frames in, features out, and only the patches that moved are computed.

    python examples/jetson_camera.py MODEL SOURCE [-o features.jsonl] [--keep 0.25] [--frames N] [--threads T]

MODEL is a graph or an engine exported with `--mask keep` or `--mask patches`, or a folder written by
`mae-export bundle`. SOURCE is a video file, a camera (`/dev/video0`, or its number 0), or a GStreamer pipeline that
ends in `appsink`, for the cameras of a Jetson:

    'nvarguscamerasrc ! nvvidconv ! video/x-raw,format=BGRx ! videoconvert ! video/x-raw,format=BGR ! appsink drop=1'

Files and cameras need `pip install 'mae-export[video]'`; pipelines need an OpenCV with GStreamer, such as JetPack's.
Output is one JSON object per frame as it happens, or, for names that end in .npy, one array of features at the end,
with the visible patches beside it in NAME.ids.npy.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Generator, Iterable, Iterator
from contextlib import closing
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image

from mae_export.errors import InputError, MachineError, MaeExportError, UsageError
from mae_export.manifest import Manifest
from mae_export.runtime.app import FeatureSession
from mae_export.runtime.bundle import open_bundle
from mae_export.runtime.images import fit
from mae_export.runtime.patchify import patchify
from mae_export.runtime.session import open_session
from mae_export.runtime.stages import Ahead

Pixels = npt.NDArray[np.uint8]
FRAMES_READY = 1  # decoded while the model runs; more would only be older when they are used


@dataclass(frozen=True, kw_only=True)
class Frame:
    """A frame as the model takes it, uint8 [H, W, 3], its position and its time in seconds."""

    index: int
    seconds: float
    pixels: Pixels


@dataclass(frozen=True, kw_only=True)
class Seen:
    """What the model made of a frame: the patches it saw, the feature, and how long that took in seconds."""

    frame: Frame
    ids_keep: npt.NDArray[np.int64]
    feature: npt.NDArray[np.float32]
    took: float


def motion(pixels: Pixels, previous: Pixels | None, manifest: Manifest) -> npt.NDArray[np.float64]:
    """How much each patch changed: the mean absolute difference of its values, float64 [N].

    The first frame has none before it and is compared with its own mean colour, which favours patches with detail.
    """
    if previous is None:
        previous = np.broadcast_to(pixels.mean(axis=(0, 1)).astype(np.uint8), pixels.shape)
    now, before = patchify(np.stack([pixels, previous]), manifest.patches).astype(np.int16)  # uint8 would wrap round
    amounts: npt.NDArray[np.float64] = np.abs(now - before).mean(axis=1)
    return amounts


def moved(amounts: npt.NDArray[np.float64], keep: int) -> npt.NDArray[np.int64]:
    """The `keep` patches that changed most, in raster order; of equal ones the first."""
    return np.sort(np.argsort(-amounts, kind="stable")[:keep]).astype(np.int64)


def images_of(source: str) -> Generator[tuple[float, Pixels], None, None]:
    """Frames of a file, a camera or a pipeline: seconds since the first, and RGB pixels [H, W, 3]."""
    if "!" in source:
        return _from_pipeline(source)
    path = f"/dev/video{source}" if source.isdecimal() else source
    if not Path(path).exists():
        raise InputError(f"there is no video or camera at {path}; expected a file, /dev/videoN, N, or a pipeline")
    return _from_av(path)


def _from_av(path: str) -> Generator[tuple[float, Pixels], None, None]:
    try:
        import av
    except ModuleNotFoundError as error:
        raise MachineError("reading videos needs PyAV; run: pip install 'mae-export[video]'") from error
    try:
        with av.open(path, format="v4l2" if path.startswith("/dev/video") else None) as container:
            if not container.streams.video:
                raise InputError(f"{path} has no pictures; expected a video")
            for frame in container.decode(video=0):
                yield frame.time or 0.0, np.asarray(frame.to_ndarray(format="rgb24"), np.uint8)
    except (av.FFmpegError, OSError) as error:
        raise InputError(f"{path} cannot be read ({error}); expected a video that FFmpeg decodes") from error


def _from_pipeline(pipeline: str) -> Generator[tuple[float, Pixels], None, None]:
    try:
        import cv2
    except ModuleNotFoundError as error:
        raise MachineError("pipelines need JetPack's OpenCV; run in: python3 -m venv --system-site-packages") from error
    capture = cv2.VideoCapture(pipeline, cv2.CAP_GSTREAMER)
    if not capture.isOpened():
        raise InputError(
            f"the pipeline {pipeline!r} cannot be opened; try it with gst-launch-1.0, and end it in appsink"
        )
    start = time.monotonic()
    try:
        while (read := capture.read())[0]:
            yield time.monotonic() - start, np.ascontiguousarray(read[1][..., ::-1])  # OpenCV gives BGR
    finally:
        capture.release()


def frames_of(source: str, manifest: Manifest, limit: int | None) -> Generator[Frame, None, None]:
    """Frames fitted to the model, at most `limit`."""
    with closing(images_of(source)) as images:
        for index, (seconds, pixels) in enumerate(islice(images, limit)):
            yield Frame(index=index, seconds=seconds, pixels=fit(Image.fromarray(pixels), manifest.image))


def watch(session: FeatureSession, frames: Iterable[Frame], *, keep: int, feature: str) -> Iterator[Seen]:
    """Run the model on the patches of each frame that moved since the frame before."""
    manifest, previous = session.manifest, None
    for frame in frames:
        start = time.perf_counter()
        ids = moved(motion(frame.pixels, previous, manifest), keep)
        found = session.extract(frame.pixels[None], ids, features=(feature,), prepared=True)
        previous = frame.pixels
        yield Seen(frame=frame, ids_keep=ids, feature=found[feature][0], took=time.perf_counter() - start)


def store(seen: Iterable[Seen], out: Path) -> list[float]:
    """Write what was seen as it comes, or at the end as arrays; returns the seconds that each frame took."""
    took = []
    if out.suffix == ".npy":
        everything = list(seen)
        if everything:
            np.save(out, np.stack([one.feature for one in everything]))
            np.save(out.with_suffix(".ids.npy"), np.stack([one.ids_keep for one in everything]))
        return [one.took for one in everything]
    with out.open("w", encoding="utf-8") as lines:
        for one in seen:
            where = {"frame": one.frame.index, "seconds": round(one.frame.seconds, 3)}
            what = {"ids_keep": one.ids_keep.tolist(), "feature": one.feature.ravel().tolist()}
            lines.write(json.dumps({**where, **what}) + "\n")
            lines.flush()  # whoever follows the file sees each frame when it happens
            took.append(one.took)
    return took


def open_model(path: Path, threads: int) -> FeatureSession:
    """A model that takes visible patches, from a file or from a bundle."""
    session = open_bundle(path, threads=threads) if path.is_dir() else open_session(path, threads=threads)
    if session.manifest.mask_mode == "none":
        session.close()
        raise UsageError(f"{path} always sees every patch; export it with: mae-export export ... --mask keep")
    return session


def main() -> None:
    """Watch a source until it ends, and report how fast that went."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("model", type=Path, help="graph, engine, or bundle folder")
    parser.add_argument("source", help="video file, camera number or device, or GStreamer pipeline")
    parser.add_argument("-o", "--output", type=Path, default=Path("features.jsonl"), help="a .jsonl or .npy file")
    parser.add_argument("--keep", type=float, default=0.25, help="fraction of patches to see")
    parser.add_argument("--feature", default="pooled", help="output of the model to store")
    parser.add_argument("--frames", type=int, help="stop after so many")
    parser.add_argument("--threads", type=int, default=0, help="CPU threads of a graph; 0 chooses")
    arguments = parser.parse_args()
    if not 0 < arguments.keep <= 1:
        raise UsageError(f"--keep is {arguments.keep}; expected a fraction above 0 and up to 1")
    with open_model(arguments.model, arguments.threads) as session:
        manifest = session.manifest
        manifest.output(arguments.feature)
        keep = max(1, int(manifest.patches.count * arguments.keep))
        print(f"{session.name}: {session.description}; {keep} of {manifest.patches.count} patches", file=sys.stderr)
        start = time.perf_counter()
        with Ahead(frames_of(arguments.source, manifest, arguments.frames), depth=FRAMES_READY) as frames:
            took = store(watch(session, frames, keep=keep, feature=arguments.feature), arguments.output)
        seconds = time.perf_counter() - start
    if not took:
        raise InputError(f"{arguments.source} gave no frame; expected a video")
    print(
        f"{len(took)} frames in {seconds:.2f} s: {len(took) / seconds:.1f} frames/s, "
        f"{1000 * statistics.median(took):.1f} ms per frame in motion and model (median)",
        file=sys.stderr,
    )


if __name__ == "__main__":
    try:
        main()
    except KeyboardInterrupt:
        sys.exit(130)  # what was written so far stays
    except MaeExportError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(error.exit_code)
