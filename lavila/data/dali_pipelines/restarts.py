"""Runs the graph over a stream of batches, and survives clips that cannot be decoded.

One bad clip makes DALI fail a whole batch, without naming the clip, and the pipeline object cannot be used any more.
But a new pipeline takes only milliseconds. So one pipeline for a single clip tries the clips of the batches in flight,
others take the places of the bad ones, and a new pipeline continues. `lavila.data.batches` says what happens to the
batch.

Only the decoder's own errors make a clip bad (`errors.decode_problem`). Every other error ends the run. If no clip in
flight decodes, the decoder is checked: with a clip that it decoded before, or with FFmpeg if there is none yet.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import suppress
from dataclasses import replace
from itertools import chain
from typing import Any

import torch
from nvidia.dali.pipeline import Pipeline

from lavila.data.batches import LoadedBatch, PictureBatch, Place, left_empty
from lavila.data.dali_pipelines.errors import DecoderFault, cause, decode_problem
from lavila.data.dali_pipelines.graph import build_pipeline
from lavila.data.host.decode import DecodeError, decode_frames
from lavila.data.pictures import Execution, Payload, PictureSpec
from lavila.records import ClipPlan


class RestartingPipeline:
    """Feeds batches to a pipeline and yields them with their pictures.

    next_after: the plan of a bad clip and the reason -> its place, with the clip that is tried next.
    """

    def __init__(
        self,
        spec: PictureSpec,
        execution: Execution,
        next_after: Callable[[ClipPlan, str], Place[Payload]] = left_empty,
    ) -> None:
        self._spec, self._execution, self._next_after = spec, execution, next_after
        self._alone = _Alone(spec, execution)

    def run(self, batches: Iterable[LoadedBatch]) -> Generator[PictureBatch]:
        """Every batch in order, with DALI tensors [B, K, S, T, 3, size, size].

        Raises:
            DecoderFault: the decoder fails on sound videos.
            RuntimeError: DALI fails for another reason than a video.
        """
        source = iter(batches)
        in_flight: deque[LoadedBatch] = deque()
        sound: tuple[ClipPlan, Payload] | None = None  # a clip that was decoded
        while True:
            stream = _Stream(source, in_flight)
            pipeline = self._build(stream, self._execution)
            try:
                while True:
                    (pictures,) = self._run(pipeline)
                    while not in_flight[0].plans:
                        yield in_flight.popleft().with_pictures(None)
                    sound = in_flight[0].plans[0], in_flight[0].payloads[0]
                    yield in_flight.popleft().with_pictures(pictures.as_tensor())
            except StopIteration:
                while in_flight:
                    assert not in_flight[0].plans
                    yield in_flight.popleft().with_pictures(None)
                return
            except Exception as error:
                if stream.error is not None:
                    raise stream.error from None
                if not isinstance(error, RuntimeError) or decode_problem(error) is None:
                    rows = ", ".join(str(plan.row) for batch in in_flight for plan in batch.plans)
                    error.add_note(f"in a batch of rows {rows} of clips.parquet; this is no fault of the data")
                    raise
                failures = [self._failures(batch) for batch in in_flight]
                reasons = [*chain(*failures)]
                if not any(reasons):
                    raise RuntimeError(f"the data pipeline failed, though each clip alone decodes: {error}") from error
                if all(reasons):
                    self._check_decoder(in_flight, sound, cause(error))
                checked = [self._without(batch, bad) for batch, bad in zip(in_flight, failures, strict=True)]
                in_flight.clear()
                source = chain(checked, source)

    def _build(self, source: Any, execution: Execution) -> Pipeline:
        pipeline = build_pipeline(source, self._spec, execution)
        pipeline.build()
        return pipeline

    def _run(self, pipeline: Pipeline) -> Any:
        """The next outputs. On a GPU, PyTorch's current stream waits for them, and not this thread."""
        if self._execution.device_id is None:
            return pipeline.run()
        return pipeline.run(torch.cuda.current_stream(self._execution.device_id))

    def _without(self, batch: LoadedBatch, reasons: list[str | None]) -> LoadedBatch:
        """The same step. The clips that have a reason made way for others."""
        places = [
            Place(plan=plan, made=payload) if reason is None else self._next_after(plan, reason)
            for plan, payload, reason in zip(batch.plans, batch.payloads, reasons, strict=True)
        ]
        return LoadedBatch.of(places, bad=batch.bad)

    def _failures(self, batch: LoadedBatch) -> list[str | None]:
        return [self._alone.failure(plan, payload) for plan, payload in zip(batch.plans, batch.payloads, strict=True)]

    def _check_decoder(
        self, batches: Iterable[LoadedBatch], sound: tuple[ClipPlan, Payload] | None, reason: str
    ) -> None:
        """Raise DecoderFault if the decoder is the reason why no clip of `batches` decodes. `sound`: one that did."""
        decoder = self._execution.decoder
        advice = f"not the clips are at fault, but {decoder}, its driver or its settings; use data.decoder=host"
        if sound is not None:
            if self._alone.failure(*sound) is not None:
                raise DecoderFault(
                    f"data.decoder={decoder} decodes nothing any more ({reason}), not even the clip in row "
                    f"{sound[0].row} of clips.parquet, which it did decode: {advice}"
                )
            return
        for plan, payload in (pair for batch in batches for pair in zip(batch.plans, batch.payloads, strict=True)):
            with suppress(DecodeError):
                decode_frames(payload.data, payload.frames)
                raise DecoderFault(
                    f"data.decoder={decoder} decodes none of the first clips ({reason}), but FFmpeg decodes the one in "
                    f"row {plan.row} of clips.parquet: {advice}"
                )


class _Alone:
    """Tries single clips with one small pipeline, which is made anew only after a clip that fails."""

    def __init__(self, spec: PictureSpec, execution: Execution):
        self._spec, self._execution = spec, replace(execution, batch_size=1, threads=1, prefetch=1)
        self._pipeline: Pipeline | None = None
        self._clip: tuple[ClipPlan, Payload] | None = None

    def failure(self, plan: ClipPlan, payload: Payload) -> str | None:
        """Why this clip alone cannot be decoded, in one line; None if it can."""
        self._clip = plan, payload
        try:
            if self._pipeline is None:
                self._pipeline = build_pipeline(self._source, self._spec, self._execution, ahead=False)
                self._pipeline.build()
            self._pipeline.run()  # waits for the result
        except RuntimeError as error:
            self._pipeline = None
            reason = decode_problem(error)
            if reason is None:
                raise RuntimeError(f"row {plan.row} of clips.parquet, alone in a batch: {cause(error)}") from error
            return reason
        return None

    def _source(self) -> tuple[list[ClipPlan], list[Payload]]:
        assert self._clip is not None
        plan, payload = self._clip
        return [plan], [payload]


class _Stream:
    """The external source. It takes a batch when the pipeline asks for one, and remembers the batches in flight."""

    def __init__(self, source: Iterator[LoadedBatch], in_flight: deque[LoadedBatch]):
        self._source, self._in_flight = source, in_flight
        self.error: BaseException | None = None  # an error of reading the batches, not of decoding them

    def __call__(self) -> tuple[tuple[ClipPlan, ...], tuple[Payload, ...]]:
        while True:
            try:
                batch = next(self._source)
            except StopIteration:
                raise
            except BaseException as error:
                self.error = error
                raise
            self._in_flight.append(batch)
            if batch.plans:
                return batch.plans, batch.payloads
