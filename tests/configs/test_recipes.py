"""Each recipe resolves to the published numbers, starts from the published checkpoint and names the published score."""

from __future__ import annotations

import functools
import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch

from lavila.checkpoints.zoo import ZOO
from lavila.config.load import CONFIG_DIR, flatten, to_dict
from lavila.config.load import load_config as load
from lavila.engine import build
from lavila.engine.task_options import task_options
from lavila.models.narrator import CONSTANT_BUFFERS
from lavila.models.text_tower import DISTILBERT_CONSTANTS
from lavila.tasks.dual_encoders import LARGEST_SCALE
from tests.checkpoints.published_files import layouts
from tests.golden_files import golden_json

GOLDEN = golden_json("recipes")
PUBLISHED = {
    "pretrain_dual_tsf_b": "pretrain.dual_encoder_baseline.TSF-B",
    "pretrain_dual_tsf_l_336": "pretrain.dual_encoder_baseline.TSF-L@HR",
    "pretrain_lavila_tsf_b": "pretrain.lavila_dual_encoder.TSF-B",
    "narrator_tsf_b_gpt2": "pretrain.narrator.TSF-B+GPT2",
    "narrator_tsf_l_336_gpt2_xl": "pretrain.narrator.TSF-L@HR+GPT2-XL",
    "ek100_mir_tsf_b": "finetune.ek100_mir.TSF-B",
    "ek100_mir_tsf_l": "finetune.ek100_mir.TSF-L",
    "charades_ego_tsf_b": "finetune.charades_ego.TSF-B",
    "charades_ego_tsf_l": "finetune.charades_ego.TSF-L",
    "ek100_cls_tsf_b": "finetune.ek100_cls.TSF-B",
    "ek100_cls_tsf_l": "finetune.ek100_cls.TSF-L",
    "egtea_tsf_b": "finetune.egtea.TSF-B",
    "egtea_tsf_l": "finetune.egtea.TSF-L",
}
# Recipes of whose training no command was published, and the recipe whose numbers they have but for those given.
LIKE: dict[str, tuple[str, set[str]]] = {
    "pretrain_lavila_tsf_l": (
        "pretrain_lavila_tsf_b",
        {
            "name", "run_dir", "model.init", "model.patch_size", "model.width", "model.depth", "model.heads",
            "model.text.width", "model.text.heads", "model.gradient_checkpointing", "optim.shard_state",
        },
    ),
    "ek100_cls_tsf_b_single": ("ek100_cls_tsf_b", {"name", "run_dir", "task.heads"}),
}  # fmt: skip
# Values that are the same in all recipes: option of the reference -> our setting.
SAME_NAMES = {
    "lr": "optim.lr",
    "epochs": "optim.epochs",
    "warmup_epochs": "optim.warmup_epochs",
    "wd": "optim.weight_decay",
    "betas": "optim.betas",
    "eps": "optim.eps",
    "update_freq": "optim.accumulate",
    "seed": "seed",
    "drop_path_rate": "model.drop_path",
    "use_checkpoint": "model.gradient_checkpointing",
    "use_zero": "optim.shard_state",
    "dropout_ratio": "model.dropout",
    "label_smoothing": "task.label_smoothing",
    "lr_multiplier_on_backbone": "optim.lr_multiplier",
    "clip_length": "data.frames",
    "temperature_init": "task.temperature",
    "pseudo_temperature_init": "task.pseudo_temperature",
    "project_embed_dim": "model.embed_dim",
}
RECIPES = [*PUBLISHED, *LIKE]
NARRATORS = [name for name in PUBLISHED if name.startswith("narrator")]
BEGINNING = ("pretrain", "narrator")  # of recipes that start from other models than the zoo's fine-tuning ones

load_config = functools.cache(load)


def flat(name: str) -> dict[str, Any]:
    return flatten(to_dict(load_config(name)))


@pytest.mark.parametrize("name", PUBLISHED)
def test_numbers_are_the_published_ones(name: str) -> None:
    ours, published = flat(name), GOLDEN["recipes"][PUBLISHED[name]]
    options, fixed = published["resolved"], GOLDEN["fixed_values"]
    expected = {ours_: options[theirs] for theirs, ours_ in SAME_NAMES.items() if theirs in options}
    expected |= {
        "data.batch_size": published["global_batch"],
        "data.crop_scale": fixed["random_resized_crop_scale"],
        "optim.schedule": "constant" if options["fix_lr"] else "cosine",
        "optim.optimizer": "sgd" if options.get("use_sgd") else "adamw",
        "optim.clip_grad_norm": options["clip_grad_value"] or 0.0,
    }
    assert options.get("clip_grad_type", "norm") == "norm"  # which the published commands do not change
    if options.get("disable_amp"):
        expected |= {"optim.precision": "fp32"}
    if not options["fix_lr"]:
        expected |= {"optim.lr_start": options["lr_start"], "optim.lr_end": options["lr_end"]}
    if options.get("use_sgd"):
        expected |= {"optim.momentum": options["betas"][0], "optim.lr_multiplier_for": "all", "data.flip": 0.5}
    else:  # every parameter at the full rate
        expected |= {"optim.lr_multiplier": 1.0, "data.flip": 0.0}
    if name.startswith("egtea"):
        expected |= {"data.sampling": "strided", "data.stride": options["clip_stride"]}
    else:  # one frame from each of as many equal parts, whatever --clip-stride says
        expected |= {"data.sampling": "segments"}
    if "use_vn_classifier" in options:
        heads = {1: ["action"], 3: ["verb", "noun", "action"]}[len(options["num_classes"])]
        expected |= {"task.name": "classification", "task.heads": heads}
    assert {key: ours[key] for key in expected} == expected


