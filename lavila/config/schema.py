"""All settings of a run: frozen keyword-only dataclasses, one sentence on every field.

`lavila.config.load` fills them from YAML files and `key=value` arguments. The type of every number says its range, and
`check()` compares all of them in one loop. Checks that need more than one field follow there; each says what to change.
"""

from __future__ import annotations

import dataclasses
import math
import re
import typing
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

from lavila.errors import UserError


class ConfigError(UserError):
    """A mistake in a config file or on the command line."""


@dataclass(frozen=True, kw_only=True)
class Range:
    """The numbers that a field may hold: between two bounds, and never NaN or infinite."""

    least: float = -math.inf  # may be reached
    above: float = -math.inf  # may not be reached
    most: float = math.inf  # may be reached
    below: float = math.inf  # may not be reached

    def holds(self, value: float) -> bool:
        """Whether a number lies in the range."""
        return math.isfinite(value) and self.least <= value <= self.most and self.above < value < self.below

    def __str__(self) -> str:
        bounds = (("at least", self.least), ("above", self.above), ("at most", self.most), ("below", self.below))
        return " and ".join(f"{word} {bound}" for word, bound in bounds if math.isfinite(bound))


FRAMES, IMAGE_SIZE = 16, 224  # where neither a config nor the weights say it

Count = Annotated[int, Range(least=1)]
CountOrNone = Annotated[int, Range(least=0)]  # what 0 means is said with the field
Seed = Annotated[int, Range(least=0, most=2**63 - 1)]
Positive = Annotated[float, Range(above=0)]
NotNegative = Annotated[float, Range(least=0)]
Chance = Annotated[float, Range(least=0, most=1)]
ChanceBelowOne = Annotated[float, Range(least=0, below=1)]
Share = Annotated[float, Range(above=0, most=1)]
Level = Annotated[float, Range(least=0, most=255)]
SupervisionLevel = Annotated[int, Range(least=0, most=5)]  # as the EPIC-KITCHENS challenges number them; docs/RUNS.md


Decoder = Literal["auto", "nvdec", "dali_cpu", "host"]
Sampling = Literal["segments", "strided"]
Crops = Literal["center", "three", "center_repeated"]
Fusion = Literal["mean_logits", "max_similarity", "max_cosine"]
Device = Literal["auto", "cpu", "cuda"]
PictureType = Literal["auto", "float32", "float16"]
Activation = Literal["quick_gelu", "gelu"]
TextKind = Literal["auto", "clip", "distilbert"]
Projection = Literal["matrices", "frozen_in_time"]
CaptionAverage = Literal["positions", "tokens"]
Similarity = Literal["cosine", "dot"]
SameWords = Literal["negatives", "positives"]
Optimizer = Literal["adamw", "sgd"]
Schedule = Literal["cosine", "constant"]
MultiplierScope = Literal["all", "backbone"]
Precision = Literal["auto", "fp32", "bf16", "fp16"]
SignalName = Literal["SIGTERM", "SIGINT", "SIGHUP", "SIGUSR1", "SIGUSR2"]


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """Which clips, and how they become pictures."""

    train: str = ""  # shard set to train on (a folder made by tools/shard_videos.py)
    val: str = ""  # shard set to evaluate on
    folder: str = "data"  # where the files of lavila/configs/data have their shard sets; train and val say it in full
    dataset: str = ""  # whose shard sets these must be: a name of tools/shard_videos.py --dataset; empty = anyone's
    quarantine: str = ""  # further clips to leave out: a file of tools/inspect_shards.py --verify --quarantine FILE
    captions: tuple[str, ...] = ()  # of train: captions tables (.parquet), `own` = the set's narrations; empty = own
    val_captions: tuple[str, ...] = ()  # likewise for the clips of val; empty = own
    batch_size: Count = 64  # clips per optimiser step over all ranks; the same run on 1 or 8 GPUs sees the same batches
    shuffle_window: Count = 131_072  # training clips mixed with each other; sets up to this size are mixed fully
    read_ahead: bool = False  # read the next window in long stretches, for storage that is slow at many small requests
    frames: CountOrNone = 0  # frames per view (T); 0 = as the weights have, 16 where they do not say
    image_size: CountOrNone = 0  # side of the square picture a model sees, pixels; 0 = likewise, else 224
    sampling: Sampling = "segments"  # segments: one frame from each of T equal parts; strided: every n-th frame
    stride: Count = 2  # frames between two chosen ones; used by sampling=strided only
    crop_scale: tuple[Share, Share] = (0.5, 1.0)  # share of the picture's area that a training crop covers
    crop_ratio: tuple[Positive, Positive] = (0.75, 1.3333333333333333)  # width / height of a training crop
    flip: Chance = 0.5  # chance that a training clip is mirrored left-right
    mean: tuple[Level, ...] = ()  # R, G, B on 0..255, subtracted; empty = as the weights were trained, else LaViLa's
    std: tuple[Positive, ...] = ()  # R, G, B on 0..255, divided by; empty = likewise
    allow_other_statistics: bool = False  # mean and std that are set may differ from those that the weights know
    antialias: bool = False  # low-pass before shrinking; published weights were trained without
    picture_type: PictureType = "auto"  # number type; auto: float16 on a GPU with bf16 or fp16, else float32
    decoder: Decoder = "auto"  # auto: on a GPU nvdec or host, as measured; else host (every codec); dali_cpu: VP9
    threads: CountOrNone = 0  # CPU threads of the loader on each rank; 0 = this rank's share of the cores
    prefetch: Count = 2  # batches in flight between decoder and model
    host_memory_gib: Positive = 8.0  # main memory of each rank for pictures that CPU threads decode (decoder host), GiB
    max_bad_clips: CountOrNone = 100  # stop when more clips than this are bad in one epoch, over all ranks
    read_seconds: Positive = 120.0  # a read of the shards that takes longer makes its clip a bad one


