"""The files a run leaves behind: metrics.jsonl, stages.jsonl, report.json and report.html."""

from __future__ import annotations

import base64
import copy
import io
import json
import os
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from lavila.errors import UserError
from lavila.report import figures, files
from lavila.report.charts import MATRIX_CLASSES, duration, number, smooth, thin, ticks
from lavila.report.figures import ReportPictures, ViewStrip, view_labels
from lavila.report.files import (
    MetricsLog,
    ReportError,
    append_stage,
    read_metrics,
    read_stages,
    write_json_atomic,
    write_report,
)
from tests.shared import files_stay_below

VOID = {"meta", "img", "br", "hr", "link", "input"}
NO_PICTURES = ReportPictures()
EVIL = "<script>alert('x')</script> & \"quotes\" </title>"


class Page(HTMLParser):
    """Checks that tags balance while it collects texts, section ids and picture addresses."""

    def __init__(self, text: str) -> None:
        super().__init__(convert_charrefs=True)
        self.open: list[str] = []
        self.tags: list[str] = []
        self.ids: list[str] = []
        self.sources: list[str] = []
        self.attributes: list[tuple[str, str]] = []
        self.words: list[str] = []
        self.feed(text)
        self.close()
        assert not self.open, f"never closed: {self.open}"

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        values = {key: value or "" for key, value in attrs}
        assert len(values) == len(attrs), f"an attribute twice in <{tag} {attrs}>"
        self.attributes += values.items()
        self.ids += [values["id"]] if "id" in values else []
        self.sources += [values["src"]] if "src" in values else []
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open and self.open[-1] == tag, f"</{tag}> closes {self.open[-3:]}"
        self.open.pop()

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] != "style":
            self.words.append(data)

    @property
    def text(self) -> str:
        joined = " ".join(self.words).replace("\u00a0", " ").replace("\u202f", " ")
        return re.sub(r"\s+", " ", joined)


def strip(
    clip_id: str, *, views: int = 6, frames: int = 4, title: str = "a clip", labels: tuple[str, ...] = ()
) -> ViewStrip:
    pictures = np.random.default_rng(0).integers(0, 256, (views, frames, 24, 24, 3), dtype=np.uint8)
    return ViewStrip(clip_id=clip_id, title=title, subtitle="truth: pan left", frames=pictures, labels=labels)


def head(classes: list[str], confusion: list[list[int]]) -> dict[str, Any]:
    counts = np.asarray(confusion)
    support = counts.sum(1)
    accuracy = [100.0 * counts[k, k] / n if n else None for k, n in enumerate(support)]
    return {"classes": classes, "confusion": confusion, "per_class_accuracy": accuracy, "support": support.tolist()}


SECTIONS = [
    {"key": "heads", "type": "class_tables", "title": "Where it is right, and what it mixes up", "note": "Matrix: ..."},
    {"key": "mistakes", "type": "cases", "title": "Clips it got wrong", "note": "One view of each."},
]


def headline(name: str) -> dict[str, Any]:
    return {
        "metric": f"{name}_top1",
        "label": f"{name}, first guess right",
        "sentence": f"the model's first guess at the {name} is right for",
        "baselines": [
            {"control": f"chance_{name}_top1", "label": "chance", "sentence": "chance is"},
            {
                "control": f"largest_class_{name}_top1",
                "label": "largest class alone",
                "sentence": "always naming the largest class gets",
            },
        ],
        "others": {f"{name}_top5": "top 5", f"{name}_mean_class": "mean of classes"},
    }


