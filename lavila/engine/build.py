"""From a config to the objects of a run: shard sets, loaders, model, task. Configs end here; below are plain values."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import cast

import numpy as np
import torch
from torch import nn

from lavila.checkpoints.clip_weights import init_dual_encoder, init_tower, read_clip_weights
from lavila.checkpoints.store import TrainedOn, load_model, trained_on
from lavila.checkpoints.zoo import CLIP_PICTURES
from lavila.config.schema import (
    FRAMES,
    IMAGE_SIZE,
    ConfigError,
    DataConfig,
    RunConfig,
    TextKind,
    check,
)
from lavila.data.loader import ClipLoader, Pictures, clip_sizes
from lavila.data.sizes import ChosenSizes, shuffle_of
from lavila.engine.distributed import Process
from lavila.engine.precision import Arithmetic
from lavila.engine.tables import tables_of
from lavila.engine.task_options import task_options
from lavila.models.dual_encoder import ClipDualEncoder
from lavila.models.timesformer import TimeSformer, TimeSformerConfig
from lavila.plan.crops import CropChoice, ViewChoice
from lavila.plan.frames import FrameChoice
from lavila.plan.plans import Ranks, Sizes, TrainingPlan, ViewPlan
from lavila.shards.captions import Captions
from lavila.shards.reader import Patience, ShardSet, open_shard_set
from lavila.tasks import (
    ModelParts,
    Task,
    TaskError,
    TaskFacts,
    TaskKind,
    registry,
)

log = logging.getLogger(__name__)

ArithmeticOf = Callable[[RunConfig, torch.device], Arithmetic]

RANDOM = "random"  # in `model.init`: no weights to start from
CLIP = "clip:"  # before the name or the file of OpenAI's CLIP in `model.init`
OTHER_SPLIT = {"train": "so scores would be of clips that models learn from", "val": "so clips would be learned from "
               "that models are evaluated on"}  # fmt: skip
SAME_LEVEL = 0.05  # on 0..255: statistics closer than this are the same, written with fewer digits


def shard_set(config: RunConfig, which: str) -> ShardSet:
    """The training or validation shard set. ConfigError where the config names none, and for another dataset's."""
    path = getattr(config.data, which)
    if not path:
        raise ConfigError(f"data.{which} is empty: give the folder of a shard set made by tools/shard_videos.py")
    patience = Patience(read_seconds=config.data.read_seconds, missing_clips=config.data.max_bad_clips)
    shards = open_shard_set(Path(path), quarantine=config.data.quarantine, patience=patience)
    found, wanted = shards.manifest.get("dataset"), config.data.dataset
    if wanted and found != wanted:
        raise ConfigError(
            f"data.{which}={path}: is a shard set of {found}, and this config is for {wanted} (data.dataset); give a "
            f"set made with --dataset {wanted}, or data.dataset={found} where this one is meant"
        )
    split = shards.manifest.get("split")
    if split in OTHER_SPLIT and split != which:
        log.warning("data.%s=%s: was made with --split %s, %s", which, path, split, OTHER_SPLIT[split])
    return shards


def task_kind(config: RunConfig) -> TaskKind:
    """What `task.name` names. ConfigError for an unknown one."""
    try:
        return registry.task_kind(config.task.name)
    except TaskError as error:
        raise ConfigError(str(error)) from None


def task_facts(config: RunConfig, shards: ShardSet) -> TaskFacts:
    """What a checkpoint of the task will say of a shard set. TaskError where the set does not fit the task."""
    return task_kind(config).facts(task_options(config), tables_of(shards))


def check_words(config: RunConfig, shards: ShardSet, captions: Captions) -> None:
    """Raise ConfigError where a task is trained on words and not one clip of the set has any."""
    if task_kind(config).needs_words(tables_of(shards)) and not captions.worded_rows().any():
        raise ConfigError(
            f"data.captions={list(config.data.captions)}: not one clip of {shards.path} has a narration, and "
            f"task.name={config.task.name} is trained on them; name captions tables (tools/make_captions.py), or make "
            "the set from annotations with narrations"
        )


