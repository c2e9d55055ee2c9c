"""Narration: a narrator learns people's words for clips, and writes about new ones.

Paper: Zhao et al. 2023, "Learning Video Representations from Large Language Models" (LaViLa). The facts are `tokenizer`
("gpt2") and `context_length`, the tokens that a text is cut to, both end tokens included.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from lavila.losses import caption_perplexity, captioning_loss, token_accuracy
from lavila.metrics.captioning import clean_caption, known_scores, missing, scores_of_sets
from lavila.metrics.epic_submissions import SupervisionLevels
from lavila.metrics.units import Metric, Metrics, Unit
from lavila.models.captioner import Captioner
from lavila.models.gated_gpt2 import GatedGpt2Config, load_gpt2
from lavila.models.narrator import Narrator
from lavila.models.timesformer import TimeSformer
from lavila.models.tokenizers import Gpt2Tokenizer
from lavila.records import HUMAN, VideoBatch
from lavila.tasks import (
    Baseline,
    Headline,
    ModelParts,
    NoModel,
    Predictions,
    Scores,
    Section,
    TaskError,
    TaskFacts,
    TaskOptions,
    TextFeatures,
    concatenate,
)
from lavila.tasks.tables import Tables
from lavila.tasks.words import CONTEXT, RANDOM, TOKENIZER, check_same_tokens, described

SHOWN_TEXTS = 8  # samples in the report
BETWEEN_REFERENCES = "\n"  # in a column; no reference holds one
SHOWN_SCORES = {"cider": "CIDEr", "meteor": "METEOR", "rouge_l": "ROUGE-L", "bleu_4": "BLEU-4"}  # metric -> label
MOST_FREQUENT = "most_frequent_"  # before the name of a metric: its value if every clip got the same words


class Narration:
    """How narration is made."""

    def facts(self, options: TaskOptions, tables: Tables) -> TaskFacts:
        """How words become tokens."""
        return {TOKENIZER: "gpt2", CONTEXT: options.narration.context}

    def needs_words(self, tables: Tables) -> bool:
        """Yes: it trains on nothing else."""
        return True

    def check(self, found: TaskFacts, wanted: TaskFacts, *, of: object, wanted_by: object) -> None:
        """Raise TaskError unless words become the same tokens."""
        remedies = {
            TOKENIZER: "name a checkpoint of a narrator, or the config that the model was trained with",
            CONTEXT: "set model.decoder.context to that of the model",
        }
        check_same_tokens(found, wanted, of=of, wanted_by=wanted_by, remedies=remedies)

    def describe(self, facts: TaskFacts) -> str:
        """The tokenizer, and the longest text."""
        return described(facts)

    def model(self, parts: ModelParts, facts: TaskFacts, options: TaskOptions) -> Narrator:
        """The narrator to start from if that is one, else the tower with a fresh pooler and a pretrained GPT-2."""
        tower, start, ours = parts.tower, parts.start, options.narration
        assert isinstance(tower, TimeSformer)
        if isinstance(start, Narrator):
            return _taken_over(start, tower, options)
        tokenizer = Gpt2Tokenizer(ours.vocabulary, context=ours.context)
        if tokenizer.end_id == GatedGpt2Config.pad_token:
            raise TaskError(
                f"the vocabulary {ours.vocabulary!r} has its end token at id {tokenizer.end_id}, which fills up texts: "
                "a narrator would not learn to stop; put the end token at the end, or make one with "
                "tools/make_vocabulary.py"
            )
        decoder = GatedGpt2Config(
            vocab_size=tokenizer.vocab_size,
            end_token=tokenizer.end_id,
            width=ours.width,
            depth=ours.depth,
            heads=ours.heads,
            cross_attention_every=ours.cross_attention_every,
            gated=ours.gated,
            dropout=ours.dropout,
            gradient_checkpointing=options.gradient_checkpointing,
        )
        narrator = Narrator(tower, decoder, queries=ours.queries, pooler_heads=ours.heads)
        if ours.init != RANDOM:
            try:
                load_gpt2(narrator.text_decoder, ours.init)
            except ValueError as error:
                raise TaskError(
                    f"model.decoder.init={ours.init}: {error}. Where there is a network, run 'hf download gpt2 "
                    "--local-dir DIR' (or gpt2-xl), copy DIR here and give its path; or set model.decoder.init=random"
                ) from error
        return narrator

    def task(self, model: nn.Module, facts: TaskFacts, options: TaskOptions, tables: Tables) -> NarrationTask:
        """The task around a narrator."""
        return NarrationTask(model, options=options, tables=tables)


def _taken_over(start: Narrator, tower: TimeSformer, options: TaskOptions) -> Narrator:
    """A whole narrator with another video tower, which has its weights already. TaskError for other sizes."""
    config, ours = start.text_decoder.config, options.narration
    sizes = {
        "width": config.width,
        "depth": config.depth,
        "heads": config.heads,
        "cross_attention_every": config.cross_attention_every,
        "gated": config.gated,
        "queries": len(start.img_queries),
    }
    if wrong := {name: size for name, size in sizes.items() if getattr(ours, name) != size}:
        asked = ", ".join(f"model.decoder.{name}={getattr(ours, name)}" for name in wrong)
        taken = ", ".join(f"model.decoder.{name}={size}" for name, size in wrong.items())
        raise TaskError(f"{asked}, but the narrator that model.init names is of another size; it takes {taken}")
    decoder = replace(config, dropout=ours.dropout, gradient_checkpointing=options.gradient_checkpointing)
    architecture = start.architecture() | {"tower": tower.architecture(), "decoder": vars(decoder)}
    narrator = Narrator.from_architecture(architecture)
    kept = {name: tensor for name, tensor in start.state_dict().items() if not name.startswith("visual.")}
    narrator.load_state_dict(kept | {f"visual.{name}": tensor for name, tensor in tower.state_dict().items()})
    return narrator


class NarrationTask:
    """A narrator, clips and the words of each.

    model: a `Narrator`, or one in a wrapper such as DistributedDataParallel; with `NoModel` it only scores. TaskError
    for another model, and for a narrator of another vocabulary.

    Columns of its predictions: `nll` [N] mean nats per token of the clip's words, as the plan chose them, with the
    model reading these words; `tokens` [N] how many tokens that are, 0 for a clip without words; `right` [N] how many
    of them were likeliest; `references` [N] what people wrote, one a line. Where texts are written, also `free_nll`
    [N], the same as `nll` with the model reading its own likeliest tokens; `said` [N] the likeliest of the texts that
    were drawn; `said_nll` [N] mean nats per token of that.
    """

    def __init__(self, model: nn.Module, *, options: TaskOptions, tables: Tables) -> None:
        self.model, self.tables, self._options = model, tables, options.narration
        if isinstance(model, NoModel):
            return
        narrator = self._narrator
        if not isinstance(narrator, Narrator):
            raise TaskError(
                f"this task needs a narrator, but the model is a {type(narrator).__name__}; name a checkpoint of a "
                "narrator, such as narrator_tsf_b_gpt2, or the config that the model was trained with"
            )
        self.tokenizer = tokenizer_of(narrator, self._options.vocabulary, context=self._options.context)

    @property
    def logged(self) -> Mapping[str, Unit]:
        """What a step logs beside the loss, of this rank's clips."""
        return {"token_accuracy": Unit.percent, "perplexity": Unit.number}

    @property
    def _narrator(self) -> Narrator:
        """The model without its wrapper."""
        narrator: Any = getattr(self.model, "module", self.model)
        return cast(Narrator, narrator)

    @property
    def _padding(self) -> int:
        return self._narrator.text_decoder.config.pad_token

    def in_backbone(self, parameter: str) -> bool:
        """The tower and the language model without its cross-attention: what comes from other models."""
        decoder = self._narrator.text_decoder
        return parameter.startswith(("visual.", "text_decoder.")) and not decoder.is_cross_attention(parameter)

    def after_update(self) -> None:
        """Nothing has a range."""

    def know_texts(self, known: TextFeatures | None) -> TextFeatures:
        """There are none."""
        return {}

    def submit(self, parts: Iterable[Predictions], folder: Path, levels: SupervisionLevels) -> Path:
        """TaskError: there is no challenge."""
        raise TaskError("submission: narration has no challenge that takes a file; leave it out (submission=[])")

    def step(self, batch: VideoBatch) -> tuple[Tensor, dict[str, Tensor]]:
        """The captioning loss of the clips with words, of the narration that the plan chose for each."""
        assert batch.video.shape[1] == 1, "training has one view a clip"
        texts = batch.captions()
        kept = [place for place, text in enumerate(texts) if text]
        video = batch.video[:, 0] if len(kept) == len(texts) else batch.video[kept, 0]
        if not kept:  # every rank goes backward through all parameters, also where a batch says nothing
            video = torch.zeros((1, *video.shape[1:]), dtype=video.dtype, device=video.device)
        ids = self._tokens([texts[place] for place in kept] or [""])
        logits, targets = self.model(video, ids[:, :-1]), ids[:, 1:]
        loss = captioning_loss(logits, targets, padding_id=self._padding, average=self._options.average)
        if self._options.average == "positions":  # of the whole context; behind the longest text all of them are 0
            loss = loss * (targets.shape[1] / (self._options.context - 1))
        loss = loss * bool(kept)
        nothing = torch.full((), torch.nan, device=video.device)
        said = {"token_accuracy": nothing, "perplexity": nothing}
        if kept:
            said["token_accuracy"] = token_accuracy(logits, targets, padding_id=self._padding)
            said["perplexity"] = caption_perplexity(logits, targets, padding_id=self._padding)
        return loss, {"loss": loss.detach(), **said}

    @torch.no_grad()
    def predict(self, batch: VideoBatch) -> Predictions:
        """The likelihood of each clip's words, and a text of the model's own where `writes` says so."""
        if batch.video.shape[1] != 1:
            raise TaskError(
                f"views: {batch.video.shape[1]} views of each clip, but a narrator looks at one; set views.clips=1 and "
                "views.crops=center"
            )
        narrator, texts = self._narrator, batch.captions()
        visual = narrator.encode_video(batch.video[:, 0])
        ids = self._tokens(texts)
        worded = torch.tensor([bool(text) for text in texts], device=ids.device)
        counted = (ids[:, 1:] != self._padding) & worded[:, None]
        forced = narrator.score(visual, ids)
        right = (forced.tokens[:, 0, 1:] == ids[:, 1:]) & counted
        columns: dict[str, npt.NDArray[Any]] = {
            "nll": _numbers(forced.nll[:, 0]),
            "tokens": counted.sum(1).cpu().numpy(),
            "right": right.sum(1).cpu().numpy(),
            "references": np.array(_references(batch), np.str_),
        }
        if (writes := self._options.writes) is not None:
            columns["free_nll"] = _numbers(narrator.score(visual, ids, teacher_forcing=False).nll[:, 0])
            captioner = Captioner(narrator, self.tokenizer, options=writes, seed=self._options.seed)
            written = captioner.say(visual, batch.clip_ids)
            likeliest = [(one, int(np.argmin(one.nll))) for one in written]
            columns["said"] = np.array([one.texts[place] for one, place in likeliest], np.str_)
            columns["said_nll"] = np.array([one.nll[place] for one, place in likeliest], np.float64)
        return Predictions(rows=batch.rows, columns=columns)

    @property
    def metric_names(self) -> Collection[str]:
        """Likelihoods, and scores of written texts where the narrator writes and the machine has what they need."""
        written = () if self._options.writes is None else ("free_perplexity", *map(str.lower, known_scores()))
        return ("token_accuracy", "perplexity", "token_perplexity", *written)

    def score(self, parts: Iterable[Predictions]) -> Scores:
        """Likelihoods over all clips with words; scores of the written texts over those that people wrote about.

        Metrics: `perplexity`, mean over clips of e to the `nll`, as the reference logs it; `token_perplexity`, e to the
        mean over all tokens; `token_accuracy` in percent; `free_perplexity`, likewise as `perplexity`; and the scores
        of `lavila.metrics.captioning`. TaskError where not one clip has words.
        """
        whole = concatenate(parts)
        columns = {name: column[whole.columns["tokens"] > 0] for name, column in whole.columns.items()}
        if not len(columns["nll"]):
            raise TaskError(f"{self.tables.of}: no clip has a narration to compare with; name data.val_captions")
        metrics = _likelihoods(columns)
        if "said" not in columns:
            return Scores(metrics=metrics, headlines=(_token_headline(),))
        written, controls, notes = self._written(whole)
        metrics = written | metrics
        shown = {name: label for name, label in SHOWN_SCORES.items() if name in metrics}
        headlines = (*([_score_headline(shown)] if shown else []), _token_headline())
        samples = Section(
            key="narrations",
            type="galleries",
            title="What the narrator says",
            note=" ".join(["Clips, the narrator's words, and what people wrote below.", *notes]),
            values=_samples(whole),
        )
        return Scores(metrics=metrics, controls=controls, headlines=headlines, sections=(samples,))

    def wrongness(self, predictions: Predictions) -> npt.NDArray[np.floating[Any]]:
        """How unlikely a clip's words are to the narrator."""
        columns = predictions.columns
        return np.where(columns["tokens"] > 0, columns["nll"], -np.inf)

    def case(self, predictions: Predictions, place: int) -> dict[str, Any]:
        """What a person wrote, and what the narrator did."""
        columns = predictions.columns
        truth = str(columns["references"][place]).partition(BETWEEN_REFERENCES)[0]
        unlikely = f"{columns['nll'][place]:.2f} nats a token"
        said = f"{columns['said'][place]} ({unlikely} for the truth)" if "said" in columns else unlikely
        return {"truth": {"narration": truth}, "predicted": {"narration": said}, "confidence": None}

    def _tokens(self, texts: Sequence[str]) -> Tensor:
        """Token ids int64 [B,L] on the model's device; L is that of the longest text, since what follows is padding."""
        tokens = self.tokenizer(texts)
        longest = max(2, int(tokens.mask.sum(1).max()))
        return tokens.ids[:, :longest].to(self._narrator.img_queries.device)

    def _written(self, whole: Predictions) -> tuple[Metrics, Metrics, list[str]]:
        """Scores of the written texts, those of one text for all clips, and what the report has to say beside."""
        references = {
            str(row): str(texts).split(BETWEEN_REFERENCES)
            for row, texts in zip(whole.rows, whole.columns["references"], strict=True)
            if texts
        }
        said = dict(zip(map(str, whole.rows), map(str, whole.columns["said"]), strict=True))
        if not references:
            return {}, {}, ["No person wrote about these clips, so that there are no scores."]
        counted = Counter(texts[0] for texts in references.values())
        most_frequent = min(counted, key=lambda text: (-counted[text], text))
        found = scores_of_sets(
            {"said": {row: said[row] for row in references}, "same": dict.fromkeys(references, most_frequent)},
            references,
        )
        controls = {f"{MOST_FREQUENT}{name}": metric for name, metric in _fractions(found["same"]).items()}
        controls["captions"] = Metric(len(references), Unit.count)
        lacking = missing()
        return _fractions(found["said"]), controls, [lacking] if lacking else []


