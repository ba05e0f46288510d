"""Models in a program of one's own: frames of any size in, features out, whatever runs underneath."""

from __future__ import annotations

import itertools
from collections.abc import Generator, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Any

import numpy.typing as npt

from mae_export.errors import InputError
from mae_export.manifest import TensorSpec
from mae_export.runtime.batching import Batcher, check_plan
from mae_export.runtime.delegate import Delegate
from mae_export.runtime.device_array import DeviceArray
from mae_export.runtime.frames import Frame, Frames, frames_of, prepare_frame
from mae_export.runtime.given import GivenVisible, Visible, plan_of
from mae_export.runtime.padding import stack_padded, without_padding
from mae_export.runtime.providers import Choice
from mae_export.runtime.session import Session
from mae_export.runtime.stages import Ahead
from mae_export.runtime.visible import Plan

Array = npt.NDArray[Any]
IDS_KEEP = "ids_keep"
READY = 2  # chunks of frames prepared while the model runs


class FeatureSession(Delegate):
    """An open model: `run` takes its inputs as they are, `extract` and `stream` take frames.

    It is safe to use from several threads, and gives its memory back when closed, or at the end of `with`:

        with open_session("vit_base_keep.onnx") as session:
            print(session.choice)
            features = session.extract(photographs, visible="random:0.25")
            features["pooled"]  # float32 [B, D]
            features["ids_keep"]  # int64 [B, K]: which patches were seen
            for one in session.stream(camera, features=("pooled",)):
                one["pooled"]  # float32 [D], one frame after another

    Args:
        session: does the work, and is closed with this one.
        choice: what was chosen to run it, and why.

    Attributes:
        choice: the same.
    """

    def __init__(self, session: Session, choice: Choice) -> None:
        super().__init__(session)
        self.choice = choice

    def run(self, feeds: Mapping[str, Array], outputs: Sequence[str] | None = None) -> dict[str, Array]:
        """Run one batch of the model's own inputs; see `Session.run`."""
        return self._session.run(feeds, outputs)

    def run_on_device(self, feeds: Mapping[str, Array], outputs: Sequence[str] | None = None) -> dict[str, DeviceArray]:
        """The same with the outputs left where they were computed, for other libraries; see `Session.run_on_device`."""
        return self._session.run_on_device(feeds, outputs)

    def extract(
        self,
        frames: Frames,
        visible: Visible = "all",
        *,
        features: Sequence[str] | None = None,
        batch: int = 16,
        prepared: bool = False,
    ) -> dict[str, Array]:
        """Features of frames.

        Args:
            frames: uint8 [B, H, W, C], or a list of [H, W, C] of any sizes; a video encoder's have T before H. RGB as
                decoded. They are resized and cropped by the manifest's rule.
            visible: which patches the model sees: `all`, `random:R[:seed]` with R the fraction kept, `file:X.npy`; bool
                [N] or [B, N], True = visible; indices [K] or [B, K]; a list of such rows, which may differ in length;
                or a `Plan`. Random draws depend on the position of a frame.
            features: outputs wanted; None means all.
            batch: frames per run of the model.
            prepared: the frames are as the model takes them; nothing is resized or cropped.

        Returns:
            Arrays by name, one row per frame in their order; for models that take indices also `ids_keep` int64 [B, K].
            Rows with fewer visible patches are padded, features with 0 and `ids_keep` with -1.

        Raises:
            InputError: when there is no frame, or one is not such an array.
            MaskError: when `visible` does not fit the frames.
            UsageError: when the model has no such output, or `visible` hides patches and it has no mask input.
        """
        work = self._work(visible, features, prepared)
        if isinstance(work.plan, GivenVisible):
            work.plan.check(len(frames), self.manifest.patches.count)
        rows = list(work.rows(frames_of(frames, self.manifest.image), batch))
        if not rows:
            raise InputError("there are no frames; expected at least one")
        fills = {IDS_KEEP: -1}
        return {name: stack_padded([row[name] for row in rows], fill=fills.get(name, 0)) for name in rows[0]}

    def stream(
        self,
        frames: Iterable[Frame],
        visible: Visible = "all",
        *,
        features: Sequence[str] | None = None,
        batch: int = 1,
        prepared: bool = False,
    ) -> Iterator[dict[str, Array]]:
        """Features of frames as they come, in their order; the next frames are prepared while the model runs.

        Args:
            frames: any iterable, such as a camera; it is asked for frames by a thread of its own.
            visible: as for `extract`; arrays of several rows need one for each frame.
            features: outputs wanted; None means all.
            batch: frames per run; more are faster on the whole and later one by one.
            prepared: the frames are as the model takes them.

        Yields:
            What `extract` returns, for one frame, without the batch axis and without padding.

        Raises:
            InputError, MaskError, UsageError: as `extract` does.
        """
        return self._work(visible, features, prepared).rows(frames_of(frames, self.manifest.image), batch)

    def _work(self, visible: Visible, features: Sequence[str] | None, prepared: bool) -> _Work:
        manifest = self.manifest
        names = [spec.name for spec in manifest.outputs] if features is None else features
        plan = plan_of(visible, manifest.patches.count)
        check_plan(manifest, plan)
        specs = tuple(manifest.output(name) for name in names)
        return _Work(session=self._session, plan=plan, specs=specs, prepared=prepared)

    def close(self) -> None:
        """Give memory back; the session cannot run afterwards. Closing twice is harmless."""
        self._session.close()

    def __enter__(self) -> FeatureSession:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


@dataclass(frozen=True, kw_only=True)
class _Work:
    """One call of `extract` or `stream`."""

    session: Session
    plan: Plan
    specs: tuple[TensorSpec, ...]
    prepared: bool

    def rows(self, frames: Iterable[Frame], size: int) -> Generator[dict[str, Array], None, None]:
        """Features frame by frame."""
        if size < 1:
            raise InputError(f"batch is {size}; expected at least 1")
        with Ahead(self._chunks(frames, size), depth=READY) as chunks:
            for first, pixels in chunks:
                yield from self._run(first, pixels)

    def _chunks(self, frames: Iterable[Frame], size: int) -> Generator[tuple[int, list[Frame]], None, None]:
        """Frames prepared for the model, with the position of the first."""
        spec, source = self.session.manifest.image, iter(frames)
        for first in itertools.count(0, size):
            chunk = [prepare_frame(frame, spec, prepared=self.prepared) for frame in itertools.islice(source, size)]
            if not chunk:
                return
            yield first, chunk

    def _run(self, first: int, chunk: Sequence[Frame]) -> list[dict[str, Array]]:
        manifest = self.session.manifest
        batcher = Batcher(manifest, len(chunk))
        batches = []
        for index, pixels in enumerate(chunk, first):
            ids = self.plan.ids_keep(index, str(index), manifest.patches.count)
            batches.append(batcher.add(index=index, item_id=str(index), pixels=pixels, ids_keep=ids))
        rows: dict[int, dict[str, Array]] = {}
        for batch in itertools.chain(batches, batcher.rest()):
            if batch is None:
                continue
            found = self.session.run(batch.feeds, [spec.name for spec in self.specs])
            for at, ids in enumerate(batch.ids_keep):
                missing = batch.width - len(ids)
                row = {spec.name: without_padding(found[spec.name][at], spec, missing) for spec in self.specs}
                rows[batch.indices[at]] = row | ({IDS_KEEP: ids} if IDS_KEEP in batch.feeds else {})
        return [rows[index] for index in sorted(rows)]