@dataclass(frozen=True, kw_only=True)
class ViewsConfig:
    """Which views of a clip an evaluation averages over."""

    clips: Count = 1  # temporal clips, spread evenly over the video
    crops: Crops = "three"  # three: left/centre/right (top/centre/bottom); center_repeated: published protocol
    fusion: Fusion = "mean_logits"  # mean of logits or largest over views, then softmax; max_cosine: none
    batch_size: Count = 8  # clips (not views) in flight over all ranks; a rank has one whole forward pass at the least
    view_batch_size: Count = 16  # views of a forward pass, always of the same clips; docs/RUNS.md says why
    precision: Precision = "auto"  # number type of evaluations; auto: optim.precision, or fp32 if a CPU lacks it
    single_frame_control: bool = False  # also score every view with its middle frame repeated: does the model use time?


@dataclass(frozen=True, kw_only=True)
class TextConfig:
    """The text tower of a dual encoder."""

    kind: TextKind = "auto"  # clip, distilbert, or auto: as the weights have it, clip where there are none
    width: Count = 512  # channels of a token
    depth: Count = 12  # transformer blocks
    heads: Count = 8  # attention heads of a block
    context: Annotated[int, Range(least=2)] = 77  # tokens that a text is cut to
    vocabulary: str = "distilbert-base-uncased"  # for distilbert: a folder, or a name on the hub; CLIP's is built in
    init: str = "distilbert-base-uncased"  # distilbert's weights: a folder, or a name on the hub; random = none
    batch_size: Count = 256  # texts of one forward pass, where an evaluation encodes many


@dataclass(frozen=True, kw_only=True)
class DecoderConfig:
    """The language model of a narrator, and how it sees a clip."""

    width: Count = 768  # channels of a token
    depth: Count = 12  # transformer blocks
    heads: Count = 12  # attention heads of a block, and of the pooler of visual tokens
    cross_attention_every: Count = 1  # blocks 0, k, 2k ... look at the visual tokens
    gated: bool = True  # learnt gates on that, closed at first
    dropout: ChanceBelowOne = 0.1  # chance of zeroing a channel; frozen parts have none
    queries: Count = 256  # visual tokens of a clip
    context: Annotated[int, Range(least=2)] = 77  # tokens that a text is cut to, both end tokens included
    vocabulary: str = "gpt2"  # a folder with vocab.json and merges.txt, or a name on the hub
    init: str = "gpt2"  # weights of a fresh language model: a folder, or a name on the hub; random = none


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """A TimeSformer, and what a task adds to it. Its frame count and picture size come from `data`."""

    patch_size: Count = 16  # side of a square patch, pixels
    width: Count = 768  # channels of a token
    depth: Count = 12  # transformer blocks
    heads: Count = 12  # attention heads of a block
    mlp_ratio: Positive = 4.0  # hidden width of a block's MLP over its width
    activation: Activation = "quick_gelu"  # quick_gelu for CLIP weights, gelu for EgoVLP's
    pre_norm: bool = True  # layer norm after the embedding, no patch bias (CLIP); false: patch bias, no norm
    gated_time_attention: bool = False  # tanh gate on temporal attention
    zero_time_attention: bool = True  # temporal attention starts as an identity (for a start from image weights)
    drop_path: ChanceBelowOne = 0.1  # stochastic depth of the last block
    dropout: ChanceBelowOne = 0.5  # before the classification heads
    gradient_checkpointing: bool = False  # recompute blocks in the backward pass: less memory, about a third slower
    init: str = ""  # weights to start from: a folder, a file, a name of the zoo, clip:NAME of OpenAI, or random
    freeze: tuple[str, ...] = ()  # parts that keep their weights: video, text, temperature, ..., or names such as fc_*
    text: TextConfig = field(default_factory=TextConfig)
    decoder: DecoderConfig = field(default_factory=DecoderConfig)
    embed_dim: Count = 256  # channels of the space in which a dual encoder's videos and texts meet
    projection: Projection = "matrices"  # into that space, from distilbert; frozen_in_time: as EgoVLP's