@pytest.fixture
def report() -> dict[str, Any]:
    return {
        "name": "quick",
        "dataset": {"name": "sample", "split": "val", "clips": 1234, "seconds": 163.4, "path": "data/shards/val"},
        "checkpoint": "checkpoints/step-900",
        "metrics": {"verb_top1": 93.24, "verb_top5": 99.87, "noun_top1": 88.11, "verb_mean_class": 92.66, "map": 41.37},
        "controls": {
            "single_frame_verb_top1": 11.02,
            "chance_verb_top1": 11.11,
            "largest_class_verb_top1": 34.56,
            "chance_noun_top1": 20.03,
        },
        "units": dict.fromkeys(
            (
                "verb_top1",
                "verb_top5",
                "noun_top1",
                "verb_mean_class",
                "map",
                "single_frame_verb_top1",
                "chance_verb_top1",
                "largest_class_verb_top1",
                "chance_noun_top1",
            ),
            "percent",
        ),
        "headlines": [headline("verb"), headline("noun")],
        "sections": SECTIONS,
        "views": {
            "clips": 2,
            "crops": 3,
            "crops_rule": "three",
            "total": 6,
            "computed": 6,
            "frames": 4,
            "fusion": "mean_logits",
        },
        "seconds": {"shard_train": 58.8, "train": 231.7, "evaluate": 18.4},
        "data_wait_percent": {"train": 6.27, "evaluate": 22.03},
        "throughput": {"train_clips_per_second": 48.31, "evaluate_views_per_second": 71.29},
        "clips": {"total": 1236, "evaluated": 1235, "failed": [{"clip_id": "P01_9", "reason": "no frame 12"}]},
        "heads": {
            "verb": head(["pan left", "pan right", "hold"], [[17, 2, 0], [0, 19, 0], [0, 5, 13]]),
            "noun": head(["meadow", "burrow"], [[41, 0], [3, 0]]),
        },
        "mistakes": [
            {
                "clip_id": f"P01_{n}",
                "narration": f"narration {n}",
                "truth": {"verb": "pan left", "noun": "meadow"},
                "predicted": {"verb": "hold", "noun": "meadow"},
                "confidence": 0.71,
            }
            for n in (1, 2)
        ],
        "environment": {"torch": "2.14.1", "cores": 2},
        "config": {"seed": 7, "data": {"batch_size": 16, "train": None}},
    }


@pytest.fixture
def history() -> list[dict[str, Any]]:
    lines: list[dict[str, Any]] = [
        {
            "step": s,
            "epoch": s // 50,
            "loss": 2.0 - s / 600,
            "lr": 1e-3,
            "clips_per_second": 40.0,
            "data_wait_percent": 5.0,
        }
        for s in range(10, 910, 10)
    ]
    lines.insert(3, {"step": 35, "loss": None})  # a loss that was not finite
    return [*lines, {"step": 450, "val/verb_top1": 61.5}, {"step": 900, "val/verb_top1": 91.75}]


def page_of(run_dir: Path) -> Page:
    return Page((run_dir / "report.html").read_text())


# --- the page


def test_page_is_well_formed_and_self_contained(
    tmp_path: Path, report: dict[str, Any], history: list[dict[str, Any]]
) -> None:
    pictures = ReportPictures(views=[strip("P01_0")], mistakes=[strip("P01_1")])
    write_report(tmp_path, report, pictures=pictures, history=history)
    text = (tmp_path / "report.html").read_text()
    page = Page(text)
    assert page.ids == ["failed", "metrics", "views", "heads", "mistakes", "training", "time", "details"]
    assert "script" not in page.tags and "link" not in page.tags
    assert not re.search(r"https?://|@import", text)
    assert len(page.sources) == 6 + 1 and all(s.startswith("data:image/jpeg;base64,") for s in page.sources)
    assert "undefined" not in text.lower() and "None" not in page.text and "nan" not in page.text.split()


