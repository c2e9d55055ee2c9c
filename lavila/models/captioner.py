"""A narrator and its vocabulary: from pictures to texts with their likelihood, each clip for itself."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass

import torch
from torch import Tensor

from lavila.models.generation import GenerationConfig, clip_generators
from lavila.models.narrator import Narrator
from lavila.models.tokenizers import Gpt2Tokenizer

CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f]")  # characters that end lines or upset terminals; any byte may be sampled
# LaViLa's narrations of Ego4D for pre-training: ten samples of a clip.
PUBLISHED = GenerationConfig(num_return_sequences=10, max_length=77, top_p=0.95, temperature=0.7)


@dataclass(frozen=True, kw_only=True, slots=True)
class Said:
    """What a narrator says of one clip."""

    texts: tuple[str, ...]  # R, one line each; may be empty
    nll: tuple[float, ...]  # R, nats per token; exp(nll) is the perplexity
    entropy: tuple[float, ...] | None = None  # R, nats per token, from sampling; exp(entropy) is the reference's "ppl"


class Captioner:
    """Texts of clips. The random numbers of a clip follow from the seed and its id alone.

    So a clip's texts do not depend on the order of clips or on who else works on them. On a CPU they do not depend on
    the clips beside it either, to the last bit: in bfloat16 always, in float32 on Intel's processors, where MKL
    adds up in one order (`MKL_CBWR`, which `tools/narrate.py` sets before PyTorch starts). On a GPU its logits may
    differ in their last bits where other clips are computed beside it. In bfloat16 those are large enough to change
    texts. `say` the same clips together where texts must be the same to the last letter.

    tokenizer: the narrator's, as `tasks.narration.tokenizer_of` makes it.
    """

    def __init__(self, narrator: Narrator, tokenizer: Gpt2Tokenizer, *, options: GenerationConfig, seed: int) -> None:
        self.narrator, self.tokenizer, self.options, self.seed = narrator, tokenizer, options, seed

    @torch.inference_mode()
    def say(self, video_BCTYX: Tensor, clip_ids: Sequence[str]) -> list[Said]:
        """Texts of normalised clips, with an id for each: [B,3,T,Y,X] of any float type, or visual tokens [B,M,D]."""
        weight = self.narrator.img_queries
        found = self.narrator.generate(
            video_BCTYX.to(weight.device, weight.dtype),
            generator=clip_generators(self.seed, clip_ids),
            **asdict(self.options),
        )
        texts = [[_one_line(self.tokenizer.decode(ids)) for ids in clip] for clip in found.ids()]
        nll = found.nll.double().tolist()
        entropy = [None] * len(texts) if found.entropy is None else found.entropy.double().tolist()
        return [
            Said(texts=tuple(said), nll=tuple(how), entropy=None if unsure is None else tuple(unsure))
            for said, how, unsure in zip(texts, nll, entropy, strict=True)
        ]


def _one_line(text: str) -> str:
    return " ".join(CONTROL.sub(" ", text).split())