@pytest.mark.parametrize("name", PUBLISHED)
def test_evaluations_while_training_are_as_often(name: str) -> None:
    ours, options = load_config(name), GOLDEN["recipes"][PUBLISHED[name]]["resolved"]
    every = options["eval_freq"] if options["eval_freq"] <= options["epochs"] else 0
    assert ours.evals["val"].every_epochs == every


def test_temperatures_and_margin_are_the_published_ones() -> None:
    for name in sorted(PUBLISHED.keys() - set(NARRATORS)):
        task = load_config(name).task
        options = GOLDEN["recipes"][PUBLISHED[name]]["resolved"]
        if "temperature_init" in options:
            assert task.learn_temperature != options["freeze_temperature"]
            assert not task.learn_pseudo_temperature  # frozen in LaViLa's, and not there in the baseline
    fixed = GOLDEN["fixed_values"]
    margin = task_options(load_config("ek100_mir_tsf_b")).margin
    assert fixed["retrieval_loss"]["ek100_mir"] == f"max-margin ranking, margin {margin.margin}, diagonal removed"
    assert not margin.keep_diagonal and not margin.scaled
    assert margin.relevancy_above == fixed["retrieval_relevancy_threshold"]
    assert pytest.approx(fixed["logit_scale_clamp"], abs=1e-4) == [0.0, LARGEST_SCALE]
    assert fixed["text_length"] == load_config("pretrain_dual_tsf_b").model.text.context


@pytest.mark.parametrize("name", LIKE)
def test_recipes_without_a_published_command_are_like_another(name: str) -> None:
    other, but = LIKE[name]
    ours, theirs = flat(name), flat(other)
    assert {key for key in ours if ours[key] != theirs[key]} == but


@pytest.mark.parametrize("name", [n for n in RECIPES if not n.startswith(BEGINNING)])
def test_fine_tuning_starts_from_the_checkpoint_that_the_zoo_names(name: str) -> None:
    config = load_config(name)
    assert config.model.init == GOLDEN["pretrain"][name] == ZOO[name].start
    assert config.model.init in ZOO
    if name in GOLDEN["num_classes"]:
        assert len(GOLDEN["num_classes"][name]) == len(config.task.heads)


@pytest.mark.parametrize(
    ("name", "clip", "size"),
    [
        ("pretrain_dual_tsf_b", "ViT-B-16", 224), ("pretrain_dual_tsf_l_336", "ViT-L-14-336", 336),
        ("pretrain_lavila_tsf_b", "ViT-B-16", 224), ("pretrain_lavila_tsf_l", "ViT-L-14", 224),
    ],
)  # fmt: skip
def test_pre_training_starts_from_the_clip_of_its_size(name: str, clip: str, size: int) -> None:
    config = build.with_weights(load_config(name), None)
    assert (config.model.init, config.data.image_size) == (f"clip:{clip}", size)
    assert list(config.data.mean) == pytest.approx(
        GOLDEN["fixed_values"]["normalisation"]["model name contains OPENAI"]["mean"]
    )