def test_every_number_is_on_the_page(tmp_path: Path, report: dict[str, Any], history: list[dict[str, Any]]) -> None:
    write_report(tmp_path, report, pictures=NO_PICTURES, history=history)
    text = page_of(tmp_path).text
    wanted = [
        "93.2",
        "99.9 %",
        "88.1",
        "92.7 %",
        "41.4 %",
        "11.0 %",
        "11.1 %",
        "34.6 %",
        "20.0 %",
    ]  # metrics and controls
    wanted += ["1 234 clips", "1 235 of 1 236", "2 min 43 s", "data/shards/val", "checkpoints/step-900"]
    wanted += ["2 temporal clips \N{MULTIPLICATION SIGN} 3 crops = 6", "three", "mean logits"]
    wanted += ["58.8 s", "3 min 52 s", "18.4 s", "6.3 %", "22.0 %", "48.31 clips/s", "71.29 views/s", "75.0 %"]
    wanted += ["89.5 %", "72.2 %", "hold taken for pan right (5 clips, 27.8 %)", "burrow", "0.0 %"]
    wanted += [
        "P01_9",
        "no frame 12",
        "narration 1",
        "71 % sure",
        "91.75",
        "2.14.1",
        "data.batch_size",
        "data.train",
        "null",
    ]
    assert [w for w in wanted if w not in text] == []
    assert "from the motion" in text


@pytest.mark.parametrize(
    ("top1", "still", "verdict"),
    [
        (93.0, 12.0, "from the motion"),
        (93.0, 60.0, "explains part"),
        (93.0, 85.0, "nearly enough"),
        (35.0, 34.0, "not learned"),  # no more than the largest class alone gets
    ],
)
def test_summary_says_what_the_controls_say(
    tmp_path: Path, report: dict[str, Any], top1: float, still: float, verdict: str
) -> None:
    report["metrics"]["verb_top1"], report["controls"]["single_frame_verb_top1"] = top1, still
    write_report(tmp_path, report, pictures=NO_PICTURES, history=[])
    assert verdict in page_of(tmp_path).text


def test_other_peoples_text_is_escaped_everywhere(tmp_path: Path, report: dict[str, Any]) -> None:
    def poison(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: poison(item) for key, item in value.items()}
        if isinstance(value, list):
            return [poison(item) for item in value]
        return value + EVIL if isinstance(value, str) else value

    report = poison({key: value for key, value in report.items() if key not in ("units", "sections", "headlines")})
    report |= {"units": {f"{EVIL}top1": "percent"}, "headlines": [headline("verb") | {"label": EVIL}]}
    report["sections"] = [section | {"title": EVIL, "note": EVIL} for section in SECTIONS]
    report["heads"] = {EVIL: report["heads"]["verb"]}
    report["environment"][EVIL] = EVIL
    report["config"][EVIL] = EVIL
    clip_id = report["mistakes"][0]["clip_id"]
    pictures = ReportPictures(
        views=[strip(EVIL, views=1, title=EVIL, labels=(EVIL,))], mistakes=[strip(clip_id, views=1, title=EVIL)]
    )
    history = [{"step": s, f"{EVIL}top1": 50.0} for s in (1, 2)]
    write_report(tmp_path, report, pictures=pictures, history=history)
    page = page_of(tmp_path)
    assert "script" not in page.tags and page.tags.count("title") > 1
    assert page.text.count("<script>alert('x')</script>") > 20  # shown as text
    assert not any(key.startswith("on") for key, _ in page.attributes)


ONLY_FROM = {
    "heads": "Where it is right",
    "mistakes": "Clips it got wrong",
    "config": "Configuration of the evaluation",
    "clips": "could not be evaluated",
    "views": "crop rule",
    "seconds": "3 min 52 s",
    "metrics": "first guess right",
    "controls": "largest class alone",
    "dataset": "data/shards/val",
    "environment": "2.14.1",
    "name": "quick",
    "checkpoint": "step-900",
}


@pytest.mark.parametrize("key", ONLY_FROM)
def test_absent_sections_are_left_out(tmp_path: Path, report: dict[str, Any], key: str) -> None:
    write_report(tmp_path, report, pictures=NO_PICTURES, history=[])
    assert ONLY_FROM[key] in page_of(tmp_path).text
    del report[key]
    write_report(tmp_path, report, pictures=NO_PICTURES, history=[])
    page = page_of(tmp_path)
    assert ONLY_FROM[key] not in page.text
    assert "training" not in page.ids and "views" not in page.ids  # no history, no pictures
    assert json.loads((tmp_path / "report.json").read_text()).keys() == report.keys()


