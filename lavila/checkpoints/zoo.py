"""The checkpoints that LaViLa's authors published, as data: their addresses, their inputs and their scores."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from lavila.checkpoints.download import Progress, download
from lavila.checkpoints.errors import CheckpointError
from lavila.files import user_path

BASE_URL = "https://dl.fbaipublicfiles.com/lavila/checkpoints/"


@dataclass(frozen=True, kw_only=True)
class PixelStatistics:
    """Mean and standard deviation of pixel values 0..255, red green blue, that normalise a model's input."""

    mean: tuple[float, float, float]
    std: tuple[float, float, float]


# The first mean is not CLIP's own (122.77); LaViLa trained with it.
CLIP_PICTURES = PixelStatistics(
    mean=(108.3272985, 116.7460125, 104.09373615), std=(68.5005327, 66.6321579, 70.32316305)
)
IMAGENET_PICTURES = PixelStatistics(mean=(123.675, 116.28, 103.53), std=(58.395, 57.12, 57.375))


@dataclass(frozen=True, kw_only=True)
class Score:
    """A published score of a checkpoint."""

    task: str  # name of the dataset and the task
    how: str  # zero-shot | fine-tuned | captions
    frames: int  # number of frames of a clip
    values: dict[str, float]  # metric -> per cent; captions: a fraction


@dataclass(frozen=True, kw_only=True)
class Protocol:
    """How the scores of a dataset were made, beside the number of frames; the values are those of a config."""

    metrics: dict[str, str]  # published name -> name of the same metric in our reports
    clips: int = 1  # temporal clips
    crops: str = "center"
    sampling: str = "segments"
    fusion: str = ""  # how views are fused; "" where the score does not depend on it
    similarity: str = ""  # by which clips are chosen; "" where none are


_MIR = Protocol(metrics={"avg mAP": "map", "avg nDCG": "ndcg"})
_EGTEA_METRICS = {"mean acc": "action_mean_class"}
PROTOCOLS = {  # (task, how) of a `Score`
    ("ek100_mir", "zero-shot"): _MIR,
    ("ek100_mir", "fine-tuned"): _MIR,
    # One view each. A softmax over the classes, which only the fine-tuned models' score has, changes mAP.
    ("charades_ego", "zero-shot"): Protocol(metrics={"mAP": "map"}, fusion="max_cosine"),
    ("charades_ego", "fine-tuned"): Protocol(metrics={"mAP": "map"}, fusion="mean_logits"),
    ("egomcq", "zero-shot"): Protocol(metrics={"intra acc": "intra_accuracy"}, similarity="dot"),
    ("ek100_cls", "fine-tuned"): Protocol(metrics={kind: f"{kind}_top1" for kind in ("verb", "noun", "action")}),
    ("egtea", "zero-shot"): Protocol(
        metrics=_EGTEA_METRICS, clips=10, crops="three", sampling="strided", fusion="max_similarity"
    ),
    ("egtea", "fine-tuned"): Protocol(
        metrics=_EGTEA_METRICS, clips=10, crops="center_repeated", sampling="strided", fusion="mean_logits"
    ),
}


@dataclass(frozen=True, kw_only=True)
class ZooModel:
    """A published checkpoint."""

    name: str  # the name that `load_model` takes
    path: str  # the path below BASE_URL
    md5: str  # the first digits of the file's checksum; "" if none is published
    model: str  # args.model of its training (see `published.PUBLISHED`), or the tower of a classifier
    frames: int  # number of frames that its temporal embedding holds
    image_size: int = 224  # side of the pictures, pixels
    pictures: PixelStatistics = CLIP_PICTURES
    num_classes: tuple[int, ...] = ()  # number of classes of each head of a classifier
    start: str = ""  # name of the checkpoint from which it was fine-tuned
    note: str = ""  # its use, for a checkpoint without scores
    scores: tuple[Score, ...] = ()

    @property
    def url(self) -> str:
        return BASE_URL + self.path

    @property
    def file(self) -> Path:
        """The place of its file on this machine."""
        return home() / "checkpoints" / self.path.rpartition("/")[2]


TSF_B, TSF_L = "CLIP_OPENAI_TIMESFORMER_BASE", "CLIP_OPENAI_TIMESFORMER_LARGE"
TSF_L_336_BERT = "CLIP_OPENAI_TIMESFORMER_LARGE_336PX_DISTILBERT_BASE"
EGOVLP = "CLIP_HF_EGOVLP_DISTILBERT_BASE"
EK100_CLASSES = (97, 300, 3806)  # verbs, nouns, actions


def _zero_shot(*, mir4: tuple[float, float], mir16: tuple[float, float], egtea: float, mcq: float) -> tuple[Score, ...]:
    """`mir4`, `mir16`: average mAP and nDCG on EK-100 MIR."""
    (map4, ndcg4), (map16, ndcg16) = mir4, mir16
    return (
        Score(task="ek100_mir", how="zero-shot", frames=4, values={"avg mAP": map4, "avg nDCG": ndcg4}),
        Score(task="ek100_mir", how="zero-shot", frames=16, values={"avg mAP": map16, "avg nDCG": ndcg16}),
        Score(task="egtea", how="zero-shot", frames=16, values={"mean acc": egtea}),
        Score(task="egomcq", how="zero-shot", frames=4, values={"intra acc": mcq}),
    )