def tokenizer_of(narrator: Narrator, vocabulary: str | Path, *, context: int) -> Gpt2Tokenizer:
    """The tokenizer of a narrator. TaskError where the vocabulary is another than the narrator's."""
    tokenizer, config = Gpt2Tokenizer(vocabulary, context=context), narrator.text_decoder.config
    if (tokenizer.vocab_size, tokenizer.end_id) != (config.vocab_size, config.end_token):
        raise TaskError(
            f"the vocabulary {str(vocabulary)!r} has {tokenizer.vocab_size} ids with the end token {tokenizer.end_id}, "
            f"the narrator has {config.vocab_size} and {config.end_token}; give the vocabulary that it was trained with"
        )
    if context > config.positions:
        raise TaskError(f"texts of {context} tokens, but the narrator takes {config.positions}; cut them to that")
    return tokenizer


def _references(batch: VideoBatch) -> list[str]:
    """What people wrote about each clip, one text a line."""
    found = []
    for texts, sources in zip(batch.narrations, batch.sources, strict=True):
        said = zip(texts, sources, strict=True)
        written = [" ".join(text.split()) for text, source in said if source == HUMAN and clean_caption(text)]
        found.append(BETWEEN_REFERENCES.join(written))
    return found


def _numbers(values: Tensor) -> npt.NDArray[np.float64]:
    return values.double().cpu().numpy()