def test_an_empty_report_is_still_a_page(tmp_path: Path) -> None:
    write_report(tmp_path, {}, pictures=NO_PICTURES, history=[])
    assert page_of(tmp_path).ids == []
    assert json.loads((tmp_path / "report.json").read_text()) == {}


def test_a_number_is_drawn_as_its_unit_wants(tmp_path: Path) -> None:
    """Other tasks have other metrics: nothing on the page supposes percentages, heads or a single answer."""
    report = {
        "metrics": {"cider": 0.8333, "meteor": 0.2, "clips_without_words": 1204.0},
        "controls": {"single_frame_cider": 0.41},
        "units": {"cider": "fraction", "meteor": "fraction", "clips_without_words": "count"},
        "headlines": [
            {
                "metric": "cider",
                "label": "CIDEr",
                "sentence": "CIDEr is",
                "baselines": [],
                "others": {"meteor": "METEOR"},
            }
        ],
        "sections": [
            {"key": "recall", "type": "key_values", "title": "Recall", "units": {"at_1": "percent", "rank": "count"}}
        ],
        "recall": {"at_1": 12.34, "rank": 7},
    }
    history = [{"step": s, "val/cider": s / 10} for s in (1, 2, 3)]
    write_report(tmp_path, report, pictures=NO_PICTURES, history=history)
    page = page_of(tmp_path)
    assert page.ids == ["metrics", "recall", "training"]
    assert [
        w
        for w in ("0.833", "0.200", "0.410", "1 204", "12.3 %", "CIDEr is 0.833", "metrics from 0 to 1")
        if w not in page.text
    ] == []
    assert "83.3" not in page.text
    report["sections"][0]["type"] = "pie"  # type: ignore[index]
    with pytest.raises(ReportError):
        write_report(tmp_path, report, pictures=NO_PICTURES, history=[])


def test_pictures_keep_their_order_and_names(tmp_path: Path, report: dict[str, Any]) -> None:
    colours = np.zeros((6, 4, 32, 32, 3), np.uint8)
    colours[:] = np.arange(6)[:, None, None, None, None] * 40 + np.arange(4)[None, :, None, None, None] * 8
    views = [ViewStrip(clip_id="c", title="t", subtitle="s", frames=colours)]
    write_report(tmp_path, report, pictures=ReportPictures(views=views), history=[])
    page = page_of(tmp_path)
    for view, source in enumerate(page.sources):
        pixels = np.asarray(Image.open(io.BytesIO(base64.b64decode(source.split(",")[1]))))
        assert pixels.shape == (32, 128, 3)
        centres = pixels[16, 16::32, 0].astype(int)
        assert np.abs(centres - (view * 40 + np.arange(4) * 8)).max() <= 3
    places = [page.text.index(label) for label in view_labels(clips=2, crops=3)]
    assert places == sorted(places)
    assert view_labels(clips=2, crops=3)[2:4] == ("time 1, right", "time 2, left")
    assert view_labels(clips=1, crops=3, tall=True) == ("time 1, top", "time 1, centre", "time 1, bottom")


def test_the_config_of_the_evaluation_and_that_of_training_are_apart(tmp_path: Path, report: dict[str, Any]) -> None:
    write_report(tmp_path, report | {"trained_with": {"optim": {"lr": 0.0625}}}, pictures=NO_PICTURES, history=[])
    text = page_of(tmp_path).text
    assert text.index("data.batch_size") < text.index("training, 1 values") < text.index("optim.lr 0.0625")


