"""What a task is: the interface that trainer, evaluator, optimizer and report know. docs/TASKS.md explains it.

Everything that differs between tasks is here or in `tasks/<name>.py`; `tasks/registry.py` finds a task by its name.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np
import numpy.typing as npt
from torch import Tensor, nn

from lavila.errors import UserError
from lavila.metrics.classification import FusionRule
from lavila.metrics.epic_submissions import SupervisionLevels
from lavila.metrics.units import Metrics, Unit
from lavila.models.dual_encoder import Projection
from lavila.models.generation import GenerationConfig
from lavila.records import VideoBatch
from lavila.tasks.tables import Tables

TaskFacts = dict[str, Any]
"""What a checkpoint of a task says beside weights and architecture, by name, as plain JSON types."""

TextKind = Literal["clip", "distilbert"]
"""Text towers: CLIP's transformer with CLIP's tokenizer, or a DistilBERT with BERT's."""

CaptionAverage = Literal["positions", "tokens"]
"""What a captioning loss is averaged over; see `lavila.losses.captioning_loss`."""

Similarity = Literal["cosine", "dot"]
"""Of clips and texts: of their features at unit length, or as long as the model makes them."""

SameWords = Literal["negatives", "positives"]
"""What the words of another clip are where they are equal to a clip's own: wrong (CLIP, LaViLa), or right as well."""

TextFeatures = dict[str, npt.NDArray[Any]]
"""What a model says of the texts that clips are compared with, by name; see `Task.know_texts`."""

SectionType = Literal["class_tables", "cases", "key_values", "galleries"]
"""How the report draws a section; `lavila.report.figures` has one drawing for each."""


class TaskError(UserError):
    """Options that mean nothing to a task, or a model and a data set that do not fit together."""


@dataclass(frozen=True, kw_only=True)
class TextOptions:
    """The text tower of a dual encoder, and how words become its tokens."""

    kind: TextKind = "clip"
    width: int = 512  # channels of a token; as depth and heads of a tower that starts from nothing
    depth: int = 12  # blocks
    heads: int = 8  # attention heads of a block
    context: int = 77  # tokens that a text is cut to
    vocabulary: str = ""  # the vocabulary of a DistilBERT: a folder, or a name on the hub
    init: str = ""  # weights of a fresh DistilBERT: a folder, or a name on the hub; "random" = none
    batch_size: int = 256  # texts of one forward pass where many are encoded


@dataclass(frozen=True, kw_only=True)
class Temperature:
    """What similarities are divided by before a contrastive loss."""

    start: float = 0.07
    learned: bool = False
    pseudo_start: float = 0.07  # likewise for clips whose words no person wrote
    pseudo_learned: bool = False


@dataclass(frozen=True, kw_only=True)
class MarginOptions:
    """The max-margin loss of retrieval, and the sentences it sees."""

    margin: float = 0.2  # by which a pair's similarity should exceed that of others
    keep_diagonal: bool = False  # the pair itself counts among the others
    scaled: bool = False  # the margin of a pair is times the relevancy of its sentence
    relevancy_above: float = 0.1  # a clip is paired with any sentence that is more relevant to it than this


@dataclass(frozen=True, kw_only=True)
class NarrationOptions:
    """The language model of a narrator, how it is trained, and how an evaluation has it write."""

    width: int = 768  # channels of a token; as depth and heads of a fresh narrator
    depth: int = 12  # blocks
    heads: int = 12  # attention heads of a block, and of the pooler
    cross_attention_every: int = 1  # blocks 0, k, 2k ... look at the video
    gated: bool = True  # learnt gates on that, closed at first
    dropout: float = 0.1  # chance of zeroing a channel while training
    queries: int = 256  # visual tokens of a clip
    context: int = 77  # tokens that a text is cut to, both end tokens included
    vocabulary: str = "gpt2"  # a folder, or a name on the hub
    init: str = "gpt2"  # weights of a fresh language model: a folder, or a name on the hub; "random" = none
    average: CaptionAverage = "positions"  # what the loss is averaged over
    writes: GenerationConfig | None = None  # how texts are written in an evaluation; None = none are
    seed: int = 0  # of what is drawn then


