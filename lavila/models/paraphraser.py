"""Says captions in other words with a T5 paraphraser, as LaViLa's rephraser did.

The weights are those of an encoder-decoder of transformers (Raffel et al. 2020, "Exploring the Limits of Transfer
Learning with a Unified Text-to-Text Transformer"). How words are chosen is in `generation`: transformers 5 has no
search with groups of beams, by which LaViLa's paraphrases differ from each other.

Shape suffixes of names: B captions, N sequences, S tokens of a caption, D width, V vocabulary.
"""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lavila.errors import UserError, listed, one_line
from lavila.models.beams import beam_search
from lavila.models.generation import GenerationConfig, Generators, Narrations, exact, sample
from lavila.models.tokenizers import vocabulary_folder

PARAPHRASER = "ramsrigouthamg/t5-large-paraphraser-diverse-high-quality"
PROMPT = "paraphrase: "  # what a paraphraser reads before the caption
ANSWER = "paraphrasedoutput:"  # what the default paraphraser writes before its answer
# LaViLa's settings (Zhao et al., CVPR 2023, appendix): 20 groups of one beam each.
PUBLISHED = GenerationConfig(
    num_beams=20, num_beam_groups=20, num_return_sequences=20, diversity_penalty=0.7, max_length=77
)


class ParaphraserError(UserError):
    """A paraphraser that is missing, not whole, or of another kind."""


class Paraphraser:
    """A loaded encoder-decoder and its tokenizer. See `load_paraphraser`."""

    def __init__(self, model: Any, tokenizer: Any, *, prompt: str = PROMPT) -> None:
        self.model, self.tokenizer, self.prompt = model, tokenizer, prompt

    @torch.no_grad()
    def __call__(
        self, captions: Sequence[str], config: GenerationConfig, *, generator: Generators = None
    ) -> list[list[tuple[str, float]]]:
        """Paraphrases of each caption with their nll (see `Narrations`), best first where beams are searched.

        generator: one for each caption, or one for all; only sampling uses them. Captions that are too long for the
        model are cut.
        """
        writer = CaptionWriter(self.model, self.tokenizer, [f"{self.prompt}{caption}" for caption in captions])
        choose = beam_search if config.num_beams > 1 else sample
        return self._texts(choose(writer, config, generator=generator))

    def _texts(self, found: Narrations) -> list[list[tuple[str, float]]]:
        ids = found.ids()
        texts = self.tokenizer.batch_decode([row for rows in ids for row in rows], skip_special_tokens=True)
        answers = iter(text.strip().removeprefix(ANSWER).strip() for text in texts)
        return [[(next(answers), value) for value in values] for values in found.nll.tolist()]


class CaptionWriter:
    """An encoder-decoder at work on captions. See `generation.Writer`."""

    def __init__(self, model: Any, tokenizer: Any, captions: Sequence[str]) -> None:
        self.model, self.device = model, model.device
        self.clips = len(captions)
        self.begin, self.end = model.config.decoder_start_token_id, model.config.eos_token_id
        self.pad = model.config.pad_token_id
        encoded = tokenizer(list(captions), return_tensors="pt", padding=True, truncation=True, max_length=512)
        self.mask_BS = encoded["attention_mask"].to(self.device)
        self.seen_BSD = model.get_encoder()(encoded["input_ids"].to(self.device), attention_mask=self.mask_BS)[0]

    def start(self, sequences: int, max_length: int) -> None:
        """See `Writer`. The cache grows, so max_length does not matter."""
        from transformers import DynamicCache, EncoderDecoderCache

        self.cache = EncoderDecoderCache(DynamicCache(), DynamicCache())
        copies = sequences // self.clips
        self.mask_NS, self.seen_NSD = (x.repeat_interleave(copies, dim=0) for x in (self.mask_BS, self.seen_BSD))

    def step(self, token_N: Tensor) -> Tensor:
        # transformers 5.24 calls the cache `cache`. It ignores the older name silently, and then forgets the prefix.
        names = inspect.signature(self.model.forward).parameters
        cache = {"cache" if "cache" in names else "past_key_values": self.cache}
        output = self.model(
            decoder_input_ids=token_N[:, None],
            encoder_outputs=(self.seen_NSD,),
            attention_mask=self.mask_NS,
            use_cache=True,
            **cache,
        )
        return exact(output.logits[:, -1])

    def take(self, rows_N: Tensor) -> None:
        self.cache.reorder_cache(rows_N)
        self.mask_NS, self.seen_NSD = self.mask_NS[rows_N], self.seen_NSD[rows_N]


def load_paraphraser(
    source: str | Path = PARAPHRASER, *, device: torch.device | str = "cpu", dtype: torch.dtype = torch.float32
) -> Paraphraser:
    """A paraphraser from a folder, or by its name on the Hugging Face hub, from which transformers fetches it once.

    The folder holds config.json, model.safetensors or pytorch_model.bin, and tokenizer.json or spiece.model.
    ParaphraserError if there is none, if weights are missing, or if it is no encoder-decoder.
    """
    from transformers import AutoConfig, AutoModelForSeq2SeqLM  # slow to import

    source = str(source)
    try:
        config = AutoConfig.from_pretrained(source)
    except (OSError, ValueError) as error:
        raise _not_there(source, error) from error
    if not config.is_encoder_decoder:
        raise ParaphraserError(
            f"{source!r} is a {config.model_type}, which is no encoder-decoder; give one such as {PARAPHRASER}"
        )
    tokenizer = _tokenizer(source)
    try:
        model, info = AutoModelForSeq2SeqLM.from_pretrained(source, dtype=dtype, output_loading_info=True)
    except (OSError, ValueError) as error:
        raise _not_there(source, error) from error
    # transformers only warns when a file lacks weights, and gives them random values.
    if info["missing_keys"]:
        raise ParaphraserError(f"{source!r} lacks weights: {listed(sorted(info['missing_keys']))}; download it again")
    if len(tokenizer) > model.config.vocab_size:
        raise ParaphraserError(
            f"{source!r}: the vocabulary has {len(tokenizer)} tokens, the model {model.config.vocab_size}; "
            "put the files of one model into the folder"
        )
    return Paraphraser(model.to(device).eval(), tokenizer)


def _tokenizer(source: str) -> Any:
    from transformers import AutoTokenizer

    if Path(source).is_dir():
        vocabulary_folder(source, ("spiece.model",))  # without one, transformers makes a vocabulary of special tokens
    try:
        return AutoTokenizer.from_pretrained(source)
    except (OSError, ValueError, ImportError) as error:
        if not _reads_sentencepiece():
            raise ParaphraserError(
                f"{source!r} keeps its vocabulary in spiece.model, which needs the packages sentencepiece and "
                "protobuf: pip install 'lavila[rephrase]'"
            ) from error
        raise _not_there(source, error) from error


def _reads_sentencepiece() -> bool:
    try:
        import google.protobuf  # noqa: F401
        import sentencepiece  # noqa: F401
    except ImportError:
        return False
    return True


def _not_there(source: str, error: Exception) -> ParaphraserError:
    return ParaphraserError(
        f"no paraphraser at {source!r}: neither a folder with config.json, model.safetensors or pytorch_model.bin, and "
        "tokenizer.json or spiece.model, nor in the cache of transformers, nor available from the hub "
        f"({one_line(error)}). Where there is a network, run 'hf download {PARAPHRASER} --local-dir DIR', copy DIR "
        "here and give its path as --model DIR"
    )