def test_galleries_show_clips_and_texts_with_what_was_right(tmp_path: Path, report: dict[str, Any]) -> None:
    clips = [
        {"clip_id": "P01_5", "narration": "cuts", "note": "relevancy 1.00", "right": True},
        {"clip_id": "P01_6", "narration": EVIL, "note": "relevancy 0.00", "right": False},
        {"clip_id": "P01_7", "narration": "opens", "note": "relevancy 0.50", "right": None},
    ]
    texts = [{"text": "wash the pan", "note": "relevancy 0.25", "right": None}]
    queries = [{"title": "cut the leek", "note": "3 of 9", "clips": clips, "texts": texts}]
    section = {"key": "queries", "type": "galleries", "title": "What it finds", "note": "Sentences."}
    report |= {"queries": queries, "sections": [section]}
    pictures = ReportPictures(galleries=[strip("P01_5"), strip("P01_6")])  # those of P01_7 were not readable again
    write_report(tmp_path, report, pictures=pictures, history=[])
    page = page_of(tmp_path)
    assert "queries" in page.ids and len(page.sources) == 2
    for words in ("cut the leek", "3 of 9", "relevancy 1.00", "P01_7", "wash the pan", "relevancy 0.25"):
        assert words in page.text
    marks = [value for name, value in page.attributes if name == "class" and value in ("right", "wrong")]
    assert marks == ["right", "wrong"] and "script" not in page.tags


def test_a_published_number_stands_beside_ours(tmp_path: Path, report: dict[str, Any]) -> None:
    report["published"] = {"verb_top1": 93.5, "verb_top5": 99.1, "map": 42.25}
    write_report(tmp_path, report, pictures=NO_PICTURES, history=[])
    text = page_of(tmp_path).text
    for words in ("published 93.5", "top 5, published 99.1", "map, published 42.2"):
        assert words in text


def test_wrong_pictures_are_refused(tmp_path: Path, report: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"'c'.*float32\[1, 2, 8, 8, 3\].*uint8"):
        ViewStrip(clip_id="c", title="", subtitle="", frames=np.zeros((1, 2, 8, 8, 3), np.float32))  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"2 labels.*6 views"):
        strip("c", labels=("a", "b"))
    with pytest.raises(ValueError, match=r"\['P99'\].*report\['mistakes'\]"):
        write_report(tmp_path, report, pictures=ReportPictures(mistakes=[strip("P99")]), history=[])
    assert [path.name for path in tmp_path.iterdir()] == ["report.json"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"confusion": [[1, 2], [3, 4]]}, r"heads.verb.confusion.*\(2, 2\).*\(3, 3\)"),
        ({"support": [1, 2]}, "heads.verb.support.*2.*3"),
        ({"per_class_accuracy": [0.895, 1.0, 0.722]}, "percent"),
        ({"per_class_accuracy": [120.0, 1.0, 0.7]}, "0 to 100"),
    ],
)
def test_contradictory_numbers_are_refused(
    tmp_path: Path, report: dict[str, Any], change: dict[str, Any], message: str
) -> None:
    report["heads"]["verb"].update(change)
    with pytest.raises(ValueError, match=message):
        write_report(tmp_path, report, pictures=NO_PICTURES, history=[])


def test_thousands_of_classes_stay_small(tmp_path: Path) -> None:
    count = 3806
    rng = np.random.default_rng(0)
    names = [f"verb-{k}:noun-{k}" for k in range(count)]
    support = rng.integers(0, 4, count)
    accuracy = [float(rng.integers(0, n + 1) / n * 100) if n else None for n in support]
    pairs = [[k, k + 1, int(k == 5) * 40 + 1] for k in range(2000)]
    actions = {"classes": names, "confused_pairs": pairs, "per_class_accuracy": accuracy, "support": support.tolist()}
    nouns = rng.multinomial(1, np.full(300, 1 / 300), size=300)
    nouns[7, 9] = 55
    report = {
        "sections": SECTIONS,
        "heads": {"action": actions, "noun": head([f"noun {k}" for k in range(300)], nouns.tolist())},
    }
    mistakes = [
        {"clip_id": f"c{n}", "narration": "n" * 60, "truth": {"action": "a"}, "predicted": {}} for n in range(5000)
    ]
    history = [{"step": s, "loss": 1.0 / (s + 1)} for s in range(50_000)]
    write_report(tmp_path, {**report, "mistakes": mistakes}, pictures=NO_PICTURES, history=history)
    assert (tmp_path / "report.html").stat().st_size < 300_000
    text = page_of(tmp_path).text
    assert "verb-5:noun-5 verb-6:noun-6 41" in text and "noun 7 noun 9 55" in text
    assert f"{number(count)} classes".replace("\u202f", " ") in text
    assert f"{sum(a is None for a in accuracy)} classes have no clip here" in text
    assert "4 940 more are in report.json" in text