@pytest.mark.parametrize("name", NARRATORS)
def test_narrators_are_trained_and_write_as_published(name: str) -> None:
    config, recipes, fixed = load_config(name), GOLDEN["recipes"], GOLDEN["fixed_values"]
    trained, written = recipes[PUBLISHED[name]]["resolved"], recipes["evaluate.narrator"]["resolved"]
    decoder, ours = config.model.decoder, task_options(config).narration
    assert config.model.init == {"b": "baseline_tsf_b", "l": "baseline_tsf_l_336"}[name.split("_")[2]]
    frozen = {"video": trained["freeze_visual_vclm"], "language_model": trained["freeze_lm_vclm"]}
    assert set(config.model.freeze) == {part for part, is_frozen in frozen.items() if is_frozen}
    assert trained["freeze_visual_vclm"] == trained["freeze_visual_vclm_temporal"]
    assert decoder.gated == trained["gated_xattn"] and decoder.context == fixed["text_length"]
    assert decoder.cross_attention_every == fixed["narrator_gpt2_cross_attention_every"][trained["model"]]
    assert decoder.queries == fixed["narrator_pooler"]["num_img_queries"]
    assert decoder.heads == fixed["narrator_pooler"]["heads"][decoder.init]
    assert ours.average == "positions" and ours.writes is not None
    assert (ours.writes.top_p, ours.writes.top_k, ours.writes.temperature, ours.writes.max_length) == (
        written["caption_top_p"], written["caption_top_k"], written["caption_temperature"], written["caption_max_len"],
    )  # fmt: skip
    assert ours.writes.num_return_sequences == written["caption_num_return_sequences"]
    assert (config.views.clips, config.views.crops) == (written["num_clips"], "center")


@pytest.mark.parametrize("name", RECIPES)
def test_the_header_names_the_published_score(name: str) -> None:
    head = (CONFIG_DIR / f"{name}.yaml").read_text().partition("\nbase:")[0]
    scores = next((table[name] for table in GOLDEN["fine_tuned"].values() if name in table), {})
    if name.startswith("pretrain_lavila"):
        row = GOLDEN["zero_shot"][name.removeprefix("pretrain_")]
        scores = {key: str(value).rpartition("/")[2] for key, value in row.items()}
    if name in NARRATORS:
        scores = GOLDEN["narrators"][name]
    numbers = set(re.findall(r"\d+\.\d+", head))
    assert {str(score) for score in scores.values()} <= numbers
    assert scores or "none published" in head


def test_egtea_is_evaluated_as_published() -> None:
    views, published = load_config("egtea_tsf_b").views, GOLDEN["evaluate.finetuned.egtea"]
    assert (views.clips, views.crops) == (published["num_clips"], "center_repeated")
    assert published["num_crops"] == 3
    assert load_config("egtea_tsf_b").evals["val"].views == {"clips": 1, "crops": "center"}


LAYOUTS = {
    "pretrain_dual_tsf_b": "CLIP_OPENAI_TIMESFORMER_BASE.f4",
    "pretrain_dual_tsf_l_336": "CLIP_OPENAI_TIMESFORMER_LARGE_336PX_DISTILBERT_BASE.f4",
    "pretrain_lavila_tsf_l": "CLIP_OPENAI_TIMESFORMER_LARGE.f4",
    "ek100_mir_tsf_b": "CLIP_OPENAI_TIMESFORMER_BASE.f16",
    "charades_ego_tsf_l": "CLIP_OPENAI_TIMESFORMER_LARGE.f16",
    "ek100_cls_tsf_b_single": "VideoClassifier.TSF-B.3806.f16",
    "ek100_cls_tsf_l": "VideoClassifierMultiHead.TSF-L.97_300_3806.f16",
    "egtea_tsf_b": "VideoClassifier.TSF-B.106.f16",
    "narrator_tsf_b_gpt2": "VCLM_OPENAI_TIMESFORMER_BASE_GPT2.f4.gated",
    "narrator_tsf_l_336_gpt2_xl": "VCLM_OPENAI_TIMESFORMER_LARGE_336PX_GPT2_XL.f4.gated",
}


@pytest.fixture(scope="module")
def vocabularies(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with vocabularies of the published lengths."""
    folder = tmp_path_factory.mktemp("vocabularies")
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *map(str, range(30517))]
    (folder / "vocab.txt").write_text("\n".join(words))
    pieces = [*map(str, range(50256)), "<|endoftext|>"]
    (folder / "vocab.json").write_text(json.dumps({piece: i for i, piece in enumerate(pieces)}))
    (folder / "merges.txt").write_text("#version: 0.2\n")
    return folder


@pytest.mark.parametrize("name", LAYOUTS)
def test_the_model_has_the_names_and_shapes_of_the_published_one(name: str, vocabularies: Path) -> None:
    chosen = (f"vocabulary={vocabularies}", "init=random")
    words = [f"model.{part}.{key}" for part in ("text", "decoder") for key in chosen]
    config = load(name, ["model.init=random", *words])
    classes = dict(zip(config.task.heads, GOLDEN["num_classes"].get(name, []), strict=False))
    facts = {"classes": {head: [str(k) for k in range(count)] for head, count in classes.items()}}
    with torch.device("meta"):
        model = build.fresh_model(config, facts)
    constants = {f"textual.{key}" for key in DISTILBERT_CONSTANTS}
    published = {
        key: list(shape)
        for key, shape in layouts()[LAYOUTS[name]]["tensors"].items()
        if key not in constants and not CONSTANT_BUFFERS.search(key)
    }
    assert {key: list(tensor.shape) for key, tensor in model.state_dict().items()} == published
