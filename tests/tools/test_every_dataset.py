"""Every dataset the whole way: published files -> tools/shard_videos.py -> shard set -> batches with the right words.

What the batches must say is read here from the annotation files with nothing but csv, json and pickle. It takes half a
minute to make the 14 shard sets, by the commands that make_sample_dataset.py prints.
"""

from __future__ import annotations

import csv
import functools
import json
import pickle
import shlex
from collections import Counter
from collections.abc import Iterable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import av
import make_captions
import numpy as np
import numpy.typing as npt
import pytest
import shard_videos
import torch

import evaluate as evaluate_command
import train
from lavila import load_config
from lavila.annotations.epic_retrieval import relevancy
from lavila.checkpoints.store import save_model
from lavila.checkpoints.zoo import CLIP_PICTURES, IMAGENET_PICTURES
from lavila.data.host.decode import decode_frames
from lavila.data.loader import ClipLoader
from lavila.engine.build import training_loader, view_loader
from lavila.engine.distributed import Process
from lavila.engine.evaluator import evaluate
from lavila.models.dual_encoder import ClipDualEncoder, DistilBertDualEncoder
from lavila.models.text_tower import ClipTextConfig, DistilBertTextConfig
from lavila.models.timesformer import TimeSformer, TimeSformerConfig
from lavila.records import VideoBatch
from lavila.sample.camera import VERBS
from lavila.sample.forms import FORMS, commands
from lavila.shards.reader import ShardSet, open_shard_set
from tests.commands import run_here
from tests.toy import CLIPS

ROOT = Path(__file__).parents[2]
QUICK = ["--short-side", "64", "--speed", "8", "--workers", "2"]
CPU = Process(rank=0, world=1, local_world=1, device=torch.device("cpu"))

Words = tuple[str, ...]
Place = tuple[str, float]  # video id, start in seconds
# Place, narrations, (kind of label, class name) ...
Entries = Counter[tuple[Place, Words, tuple[tuple[str, str], ...]]]


MAINS = {f"{main.__module__}.py": main for main in (train.main, evaluate_command.main)}
MAINS |= {f"tools/{main.__module__}.py": main for main in (make_captions.main, shard_videos.main)}


def call(command: list[str]) -> str:
    """Run a command of the repository in this process and give back what it printed."""
    done = run_here(MAINS[command[0]], command[1:])
    assert done.returncode == 0, f"{shlex.join(command)}\n{done.stdout}\n{done.stderr}"
    return done.stdout


@pytest.fixture(scope="module")
def sample(every_form: Path) -> Path:
    printed = (every_form / "printed").read_text()
    for name in FORMS:
        for command in commands(name, str(every_form / "sample")):
            assert f"  {command}\n" in printed
    return every_form / "sample"


@pytest.fixture(scope="module")
def stored(sample: Path) -> dict[str, ShardSet]:
    """The shard sets of all datasets, by "<dataset>/<split>"; ego4d's once more from chunk files and into chunks."""
    wanted: dict[str, list[str]] = {}
    for name, form in FORMS.items():
        for split, command in zip(form.splits, commands(name, str(sample)), strict=True):
            wanted[f"{form.dataset}/{split}"] = shlex.split(command)[1:]
    whole = wanted["ego4d/train"][:-2]  # without --out
    parts = [part.replace("ego4d/videos", "ego4d/video_chunks") for part in whole]
    chunks = ["--layout", "chunks", "--chunk-seconds", "3"]
    for name, command in (("from_parts", parts), ("into_chunks", [*whole, *chunks]), ("both", [*parts, *chunks])):
        wanted[f"ego4d/{name}"] = [*command, "--out", f"{sample}-shards/ego4d/{name}"]
    for command in wanted.values():
        call([*command, *QUICK])
    return {name: open_shard_set(command[command.index("--out") + 1]) for name, command in wanted.items()}


# ---------------------------------------------------------------- what the published files say


def read_csv(file: Path) -> list[dict[str, str]]:
    with file.open(newline="", encoding="utf-8") as stream:
        return list(csv.DictReader(stream))


