from __future__ import annotations

import time
from pathlib import Path

import pytest
import torch

from lavila.demo.moments import Moment
from lavila.demo.narrators import OpenNarrator, open_narrator
from lavila.demo.subtitles import to_jsonl
from lavila.demo.transcripts import TranscriptError, Transcripts
from lavila.models.generation import GenerationConfig
from tests.colours import write_colours
from tests.narrators import save_tiny_narrator

SAID = [Moment(start=0.0, stop=2.0, text="#C C waits", nll=0.5), Moment(start=2.0, stop=3.5, text="#C C runs", nll=0.7)]


def test_narrations_beside_a_video_are_shown_and_read_again_when_they_change(tmp_path: Path) -> None:
    video = tmp_path / "a.mp4"
    transcripts = Transcripts(tmp_path / "made", None)
    assert transcripts.transcript("a.mp4", video).state == "none"
    file = tmp_path / "a.mp4.narration/a.jsonl"
    file.parent.mkdir()
    file.write_text(to_jsonl(SAID))
    found = transcripts.transcript("a.mp4", video)
    assert found.state == "done" and [one.text for one in found.moments] == ["#C C waits", "#C C runs"]
    time.sleep(0.01)
    file.write_text(to_jsonl(SAID[:1]))
    assert len(transcripts.transcript("a.mp4", video).moments) == 1


def test_a_long_name_has_no_narration_and_no_error(tmp_path: Path) -> None:
    name = "ü" * 125 + ".mp4"  # 254 bytes; with ".narration" no file system takes it
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / name).touch()
    transcripts = Transcripts(tmp_path / "made", None)
    assert transcripts.transcript(f"sub/{name}", tmp_path / "sub" / name).state == "none"


@pytest.fixture
def narrator(tmp_path: Path) -> OpenNarrator:
    checkpoint, vocabulary = save_tiny_narrator(tmp_path)
    return open_narrator(
        str(checkpoint),
        vocabulary=str(vocabulary),
        options=GenerationConfig(max_length=12),
        seed=0,
        device=torch.device("cpu"),
        half=False,
    )


def test_without_a_narrator_nobody_narrates(tmp_path: Path) -> None:
    transcripts = Transcripts(tmp_path, None)
    assert not transcripts.can_narrate
    with pytest.raises(TranscriptError, match="--narrator"):
        transcripts.ask("a.mp4", tmp_path / "a.mp4")


def test_a_narrator_narrates_what_is_asked_for_and_keeps_it(tmp_path: Path, narrator: OpenNarrator) -> None:
    video = write_colours(tmp_path / "videos/a.mp4", "red", "green")
    transcripts = Transcripts(tmp_path / "made", narrator)
    assert transcripts.ask("walks/a.mp4", video).state in {"waiting", "running", "done"}
    ends = time.monotonic() + 60
    while (found := transcripts.ask("walks/a.mp4", video)).state != "done":
        assert found.state != "failed", found.reason
        assert time.monotonic() < ends
        time.sleep(0.02)
    assert found.moments and found.moments[-1].stop <= 8.0
    assert list((tmp_path / "videos").iterdir()) == [video], "nothing is written beside the videos"
    transcripts.close()
    assert Transcripts(tmp_path / "made", None).transcript("walks/a.mp4", video).moments == found.moments


def test_a_video_that_cannot_be_narrated_says_why(tmp_path: Path, narrator: OpenNarrator) -> None:
    broken = tmp_path / "broken.mp4"
    broken.write_bytes(b"no video" * 99)
    transcripts = Transcripts(tmp_path / "made", narrator)
    transcripts.ask("broken.mp4", broken)
    ends = time.monotonic() + 60
    while (found := transcripts.transcript("broken.mp4", broken)).state != "failed":
        assert time.monotonic() < ends
        time.sleep(0.02)
    assert "broken.mp4" in found.reason
    transcripts.close()
