"""Opens the models that speak of videos: a narrator, and a dual encoder that chooses among its texts."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, cast

import torch
from torch import nn

from lavila.checkpoints.errors import CheckpointError
from lavila.checkpoints.store import WEIGHTS, TrainedOn, load_model, trained_on
from lavila.checkpoints.zoo import CLIP_PICTURES
from lavila.demo.choice import DualEncoderChoice
from lavila.demo.footage import Look
from lavila.models.captioner import Captioner
from lavila.models.dual_encoder import ClipDualEncoder, DistilBertDualEncoder
from lavila.models.generation import GenerationConfig
from lavila.models.narrator import Narrator
from lavila.models.tokenizers import CONTEXT, Gpt2Tokenizer, TokenizerError
from lavila.tasks import TaskError, TextOptions
from lavila.tasks.dual_encoders import make_tokenizer
from lavila.tasks.narration import tokenizer_of

log = logging.getLogger(__name__)

FRAMES, SIZE = 4, 224  # of the published narrators, for a file that does not say them


@dataclass(frozen=True, kw_only=True)
class OpenNarrator:
    """A narrator that is ready to speak."""

    captioner: Captioner
    look: Look
    file: Path
    facts: dict[str, Any]  # what decides its texts, as JSON types

    @property
    def name(self) -> str:
        """A name for people: that of the file, or of the run and the step."""
        if self.file.name != WEIGHTS or len(self.file.parents) < 3:
            return self.file.stem
        return f"{self.file.parents[2].name}, {self.file.parent.name}"


def open_narrator(
    checkpoint: str,
    *,
    vocabulary: str,
    options: GenerationConfig,
    seed: int,
    device: torch.device,
    half: bool,
) -> OpenNarrator:
    """Read a narrator and its vocabulary.

    checkpoint: as in `load_model`. vocabulary: a folder, or a name on the hub. half: bfloat16 weights.

    Raises:
        TokenizerError: no vocabulary.
        TaskError: the vocabulary of another narrator.
        CheckpointError: no checkpoint, or one of another kind of model.
    """
    trained = trained_on(checkpoint)
    try:
        Gpt2Tokenizer(vocabulary)  # before the weights, which take longer to read
        model = load_model(trained.file, device=device)
        if not isinstance(model, Narrator):
            raise CheckpointError(
                f"{trained.file}: is a {type(model).__name__}, which writes no texts; give a narrator: a run of "
                "task.name=narration, or narrator_tsf_b_gpt2 or narrator_tsf_l_336_gpt2_xl of the zoo"
            )
        room = model.text_decoder.config.positions
        tokenizer = tokenizer_of(model, vocabulary, context=min(CONTEXT, room))
    except (TokenizerError, TaskError) as error:
        raise type(error)(f"--vocabulary {vocabulary}: {error}") from None
    if options.max_length > room:
        log.warning("%s: its texts have at most %d tokens, so --max-length is %d", trained.file, room, room)
        options = replace(options, max_length=room)
    if half:
        model.to(torch.bfloat16)
    captioner = Captioner(model, tokenizer, options=options, seed=seed)
    facts = {"narrator": _sha256(trained.file), "seed": seed, "bfloat16": half, **asdict(options)}
    return OpenNarrator(captioner=captioner, look=_look(trained), file=trained.file, facts=facts)


def open_dual_encoder(checkpoint: str, *, vocabulary: str, device: torch.device) -> tuple[DualEncoderChoice, Look, str]:
    """Read a dual encoder to choose texts with: the choice, the pictures that it wants, the SHA-256 of its file.

    vocabulary: of a DistilBERT text tower; CLIP's is built in. Errors as in `open_narrator`.
    """
    trained = trained_on(checkpoint)
    context = int(trained.task_facts.get("context_length", CONTEXT))
    bert = trained.text == "distilbert"
    text = TextOptions(kind="distilbert" if bert else "clip", context=context, vocabulary=vocabulary)
    tokenizer = make_tokenizer(text)
    model: nn.Module = load_model(trained.file, device=device)
    if not isinstance(model, ClipDualEncoder | DistilBertDualEncoder):
        raise CheckpointError(
            f"--dual-encoder {trained.file}: is a {type(model).__name__}, which compares no texts with videos; give a "
            "dual encoder, such as lavila_tsf_b_ep5 of the zoo"
        )
    return DualEncoderChoice(model, tokenizer), _look(trained), _sha256(trained.file)


def _look(trained: TrainedOn) -> Look:
    """The pictures that a model was trained on. Without statistics in the file, LaViLa's for CLIP models."""
    if not trained.mean or not trained.std:
        log.warning("%s does not say the statistics of its pictures; LaViLa's for CLIP are taken", trained.file)
    mean: Sequence[float] = trained.mean or CLIP_PICTURES.mean
    std: Sequence[float] = trained.std or CLIP_PICTURES.std
    three = tuple[float, float, float]
    return Look(
        frames=trained.frames or FRAMES,
        size=trained.image_size or SIZE,
        mean=cast(three, tuple(mean)),
        std=cast(three, tuple(std)),
    )


def _sha256(file: Path) -> str:
    with file.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()