def seconds(timestamp: str) -> float:
    hours, minutes, rest = timestamp.split(":")
    return int(hours) * 3600 + int(minutes) * 60 + float(rest)


def entry(video: str, start: float, words: Iterable[str], **labels: str) -> tuple[Place, Words, Any]:
    return (video, round(start, 4)), tuple(words), tuple(sorted(labels.items()))


def entries_of_epic(file: Path, *, actions: bool) -> Entries:
    entries: Entries = Counter()
    for row in read_csv(file):
        labels = {"verb": row["verb"], "noun": row["noun"]}
        labels |= {"action": f"{row['verb']} {row['noun']}"} if actions else {}
        entries[entry(row["video_id"], seconds(row["start_timestamp"]), [row["narration"]], **labels)] += 1
    return entries


def entries_of_pickle(file: Path) -> Entries:
    return Counter(entry(video, start, [words]) for video, start, _, words in pickle.loads(file.read_bytes()))


def entries_of_questions(file: Path) -> Entries:
    """Each clip that is a choice of some question, once."""
    choices = [choice for question in json.loads(file.read_text()).values() for choice in question["choices"].values()]
    return Counter({entry(c["video_uid"], float(c["clip_start"]), [c["clip_text"]]) for c in choices})


def entries_of_egtea(folder: Path, name: str) -> Entries:
    lines = [line.rsplit(" ", 1) for line in (folder / "action_idx.txt").read_text().splitlines()]
    actions = {index: text.replace("_", " ").lower() for text, index in lines}
    entries: Entries = Counter()
    for line in (folder / name).read_text().splitlines():
        clip, action = line.split(" ")[:2]
        entries[entry(clip, 0.0, [actions[action]], action=actions[action])] += 1
    return entries


def said(shards: ShardSet, batches: Iterable[VideoBatch]) -> Entries:
    """What batches say of their clips, in the same terms."""
    found: Entries = Counter()
    videos, starts = shards.clips.column("video_id"), shards.clips.column("start_second")
    for batch in batches:
        for k, row in enumerate(batch.rows.tolist()):
            labels = {kind: int(batch.labels[kind][k]) for kind in ("verb", "noun", "action")}
            names = {kind: shards.classes[kind][index] for kind, index in labels.items() if index >= 0}
            found[entry(videos[row].as_py(), starts[row].as_py(), batch.narrations[k], **names)] += 1
            assert set(batch.sources[k]) <= {"human"}
            assert list(batch.label_sets[k]) == shards.clips["labels"][row].as_py()
    return found


# ---------------------------------------------------------------- batches


def loader_of(shards: ShardSet, dataset: str, *, training: bool) -> ClipLoader:
    """As `train.py` and `evaluate.py` would make it from the dataset's part of a config."""
    settings = ["data.image_size=32", "data.batch_size=4", "views.clips=2", "views.crops=three", "views.batch_size=5"]
    config = load_config(f"data/{dataset}", settings)
    return (training_loader if training else view_loader)(config, shards, CPU)


def check_pictures(batches: list[VideoBatch], *, views: int, frames: int) -> None:
    for batch in batches:
        assert batch.video.shape == (len(batch), views, 3, frames, 32, 32)
        assert torch.isfinite(batch.video).all()
        assert (batch.video.flatten(1).std(dim=1) > 0.1).all()


def all_batches(stored: dict[str, ShardSet], name: str, *, frames: int) -> Entries:
    """What a training epoch and a multi-view evaluation say of a shard set: the same."""
    shards, dataset = stored[name], name.split("/")[0]
    training = list(loader_of(shards, dataset, training=True))
    check_pictures(training, views=1, frames=frames)
    evaluation = list(loader_of(shards, dataset, training=False))
    check_pictures(evaluation, views=6, frames=frames)
    entries = said(shards, evaluation)
    assert len(shards) % 4 or said(shards, training) == entries
    return entries


