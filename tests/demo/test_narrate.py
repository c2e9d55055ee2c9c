"""A video becomes subtitles and a page; an interruption costs nothing; what cannot be is said."""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
import torch
from torch import Tensor

from lavila.checkpoints.errors import CheckpointError
from lavila.checkpoints.store import save_model
from lavila.demo import narrate as module
from lavila.demo.choice import DualEncoderChoice
from lavila.demo.footage import FootageError, Look
from lavila.demo.moments import Moment
from lavila.demo.narrate import Dual, NarrateOptions, NarrationError, VideoPlan, narrate, plan_videos
from lavila.demo.narrators import OpenNarrator, open_dual_encoder, open_narrator
from lavila.ingest.video_files import EncodeError
from lavila.journal import JournalError
from lavila.models.captioner import Captioner, Said
from lavila.models.generation import GenerationConfig
from lavila.models.timesformer import TimeSformer, TimeSformerConfig
from lavila.models.tokenizers import TokenizerError
from lavila.tasks import TaskError
from tests.footage import Coding, write_numbered_video, write_video
from tests.narrators import PICTURES, SIDE, save_tiny_narrator
from tests.tasks.dual import tiny_model

SLOW = Coding(fps=Fraction(10), gop=10)
CHOSEN = GenerationConfig(num_return_sequences=2, max_length=8, top_p=0.95, temperature=0.7)
OPTIONS = NarrateOptions(every=1.0, length=1.0, batch_size=2)
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    return save_tiny_narrator(tmp_path_factory.mktemp("narrator"))


def opened(files: tuple[Path, Path], **changes: Any) -> OpenNarrator:
    given: dict[str, Any] = {"vocabulary": str(files[1]), "options": CHOSEN, "seed": 0, "device": CPU, "half": False}
    return open_narrator(str(files[0]), **(given | changes))


@pytest.fixture
def narrator(files: tuple[Path, Path]) -> OpenNarrator:
    return opened(files)


@pytest.fixture
def video(tmp_path: Path) -> Path:
    """Seven seconds; in the fifth nothing moves."""

    def picture(number: int) -> np.ndarray:
        shown = 40 if 40 <= number < 50 else number
        y, x = np.mgrid[0:96, 0:128]
        waves = 100 * np.sin(x / 9 + shown * 0.4)[..., None] * np.cos(y[..., None] / np.array([7, 11, 13]))
        return (128 + waves).astype(np.uint8)

    return write_video(tmp_path / "my.mp4", (picture(n) for n in range(70)), SLOW)


@dataclass
class Heard:
    """What a listener hears."""

    paces: list[tuple[int, float]] = field(default_factory=list)
    moments: list[Moment] = field(default_factory=list)
    stop_after: int = 10**9

    def pace(self, windows: int, seconds_each: float) -> None:
        self.paces.append((windows, seconds_each))

    def moment(self, moment: Moment) -> None:
        self.moments.append(moment)
        if len(self.moments) >= self.stop_after:
            raise KeyboardInterrupt


def planned(video: Path, options: NarrateOptions = OPTIONS, *, out: Path | None = None) -> VideoPlan:
    (plan,), failed = plan_videos([video], options, out=out)
    assert not failed
    return plan


@dataclass
class Spoken:
    """Replaces a captioner's texts by those of a test, by the second at which a window begins."""

    texts: list[tuple[str, ...]]
    asked: list[str] = field(default_factory=list)

    def say(self, captioner: Captioner, video: Tensor, clip_ids: Sequence[str]) -> list[Said]:
        if list(clip_ids) == ["warm-up"]:
            return []
        assert len(video) == len(clip_ids)
        self.asked += clip_ids
        starts = [int(float(name.split("_")[1])) for name in clip_ids]
        return [Said(texts=self.texts[start], nll=(2.0, 1.0)) for start in starts]


@pytest.fixture
def spoken(monkeypatch: pytest.MonkeyPatch) -> Spoken:
    one = "#C C opens the door", "#c c opens a door"
    two = "#C C walks", "#C C runs"
    found = Spoken(texts=[one, one, two, two, one, ("", ""), two])
    monkeypatch.setattr(Captioner, "say", lambda self, video, ids: found.say(self, video, ids))
    return found


# ---------------------------------------------------------------- what is written