def test_matrix_is_drawn_of_the_classes_that_occur(tmp_path: Path) -> None:
    for occurring, drawn in ((MATRIX_CLASSES, True), (MATRIX_CLASSES + 1, False)):
        counts = np.zeros((97, 97), np.int64)
        counts[np.arange(occurring), np.arange(occurring)] = 2
        verbs = head([f"v{k}" for k in range(97)], counts.tolist())
        write_report(tmp_path, {"sections": SECTIONS, "heads": {"verb": verbs}}, pictures=NO_PICTURES, history=[])
        page = page_of(tmp_path)
        assert page.tags.count("title") - 1 == (occurring if drawn else 0)
        assert ("67 classes are not drawn" in page.text) == drawn


# --- what the page is made of


def test_report_json_is_the_report(tmp_path: Path, report: dict[str, Any]) -> None:
    given = copy.deepcopy(report)
    write_report(tmp_path, report, pictures=NO_PICTURES, history=[])
    assert json.loads((tmp_path / "report.json").read_text()) == given == report


def test_ticks_are_round_and_inside() -> None:
    assert ticks(0.0, 900.0) == [0, 200, 400, 600, 800]
    assert ticks(0.0, 1e-3) == [0, 0.0002, 0.0004, 0.0006, 0.0008, 0.001]
    assert ticks(-1.0, 2.0) == [-1, -0.5, 0, 0.5, 1, 1.5, 2]
    assert ticks(3.0, 3.0) == [3.0]


def test_curves_are_thinned_and_smoothed_without_shift() -> None:
    line = [(float(s), 3.0 * s) for s in range(1000)]
    assert len(thin(line)) == 300 and thin(line)[-1] == line[-1]
    assert np.allclose(thin(line), [(x, 3 * x) for x, _ in thin(line)])
    assert np.allclose(smooth(line), line)
    noise = [(float(s), float((-1) ** s)) for s in range(200)]
    assert max(abs(y) for _, y in smooth(noise)[20:-20]) < 0.2


def test_durations_and_numbers() -> None:
    assert [duration(s).replace("\u00a0", " ") for s in (0.04, 59.94, 59.96, 192, 3599.9, 7500)] == [
        "0.0 s", "59.9 s", "1 min 00 s", "3 min 12 s", "1 h 00 min", "2 h 05 min"
    ]  # fmt: skip
    assert [number(v).replace("\u202f", " ") for v in (67217, 0.00012345, 48.31, "x", True)] == [
        "67 217", "0.0001234", "48.31", "x", "True"
    ]  # fmt: skip


# --- files


def test_json_is_replaced_whole_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "new" / "a.json"
    write_json_atomic(path, {"a": [1.5, float("nan"), np.float32("inf")], "b": np.arange(2), "c": Path("x/y")})
    before = path.read_bytes()
    assert json.loads(before) == {"a": [1.5, None, None], "b": [0, 1], "c": "x/y"}
    with pytest.raises(TypeError, match="object"):
        write_json_atomic(path, {"a": object()})

    def cut(_: int) -> None:
        raise OSError("disk full")

    monkeypatch.setattr(os, "fsync", cut)
    with pytest.raises(OSError, match="disk full"):
        write_json_atomic(path, {"a": 2})
    assert path.read_bytes() == before
    assert [p.name for p in path.parent.iterdir()] == ["a.json"]