@pytest.mark.parametrize("split", ["train", "val"])
def test_epic_kitchens(sample: Path, stored: dict[str, ShardSet], split: str) -> None:
    name = {"train": "train", "val": "validation"}[split]
    expected = entries_of_epic(sample / f"annotations/EPIC_100_{name}.csv", actions=True)
    assert expected.total() == CLIPS[split]
    assert all_batches(stored, f"ek100_cls/{split}", frames=16) == expected


@pytest.mark.parametrize("split", ["train", "val"])
def test_epic_kitchens_retrieval(sample: Path, stored: dict[str, ShardSet], split: str) -> None:
    """Clips and sentences; from their classes follows what the published pickle says."""
    name = {"train": "train", "val": "test"}[split]
    file, shards = sample / f"annotations/EPIC_100_retrieval_{name}.csv", stored[f"ek100_mir/{split}"]
    assert all_batches(stored, f"ek100_mir/{split}", frames=16) == entries_of_epic(file, actions=False)
    rows = read_csv(file)
    published = read_csv(file.with_name(f"EPIC_100_retrieval_{name}_sentence.csv"))
    sentences = shards.table("sentences").to_pylist()
    assert [(s["sentence_id"], s["narration"]) for s in sentences] == [
        (row["narration_id"], row["narration"]) for row in published
    ]
    clips = {row["clip_id"]: (row["verb"], row["labels"]) for row in shards.clips.to_pylist()}
    in_order = [clips[row["narration_id"]] for row in rows]
    rebuilt = relevancy(in_order, [(sentence["verb"], sentence["nouns"]) for sentence in sentences])
    pickled = file.parent / f"relevancy/caption_relevancy_EPIC_100_retrieval_{name}.pkl"
    assert np.array_equal(rebuilt, pickle.loads(pickled.read_bytes()))


@pytest.mark.parametrize("split", ["train", "val"])
def test_ego4d(sample: Path, stored: dict[str, ShardSet], split: str) -> None:
    expected = entries_of_pickle(sample / f"ego4d/ego4d_{split}.pkl")
    assert expected.total() == CLIPS[split]
    assert all_batches(stored, f"ego4d/{split}", frames=4) == expected