@dataclass(frozen=True, kw_only=True)
class GenerationConfig:
    """How a narrator writes in an evaluation; the defaults are those of the published scores."""

    num_return_sequences: CountOrNone = 1  # texts drawn for a clip, of which the likeliest counts; 0 = write none
    max_length: Annotated[int, Range(least=2)] = 77  # tokens of a text, the one that begins it included
    temperature: Positive = 0.7  # logits are divided by it
    top_k: CountOrNone = 0  # only the k likeliest tokens; 1 = greedy, 0 = all
    top_p: Share = 0.95  # only the likeliest tokens that together reach this probability; 1 = all
    num_beams: Count = 1  # above 1: beam search, which samples where temperature, top_k or top_p ask for it


@dataclass(frozen=True, kw_only=True)
class TaskConfig:
    """What the model is asked."""

    name: str = "classification"  # one of lavila/tasks/registry.py; docs/TASKS.md says what a task is
    heads: tuple[str, ...] = ("verb", "noun", "action")  # columns of clips.parquet, one classifier head each
    head_weights: tuple[NotNegative, ...] = ()  # factor on each head's loss in the sum; empty = 1 each, as published
    label_smoothing: ChanceBelowOne = 0.1  # share of the cross-entropy's target that all classes get alike
    templates: tuple[str, ...] = ("{}",)  # sentences for zero-shot classes: each text of a class goes into each
    temperature: Positive = 0.07  # similarities are divided by it; a dual encoder to start from has its own
    learn_temperature: bool = False  # learned, up to a factor of 100 on similarities; false: frozen
    pseudo_temperature: Positive = 0.07  # the same for clips whose words no person wrote
    learn_pseudo_temperature: bool = False  # likewise
    same_words: SameWords = "negatives"  # contrastive: other clips' words that equal a clip's own; positives: right too
    margin: NotNegative = 0.2  # max-margin: by which a pair should be more similar than others
    keep_diagonal: bool = False  # max-margin: a pair counts among those that it is compared with
    scale_margin: bool = False  # max-margin: the margin is times the relevancy of a pair's sentence
    similarity: Similarity = "cosine"  # multiple choice; dot: features keep their length, as published
    caption_average: CaptionAverage = "positions"  # narration: the loss is a mean over all positions, or the tokens
    generation: GenerationConfig = field(default_factory=GenerationConfig)
    relevancy_above: ChanceBelowOne = 0.1  # retrieval: a clip is paired with any sentence that is more relevant to it


@dataclass(frozen=True, kw_only=True)
class OptimConfig:
    """How weights move."""

    optimizer: Optimizer = "sgd"  # sgd with momentum, or adamw
    epochs: Count = 100  # passes over the training shard set
    lr: NotNegative = 3e-3  # peak learning rate
    lr_start: NotNegative = 1e-6  # learning rate of the first step of the warm-up
    lr_end: NotNegative = 1e-5  # where the cosine ends
    warmup_epochs: NotNegative = 1.0  # linear warm-up, its end point included; a shorter `epochs` shortens it
    schedule: Schedule = "cosine"  # cosine with warm-up, or constant: lr throughout
    lr_multiplier: NotNegative = 0.1  # lr, lr_start and lr_end times this, for those that the next field names
    lr_multiplier_for: MultiplierScope = "all"  # all: heads too, as published; backbone: heads keep lr
    weight_decay: NotNegative = 4e-5  # decay of matrices; biases and norms have none
    betas: tuple[ChanceBelowOne, ChanceBelowOne] = (0.9, 0.999)  # adamw: decay of its two running means
    momentum: ChanceBelowOne = 0.9  # sgd: share of the last update that is kept
    eps: Positive = 1e-8  # adamw: added to the root of the mean square
    clip_grad_norm: NotNegative = 0.0  # largest norm of the whole gradient; 0 = no limit
    clip_grad_value: NotNegative = 0.0  # largest size of each number in the gradient; 0 = no limit
    max_nonfinite_losses: Count = 3  # in a row, or gradients; updates are skipped, and at so many training stops
    shard_state: bool = False  # each rank keeps its share of the optimizer's state, not all of it: saves memory
    accumulate: Count = 1  # passes of a rank in an update, to save memory; a clip is compared with those of its pass
    precision: Precision = "auto"  # auto: bf16 where the GPU has it, fp16 on older GPUs, fp32 on the CPU