def start_weights(config: RunConfig) -> TrainedOn | None:
    """What the weights that `model.init` names were trained on; None where a run starts from CLIP or at random.

    ConfigError where `model.init` is empty: nothing shall be trained from random weights that nobody asked for.
    """
    init = config.model.init
    if config.checkpoint:
        log.warning("checkpoint=%s: evaluate.py reads it; training starts from model.init=%s", config.checkpoint, init)
    if not init:
        raise ConfigError(
            "model.init is empty: name the weights to start from (a folder, a file, a name of the zoo, or "
            f"{CLIP}ViT-B-16 for OpenAI's CLIP), or model.init={RANDOM} for none"
        )
    if init == RANDOM:
        log.info("model.init=%s: all weights start at random, none are read", RANDOM)
    return None if init == RANDOM or init.startswith(CLIP) else trained_on(init)


def with_weights(config: RunConfig, trained: TrainedOn | None) -> RunConfig:
    """The config with what weights decide where it does not: statistics, frames, size of pictures; kind of text tower.

    trained: of the weights that are evaluated or started from; None = random ones, or CLIP's. ConfigError where the
    config contradicts the weights, naming both.
    """
    config = with_statistics(config, trained)
    frames, size = (trained.frames, trained.image_size) if trained else (None, None)
    data = replace(
        config.data,
        frames=config.data.frames or frames or FRAMES,
        image_size=config.data.image_size or size or IMAGE_SIZE,
    )
    config = replace(config, data=data)
    check(config)  # the size of a picture, which was not known before
    kind = config.model.text.kind
    if trained is None or not trained.text or kind == trained.text:
        return config
    if kind != "auto":
        raise ConfigError(
            f"model.text.kind={kind}, but {trained.file} has a text tower of kind {trained.text}; leave "
            "model.text.kind out (or auto) to take that one, or name other weights"
        )
    text = replace(config.model.text, kind=cast(TextKind, trained.text))
    return replace(config, model=replace(config.model, text=text))


def with_statistics(config: RunConfig, trained: TrainedOn | None) -> RunConfig:
    """The config with `data.mean` and `data.std`: as set, else those of the weights, else LaViLa's for CLIP models.

    trained: of the weights that are evaluated or started from; None = random ones. ConfigError where what is set
    differs from what the weights were trained with and `data.allow_other_statistics` does not allow it.
    """
    values: dict[str, tuple[float, ...]] = {}
    for name, published in (("mean", CLIP_PICTURES.mean), ("std", CLIP_PICTURES.std)):
        ours, theirs = getattr(config.data, name), getattr(trained, name, ())
        if not ours and not theirs and trained is not None:
            log.warning("%s does not say the %s of its pictures; LaViLa's is taken: %s", trained.file, name, published)
        values[name] = ours or theirs or published
        if trained is not None and _differ(ours, theirs) and not config.data.allow_other_statistics:
            raise ConfigError(
                f"data.{name}={list(ours)}, but {trained.file} was trained with {list(theirs)}; leave data.{name} out "
                f"(or data.{name}=[]) for the latter, or set data.allow_other_statistics=true to use the former"
            )
    return replace(config, data=replace(config.data, mean=values["mean"], std=values["std"]))


def departures(config: RunConfig, trained: TrainedOn) -> list[str]:
    """What an evaluation does otherwise than the model's training did: allowed, but never unnoticed."""
    data, notes = config.data, []
    for name, theirs in (("mean", trained.mean), ("std", trained.std)):
        if _differ(getattr(data, name), theirs):
            notes.append(f"data.{name}={list(getattr(data, name))}, but the model was trained with {list(theirs)}")
    for name, known, embedding in (
        ("frames", trained.frames, "temporal"),
        ("image_size", trained.image_size, "position"),
    ):
        if known is not None and getattr(data, name) != known:
            change = "cut short" if name == "frames" and data.frames < known else "resampled"
            notes.append(
                f"data.{name}={getattr(data, name)}, but the model has {known}: its {embedding} embedding is {change}"
            )
    return notes