@dataclass(frozen=True, kw_only=True)
class TaskOptions:
    """The plain values of a config that tasks use. A task ignores those that mean nothing to it."""

    heads: tuple[str, ...] = ()  # columns of clips.parquet, one classifier head each
    head_weights: tuple[float, ...] = ()  # factor on each head's loss in the sum; empty = 1 each
    label_smoothing: float = 0.1  # share of the target that all classes get alike
    dropout: float = 0.0  # before the classification heads, of a fresh model
    gradient_checkpointing: bool = False  # recompute blocks in the backward pass; text towers do as video towers do
    text: TextOptions = field(default_factory=TextOptions)  # the text tower of a dual encoder
    embed_dim: int = 256  # channels of the space that a fresh dual encoder projects to
    projection: Projection = "matrices"  # into that space, with a DistilBERT
    temperature: Temperature = field(default_factory=Temperature)
    same_words: SameWords = "negatives"  # contrastive: what words are to a clip whose own words are equal to them
    margin: MarginOptions = field(default_factory=MarginOptions)
    narration: NarrationOptions = field(default_factory=NarrationOptions)
    templates: tuple[str, ...] = ("{}",)  # into which each text of a class is put
    fusion: FusionRule = "mean_logits"  # how the views of a clip become one answer
    similarity: Similarity = "cosine"  # by which a choice among clips is made
    view_batch_size: int = 16  # views of a forward pass


class NoModel(nn.Module):
    """In the place of a model where saved predictions are scored again: such a task neither trains nor predicts."""


@dataclass(frozen=True, kw_only=True)
class ModelParts:
    """What a fresh model is made of."""

    tower: nn.Module  # the video tower of the config, started from `start` where that is given
    start: nn.Module | None = None  # the whole model that `model.init` names, for text towers and decoders


@dataclass(frozen=True, kw_only=True)
class Predictions:
    """What a model says of some clips: plain arrays without Python objects, because they are written to disk.

    A column is a number, a vector or a text (numpy's fixed-width str) for each clip; the task knows what it means.
    """

    rows: npt.NDArray[np.int64]  # [N] rows in clips.parquet
    columns: dict[str, npt.NDArray[Any]]  # name -> [N, ...]


@dataclass(frozen=True, kw_only=True)
class Baseline:
    """A number that a metric is compared with."""

    control: str  # its name among the controls
    label: str  # beside its value, such as "chance"
    sentence: str  # before its value, such as "chance is"


@dataclass(frozen=True, kw_only=True)
class Headline:
    """A metric that the report shows large and that training shows after each evaluation."""

    metric: str  # its name
    label: str  # above the number
    sentence: str  # before the number, after "Of 1,234 clips, "
    baselines: tuple[Baseline, ...] = ()
    others: dict[str, str] = field(default_factory=dict)  # metrics listed below it -> their labels


@dataclass(frozen=True, kw_only=True)
class Section:
    """A section of the report: `values` lie at `key` in report.json, and `type` says how the page draws them.

    class_tables: name -> `classes` (K names); `confusion` [K,K] clip counts, rows the truth, or `confused_pairs`
    (truth, predicted, clips); `per_class_accuracy` (K percentages, None = no clip); `support` (K); `chance` (percent).
    key_values: name -> number, with a unit in `units` where it has one.
    cases: a list of clips, see `Task.case`; the evaluator fills this one.
    galleries: a list of questions, each with `title` and `note` (texts), `clips` (with `row`, `note` and `right`) and
    `texts` (with `text`, `note` and `right`). `right` is whether that was a right answer, None where none is asked for.
    """

    key: str
    type: SectionType
    title: str
    note: str = ""  # a sentence or two below the title
    values: Any = None
    units: dict[str, Unit] = field(default_factory=dict)  # units of key_values


@dataclass(frozen=True, kw_only=True)
class Scores:
    """What predictions are worth. The names of metrics and controls are those of report.json."""

    metrics: Metrics  # the most telling first
    controls: Metrics = field(default_factory=dict)  # what knowing nothing gets
    headlines: tuple[Headline, ...] = ()
    sections: tuple[Section, ...] = ()


