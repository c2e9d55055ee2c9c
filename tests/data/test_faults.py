"""Which faults make a clip bad, and which end the run: only the decoder's own errors are faults of data."""

from __future__ import annotations

import subprocess
import sys
import textwrap
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from nvidia.dali.pipeline import Pipeline

from lavila.data.batches import LoadedBatch
from lavila.data.dali_pipelines import restarts, sources
from lavila.data.dali_pipelines.check import PictureCheck
from lavila.data.dali_pipelines.errors import DecoderFault, decode_problem
from lavila.data.dali_pipelines.restarts import RestartingPipeline
from lavila.data.host import runner
from lavila.data.host.decode import DecodeError, decode_frames
from lavila.data.pictures import Execution, LoaderError, Payload
from lavila.plan.plans import SUBSTITUTES
from lavila.shards.reader import ShardSet
from tests.data.test_loader import training, viewing
from tests.footage import write_numbered_video

# As DALI 2.4 words them. Those of operators were provoked on the CPU. Nobody here has a GPU: the GPU's are put together
# from the strings of DALI's libraries, and no real one has been seen.
OPERATOR = """Critical error in pipeline:
Error in {device} operator `nvidia.dali.fn.{name}`,
which was used in the pipeline definition with the following traceback:

  File "/cuda/out of memory/graph.py", line 83, in decode
    return fn.decoders.video(payload, frames=arguments.distinct, device=device, pad_mode="none")

encountered:

{what}
C++ context: [/opt/dali/dali/operators/video/frames_decoder_cpu.cc:164]

Current pipeline object is no longer valid.
"""
MEMORY = "CUDA runtime API error cudaErrorMemoryAllocation (2):\nout of memory"
NO_DATA_FAULTS = {
    "CUDA outside of operators": MEMORY,
    "CUDA in an operator": OPERATOR.format(device="GPU", name="resize", what=MEMORY),
    "CUDA in the decoder": OPERATOR.format(device="Mixed", name="decoders.video", what=MEMORY),
    "driver in the decoder": OPERATOR.format(
        device="Mixed", name="decoders.video", what="CUDA driver API error CUDA_ERROR_INVALID_HANDLE (400):\ninvalid"
    ),
    "allocation in the decoder": OPERATOR.format(
        device="Mixed", name="decoders.video", what="CUDA allocation failed\nCan't allocate 1024 bytes on device 0."
    ),
    "host memory in the decoder": OPERATOR.format(device="CPU", name="decoders.video", what="std::bad_alloc"),
    "FFmpeg's memory": OPERATOR.format(
        device="CPU",
        name="decoders.video",
        what='Assert on "ret >= 0" failed: Failed to send packet to decoder: Cannot allocate memory',
    ),
    "another operator": OPERATOR.format(device="CPU", name="slice", what="Slice can't be placed out of bounds"),
    "no operator": "The external source callback returned an unexpected batch size",
}


def failing_runs(monkeypatch: pytest.MonkeyPatch, message: str, *, after: int = 1) -> None:
    """From now on every run of a pipeline but the first `after` ones fails so."""
    real, runs = Pipeline.run, [0]

    def run(self: Pipeline, *arguments: Any, **others: Any) -> Any:
        runs[0] += 1
        outputs = real(self, *arguments, **others)
        if runs[0] > after:
            raise RuntimeError(message)
        return outputs

    monkeypatch.setattr(Pipeline, "run", run)


@pytest.mark.parametrize("message", NO_DATA_FAULTS.values(), ids=NO_DATA_FAULTS)
@pytest.mark.parametrize("after", [0, 1])
def test_faults_of_machine_or_code_end_the_run_with_their_cause(
    vp9_shards: ShardSet, monkeypatch: pytest.MonkeyPatch, message: str, after: int
) -> None:
    assert decode_problem(RuntimeError(message)) is None
    failing_runs(monkeypatch, message, after=after)
    loader = training(vp9_shards, decoder="dali_cpu")
    with pytest.raises(RuntimeError) as caught:
        list(loader)
    cause: BaseException | None = caught.value
    while cause is not None and str(cause) != message:
        cause = cause.__cause__
    assert cause is not None and loader.bad_clips == []


def test_a_passing_want_of_memory_ends_the_run_too(vp9_shards: ShardSet, monkeypatch: pytest.MonkeyPatch) -> None:
    """The batch fails, and would not if it were tried again: nothing may be left out, nor be hidden."""
    real, runs = Pipeline.run, [0]

    def run(self: Pipeline) -> Any:
        runs[0] += 1
        outputs = real(self)
        if runs[0] == 2:
            raise RuntimeError(NO_DATA_FAULTS["CUDA in the decoder"])
        return outputs

    monkeypatch.setattr(Pipeline, "run", run)
    loader = training(vp9_shards, decoder="dali_cpu")
    with pytest.raises(RuntimeError, match="out of memory"):
        list(loader)
    assert loader.bad_clips == []