def _differ(ours: Sequence[float], theirs: Sequence[float]) -> bool:
    pairs = zip(ours, theirs, strict=True) if ours and theirs else ()
    return any(abs(one - other) > SAME_LEVEL for one, other in pairs)


def training_loader(config: RunConfig, shards: ShardSet, process: Process) -> ClipLoader:
    """Random crops of every clip, in a new order each epoch; where a task trains on words, of every clip with some."""
    config = with_weights(config, None)  # for who builds a loader alone; a run has resolved it before
    captions = Captions(shards, config.data.captions)
    plan = TrainingPlan(
        _sizes_to_train_on(config, shards, captions),
        frames=_frame_choice(config.data),
        crop=CropChoice(
            size=config.data.image_size,
            scale=config.data.crop_scale,
            ratio=config.data.crop_ratio,
            flip=config.data.flip,
        ),
        batch_size=config.data.batch_size,
        seed=config.seed,
        ranks=Ranks(rank=process.rank, world=process.world, local_world=process.local_world),
        passes=config.optim.accumulate,
        shuffle=shuffle_of(shards, window=config.data.shuffle_window, read_ahead=config.data.read_ahead),
    )
    return _loader(config, shards, plan, process, captions, Arithmetic.of_training)


def _sizes_to_train_on(config: RunConfig, shards: ShardSet, captions: Captions) -> Sizes:
    """All usable clips; for a task that trains on words those that have some, so that batches are full."""
    sizes = clip_sizes(shards)
    if not task_kind(config).needs_words(tables_of(shards)):
        return sizes
    worded = np.flatnonzero(captions.worded_rows()[shards.usable_rows()])
    if len(worded) in (0, len(sizes)):  # where no clip has words, the run stops with an error that says so
        return sizes
    log.info("%s: %d of %d clips have narrations; the others are left out", shards.path, len(worded), len(sizes))
    return ChosenSizes(of=sizes, indices=worded)


def view_choice(config: RunConfig) -> ViewChoice:
    """The views of a clip in an evaluation."""
    return ViewChoice(size=config.data.image_size, clips=config.views.clips, crops=config.views.crops)


