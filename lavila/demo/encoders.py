"""Opens a dual encoder: videos and sentences as vectors that can be compared."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from lavila.checkpoints.errors import CheckpointError
from lavila.checkpoints.store import WEIGHTS, TrainedOn, load_model, trained_on
from lavila.checkpoints.zoo import CLIP_PICTURES
from lavila.demo.footage import Look
from lavila.models.dual_encoder import DualEncoder
from lavila.models.tokenizers import CONTEXT
from lavila.shards.format import file_sha256
from lavila.tasks import TaskOptions, TextOptions
from lavila.tasks.dual_encoders import Encoders, make_tokenizer

log = logging.getLogger(__name__)

FRAMES, SIZE = 4, 224  # of the published models, for a file that does not say them
ALL_AT_ONCE = 2**30  # windows of a forward pass: the caller decides

Vectors = npt.NDArray[np.float16]
Vector = npt.NDArray[np.float32]


@dataclass(frozen=True, kw_only=True)
class OpenEncoder:
    """A dual encoder that is ready to compare."""

    encoders: Encoders
    look: Look  # the pictures that it wants of a window
    file: Path
    half: bool  # whether it multiplies in bfloat16

    @property
    def name(self) -> str:
        """A name for people."""
        return model_name(self.file)

    @property
    def dimensions(self) -> int:
        """D, the length of a vector."""
        inner = self.encoders.inner
        assert isinstance(inner, DualEncoder)
        return inner.embed_dim

    @property
    def facts(self) -> dict[str, Any]:
        """All that decides the vectors of a video, as plain JSON types."""
        look = self.look
        return {
            "sha256": file_sha256(self.file),
            "dimensions": self.dimensions,
            "frames": look.frames,
            "image_size": look.size,
            "mean": list(look.mean),
            "std": list(look.std),
            "bfloat16": self.half,
        }

    def embed(self, video_BCTYX: Tensor) -> Vectors:
        """Vectors of unit length, float16 [B,D], of windows [B,3,T,H,W]. A row is NaN where the model gives none."""
        device = self.encoders.device
        fast = torch.autocast(device.type, torch.bfloat16) if self.half else nullcontext()
        with torch.inference_mode(), fast:
            found_BD = self.encoders.views(video_BCTYX[:, None].to(device))[:, 0]
        return cast(Vectors, found_BD.float().cpu().numpy().astype(np.float16))

    def text(self, sentence: str) -> Vector:
        """The vector of a sentence, float32 [D], of unit length."""
        with torch.inference_mode():
            return cast(Vector, self.encoders.texts([sentence])[0].cpu().numpy())


def open_encoder(
    checkpoint: str, *, vocabulary: str, device: torch.device, half: bool = False, flag: str = "--model"
) -> OpenEncoder:
    """Read a dual encoder.

    checkpoint: as in `load_model`. vocabulary: of a DistilBERT text tower, a folder or a name on the hub; CLIP's is
    built in. half: multiply in bfloat16. flag: the option that named the checkpoint, for messages.

    Raises:
        TokenizerError: no vocabulary.
        CheckpointError: no checkpoint, or one of another kind of model.
    """
    trained = trained_on(checkpoint)
    text = TextOptions(
        kind="distilbert" if trained.text == "distilbert" else "clip",
        context=int(trained.task_facts.get("context_length", CONTEXT)),
        vocabulary=vocabulary,
    )
    make_tokenizer(text)  # before the weights, which take longer to read
    model: nn.Module = load_model(trained.file, device=device)
    if not isinstance(model, DualEncoder):
        raise CheckpointError(
            f"{flag} {trained.file}: is a {type(model).__name__}, which compares no texts with videos; give a "
            "dual encoder, such as lavila_tsf_b_ep5 of the zoo"
        )
    encoders = Encoders(model, TaskOptions(text=text, view_batch_size=ALL_AT_ONCE))
    return OpenEncoder(encoders=encoders, look=look_of(trained), file=trained.file, half=half)


def look_of(trained: TrainedOn) -> Look:
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


def model_name(file: Path) -> str:
    """A name for people: that of the file, or of the run and the step."""
    if file.name != WEIGHTS or len(file.parents) < 3:
        return file.stem
    return f"{file.parents[2].name}, {file.parent.name}"