@dataclass(frozen=True, kw_only=True)
class LogConfig:
    """Who gets the numbers of a run, besides metrics.jsonl, which always does."""

    tensorboard: bool = False  # event files in <run_dir>/tensorboard; needs the extra `tensorboard`
    wandb: bool = False  # Weights & Biases, a run for each run folder; needs the extra `wandb`
    wandb_project: str = "lavila"  # the project there


@dataclass(frozen=True, kw_only=True)
class EvalConfig:
    """An evaluation during training. Its sections hold what differs from the run's own settings."""

    every_epochs: CountOrNone = 1  # epochs between two; 0 = never
    data: dict[str, Any] = field(default_factory=dict)  # keys of the run's `data`, such as val
    views: dict[str, Any] = field(default_factory=dict)  # keys of the run's `views`
    task: dict[str, Any] = field(default_factory=dict)  # keys of the run's `task`


@dataclass(frozen=True, kw_only=True)
class EngineConfig:
    """How a run looks after itself; nothing here changes what is trained."""

    stop_signals: tuple[SignalName, ...] = ("SIGTERM", "SIGUSR2")  # on these training saves and ends with status 75
    stall_seconds: NotNegative = 300.0  # without progress on a rank, until the log names it with its stacks; 0 = never
    save_in_background: bool = True  # training waits for a copy of the state in main memory; false: for the whole save
    save_signals: tuple[SignalName, ...] = ("SIGUSR1",)  # on these it saves, and continues
    cpu_threads: CountOrNone = 0  # threads of PyTorch on the CPU; 0 = OMP_NUM_THREADS, or one for each core


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    """Everything a run needs to be repeated."""

    name: str = ""  # name of the run; empty = the config's name
    run_dir: str = ""  # folder of this run; empty = runs/<name>
    seed: Seed = 0  # decides weights, clip order, frames, crops and flips
    device: Device = "auto"  # auto: cuda where there is one
    checkpoint: str = ""  # evaluate this one: a path or a zoo name; empty = the run's newest, best = by keep_best
    keep_predictions: bool = True  # an evaluation leaves them in the folder `predictions` beside its report
    submission: tuple[SupervisionLevel, ...] = ()  # also write the challenge's file; of pretraining, labels, data
    predictions: str = ""  # such a folder: score these again, without a model; set by evaluate.py --from
    dry_run: bool = False  # check everything, write nothing and stop before the first step; --dry-run sets it
    resume: str = "auto"  # auto: newest checkpoint; none: afresh; aside: afresh, older run kept beside; or a path
    checkpoint_every_steps: CountOrNone = 0  # save every n steps; 0 = at the end of each epoch only
    checkpoint_every_minutes: NotNegative = 0.0  # also save when so many minutes have passed since the last; 0 = never
    keep_checkpoints: Count = 2  # newest ones kept
    keep_best: str = ""  # keep the checkpoint with the best NAME/METRIC of `evals` as well, such as mir/map
    log_every_steps: Count = 10  # between two lines of metrics.jsonl
    log: LogConfig = field(default_factory=LogConfig)
    evals: dict[str, EvalConfig] = field(default_factory=dict)  # evaluations during training, by their names
    data: DataConfig = field(default_factory=DataConfig)
    views: ViewsConfig = field(default_factory=ViewsConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    task: TaskConfig = field(default_factory=TaskConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    engine: EngineConfig = field(default_factory=EngineConfig)


_TYPES: dict[tuple[Any, bool], dict[str, Any]] = {}  # reading them takes longer than the rest of a check


def types_of(section: Any, *, annotated: bool = False) -> dict[str, Any]:
    """The type of each field of a section (a dataclass), in order; with its range if `annotated`."""
    known = _TYPES.get((section, annotated))
    if known is None:
        known = _TYPES[section, annotated] = typing.get_type_hints(section, include_extras=annotated)
    return known


def ranges(hint: Any, value: Any) -> Iterator[tuple[Range, Any]]:
    """The range of each number of a field, by the field's type, with the number: of a tuple one for each element."""
    if typing.get_origin(hint) is Annotated:
        yield hint.__metadata__[0], value
    elif typing.get_origin(hint) is tuple:
        kinds = typing.get_args(hint)
        for place, element in enumerate(value):
            yield from ranges(kinds[0 if kinds[-1] is Ellipsis else place], element)


def _check_ranges(section: object, prefix: str = "") -> None:
    for name, hint in types_of(type(section), annotated=True).items():
        value = getattr(section, name)
        if dataclasses.is_dataclass(value):
            _check_ranges(value, f"{prefix}{name}.")
            continue
        if isinstance(value, dict):
            for key, entry in value.items():
                if dataclasses.is_dataclass(entry):
                    _check_ranges(entry, f"{prefix}{name}.{key}.")
            continue
        for allowed, number in ranges(hint, value):
            if not allowed.holds(number):
                many = isinstance(value, tuple)
                shown = f"[{','.join(map(str, value))}]" if many else value
                each = f"{number} is out of range, each number " if many else ""
                finite = "" if math.isfinite(number) else "finite and "
                raise ConfigError(f"{prefix}{name}={shown}: {each}must be {finite}{allowed}")


def check(config: RunConfig) -> None:
    """Raise ConfigError for a number out of its range, and for values that do not go together."""
    _check_ranges(config)
    if config.data.image_size % config.model.patch_size:
        lower = config.data.image_size // config.model.patch_size * config.model.patch_size
        raise ConfigError(
            f"data.image_size={config.data.image_size} is not a multiple of "
            f"model.patch_size={config.model.patch_size}; try data.image_size={lower or config.model.patch_size}"
        )
    if len(config.submission) not in (0, 3):
        raise ConfigError(
            f"submission={list(config.submission)}: three levels (of pretraining, training labels, training data), or "
            "none: [] = no file for a challenge"
        )
    if both := set(config.engine.stop_signals) & set(config.engine.save_signals):
        raise ConfigError(
            f"engine.stop_signals and engine.save_signals have {', '.join(sorted(both))} in common; a signal means one "
            "of the two, so take it out of one list"
        )
    if config.model.width % config.model.heads:
        raise ConfigError(
            f"model.width={config.model.width} is not a multiple of model.heads={config.model.heads}; "
            "each head takes an equal share of the width"
        )
    for name in ("mean", "std"):
        values = getattr(config.data, name)
        if len(values) not in (0, 3):
            raise ConfigError(f"data.{name}={list(values)}: three numbers (red, green, blue), or none: [] = not set")
    for name in ("crop_scale", "crop_ratio"):
        low, high = getattr(config.data, name)
        if low > high:
            raise ConfigError(f"data.{name}=[{low},{high}]: the first number may not be larger than the second")
    if config.data.batch_size % config.optim.accumulate:
        raise ConfigError(
            f"data.batch_size={config.data.batch_size} cannot be split into optim.accumulate={config.optim.accumulate} "
            "equal passes; make one a multiple of the other"
        )
    if config.optim.clip_grad_norm and config.optim.clip_grad_value:
        raise ConfigError(
            f"optim.clip_grad_norm={config.optim.clip_grad_norm} and optim.clip_grad_value="
            f"{config.optim.clip_grad_value}: gradients are clipped by one of them; set the other to 0"
        )
    _check_evals(config)
    if config.optim.warmup_epochs > config.optim.epochs:
        raise ConfigError(
            f"optim.warmup_epochs={config.optim.warmup_epochs} is longer than optim.epochs={config.optim.epochs}"
        )


def _check_evals(config: RunConfig) -> None:
    """Names that can stand in `keep_best` and before a metric, and a `keep_best` that names one of them."""
    for name in config.evals:
        if not re.fullmatch(r"[\w-]+", name):
            raise ConfigError(f"evals.{name}: a name of letters, digits, - and _, which stands before its metrics")
    if not config.keep_best:
        return
    name, slash, metric = config.keep_best.partition("/")
    due = [known for known, entry in config.evals.items() if entry.every_epochs]
    if not slash or not metric or name not in due:
        raise ConfigError(
            f"keep_best={config.keep_best}: has the form NAME/METRIC with one of the evaluations of this config "
            f"({', '.join(due) or 'none is set: add evals.NAME.every_epochs=1'})"
        )
