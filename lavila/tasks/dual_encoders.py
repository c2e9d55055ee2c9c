"""What all tasks with a dual encoder share: a fresh model, words as tokens, features of unit length, the facts.

A task of this kind is a `DualEncoderTask`. Its training is a `TrainingStep`, its evaluation is its own. The facts are
`tokenizer` ("clip" or "bert") and `context_length`, the tokens that a text is cut to.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize

from lavila.metrics.epic_submissions import SupervisionLevels
from lavila.metrics.units import Unit
from lavila.models.dual_encoder import ClipDualEncoder, DistilBertDualEncoder, DualEncoder
from lavila.models.text_tower import ClipTextConfig, DistilBertTextConfig, load_distilbert
from lavila.models.timesformer import TimeSformer
from lavila.models.tokenizers import BertTokenizer, ClipTokenizer, Tokenizer
from lavila.records import VideoBatch
from lavila.tasks import ModelParts, NoModel, Predictions, TaskError, TaskFacts, TaskOptions, TextFeatures, TextOptions
from lavila.tasks.tables import Tables
from lavila.tasks.views import over_views
from lavila.tasks.words import CONTEXT, RANDOM, TOKENIZER, check_same_tokens, described

# Names of the parameters of both towers begin with these; the projections and the temperatures are not of a tower.
TOWERS = ("visual.", "textual.", "transformer.", "token_embedding.", "positional_embedding", "ln_final.")
TOKENIZERS = {"clip": "clip", "distilbert": "bert"}  # kind of text tower -> the tokenizer it was made with
_clip_tokenizer = cache(ClipTokenizer)  # a run makes several, of a large vocabulary
MLP_RATIO = 4  # hidden width of a DistilBERT's layer over its width
LARGEST_SCALE = math.log(100)  # learned factors are between 1 and 100, as in CLIP and LaViLa; stored as logarithms


class TrainingStep(Protocol):
    """How a task with a dual encoder is trained."""

    @property
    def logged(self) -> Mapping[str, Unit]:
        """Units of the scalars that a step gives beside `loss`."""
        ...

    def __call__(self, encoders: Encoders, batch: VideoBatch) -> tuple[Tensor, dict[str, Tensor]]:
        """As `Task.step`."""
        ...


class DualEncoderKind:
    """The part of a `TaskKind` that tasks with a dual encoder have in common; each adds `task`."""

    uses_temperature = True  # whether the loss has one; else it stays as it is

    def facts(self, options: TaskOptions, tables: Tables) -> TaskFacts:
        """How words become tokens."""
        return {TOKENIZER: TOKENIZERS[options.text.kind], CONTEXT: options.text.context}

    def needs_words(self, tables: Tables) -> bool:
        """Unless the dataset describes its classes, as Charades-Ego does."""
        return not tables.class_texts.get("labels")

    def check(self, found: TaskFacts, wanted: TaskFacts, *, of: object, wanted_by: object) -> None:
        """Raise TaskError unless words become the same tokens."""
        settings = {TOKENIZER: "model.text.kind", CONTEXT: "model.text.context"}
        remedies = {fact: f"set {setting} to that of the model" for fact, setting in settings.items()}
        check_same_tokens(found, wanted, of=of, wanted_by=wanted_by, remedies=remedies)

    def describe(self, facts: TaskFacts) -> str:
        """The tokenizer, and the longest text."""
        return described(facts)

    def model(self, parts: ModelParts, facts: TaskFacts, options: TaskOptions) -> DualEncoder:
        """The model to start from if that is a dual encoder, else the tower and a fresh text tower."""
        tower = parts.tower
        assert isinstance(tower, TimeSformer)
        start = parts.start
        model = taken_over(start, tower, options) if isinstance(start, DualEncoder) else fresh(tower, options)
        temperature = options.temperature
        model.logit_scale.requires_grad_(self.uses_temperature and temperature.learned)
        learns_pseudo = self.uses_temperature and temperature.pseudo_learned
        if learns_pseudo:
            model.learn_pseudo_temperature(temperature.pseudo_start)
        if model.pseudo is not None:  # the model to start from may have learned one
            model.pseudo.logit_scale.requires_grad_(learns_pseudo)
        return model


class Encoders:
    """A dual encoder with its tokenizer. TaskError for a model that is none, and for one with another vocabulary.

    model: a `DualEncoder`, or one in a wrapper such as DistributedDataParallel; with `NoModel` nothing can be encoded.
    """

    def __init__(self, model: nn.Module, options: TaskOptions) -> None:
        self.model, self.options = model, options
        if isinstance(model, NoModel):
            return
        inner = self.inner
        if not isinstance(inner, DualEncoder):
            raise TaskError(
                f"this task needs a dual encoder, but the model is a {type(inner).__name__}; name a checkpoint of a "
                "dual encoder, such as lavila_tsf_b_ep5, or set task.name=classification"
            )
        text = replace(options.text, kind="clip" if isinstance(inner, ClipDualEncoder) else "distilbert")
        self.tokenizer = make_tokenizer(text)
        known, longest = inner.vocabulary, inner.longest_text
        if self.tokenizer.vocab_size > known or self.tokenizer.context > longest:
            raise TaskError(
                f"the tokenizer has {self.tokenizer.vocab_size} ids and texts of {self.tokenizer.context} tokens, the "
                f"model takes {known} ids and {longest} tokens; set model.text.vocabulary and model.text.context"
            )

    @property
    def inner(self) -> nn.Module:
        """The model without its wrapper."""
        inner = getattr(self.model, "module", self.model)
        assert isinstance(inner, nn.Module)
        return inner

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return next(self.inner.parameters()).device

    def tokens(self, texts: Sequence[str]) -> tuple[Tensor, Tensor]:
        """Token ids int64 [N,L] and mask bool [N,L] on the model's device; L is that of the longest text.

        Shorter than the tokenizer's context where all texts are: what is cut off is padding, which no tower looks at.
        """
        tokens = self.tokenizer(texts)
        longest = max(1, int(tokens.mask.sum(1).max())) if len(texts) else 1
        return tokens.ids[:, :longest].to(self.device), tokens.mask[:, :longest].to(self.device)

    @torch.no_grad()
    def texts(self, texts: Sequence[str]) -> Tensor:
        """Features of unit length, float32 [N,D], of any number of texts, in blocks of `text.batch_size`."""
        blocks = []
        for first in range(0, len(texts), self.options.text.batch_size):
            ids, mask = self.tokens(texts[first : first + self.options.text.batch_size])
            blocks.append(normalize(self._dual.encode_text(ids, mask).float(), dim=-1))
        return torch.cat(blocks) if blocks else torch.zeros(0, self._dual.embed_dim, device=self.device)

    @torch.no_grad()
    def views(self, video: Tensor, *, unit: bool = True) -> Tensor:
        """Features, float32 [B,V,D], of clips [B,V,C,T,H,W], `view_batch_size` views at a time.

        unit: of unit length, and not of the length that the model gives them.
        """
        if not len(video):
            return torch.zeros(0, video.shape[1], self._dual.embed_dim, device=video.device)
        features = self._unit_features if unit else self._dual.encode_video
        return over_views(features, video, at_once=self.options.view_batch_size)

    def _unit_features(self, video: Tensor) -> Tensor:
        return normalize(self._dual.encode_video(video).float(), dim=-1)

    def pairs(self, video: Tensor, texts: Sequence[str]) -> dict[str, Tensor]:
        """What `DualEncoder.forward` gives for clips [B,C,T,H,W] and a text of each, through the wrapper.

        A batch without a clip passes a black one with an empty text, and gives features [0,D] that have a gradient: in
        DistributedDataParallel every rank has to go backward through all parameters.
        """
        empty = not len(texts)
        if empty:
            video = torch.zeros((1, *video.shape[1:]), dtype=video.dtype, device=video.device)
        ids, mask = self.tokens(texts or [""])
        found: dict[str, Tensor] = self.model(video, ids, mask)
        embeds = ("video_embed", "text_embed")
        return {name: value[:0] if empty and name in embeds else value for name, value in found.items()}

    @property
    def _dual(self) -> DualEncoder:
        inner = self.inner
        assert isinstance(inner, DualEncoder)
        return inner


class DualEncoderTask:
    """The part of a `Task` that tasks with a dual encoder have in common; each adds score, wrongness, case.

    model: a `DualEncoder`. tables: of the shard set whose batches come. training: how it is trained.
    """

    def __init__(
        self, model: nn.Module, *, facts: TaskFacts, options: TaskOptions, tables: Tables, training: TrainingStep
    ) -> None:
        self.encoders = Encoders(model, options)
        self.facts, self.options, self.tables, self._training = facts, options, tables, training

    @property
    def model(self) -> nn.Module:
        """The dual encoder, or the wrapper that the trainer gave it."""
        return self.encoders.model

    @model.setter
    def model(self, model: nn.Module) -> None:
        self.encoders.model = model

    @property
    def logged(self) -> Mapping[str, Unit]:
        """What the training step logs."""
        return self._training.logged

    def in_backbone(self, parameter: str) -> bool:
        """Both towers; not the projections and the temperatures."""
        return parameter.startswith(TOWERS)

    def step(self, batch: VideoBatch) -> tuple[Tensor, dict[str, Tensor]]:
        """As the training step has it."""
        assert batch.video.shape[1] == 1, "training has one view a clip"
        return self._training(self.encoders, batch)

    def clip_features(self, batch: VideoBatch) -> Tensor:
        """Features of unit length, [B,D]: of each clip the mean over its views, brought to that length."""
        return normalize(self.encoders.views(batch.video).mean(1), dim=-1)

    def predict(self, batch: VideoBatch) -> Predictions:
        """Features of each clip, in the column `video`, unless a task says otherwise."""
        return Predictions(rows=batch.rows, columns={"video": self.clip_features(batch).cpu().numpy()})

    def submit(self, parts: Iterable[Predictions], folder: Path, levels: SupervisionLevels) -> Path:
        """TaskError: unless a task says otherwise, its benchmark has no challenge."""
        raise TaskError("submission: this task has no challenge that takes a file; leave it out (submission=[])")

    def know_texts(self, known: TextFeatures | None) -> TextFeatures:
        """None, unless a task compares clips with other texts than their own."""
        return {}

    def after_update(self) -> None:
        """Similarities are multiplied by 1 to 100, as in CLIP and LaViLa."""
        for name, parameter in self.encoders.inner.named_parameters():
            if name.rpartition(".")[2] == "logit_scale" and parameter.requires_grad:
                parameter.data.clamp_(0.0, LARGEST_SCALE)


def make_tokenizer(options: TextOptions) -> Tokenizer:
    """The tokenizer of a kind of text tower. TokenizerError where there is no vocabulary."""
    if options.kind == "clip":
        return _clip_tokenizer(context=options.context)
    return BertTokenizer(options.vocabulary, context=options.context)


def fresh(tower: TimeSformer, options: TaskOptions) -> DualEncoder:
    """A dual encoder with a fresh text tower; a DistilBERT with trained weights, unless its `init` is "random"."""
    text, start = options.text, options.temperature.start
    known = make_tokenizer(text).vocab_size
    if text.kind == "clip":
        shape = ClipTextConfig(
            vocab_size=known,
            context_length=text.context,
            width=text.width,
            depth=text.depth,
            heads=text.heads,
            gradient_checkpointing=options.gradient_checkpointing,
        )
        return ClipDualEncoder(tower, text=shape, embed_dim=options.embed_dim, temperature=start)
    config = DistilBertTextConfig(
        vocab_size=known,
        width=text.width,
        depth=text.depth,
        heads=text.heads,
        hidden_width=MLP_RATIO * text.width,
        gradient_checkpointing=options.gradient_checkpointing,
    )
    model = DistilBertDualEncoder(
        tower, text=config, embed_dim=options.embed_dim, projection=options.projection, temperature=start
    )
    if text.init != RANDOM:
        try:
            load_distilbert(model.textual, text.init)
        except ValueError as error:
            raise TaskError(f"model.text.init={text.init}: {error}; or set model.text.init=random") from error
    return model


def taken_over(start: DualEncoder, tower: TimeSformer, options: TaskOptions) -> DualEncoder:
    """A whole dual encoder with another video tower, which has its weights already. TaskError for other sizes."""
    architecture = start.architecture()
    shape = architecture["text"]
    theirs = {f"model.text.{name}": shape[name] for name in ("width", "depth", "heads")}
    theirs |= {"model.embed_dim": start.embed_dim}
    ours = {f"model.text.{name}": getattr(options.text, name) for name in ("width", "depth", "heads")}
    ours |= {"model.embed_dim": options.embed_dim}
    if wrong := [name for name in ours if ours[name] != theirs[name]]:
        asked = ", ".join(f"{name}={ours[name]}" for name in wrong)
        raise TaskError(
            f"{asked}, but the dual encoder that model.init names has another text tower; it takes "
            f"{', '.join(f'{name}={theirs[name]}' for name in wrong)}"
        )
    architecture = architecture | {
        "tower": tower.architecture(),
        "text": shape | {"gradient_checkpointing": options.gradient_checkpointing},
    }
    model = type(start).from_architecture(architecture)
    kept = {name: tensor for name, tensor in start.state_dict().items() if not name.startswith("visual.")}
    model.load_state_dict(kept | {f"visual.{name}": tensor for name, tensor in tower.state_dict().items()})
    return model