class Task(Protocol):
    """A model with its loss and its metrics: what trainer, optimizer and evaluator ask of it."""

    model: nn.Module  # the trainer may wrap it, for instance in DistributedDataParallel

    @property
    def logged(self) -> Mapping[str, Unit]:
        """Units of the scalars that `step` gives beside `loss`."""
        ...

    @property
    def metric_names(self) -> Collection[str]:
        """All names that a metric of `score` may have; `keep_best` has to be one of them."""
        ...

    def in_backbone(self, parameter: str) -> bool:
        """Whether a parameter of the model, by its name, is of the part that `optim.lr_multiplier_for=backbone`
        means; the others keep the full learning rate."""
        ...

    def step(self, batch: VideoBatch) -> tuple[Tensor, dict[str, Tensor]]:
        """Loss of a training batch (scalar, with gradient) and scalars to log: `loss`, and those of `logged`.

        Every rank calls this for each batch, empty ones included. A scalar is NaN where a batch says nothing of it.
        """
        ...

    def after_update(self) -> None:
        """Put parameters back into their range; the trainer calls this after each step of the optimizer."""
        ...

    def know_texts(self, known: TextFeatures | None) -> TextFeatures:
        """Encode the texts that clips are compared with, each once, and keep what `predict` and `score` need of it.

        Called on every rank at the start of an evaluation. known: what this gave when predictions were made that are
        scored again now; there is no model then. Empty for a task without such texts.
        """
        ...

    def predict(self, batch: VideoBatch) -> Predictions:
        """Predictions for the clips of an evaluation batch, fused over their views. At least one clip."""
        ...

    def score(self, parts: Iterable[Predictions]) -> Scores:
        """Metrics over all clips. `parts` can be gone through several times; each clip is in one part, in any order."""
        ...

    def submit(self, parts: Iterable[Predictions], folder: Path, levels: SupervisionLevels) -> Path:
        """Write the file that the benchmark's challenge takes, into the folder. TaskError where it has none."""
        ...

    def wrongness(self, predictions: Predictions) -> npt.NDArray[np.floating[Any]]:
        """[N] how much each clip is worth showing as a mistake; -inf for one that is none."""
        ...

    def case(self, predictions: Predictions, place: int) -> dict[str, Any]:
        """The mistake at a place of a part: `truth` and `predicted` (question -> text), `confidence` (0..1) if any."""
        ...


class TaskKind(Protocol):
    """How a task is made; one for each name in `tasks/registry.py`."""

    def facts(self, options: TaskOptions, tables: Tables) -> TaskFacts:
        """What a checkpoint will say, from the options and the tables of a shard set.

        TaskError where the options make no sense, and where the shard set lacks what they ask for.
        """
        ...

    def needs_words(self, tables: Tables) -> bool:
        """Whether there is nothing to train on where not one clip has a narration."""
        ...

    def check(self, found: TaskFacts, wanted: TaskFacts, *, of: object, wanted_by: object) -> None:
        """Raise TaskError unless the facts of the set `of` fit those of `wanted_by`; an absent fact is unknown."""
        ...

    def describe(self, facts: TaskFacts) -> str:
        """The facts in a few words, for a line of a command's output."""
        ...

    def model(self, parts: ModelParts, facts: TaskFacts, options: TaskOptions) -> nn.Module:
        """A fresh model; its random weights come from torch's generator."""
        ...

    def task(self, model: nn.Module, facts: TaskFacts, options: TaskOptions, tables: Tables) -> Task:
        """The task around a fresh or a loaded model, for batches of the shard set whose tables are given.

        TaskError where the model does not fit the facts. With `NoModel` it scores, and does nothing else.
        """
        ...


def concatenate(parts: Iterable[Predictions]) -> Predictions:
    """All clips in row order, for tasks that need them at once; a clip that comes twice is an error of ours."""
    parts = list(parts)
    rows = np.concatenate([part.rows for part in parts])
    order = np.argsort(rows, kind="stable")
    assert len(np.unique(rows)) == len(rows), "a clip was predicted twice"
    columns = {name: np.concatenate([part.columns[name] for part in parts])[order] for name in parts[0].columns}
    return Predictions(rows=rows[order], columns=columns)