def test_a_video_becomes_lines_and_files(video: Path, narrator: OpenNarrator, spoken: Spoken) -> None:
    plan, heard = planned(video), Heard()
    result = narrate(plan, narrator, OPTIONS, heard)
    # Seconds 0 and 1 say the same, as do 2 and 3; in 4 nothing moves; in 5 nothing is said.
    assert [(one.start, one.stop, one.text) for one in result.moments] == [
        (0, 2, "#C C opens a door"),  # of equal agreement the likelier
        (2, 4, "#C C runs"),
        (6, 7, "#C C runs"),
    ]
    assert heard.moments == result.moments and result.still == 1 and not result.lost
    assert len(spoken.asked) == 6
    assert heard.paces[0][0] == 5 and heard.paces[0][1] > 0
    assert sorted(path.name for path in plan.folder.iterdir()) == [
        "my.html", "my.jsonl", "my.srt", "my.vtt", "windows.jsonl",
    ]  # fmt: skip
    assert plan.folder == video.parent / "my.mp4.narration"
    lines = [json.loads(line) for line in plan.output(".jsonl").read_text().splitlines()]
    assert [line["text"] for line in lines] == [one.text for one in result.moments]
    assert lines[0]["others"] == [] and lines[1]["others"] == ["#C C walks"]
    assert "00:00:02,000 --> 00:00:04,000\n#C C runs" in plan.output(".srt").read_text()
    assert plan.output(".vtt").read_text().startswith("WEBVTT")
    page = plan.output(".html").read_text()
    assert "1 still windows skipped" in page
    assert page.count("data:image/jpeg;base64,/9j/") == 3 + 1  # the first one also before the video plays


def test_another_choice_or_subject_costs_no_new_texts(video: Path, narrator: OpenNarrator, spoken: Spoken) -> None:
    narrate(planned(video), narrator, OPTIONS, Heard())
    asked = len(spoken.asked)
    again = replace(OPTIONS, subject="the camera wearer", choice="likelihood", embed_mib=0.0)
    heard = Heard()
    result = narrate(planned(video), narrator, again, heard)
    assert len(spoken.asked) == asked and heard.moments == []
    assert [one.text for one in result.moments][1:] == ["the camera wearer runs"] * 2
    assert 'src="../my.mp4"' in planned(video).output(".html").read_text()


def test_overlapping_windows_and_a_part_of_the_video(video: Path, narrator: OpenNarrator, spoken: Spoken) -> None:
    options = replace(OPTIONS, length=2.0, between=(1.0, 4.0), still=0.0)
    found = narrate(planned(video, options), narrator, options, Heard()).moments
    assert [(one.start, one.stop) for one in found] == [(1, 2.5), (2.5, 4)]
    assert [name.split("_", 1)[1] for name in spoken.asked] == ["1.000_3.000", "2.000_4.000", "3.000_4.000"]


def test_a_dual_encoder_chooses(video: Path, narrator: OpenNarrator, spoken: Spoken) -> None:
    class First(DualEncoderChoice):
        seen: list[tuple[int, ...]] = []  # noqa: RUF012

        def best(self, video: Tensor, said: Sequence[Said]) -> list[int]:
            self.seen.append(tuple(video.shape))
            return [0] * len(said)

    look = Look(frames=2, size=48, mean=(0, 0, 0), std=(1, 1, 1))
    options = replace(OPTIONS, dual=Dual(choice=First(torch.nn.Identity(), None), look=look, sha256="x"))  # type: ignore[arg-type]
    found = narrate(planned(video, options), narrator, options, Heard()).moments
    assert [one.text for one in found][:2] == ["#C C opens the door", "#C C walks"]
    assert First.seen[0] == (2, 3, 2, 48, 48)
    with pytest.raises(JournalError, match="dual_encoder"):  # its choice is not that of another one
        narrate(planned(video), narrator, OPTIONS, Heard())


# ---------------------------------------------------------------- interruptions


def results(plan: VideoPlan) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in plan.folder.iterdir() if path.suffix != ".html"}


def test_ctrl_c_and_the_same_command_again_continue(video: Path, narrator: OpenNarrator, tmp_path: Path) -> None:
    whole = planned(video, out=tmp_path / "whole")
    all_moments = narrate(whole, narrator, OPTIONS, Heard()).moments
    plan, first, second = planned(video, out=tmp_path / "cut"), Heard(stop_after=1), Heard()
    with pytest.raises(KeyboardInterrupt):
        narrate(plan, narrator, OPTIONS, first)
    kept = len((plan.folder / "windows.jsonl").read_text().splitlines()) - 1
    assert kept in (2, 4)  # whole groups
    found = narrate(plan, narrator, OPTIONS, second)
    assert found.moments == all_moments
    assert second.paces[0][0] == 7 - kept - 2
    assert results(plan) == results(whole)
    assert len(second.moments) < len(all_moments)  # those that were printed before are not printed again


