"""What a run can be told: frozen keyword-only dataclasses, one sentence on every field.

`lavila.config.load` fills them from YAML files and `key=value` arguments. Checks that need more than one field are
in `check()`, and each says what to change.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum


class ConfigError(ValueError):
    """A mistake in a config file or on the command line, told in one line."""


class Decoder(Enum):
    auto = "auto"
    nvdec = "nvdec"
    dali_cpu = "dali_cpu"
    host = "host"


class Sampling(Enum):
    segments = "segments"
    strided = "strided"


class Crops(Enum):
    center = "center"
    three = "three"
    center_repeated = "center_repeated"


class Fusion(Enum):
    mean_logits = "mean_logits"
    max_similarity = "max_similarity"


class Device(Enum):
    auto = "auto"
    cpu = "cpu"
    cuda = "cuda"


class PictureType(Enum):
    float32 = "float32"
    float16 = "float16"


class Activation(Enum):
    quick_gelu = "quick_gelu"
    gelu = "gelu"


class Optimizer(Enum):
    adamw = "adamw"
    sgd = "sgd"


class Schedule(Enum):
    cosine = "cosine"
    constant = "constant"


class Precision(Enum):
    auto = "auto"
    fp32 = "fp32"
    bf16 = "bf16"
    fp16 = "fp16"


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """Which clips, and how they become pictures."""

    train: str = ""  # shard set to train on (a folder made by tools/shard_videos.py)
    val: str = ""  # shard set to evaluate on
    captions: tuple[str, ...] = ()  # captions tables (.parquet), and `own` for the shard set's narrations; empty = own
    batch_size: int = 64  # clips per optimiser step over all ranks; the same run on 1 or 8 GPUs sees the same batches
    shuffle_window: int = 131_072  # training clips that are mixed with each other; sets up to this size are mixed fully
    read_ahead: bool = False  # read the next window in long stretches, for storage that is slow at many small requests
    frames: int = 16  # frames per view (T)
    image_size: int = 224  # side of the square picture a model sees, pixels
    sampling: Sampling = Sampling.segments  # segments: one frame from each of T equal parts; strided: every n-th frame
    stride: int = 2  # frames between two chosen ones; used by sampling=strided only
    crop_scale: tuple[float, float] = (0.5, 1.0)  # share of the picture's area that a training crop covers
    crop_ratio: tuple[float, float] = (0.75, 1.3333333333333333)  # width / height of a training crop
    flip: float = 0.5  # chance that a training clip is mirrored left-right
    mean: tuple[float, float, float] = (108.3272985, 116.7460125, 104.09373615)  # R, G, B on 0..255, subtracted
    std: tuple[float, float, float] = (68.5005327, 66.6321579, 70.32316305)  # R, G, B on 0..255, divided by
    antialias: bool = False  # low-pass before shrinking; published weights were trained without
    picture_type: PictureType = PictureType.float32  # number type of the pictures; float16 halves the traffic on a GPU
    decoder: Decoder = Decoder.auto  # auto: nvdec on a GPU, else host (PyAV, every codec); dali_cpu: VP9
    threads: int = 0  # CPU threads of the loader on each rank; 0 = this rank's share of the cores
    prefetch: int = 2  # batches in flight between decoder and model
    host_memory_gib: float = 8.0  # main memory of each rank for pictures that CPU threads decode (decoder host), GiB
    max_bad_clips: int = 100  # stop when more clips than this could not be decoded in one epoch, over all ranks


@dataclass(frozen=True, kw_only=True)
class ViewsConfig:
    """Which views of a clip an evaluation averages over."""

    clips: int = 1  # temporal clips, spread evenly over the video
    crops: Crops = Crops.three  # three: left/centre/right (top/centre/bottom); center_repeated: published protocol
    fusion: Fusion = Fusion.mean_logits  # mean of logits then softmax, or maximum over views then softmax
    batch_size: int = 8  # clips (not views) in flight over all ranks
    view_batch_size: int = 0  # views per forward pass on a rank; 0 = all views of a batch at once
    precision: Precision = Precision.auto  # of evaluations; auto: as optim.precision, but fp32 where a CPU lacks it
    single_frame_control: bool = False  # also score every view with its middle frame repeated: does the model use time?


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """A TimeSformer. Its frame count and picture size come from `data`."""

    patch_size: int = 16  # side of a square patch, pixels
    width: int = 768  # channels of a token
    depth: int = 12  # transformer blocks
    heads: int = 12  # attention heads of a block
    mlp_ratio: float = 4.0  # hidden width of a block's MLP over its width
    activation: Activation = Activation.quick_gelu  # quick_gelu for CLIP weights, gelu for EgoVLP's
    pre_norm: bool = True  # layer norm after the embedding, no patch bias (CLIP); false: patch bias, no norm
    gated_time_attention: bool = False  # tanh gate on temporal attention
    zero_time_attention: bool = True  # temporal attention starts as an identity (for a start from image weights)
    drop_path: float = 0.1  # stochastic depth of the last block
    dropout: float = 0.5  # before the classification heads
    gradient_checkpointing: bool = False  # recompute blocks in the backward pass: less memory, about a third slower
    init: str = ""  # weights to start from: a checkpoint folder, a file or a name of the zoo; empty = random


@dataclass(frozen=True, kw_only=True)
class TaskConfig:
    """What the model is asked."""

    name: str = "classification"  # which task of lavila/tasks
    heads: tuple[str, ...] = ("verb", "noun", "action")  # columns of clips.parquet, one classifier head each
    head_weights: tuple[float, ...] = ()  # of each head's loss in the sum; empty = 1 each, as published
    label_smoothing: float = 0.1  # of the cross-entropy


@dataclass(frozen=True, kw_only=True)
class OptimConfig:
    """How weights move."""

    optimizer: Optimizer = Optimizer.sgd  # sgd (momentum = betas[0]) or adamw
    epochs: int = 100  # passes over the training shard set
    lr: float = 3e-3  # peak learning rate
    lr_start: float = 1e-6  # learning rate of the first step of the warm-up
    lr_end: float = 1e-5  # where the cosine ends
    warmup_epochs: float = 1.0  # linear warm-up, its end point included
    schedule: Schedule = Schedule.cosine  # cosine, or constant at lr without warm-up
    backbone_lr_multiplier: float = 0.1  # of all groups each step, the head's included, as the reference does
    weight_decay: float = 4e-5  # of matrices; never of biases and norms
    betas: tuple[float, float] = (0.9, 0.999)  # momenta
    eps: float = 1e-8  # of AdamW
    clip_grad_norm: float = 0.0  # largest gradient norm; 0 = no limit
    accumulate: int = 1  # passes a rank's share of a batch is split into, to save memory
    precision: Precision = Precision.auto  # auto: bf16 where the GPU has it, fp16 on older GPUs, fp32 on the CPU


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    """Everything a run needs to be repeated."""

    name: str = ""  # of the run; the config's own name unless said otherwise
    run_dir: str = ""  # folder of this run; empty = runs/<name>
    seed: int = 0  # of weights, clip order, frames, crops and flips
    device: Device = Device.auto  # auto: cuda where there is one
    checkpoint: str = ""  # evaluate this one: a path or a zoo name; empty = the run's newest
    resume: str = "auto"  # auto: newest checkpoint; none: afresh; aside: afresh, older run kept beside; or a path
    checkpoint_every_steps: int = 0  # save every n steps; 0 = at the end of each epoch only
    keep_checkpoints: int = 2  # newest ones kept
    log_every_steps: int = 10  # between two lines of metrics.jsonl
    evaluate_every_epochs: int = 0  # single-view validation while training, every n epochs; 0 = never
    data: DataConfig = field(default_factory=DataConfig)
    views: ViewsConfig = field(default_factory=ViewsConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    task: TaskConfig = field(default_factory=TaskConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)


POSITIVE = (
    ("data", ("batch_size", "shuffle_window", "frames", "image_size", "stride", "prefetch")),
    ("views", ("clips", "batch_size")),
    ("model", ("patch_size", "width", "depth", "heads")),
    ("optim", ("epochs", "accumulate")),
    ("", ("keep_checkpoints", "log_every_steps")),
)


def check(config: RunConfig) -> None:
    """Raise ConfigError for values that no field alone can show to be wrong."""
    for section, names in POSITIVE:
        for name in names:
            value = getattr(getattr(config, section) if section else config, name)
            if value < 1:
                raise ConfigError(f"{section}{'.' if section else ''}{name}={value}: must be at least 1")
    if not 0 < config.data.host_memory_gib < float("inf"):
        raise ConfigError(f"data.host_memory_gib={config.data.host_memory_gib}: must be a number above 0, such as 8")
    if config.data.image_size % config.model.patch_size:
        lower = config.data.image_size // config.model.patch_size * config.model.patch_size
        raise ConfigError(
            f"data.image_size={config.data.image_size} is not a multiple of "
            f"model.patch_size={config.model.patch_size}; try data.image_size={lower or config.model.patch_size}"
        )
    if config.model.width % config.model.heads:
        raise ConfigError(
            f"model.width={config.model.width} is not a multiple of model.heads={config.model.heads}; "
            "each head takes an equal share of the width"
        )
    if not 0.0 <= config.data.flip <= 1.0:
        raise ConfigError(f"data.flip={config.data.flip}: a chance lies between 0 and 1")
    for path, (low, high), top in (
        ("data.crop_scale", config.data.crop_scale, 1.0),
        ("data.crop_ratio", config.data.crop_ratio, float("inf")),
    ):
        if not 0.0 < low <= high <= top:
            raise ConfigError(f"{path}=[{low},{high}]: needs 0 < low <= high" + (" <= 1" if top == 1.0 else ""))
    if config.data.batch_size % config.optim.accumulate:
        raise ConfigError(
            f"data.batch_size={config.data.batch_size} cannot be split into optim.accumulate={config.optim.accumulate} "
            "equal passes; make one a multiple of the other"
        )
    if config.optim.warmup_epochs > config.optim.epochs:
        raise ConfigError(
            f"optim.warmup_epochs={config.optim.warmup_epochs} is longer than optim.epochs={config.optim.epochs}"
        )
    if not config.task.heads:
        raise ConfigError("task.heads is empty: name at least one of verb, noun, action")
    if config.task.head_weights and len(config.task.head_weights) != len(config.task.heads):
        raise ConfigError(
            f"task.head_weights={list(config.task.head_weights)} are {len(config.task.head_weights)} weights for the "
            f"{len(config.task.heads)} heads {', '.join(config.task.heads)}; give one each, or none"
        )