MISTAKES: dict[str, Any] = {
    "window beyond the picture": ("window_shape", lambda plan, spec: np.array([1000, 1000], np.int32)),
    "frames that are not there": ("order", lambda plan, spec: plan.gather().ravel() + 100),
    "too few frames": ("order", lambda plan, spec: plan.gather().ravel()[:1]),
    "another dtype": ("resized", lambda plan, spec: np.array(plan.resized, np.int32)),
    "another rank": ("window_start", lambda plan, spec: np.array([plan.window[:2]], np.int32)),
    "a picture too small for its crop": ("resized", lambda plan, spec: np.array([8, 8], np.float32)),
    "a TypeError": ("flip", lambda plan, spec: np.array(None, np.int32)),
    "a KeyError": ("flip", lambda plan, spec: {}["flip"]),
    "an IndexError": ("flip", lambda plan, spec: plan.crops[100]),
}


@pytest.mark.parametrize(("name", "value"), MISTAKES.values(), ids=MISTAKES)
@pytest.mark.parametrize("every", [1, 2])
def test_a_mistake_in_the_inputs_of_our_graph_ends_the_run(
    vp9_shards: ShardSet, monkeypatch: pytest.MonkeyPatch, name: str, value: Any, every: int
) -> None:
    """In each clip's inputs, or in every other's only: then each batch holds clips that do decode."""
    inputs = []
    for one in sources._INPUTS:
        right = one.value
        mixed = lambda plan, spec, right=right: (value if plan.row % every == 0 else right)(plan, spec)  # noqa: E731
        inputs.append(replace(one, value=mixed) if one.name == name else one)
    monkeypatch.setattr(sources, "_INPUTS", tuple(inputs))
    loader = training(vp9_shards, decoder="dali_cpu")
    with pytest.raises(Exception):  # noqa: B017 (whatever it is)
        list(loader)
    assert loader.bad_clips == []