def _likelihoods(columns: Mapping[str, npt.NDArray[Any]]) -> Metrics:
    tokens = columns["tokens"]
    found = {"perplexity": np.exp(columns["nll"]).mean()}
    found["token_perplexity"] = np.exp((columns["nll"] * tokens).sum() / tokens.sum())
    if "free_nll" in columns:
        found["free_perplexity"] = np.exp(columns["free_nll"]).mean()
    metrics = {name: Metric(float(value), Unit.number, lower_is_better=True) for name, value in found.items()}
    return {"token_accuracy": Metric(100 * float(columns["right"].sum() / tokens.sum()), Unit.percent), **metrics}


def _fractions(scores: Mapping[str, float]) -> Metrics:
    return {name.lower(): Metric(value, Unit.fraction) for name, value in scores.items()}


def _score_headline(shown: Mapping[str, str]) -> Headline:
    first, *others = shown
    return Headline(
        metric=first,
        label=shown[first],
        sentence=f"the {shown[first]} of the narrator's words is",
        baselines=(
            Baseline(
                control=f"{MOST_FREQUENT}{first}",
                label="the most frequent narration for every clip",
                sentence="the most frequent narration for every clip gets",
            ),
        ),
        others={name: shown[name] for name in others},
    )


def _token_headline() -> Headline:
    return Headline(
        metric="token_accuracy",
        label="next token right",
        sentence="the next token of people's words is likeliest for",
        others={"perplexity": "perplexity"},
    )


def _samples(whole: Predictions) -> list[dict[str, Any]]:
    columns, count = whole.columns, len(whole.rows)
    shown = []
    for place in sorted({int(place) for place in np.linspace(0, count - 1, min(count, SHOWN_TEXTS))}):
        texts = [text for text in str(columns["references"][place]).split(BETWEEN_REFERENCES) if text]
        shown.append(
            {
                "title": str(columns["said"][place]),
                "note": f"{columns['said_nll'][place]:.2f} nats a token",
                "clips": [{"row": int(whole.rows[place]), "note": "", "right": None}],
                "texts": [{"text": text, "note": "", "right": None} for text in texts],
            }
        )
    return shown