def test_a_journal_that_a_kill_cut_short_continues(video: Path, narrator: OpenNarrator, tmp_path: Path) -> None:
    plan = planned(video)
    narrate(plan, narrator, OPTIONS, Heard())
    before = results(plan)
    content = plan.journal.read_bytes()
    plan.journal.write_bytes(content[: len(content) * 2 // 3])
    narrate(plan, narrator, OPTIONS, Heard())
    assert results(plan) == before


def test_work_with_other_settings_is_refused(video: Path, files: tuple[Path, Path], narrator: OpenNarrator) -> None:
    narrate(planned(video), narrator, OPTIONS, Heard())
    with pytest.raises(JournalError, match="seed was 0, is 1"):
        narrate(planned(video), opened(files, seed=1), OPTIONS, Heard())


# ---------------------------------------------------------------- what cannot be


def test_a_file_that_is_no_video_is_named_and_stops_no_other(video: Path, tmp_path: Path) -> None:
    (tmp_path / "b.mp4").write_bytes(b"x" * 1000)
    plans, failed = plan_videos([tmp_path], OPTIONS, out=None)
    assert [plan.path for plan in plans] == [video] and failed[0][0] == tmp_path / "b.mp4"
    assert "not a readable video" in failed[0][1]


def test_a_file_without_pictures_is_named(tmp_path: Path) -> None:
    with av.open(str(tmp_path / "sound.mp4"), "w") as container:
        stream: Any = container.add_stream("aac", rate=8000)
        noise: Any = av.AudioFrame.from_ndarray(np.zeros((1, 8000), np.float32), format="fltp", layout="mono")
        noise.sample_rate = 8000
        container.mux([*stream.encode(noise), *stream.encode(None)])
    plans, failed = plan_videos([tmp_path], OPTIONS, out=None)
    assert not plans and "sound.mp4: holds no video stream" in failed[0][1]


def test_an_interval_past_the_end_is_named(video: Path) -> None:
    plans, failed = plan_videos([video], replace(OPTIONS, between=(70.0, 80.0)), out=None)
    assert not plans and "7.00 s" in failed[0][1] and "70 s" in failed[0][1]


def test_no_video_and_two_of_one_name(video: Path, tmp_path: Path) -> None:
    with pytest.raises(FootageError, match="nothing"):
        plan_videos([tmp_path / "nothing"], OPTIONS, out=None)
    other = write_numbered_video(tmp_path / "sub" / "my.mp4", 20, SLOW)
    assert len(plan_videos([tmp_path], OPTIONS, out=tmp_path / "out")[0]) == 2  # sub/my.mp4.narration is another one
    with pytest.raises(NarrationError, match=r"my\.mp4\.narration"):
        plan_videos([video, other], OPTIONS, out=tmp_path / "out")


def test_a_video_whose_windows_are_all_lost(
    video: Path, narrator: OpenNarrator, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = planned(video)
    video.write_bytes(video.read_bytes()[:2000])
    with pytest.raises((NarrationError, EncodeError), match=r"my\.mp4"):
        narrate(plan, narrator, OPTIONS, Heard())


def test_an_output_that_cannot_be_written_keeps_the_words(
    video: Path, narrator: OpenNarrator, spoken: Spoken, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = planned(video)

    def full(path: Path) -> Any:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(module, "whole_file", full)
        with pytest.raises(JournalError, match=r"No space left.*windows\.jsonl"):
            narrate(plan, narrator, OPTIONS, Heard())
    asked = len(spoken.asked)
    narrate(plan, narrator, OPTIONS, Heard())
    assert len(spoken.asked) == asked and plan.output(".html").is_file()


# ---------------------------------------------------------------- models


def test_a_checkpoint_of_another_kind_is_named(files: tuple[Path, Path], tmp_path: Path) -> None:
    tower = TimeSformer(TimeSformerConfig(image_size=SIDE, patch_size=16, width=32, depth=1, heads=2, num_frames=2))
    save_model(tower, tmp_path / "tower.safetensors", extra={"pictures": json.dumps(PICTURES)})
    with pytest.raises(CheckpointError, match=r"TimeSformer.*narrator_tsf_b_gpt2"):
        opened((tmp_path / "tower.safetensors", files[1]))
    with pytest.raises(CheckpointError, match=r"TimeSformer.*dual"):
        open_dual_encoder(str(tmp_path / "tower.safetensors"), vocabulary="x", device=CPU)
    with pytest.raises(CheckpointError, match="nowhere"):
        opened((tmp_path / "nowhere", files[1]))


def test_a_vocabulary_that_is_missing_or_anothers_is_named(files: tuple[Path, Path], tmp_path: Path) -> None:
    with pytest.raises(TokenizerError, match=r"--vocabulary.*vocab\.json"):
        opened(files, vocabulary=str(tmp_path))
    with pytest.raises(TaskError, match=r"--vocabulary.*trained with"):
        opened(files, vocabulary="assets/toy_vocabulary")


def test_texts_longer_than_the_narrator_can_write_are_cut(
    files: tuple[Path, Path], caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        narrator = opened(files, options=replace(CHOSEN, max_length=77))
    assert narrator.captioner.options.max_length == 32 and "--max-length" in caplog.text
    assert narrator.look == Look(frames=4, size=SIDE, mean=(108.0, 117.0, 104.0), std=(69.0, 67.0, 70.0))


def test_a_dual_encoder_is_read_with_its_pictures(tmp_path: Path) -> None:
    facts = {"pictures": json.dumps(PICTURES), "context_length": "16"}
    save_model(tiny_model(), tmp_path / "dual.safetensors", extra=facts)
    choice, look, sha256 = open_dual_encoder(str(tmp_path / "dual.safetensors"), vocabulary="x", device=CPU)
    video = torch.randn(2, 3, look.frames, look.size, look.size)
    said = Said(texts=("#C C opens the door", "", "#C C walks"), nll=(1.0, 1.0, 1.0))
    assert set(choice.best(video, [said, said])) <= {0, 2} and len(sha256) == 64