@pytest.mark.parametrize("name", ["from_parts", "into_chunks", "both"])
def test_ego4d_in_chunks_says_the_same(sample: Path, stored: dict[str, ShardSet], name: str) -> None:
    """Videos that come as chunk files, and videos that are stored in chunks."""
    assert all_batches(stored, f"ego4d/{name}", frames=4) == entries_of_pickle(sample / "ego4d/ego4d_train.pkl")
    shards, length = stored[f"ego4d/{name}"], 3 if name == "into_chunks" else 2  # seconds
    crossing = [row for row in shards.clips.to_pylist() if row["start_second"] // length < row["stop_second"] // length]
    assert len(crossing) > 2
    ids = [set(stored[f"ego4d/{key}"].clips.column("clip_id").to_pylist()) for key in ("train", name)]
    assert ids[0] == ids[1]


def test_ego4d_with_other_words(sample: Path, stored: dict[str, ShardSet], tmp_path: Path) -> None:
    """Rephrased and machine narrations added to those of the stored clips."""
    said_of: dict[Place, list[tuple[str, str]]] = {}
    tables = []
    for source, name in (("rephrased", "rephraser.no_punkt_top3"), ("machine", "narrator_63690737.return_10")):
        file, table = sample / f"ego4d/ego4d_train.{name}.pkl", tmp_path / f"{source}.parquet"
        call(["tools/make_captions.py", "--ego4d", str(file), "--source", source, "--out", str(table)])
        tables.append(table)
        for video, start, _, texts, *_ in pickle.loads(file.read_bytes()):
            said_of.setdefault((video, start), []).extend((text, source) for text in texts)
    shards = stored["ego4d/train"]
    settings = ["data.image_size=32", "data.batch_size=4", f"data.captions=[{tables[0]},{tables[1]}]"]
    videos, starts = shards.clips.column("video_id"), shards.clips.column("start_second")
    seen = 0
    for batch in training_loader(load_config("data/ego4d", settings), shards, CPU):
        for row, texts, sources in zip(batch.rows.tolist(), batch.narrations, batch.sources, strict=True):
            assert list(zip(texts, sources, strict=True)) == said_of[videos[row].as_py(), starts[row].as_py()]
            seen += 1
    assert seen == CLIPS["train"]


@pytest.mark.parametrize("split", ["train", "val"])
def test_egtea(sample: Path, stored: dict[str, ShardSet], split: str) -> None:
    expected = entries_of_egtea(sample / "egtea", {"train": "train_split1.txt", "val": "test_split1.txt"}[split])
    assert expected.total() == CLIPS[split]
    assert all_batches(stored, f"egtea/{split}", frames=16) == expected
    assert len(stored[f"egtea/{split}"].classes["action"]) == 36


def test_charades_ego_trimmed(sample: Path, stored: dict[str, ShardSet]) -> None:
    expected = entries_of_pickle(sample / "charades_ego/CharadesEgo/metadata_filtered_train.pkl")
    assert expected.total() == CLIPS["train"]
    assert all_batches(stored, "charades_ego/train", frames=16) == expected


def test_charades_ego_whole_videos(sample: Path, stored: dict[str, ShardSet]) -> None:
    folder, shards = sample / "charades_ego/CharadesEgo", stored["charades_ego/val"]
    rows = read_csv(folder / "CharadesEgo_v1_test_only1st.csv")
    assert all_batches(stored, "charades_ego/val", frames=16) == Counter(entry(row["id"], 0.0, []) for row in rows)
    texts = dict(line.split(" ", 1) for line in (folder / "Charades_v1_classes.txt").read_text().splitlines())
    assert shards.classes["labels"] == list(texts.values())
    wanted = {row["id"]: {texts[action[:4]] for action in row["actions"].split(";") if action} for row in rows}
    found = {row["clip_id"]: {shards.classes["labels"][k] for k in row["labels"]} for row in shards.clips.to_pylist()}
    assert found == wanted
    assert sorted(len(labels) for labels in found.values()) == [0, 3, 3, 3, 3]


def test_egomcq(sample: Path, stored: dict[str, ShardSet]) -> None:
    file, shards = sample / "ego4d/egomcq.json", stored["egomcq/val"]
    assert all_batches(stored, "egomcq/val", frames=4) == entries_of_questions(file)
    clips = {row["clip_id"]: row for row in shards.clips.to_pylist()}
    found = shards.table("questions").to_pylist()
    for question, (key, asked) in zip(found, json.loads(file.read_text()).items(), strict=True):
        assert (question["question_id"], question["text"]) == (key, asked["query"]["clip_text"])
        assert (question["answer"], question["kind"]) == (asked["answer"], {1: "inter", 2: "intra"}[asked["types"]])
        chosen = [clips[clip_id] for clip_id in question["choices"]]
        wanted = [(c["video_uid"], float(c["clip_start"]), float(c["clip_end"])) for c in asked["choices"].values()]
        assert [(c["video_id"], c["start_second"], c["stop_second"]) for c in chosen] == wanted


SOURCES = {
    "ek100_cls/val": "videos/{participant}/{video}.MP4",
    "ego4d/train": "ego4d/videos/{video}.mp4",
    "ego4d/from_parts": "ego4d/videos/{video}.mp4",
    "ego4d/into_chunks": "ego4d/videos/{video}.mp4",
    "ego4d/both": "ego4d/videos/{video}.mp4",
    "egomcq/val": "ego4d/videos/{video}.mp4",
    "egtea/val": "egtea/cropped_clips/{session}/{video}.mp4",
    "charades_ego/train": "charades_ego/CharadesEgo_v1_480/{video}.mp4",
    "charades_ego/val": "charades_ego/CharadesEgo_v1_480/{video}.mp4",
}


@pytest.mark.parametrize("name", list(SOURCES))
def test_stored_clips_show_their_moment(sample: Path, stored: dict[str, ShardSet], name: str) -> None:
    """No frame of the video within half a second is nearer to a stored one than the frame that it should be."""
    shards = stored[name]
    moved = 0
    for row, clip in enumerate(shards.clips.to_pylist()):
        video = clip["video_id"]
        places = {"participant": video[:3], "session": "-".join(video.split("-")[:3]), "video": video}
        original = whole_video(sample / SOURCES[name].format(**places))
        first, count = round(clip["start_second"] * clip["source_fps"]), clip["num_frames"]
        assert abs(count - (clip["stop_second"] - clip["start_second"]) * clip["fps"]) < 1.5
        wanted = np.array([0, count // 2, count - 1], np.int32)
        found = decode_frames(*shards.read_frames(row, wanted)).astype(np.float32)
        for frame, picture in zip((wanted + first).tolist(), found, strict=True):
            near = range(max(0, frame - 15), min(len(original), frame + 16))
            far = {k: float(np.abs(picture - original[k]).mean()) for k in near}
            assert far[frame] <= min(far.values()) + 1.0, (clip["clip_id"], frame)
            moved += max(far.values()) > far[frame] + 5.0
    assert moved > len(shards)  # most pictures do move in that time, so that a wrong frame would show


@functools.cache
def whole_video(file: Path) -> npt.NDArray[np.uint8]:
    """All frames, uint8 RGB [T, H, W, 3], cut as they are stored: a multiple of 16 wide, from an even column on."""
    frames = []
    with av.open(str(file)) as container:
        for frame in container.decode(video=0):
            picture = frame.to_ndarray(format="rgb24")
            left, width = picture.shape[1] % 16 // 4 * 2, picture.shape[1] // 16 * 16
            frames.append(picture[:, left : left + width])
    return np.stack(frames)


def test_egtea_is_learnt_and_scored(tmp_path: Path, stored: dict[str, ShardSet]) -> None:
    """One epoch of a tiny model on the published head, "action", and its evaluation."""
    config = tmp_path / "egtea.yaml"
    config.write_text(
        "base: [data/egtea, model/tiny]\n"
        f"run_dir: {tmp_path}/run\n"
        "device: cpu\n"
        "task: {heads: [action]}\n"
        f"data: {{train: {stored['egtea/train'].path}, val: {stored['egtea/val'].path}, batch_size: 4}}\n"
        "optim: {epochs: 1, warmup_epochs: 0}\n"
        "views: {clips: 2, crops: three}\n"
    )
    call(["train.py", "--config", str(config)])
    call(["evaluate.py", "--config", str(config)])
    report = json.loads((tmp_path / "run/report.json").read_text())
    assert 0 <= report["metrics"]["action_top1"] <= 100
    assert report["clips"]["evaluated"] == CLIPS["val"]
    assert report["views"]["total"] == 6


# ---------------------------------------------------------------- every benchmark, zero-shot


TINY = TimeSformerConfig(
    image_size=32, patch_size=16, width=32, depth=1, heads=2, num_frames=16, zero_time_attention=False
)
METRICS = {  # what a benchmark must say
    "ek100_mir": {"map", "map_video_to_text", "map_text_to_video", "ndcg", "ndcg_video_to_text", "ndcg_text_to_video"},
    "ek100_cls": {"action_top1", "action_top5", "verb_top1", "noun_top1", "challenge_action_top1"},
    "charades_ego": {"map", "classes_without_clip"},
    "egtea": {"action_top1", "action_mean_class"},
    "egomcq": {"intra_accuracy", "inter_accuracy", "questions_lost"},
}
VIEWS = {"egtea": 30}  # of a clip


@pytest.fixture(scope="module")
def encoders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Path, list[str]]]:
    """A tiny dual encoder for each name in the recipes, and what a config must say of it: EgoVLP's has a DistilBERT."""
    folder = tmp_path_factory.mktemp("encoders")
    words = {word for verb in VERBS for word in verb.split("-")} | {"the", "camera", "over"}
    vocabulary = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *sorted(words)]
    (folder / "vocab.txt").write_text("\n".join(vocabulary) + "\n")
    torch.manual_seed(0)
    clip = ClipDualEncoder(TimeSformer(TINY), text=ClipTextConfig(width=16, depth=1, heads=2), embed_dim=8)
    bert = DistilBertDualEncoder(
        TimeSformer(replace(TINY, pre_norm=False, activation="gelu")),
        text=DistilBertTextConfig(vocab_size=len(vocabulary), width=16, depth=1, heads=2, hidden_width=32),
        embed_dim=8,
        projection="frozen_in_time",
    )
    found = {}
    for name, model, pictures in (("clip", clip, CLIP_PICTURES), ("bert", bert, IMAGENET_PICTURES)):
        file = folder / f"{name}.safetensors"
        save_model(model, file, extra={"pictures": json.dumps(asdict(pictures) | {"frames": 4})})
        found[name] = file
    options = [f"model.text.vocabulary={folder}"]
    return {"egovlp": (found["bert"], options), "tsf_b": (found["clip"], []), "tsf_l": (found["clip"], [])}