def test_a_page_that_cannot_be_drawn_costs_no_number(
    tmp_path: Path, report: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """report.json holds the new numbers, and the page of older ones does not lie beside it."""
    write_report(tmp_path, report, pictures=NO_PICTURES, history=[])
    report["metrics"]["verb_top1"] = 12.5
    monkeypatch.setattr(figures, "cards", lambda _: 1 / 0)
    with pytest.raises(ReportError) as caught:
        write_report(tmp_path, report, pictures=NO_PICTURES, history=[])
    assert isinstance(caught.value.__cause__, ZeroDivisionError) and "\n" not in str(caught.value)
    assert json.loads((tmp_path / "report.json").read_text())["metrics"]["verb_top1"] == 12.5
    assert [path.name for path in tmp_path.iterdir()] == ["report.json"]


def test_metrics_are_readable_as_soon_as_logged(tmp_path: Path) -> None:
    path = tmp_path / "run" / "metrics.jsonl"
    assert read_metrics(path) == []
    with MetricsLog(path) as log:
        log.log(step=1, loss=float("nan"), lr=np.float32(0.5))
        assert read_metrics(path) == [{"step": 1, "loss": None, "lr": 0.5}]
        log.log(step=2, note="é")
    with MetricsLog(path) as log:
        log.log(step=3)
    assert [e["step"] for e in read_metrics(path)] == [1, 2, 3]


def test_a_cut_last_line_is_dropped_and_the_next_one_whole(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1}\n{"step": 2, "lo')
    assert read_metrics(path) == [{"step": 1}]
    with MetricsLog(path) as log:
        log.log(step=2, loss=0.5)
    assert read_metrics(path) == [{"step": 1}, {"step": 2, "loss": 0.5}]


@pytest.mark.parametrize("line", ["{broken", "17", ""])
def test_damage_elsewhere_is_named(tmp_path: Path, line: str) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text(f'{{"step": 1}}\n{line}\n{{"step": 3}}\n')
    with pytest.raises(UserError, match=r"metrics.jsonl:2"):
        read_metrics(path)


def test_resuming_forgets_what_came_after(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    with MetricsLog(path) as log:
        log.log(event="start")
        for step in (10, 20, 30):
            log.log(step=step)
            log.log(event=f"saved {step}")
        assert log.truncate_after(30) == 0
        assert log.truncate_after(20) == 2
        log.log(step=30, again=True)
        assert log.truncate_after(30) == 0
    start, *rest = read_metrics(path)
    assert start == {"event": "start"} and rest[-1] == {"step": 30, "again": True}
    assert rest[:-1] == [{"step": 10}, {"event": "saved 10"}, {"step": 20}, {"event": "saved 20"}]
    with MetricsLog(path) as log:
        assert log.truncate_after(0) == 5
    assert read_metrics(path) == [{"event": "start"}]


def test_stage_times(tmp_path: Path) -> None:
    run = tmp_path / "run"
    assert read_stages(run) == {}
    for stage, seconds in (("train", 10.0), ("evaluate", 2.5), ("train", 12.0)):
        append_stage(run, stage, seconds)
    assert list(read_stages(run).items()) == [("train", 12.0), ("evaluate", 2.5)]
    for wrong in (-1.0, float("nan")):
        with pytest.raises(ValueError, match="train"):
            append_stage(run, "train", wrong)
    (run / files.STAGES_FILE).open("a").write('{"stage": "sh')
    append_stage(run, "shard", 3.0)
    assert read_stages(run)["shard"] == 3.0


def test_lines_wait_where_the_disk_refuses_and_are_written_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "metrics.jsonl"
    with MetricsLog(path) as log:
        log.log(step=1)
        with files_stay_below(path.stat().st_size + 5):
            for step in (2, 3, 4):
                log.log(step=step)
            with pytest.raises(OSError, match="large"):
                log.write_all()
            assert [line["step"] for line in read_metrics(path)] == [1]
        log.log(step=5)
        assert [line["step"] for line in read_metrics(path)] == [1, 2, 3, 4, 5]
    assert len([record for record in caplog.records if str(path) in record.getMessage()]) == 1