def harmed(data: bytes) -> dict[str, bytes]:
    """A video in which something is wrong that every decoder notices."""
    content = data.index(b"mdat") + 4
    flipped = bytearray(data)
    for place in range(content, content + 400):
        flipped[place] ^= 0xFF
    return {
        "empty": b"",
        "cut off": data[: len(data) // 2],
        "no video": np.random.default_rng(0).integers(0, 256, 2000).astype(np.uint8).tobytes(),
        "zeros": data[:32] + bytes(len(data) - 64) + data[-32:],
        "flipped": bytes(flipped),
        "too short": data[: content + 100],
    }


def read_as(monkeypatch: pytest.MonkeyPatch, shards: ShardSet, instead: dict[int, bytes]) -> None:
    """Some rows' bytes are others from now on."""
    real = shards.read_frames

    def read(row: int, frames: Any) -> Any:
        data, numbers = real(row, frames)
        return instead.get(row, data), numbers

    monkeypatch.setattr(shards, "read_frames", read)


@pytest.mark.parametrize("decoder", ["dali_cpu", "host"])
@pytest.mark.parametrize("make", [training, viewing])
def test_damaged_videos_are_bad_clips(
    vp9_shards: ShardSet, monkeypatch: pytest.MonkeyPatch, decoder: str, make: Any
) -> None:
    """As many in a row as there are kinds: whole batches of them, too. Training puts others in their places."""
    instead = dict(enumerate(harmed(vp9_shards.read_video(0)).values()))
    read_as(monkeypatch, vp9_shards, instead)
    loader = make(vp9_shards, decoder=decoder)
    batches = [batch.clip_ids for batch in loader]
    ids = vp9_shards.clips.column("clip_id").to_pylist()
    assert {clip.clip_id for clip in loader.bad_clips} == {ids[row] for row in instead}
    assert {name for batch in batches for name in batch} == set(ids) - {ids[row] for row in instead}
    if make is training:
        assert [len(batch) for batch in batches] == [4, 4, 4]
    else:
        assert sum(len(batch) for batch in batches) == 6
    assert all(clip.reason and "\n" not in clip.reason for clip in loader.bad_clips)


@pytest.mark.parametrize("frames", [[0, 1000], [-1]])
def test_a_frame_that_is_not_there_is_the_clips_fault(vp9_shards: ShardSet, frames: list[int]) -> None:
    loader = training(vp9_shards)
    plans = loader.plan.batch(0, 0)[:2]
    videos = [np.frombuffer(vp9_shards.read_video(plan.row), np.uint8) for plan in plans]
    payloads = (
        Payload(data=videos[0], frames=plans[0].distinct_frames()),
        Payload(data=videos[1], frames=np.array(frames, np.int32)),
    )
    execution = Execution(decoder="dali_cpu", device_id=None, batch_size=2, threads=1, prefetch=1)
    batch = LoadedBatch(plans=tuple(plans), payloads=payloads)
    (done,) = list(RestartingPipeline(loader.spec, execution).run([batch]))
    assert done.plans == (plans[0],) and len(done.pictures.shape()) == 7
    assert [plan for plan, _ in done.bad] == [plans[1]] and "out-of-bounds" in done.bad[0][1]


@pytest.mark.parametrize("batch_size", [1, 4])
@pytest.mark.parametrize("after", [0, 1])
def test_a_decoder_that_decodes_nothing_is_not_filed_as_bad_clips(
    vp9_shards: ShardSet, monkeypatch: pytest.MonkeyPatch, after: int, batch_size: int
) -> None:
    """Its errors are worded as those of damaged videos: FFmpeg, or a clip that it did decode, distinguishes them."""
    unable = "Decoder hardware does not support this video codec and/or chroma format"
    message = OPERATOR.format(device="Mixed", name="decoders.video", what=unable)
    assert decode_problem(RuntimeError(message)) == unable
    failing_runs(monkeypatch, message, after=after)
    loader = training(vp9_shards, decoder="dali_cpu", batch_size=batch_size)
    with pytest.raises(DecoderFault, match=unable):
        list(loader)
    assert loader.bad_clips == []


@pytest.mark.parametrize("make", [training, viewing])
@pytest.mark.parametrize("last", [3, 6])
def test_a_stretch_in_which_every_clip_is_damaged_is_survived(
    vp9_shards: ShardSet, monkeypatch: pytest.MonkeyPatch, last: int, make: Any
) -> None:
    """More than are in flight at once, at the start of the epoch, and after it began well."""
    for first in (0, 6):
        with monkeypatch.context() as patch:
            plan = make(vp9_shards, batch_size=1).plan
            rows = [plan.batch(0, step)[0].row for step in range(first, first + last)]
            read_as(patch, vp9_shards, dict.fromkeys(rows, bytes(1000)))
            loader = make(vp9_shards, decoder="dali_cpu", batch_size=1, prefetch=1)
            if make is training:
                assert [len(batch) for batch in loader] == [1] * 12
                assert {clip.attempt for clip in loader.bad_clips} == set(range(last))
            else:
                assert [len(batch) for batch in loader] == [int(not 0 <= n - first < last) for n in range(12)]
                assert len(loader.bad_clips) == last


@pytest.mark.parametrize("decoder", ["dali_cpu", "host"])
def test_a_broken_set_stops_after_the_tries_for_one_place(
    vp9_shards: ShardSet, monkeypatch: pytest.MonkeyPatch, decoder: str
) -> None:
    read_as(monkeypatch, vp9_shards, {row: bytes(1000) for row in range(12)})
    loader = training(vp9_shards, decoder=decoder)
    with pytest.raises(LoaderError, match=f"{SUBSTITUTES + 1} clips in a row"):
        list(loader)
    assert loader.bad_clips[-1].attempt == SUBSTITUTES == loader.plan.substitutes
    # A trainer, which asks the other ranks first, gets all batches that have a clip, and those that have none.
    patient = training(vp9_shards, decoder=decoder, max_bad_clips=None)
    assert [len(batch) for batch in patient] == [0, 0, 0] and len(patient.bad_clips) == 12 * (SUBSTITUTES + 1)


def test_a_comparison_does_not_blame_a_video_for_the_machine(
    vp9_shards: ShardSet, monkeypatch: pytest.MonkeyPatch
) -> None:
    check, data = PictureCheck("dali_cpu"), vp9_shards.read_video(0)
    assert check.difference(data, [0, 5]).most == 0
    for message in NO_DATA_FAULTS.values():
        with monkeypatch.context() as patch, pytest.raises(RuntimeError):
            failing_runs(patch, message, after=0)
            check.difference(data, [0, 5])
    assert check.difference(data, [0, 5]).most == 0, "a pipeline that has failed is made anew"


@pytest.mark.parametrize("error", [MemoryError(), TypeError("no matching overload"), ValueError("of ours")])
def test_errors_of_our_own_code_end_the_host_path(
    vp9_shards: ShardSet, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    def draw(*arguments: Any) -> None:
        raise error

    loader = training(vp9_shards, decoder="host")
    monkeypatch.setattr(runner.ClipRenderer, "render", draw)
    with pytest.raises(type(error)):
        list(loader)
    assert loader.bad_clips == []


def test_no_flipped_bit_of_a_header_ends_in_another_error(vp9_shards: ShardSet) -> None:
    """FFmpeg speaks of memory where a damaged header makes it ask for gigabytes; that is a fault of the data."""
    data, reasons = vp9_shards.read_video(0), []
    for place in range(data.index(b"moov"), len(data), 3):
        for bit in (1, 128):
            changed = bytearray(data)
            changed[place] ^= bit
            try:
                decode_frames(bytes(changed), [0, 5, 20])
            except DecodeError as error:
                reasons.append(str(error))
    assert len(reasons) > 50 and any("allocate memory" in reason for reason in reasons)


def test_want_of_memory_is_not_a_bad_clip_on_the_host_path(tmp_path: Path) -> None:
    """In a process that may have only 2 MiB more than it has, FFmpeg calls a sound video invalid."""
    write_numbered_video(tmp_path / "large.mp4", 6, height=720, width=1280)
    script = """
        import resource, sys
        from pathlib import Path
        from lavila.data.host.decode import DecodeError, decode_frames
        data = Path(sys.argv[1]).read_bytes()
        decode_frames(data, [0])
        used = int(Path("/proc/self/status").read_text().split("VmSize:")[1].split()[0]) << 10
        resource.setrlimit(resource.RLIMIT_AS, (used, resource.RLIM_INFINITY))
        held = []
        try:
            while True:
                held.append(bytearray(1 << 16))
        except MemoryError:
            del held[-32:]
        try:
            decode_frames(data, range(6))
        except (MemoryError, DecodeError) as error:
            del held
            print(type(error).__name__, error)
    """
    command = [sys.executable, "-c", textwrap.dedent(script), str(tmp_path / "large.mp4")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
    assert "MemoryError" in done.stdout, (done.stdout, done.stderr)


def test_one_small_pipeline_looks_for_all_bad_clips(vp9_shards: ShardSet, monkeypatch: pytest.MonkeyPatch) -> None:
    """Sound clips share it. Only a clip that fails costs another one."""
    built: list[int] = []
    real = restarts.build_pipeline

    def counting(source: Any, spec: Any, execution: Execution, **others: Any) -> Pipeline:
        built.append(execution.batch_size)
        return real(source, spec, execution, **others)

    monkeypatch.setattr(restarts, "build_pipeline", counting)
    planned = training(vp9_shards, batch_size=6, prefetch=1).plan
    rows = [plan.row for plan in planned.batch(0, 0)]
    read_as(monkeypatch, vp9_shards, {rows[0]: bytes(1000), rows[3]: bytes(1000)})
    loader = training(vp9_shards, batch_size=6, prefetch=1, decoder="dali_cpu")
    assert [len(batch) for batch in loader] == [6, 6]
    assert [size for size in built if size == 6] == [6, 6], "before the bad clips, and after them"
    assert 1 <= sum(size == 1 for size in built) <= 3, "a first one, and one after each bad clip"


def test_a_gpus_results_are_asked_for_on_the_stream_of_pytorch(
    vp9_shards: ShardSet, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With a stream DALI makes that stream wait, and not the host. The pipeline here is on the CPU."""
    asked: list[Any] = []
    real = Pipeline.run

    def run(self: Pipeline, *arguments: Any) -> Any:
        asked.append(arguments)
        return real(self)

    monkeypatch.setattr(Pipeline, "run", run)
    monkeypatch.setattr(restarts.torch.cuda, "current_stream", lambda device: f"stream of {device}")
    loader = training(vp9_shards)
    plan = loader.plan.batch(0, 0)[0]
    payload = Payload(data=np.frombuffer(vp9_shards.read_video(plan.row), np.uint8), frames=plan.distinct_frames())
    execution = Execution(decoder="dali_cpu", device_id=None, batch_size=1, threads=1, prefetch=1)
    for device_id, expected in ((None, ()), (3, ("stream of 3",))):
        pipeline = RestartingPipeline(loader.spec, replace(execution, device_id=device_id))
        built = restarts.build_pipeline(lambda: ([plan], [payload]), loader.spec, execution)
        built.build()
        asked.clear()
        pipeline._run(built)
        assert asked == [expected]