@pytest.mark.parametrize("weights", ["egovlp", "tsf_b", "tsf_l"])
@pytest.mark.parametrize("benchmark", list(METRICS))
def test_every_benchmark_is_evaluated_zero_shot(
    tmp_path: Path,
    stored: dict[str, ShardSet],
    encoders: dict[str, tuple[Path, list[str]]],
    benchmark: str,
    weights: str,
) -> None:
    """The published recipe, with its views and its frames, on the sample dataset in the benchmark's own form."""
    file, options = encoders[weights]
    recipe = f"{benchmark}_zeroshot_{weights}"
    settings = [f"data.val={stored[f'{benchmark}/val'].path}", "data.image_size=32", f"checkpoint={file}", *options]
    challenge = ["submission=[2,3,0]"] if benchmark.startswith("ek100") else []
    config = load_config(recipe, [*settings, *challenge, "device=cpu", f"run_dir={tmp_path}", f"name={recipe}"])
    page = evaluate(config)
    assert page is not None
    report = json.loads(page.with_name("report.json").read_text())
    assert METRICS[benchmark] <= set(report["metrics"])
    assert all(0 <= report["metrics"][name] <= 100 for name in METRICS[benchmark])
    assert report["clips"]["evaluated"] == len(stored[f"{benchmark}/val"])
    assert report["views"]["computed"] == VIEWS.get(benchmark, 1)
    assert report["config"]["data"]["mean"] == pytest.approx(
        (IMAGENET_PICTURES if weights == "egovlp" else CLIP_PICTURES).mean
    )
    assert report["published"] == {}  # this is no published checkpoint
    made = {path.name for path in page.parent.glob("submission*")}
    assert made == {"ek100_mir": {"submission_retrieval.zip"}, "ek100_cls": {"submission_recognition.zip"}}.get(
        benchmark, set()
    )
    if benchmark in ("ek100_mir", "egomcq"):
        drawn = page.read_text()
        section = report["queries" if benchmark == "ek100_mir" else "questions"]
        assert len(section) >= 4 and all(clip["clip_id"] in drawn for entry in section for clip in entry["clips"])
        assert drawn.count("<img") > sum(len(entry["clips"]) for entry in section)


def test_a_benchmark_is_scored_again_without_a_model(
    tmp_path: Path, stored: dict[str, ShardSet], encoders: dict[str, tuple[Path, list[str]]]
) -> None:
    """What the model said of sentences and questions was kept with what it said of clips."""
    for benchmark in ("ek100_mir", "egomcq", "charades_ego"):
        file, options = encoders["egovlp"]
        settings = [f"data.val={stored[f'{benchmark}/val'].path}", "data.image_size=32", f"checkpoint={file}", *options]
        config = load_config(
            f"{benchmark}_zeroshot_egovlp", [*settings, "device=cpu", f"run_dir={tmp_path / benchmark}"]
        )
        page = evaluate(config)
        assert page is not None
        report = page.with_name("report.json")
        wanted = json.loads(report.read_text())
        report.unlink()
        saved = page.parent / "predictions"
        again = replace(load_config(saved / "config.yaml"), predictions=str(saved))
        assert evaluate(again) == page
        assert json.loads(report.read_text()) == wanted