def _charades(score: float) -> tuple[Score, ...]:
    return (Score(task="charades_ego", how="zero-shot", frames=16, values={"mAP": score}),)


def _tuned(task: str, **values: float) -> tuple[Score, ...]:
    values = {name.replace("_", " "): value for name, value in values.items()}
    return (Score(task=task, how="fine-tuned", frames=16, values=values),)


def _captions(meteor: float, rouge: float, cider: float) -> tuple[Score, ...]:
    values = {"METEOR": meteor, "ROUGE-L": rouge, "CIDEr": cider}
    return (Score(task="ego4d narration", how="captions", frames=4, values=values),)


_MODELS = (
    ZooModel(
        name="baseline_tsf_b",
        path="dual_encoders/ego4d/clip_openai_timesformer_base.baseline.ep_0003.pth",
        md5="dbcc4d",
        model=TSF_B,
        frames=4,
        note="visual encoder of the TSF-B narrator",
    ),
    ZooModel(
        name="baseline_tsf_l_336",
        path="dual_encoders/ego4d/clip_openai_timesformer_large_336px_distilbert_base.baseline.ep_0003.pth",
        md5="5c69b8",
        model=TSF_L_336_BERT,
        frames=4,
        image_size=336,
        note="visual encoder of the TSF-L@336 narrator",
    ),
    ZooModel(
        name="narrator_tsf_b_gpt2",
        path="narrator/vclm_openai_timesformer_base_gpt2_base.pt_ego4d.jobid_319630.ep_0002.md5sum_68a71f.pth",
        md5="68a71f",
        model="VCLM_OPENAI_TIMESFORMER_BASE_GPT2",
        frames=4,
        scores=_captions(0.282, 0.517, 0.833),
    ),
    ZooModel(
        name="narrator_tsf_l_336_gpt2_xl",
        path="narrator/vclm_openai_timesformer_large_336px_gpt2_xl.pt_ego4d.jobid_246897.ep_0003.md5sum_443263.pth",
        md5="443263",
        model="VCLM_OPENAI_TIMESFORMER_LARGE_336PX_GPT2_XL",
        frames=4,
        image_size=336,
        scores=_captions(0.298, 0.539, 0.977),
    ),
    ZooModel(
        name="narrator_htm_tsf_l_gpt2_xl",
        path="narrator/htm_aa/vclm_openai_timesformer_large_gpt2_xl.pt_htm.jobid_341080.ep_0001.pth",
        md5="",
        model="VCLM_OPENAI_TIMESFORMER_LARGE_GPT2_XL",
        frames=4,
        note="narrator for third-person video",
    ),
    ZooModel(
        name="egovlp_ep1",
        path="dual_encoders/ego4d/egovlp_epo1_converted_f16.md5sum_7a3d3b.pth",
        md5="7a3d3b",
        model=EGOVLP,
        frames=16,
        pictures=IMAGENET_PICTURES,
        scores=_charades(25.2),
    ),
    ZooModel(
        name="egovlp_best",
        path="dual_encoders/ego4d/egovlp_converted_f16.md5sum_c33363.pth",
        md5="c33363",
        model=EGOVLP,
        frames=16,
        pictures=IMAGENET_PICTURES,
        scores=_zero_shot(mir4=(22.1, 22.1), mir16=(23.3, 27.9), egtea=17.6, mcq=57.2),
    ),
    ZooModel(
        name="lavila_tsf_b_ep1",
        path="dual_encoders/ego4d/clip_openai_timesformer_base.narrator_rephraser.ep_0001.md5sum_02dbb9.pth",
        md5="02dbb9",
        model=TSF_B,
        frames=4,
        note="start of charades_ego_tsf_b",
        scores=_charades(26.8),
    ),
    ZooModel(
        name="lavila_tsf_b_ep5",
        path="dual_encoders/ego4d/clip_openai_timesformer_base.narrator_rephraser.ep_0005.md5sum_d73a9c.pth",
        md5="d73a9c",
        model=TSF_B,
        frames=4,
        scores=_zero_shot(mir4=(29.7, 31.5), mir16=(30.9, 32.0), egtea=28.9, mcq=59.9),
    ),
    ZooModel(
        name="lavila_tsf_l_ep1",
        path="dual_encoders/ego4d/clip_openai_timesformer_large.narrator_rephraser.ep_0001.md5sum_9a25de.pth",
        md5="9a25de",
        model=TSF_L,
        frames=4,
        note="start of charades_ego_tsf_l",
        scores=_charades(28.9),
    ),
    ZooModel(
        name="lavila_tsf_l_ep3",
        path="dual_encoders/ego4d/clip_openai_timesformer_large.narrator_rephraser.ep_0003.md5sum_c89337.pth",
        md5="c89337",
        model=TSF_L,
        frames=4,
        scores=_zero_shot(mir4=(35.0, 34.2), mir16=(36.1, 34.6), egtea=34.1, mcq=63.1),
    ),
    ZooModel(
        name="ek100_mir_tsf_b",
        path="dual_encoders/ek100_mir/clip_openai_timesformer_base.ft_ek100_mir.ep_0085.md5sum_c67d95.pth",
        md5="c67d95",
        model=TSF_B,
        frames=16,
        start="lavila_tsf_b_ep5",
        scores=_tuned("ek100_mir", avg_mAP=50.5, avg_nDCG=65.0),
    ),
    ZooModel(
        name="ek100_mir_tsf_l",
        path="dual_encoders/ek100_mir/clip_openai_timesformer_large.ft_ek100_mir.ep_0095.md5sum_bd508b.pth",
        md5="bd508b",
        model=TSF_L,
        frames=16,
        start="lavila_tsf_l_ep3",
        scores=_tuned("ek100_mir", avg_mAP=50.9, avg_nDCG=66.5),
    ),
    ZooModel(
        name="charades_ego_tsf_b",
        path="dual_encoders/charades_ego/clip_openai_timesformer_base.ft_charades_ego.ep_0005.md5sum_39bf4b.pth",
        md5="39bf4b",
        model=TSF_B,
        frames=16,
        start="lavila_tsf_b_ep1",
        scores=_tuned("charades_ego", mAP=33.7),
    ),
    ZooModel(
        name="charades_ego_tsf_l",
        path="dual_encoders/charades_ego/clip_openai_timesformer_large.ft_charades_ego.ep_0003.md5sum_9448b2.pth",
        md5="9448b2",
        model=TSF_L,
        frames=16,
        start="lavila_tsf_l_ep1",
        scores=_tuned("charades_ego", mAP=36.1),
    ),
    ZooModel(
        name="ek100_cls_tsf_b_single",
        path="dual_encoders/ek100_cls/clip_openai_timesformer_base.ft_ek100_cls.single_head.ep_0100.md5sum_e8aa0c.pth",
        md5="e8aa0c",
        model=TSF_B,
        frames=16,
        num_classes=(3806,),
        start="lavila_tsf_b_ep5",
        scores=_tuned("ek100_cls", verb=67.7, noun=56.7, action=46.2),
    ),
    ZooModel(
        name="ek100_cls_tsf_b",
        path="dual_encoders/ek100_cls/clip_openai_timesformer_base.ft_ek100_cls.ep_0100.md5sum_4e3575.pth",
        md5="4e3575",
        model=TSF_B,
        frames=16,
        num_classes=EK100_CLASSES,
        start="lavila_tsf_b_ep5",
        scores=_tuned("ek100_cls", verb=69.0, noun=58.4, action=46.9),
    ),
    ZooModel(
        name="ek100_cls_tsf_l",
        path="dual_encoders/ek100_cls/clip_openai_timesformer_large.ft_ek100_cls.ep_0090.md5sum_4a2509.pth",
        md5="4a2509",
        model=TSF_L,
        frames=16,
        num_classes=EK100_CLASSES,
        start="lavila_tsf_l_ep3",
        scores=_tuned("ek100_cls", verb=72.0, noun=62.9, action=51.0),
    ),
    ZooModel(
        name="egtea_tsf_b",
        path="dual_encoders/egtea/clip_openai_timesformer_base.ft_egtea.ep_0090.md5sum_3b1faf.pth",
        md5="3b1faf",
        model=TSF_B,
        frames=16,
        num_classes=(106,),
        start="lavila_tsf_b_ep5",
        scores=_tuned("egtea", mean_acc=70.12),
    ),
    ZooModel(
        name="egtea_tsf_l",
        path="dual_encoders/egtea/clip_openai_timesformer_large.ft_egtea.ep_0095.md5sum_a5ba17.pth",
        md5="a5ba17",
        model=TSF_L,
        frames=16,
        num_classes=(106,),
        start="lavila_tsf_l_ep3",
        scores=_tuned("egtea", mean_acc=76.0),
    ),
)
ZOO = {model.name: model for model in _MODELS}


def home() -> Path:
    """The folder for downloads: $LAVILA_HOME, or ~/.cache/lavila."""
    return user_path(os.environ.get("LAVILA_HOME") or "~/.cache/lavila")


def fetch(model: ZooModel, *, on_progress: Progress | None = None) -> Path:
    """The model's file. It is downloaded unless it is there. CheckpointError as in `download`."""
    try:
        return download(model.url, model.file, md5=model.md5, on_progress=on_progress)
    except CheckpointError as error:
        raise CheckpointError(f"{model.name}: {error}") from None


def zoo_name(file: str | Path) -> str:
    """The zoo's name of a published file, from its file name; "" for any other file."""
    return next((model.name for model in _MODELS if model.file.name == Path(file).name), "")
