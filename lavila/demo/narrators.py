"""Opens the models that speak of videos: a narrator, and a dual encoder that chooses among its texts."""

from __future__ import annotations

import logging
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, cast

import torch

from lavila.checkpoints.errors import CheckpointError
from lavila.checkpoints.store import load_model, trained_on
from lavila.demo.choice import DualEncoderChoice
from lavila.demo.encoders import look_of, model_name, open_encoder
from lavila.demo.footage import Look
from lavila.models.captioner import Captioner
from lavila.models.dual_encoder import DualEncoder
from lavila.models.generation import GenerationConfig
from lavila.models.narrator import Narrator
from lavila.models.tokenizers import CONTEXT, Gpt2Tokenizer, TokenizerError
from lavila.shards.format import file_sha256
from lavila.tasks import TaskError
from lavila.tasks.narration import tokenizer_of

log = logging.getLogger(__name__)


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
        return model_name(self.file)


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
    facts = {"narrator": file_sha256(trained.file), "seed": seed, "bfloat16": half, **asdict(options)}
    return OpenNarrator(captioner=captioner, look=look_of(trained), file=trained.file, facts=facts)


def open_dual_encoder(checkpoint: str, *, vocabulary: str, device: torch.device) -> tuple[DualEncoderChoice, Look, str]:
    """Read a dual encoder to choose texts with: the choice, the pictures that it wants, the SHA-256 of its file.

    vocabulary: of a DistilBERT text tower; CLIP's is built in. Errors as in `open_encoder`.
    """
    opened = open_encoder(checkpoint, vocabulary=vocabulary, device=device, flag="--dual-encoder")
    choice = DualEncoderChoice(cast(DualEncoder, opened.encoders.inner), opened.encoders.tokenizer)
    return choice, opened.look, file_sha256(opened.file)