def view_loader(
    config: RunConfig, shards: ShardSet, process: Process, *, rows: Sequence[int] | None = None
) -> ClipLoader:
    """Every clip exactly once, with the views of `config.views`; those of a forward pass lie in one batch.

    rows: of clips.parquet, for these clips alone; none of them is in quarantine.
    """
    config = with_weights(config, None)
    sizes: Sizes = clip_sizes(shards)
    if rows is not None:
        sizes = ChosenSizes(of=sizes, indices=np.searchsorted(shards.usable_rows(), np.asarray(rows, np.int64)))
    views = view_choice(config)
    plan = ViewPlan(
        sizes,
        frames=_frame_choice(config.data),
        views=views,
        batch_size=config.views.batch_size,
        ranks=Ranks(rank=process.rank, world=process.world),
        portion=max(1, config.views.view_batch_size // views.computed),
    )
    captions = Captions(shards, config.data.val_captions)
    return _loader(config, shards, plan, process, captions, Arithmetic.of_evaluation)


def fresh_model(config: RunConfig, facts: TaskFacts, *, resumed: bool = False) -> nn.Module:
    """A fresh model of the task, started from what `model.init` names. The seed decides weights that start at random.

    resumed: a checkpoint's weights will take the place of all, so `model.init` is not read and need not exist.
    """
    config = with_weights(config, None)
    torch.manual_seed(config.seed)
    model = config.model
    tower = TimeSformer(
        TimeSformerConfig(
            image_size=config.data.image_size,
            patch_size=model.patch_size,
            width=model.width,
            depth=model.depth,
            heads=model.heads,
            num_frames=config.data.frames,
            mlp_ratio=model.mlp_ratio,
            activation=model.activation,
            pre_norm=model.pre_norm,
            gated_time_attention=model.gated_time_attention,
            zero_time_attention=model.zero_time_attention,
            drop_path=model.drop_path,
            gradient_checkpointing=model.gradient_checkpointing,
        )
    )
    start, clip = None, None
    if model.init.startswith(CLIP) and not resumed:
        clip = read_clip_weights(model.init.removeprefix(CLIP))
    elif model.init not in ("", RANDOM) and not resumed:
        start = load_model(model.init, num_frames=config.data.frames, image_size=config.data.image_size)
        tower.load_state_dict(_tower_of(start, tower, name=model.init).state_dict())
    whole = task_kind(config).model(ModelParts(tower=tower, start=start), facts, task_options(config))
    if clip is not None and isinstance(whole, ClipDualEncoder):
        init_dual_encoder(whole, clip)
    elif clip is not None:
        init_tower(tower, clip)
    return whole


def _tower_of(start: nn.Module, tower: TimeSformer, *, name: str) -> nn.Module:
    """The video tower of a model to start from. ConfigError unless it computes what `tower` does."""
    found: nn.Module = getattr(start, "visual", start)
    if not isinstance(found, TimeSformer):
        raise ConfigError(f"model.init={name}: holds no TimeSformer to start from")
    free = ("zero_time_attention", "drop_path", "gradient_checkpointing")  # these concern training, not the weights
    ours, theirs = (asdict(one.config) for one in (tower, found))
    wrong = [f"model.{field}={theirs[field]}" for field in ours if field not in free and ours[field] != theirs[field]]
    if wrong:
        raise ConfigError(f"model.init={name}: its tower is of another kind; it takes {', '.join(wrong)}")
    return found


def build_task(config: RunConfig, model: nn.Module, facts: TaskFacts, shards: ShardSet) -> Task:
    """The task that `task.name` names, around a model, for batches of a shard set."""
    return task_kind(config).task(model, facts, task_options(config), tables_of(shards))


def checkpoint_facts(config: RunConfig, facts: TaskFacts) -> dict[str, str]:
    """What a model file says beside weights and architecture: enough to feed it pictures and read its answers."""
    pictures = {"mean": config.data.mean, "std": config.data.std, "frames": config.data.frames}
    return {name: json.dumps(value) for name, value in {**facts, "pictures": pictures}.items()}


def _frame_choice(data: DataConfig) -> FrameChoice:
    return FrameChoice(frames=data.frames, sampling=data.sampling, stride=data.stride)


def _half_pictures(config: RunConfig, process: Process, arithmetic: ArithmeticOf) -> bool:
    """Whether pictures are float16. They are half the bytes on the way to a GPU, and bfloat16 rounds them more."""
    if config.data.picture_type != "auto":
        return config.data.picture_type == "float16"
    return process.device.type == "cuda" and arithmetic(config, process.device).precision != "fp32"


def _loader(
    config: RunConfig,
    shards: ShardSet,
    plan: TrainingPlan | ViewPlan,
    process: Process,
    captions: Captions,
    arithmetic: ArithmeticOf,
) -> ClipLoader:
    data = config.data
    mean, std = (cast(tuple[float, float, float], values) for values in (data.mean, data.std))
    half = _half_pictures(config, process, arithmetic)
    return ClipLoader(
        shards,
        plan,
        pictures=Pictures(mean=mean, std=std, antialias=data.antialias, half=half),
        decoder=data.decoder,
        device=process.device,
        threads=data.threads or max(1, len(os.sched_getaffinity(0)) // process.local_world),
        prefetch=data.prefetch,
        host_memory_gib=data.host_memory_gib,
        # While training, the trainer counts over all ranks, so that all of them stop together.
        max_bad_clips=None if isinstance(plan, TrainingPlan) else data.max_bad_clips,
        captions=captions,
        epochs=config.optim.epochs if isinstance(plan, TrainingPlan) else 0,
    )
