"""Models in files: our own form, and those that LaViLa and EgoVLP published.

Our form is safetensors with the architecture in its metadata, so one file is enough to load a model. Metadata keys:
`lavila.format` (version of this layout), `lavila.architecture` (JSON), and those that the writer adds. `published`
recognises published files. Nothing in a file is executed, so a checkpoint from a stranger cannot run code.
"""

from __future__ import annotations

import difflib
import itertools
import json
import logging
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn.functional import interpolate

from lavila.checkpoints.errors import CheckpointError
from lavila.checkpoints.published import constants_of, read_published
from lavila.checkpoints.wrappers import taken_off, unwrapped
from lavila.checkpoints.zoo import ZOO, fetch
from lavila.errors import listed, one_line
from lavila.files import user_path, whole_path
from lavila.pickles.tensors import is_pickled

__all__ = [
    "LATEST",
    "WEIGHTS",
    "Inflation",
    "TrainedOn",
    "build_model",
    "find_model",
    "inflate_temporal_embed",
    "load_model",
    "model_file",
    "read_extra",
    "resize_pos_embed",
    "save_model",
    "trained_on",
    "write_model",
]

log = logging.getLogger(__name__)

FORMAT_VERSION = "1"
WEIGHTS = "model.safetensors"
LATEST, OF_A_RUN = "latest", "checkpoints"  # the file that names the newest; the folder of a run that has it
RESERVED = "lavila."
READABLE = (
    f"a .safetensors file, a step folder with {WEIGHTS}, a run folder or its {OF_A_RUN} with the file '{LATEST}', a "
    ".pth file of LaViLa or EgoVLP, or a name that `python -m lavila.checkpoints.zoo_command` lists"
)

Inflation = Literal["bilinear", "zeros", "interp"]


KINDS = {"classifier", "dual_encoder", "dual_encoder_distilbert", "narrator", "timesformer"}  # kinds of architectures
TEXT_TOWERS = {"dual_encoder": "clip", "dual_encoder_distilbert": "distilbert"}  # kind of architecture -> of tower


def _model_class(kind: str) -> type[Any]:
    """The class of a kind of architecture. It is imported here, since the imports of some classes take seconds."""
    match kind:
        case "timesformer":
            from lavila.models.timesformer import TimeSformer

            return TimeSformer
        case "classifier":
            from lavila.models.classifier import VideoClassifier

            return VideoClassifier
        case "dual_encoder":
            from lavila.models.dual_encoder import ClipDualEncoder

            return ClipDualEncoder
        case "dual_encoder_distilbert":
            from lavila.models.dual_encoder import DistilBertDualEncoder

            return DistilBertDualEncoder
        case "narrator":
            from lavila.models.narrator import Narrator

            return Narrator
    raise AssertionError(kind)


def build_model(architecture: Mapping[str, Any]) -> nn.Module:
    """A model with fresh weights from what `model.architecture()` returned. ValueError for an unknown kind or field."""
    kind = architecture.get("kind")
    if kind not in KINDS:
        raise ValueError(f"architecture kind {kind!r}: expected one of {sorted(KINDS)}")
    builder = _model_class(kind)
    model: nn.Module = builder.from_architecture(architecture)
    return model


def save_model(model: nn.Module, path: str | Path, *, extra: Mapping[str, str] | None = None) -> None:
    """Write weights and architecture to `path` (.safetensors), whole or not at all.

    model: has `architecture()`; unwrap DistributedDataParallel first. What torch.compile and activation checkpointing
    add to the names of tensors is taken off. extra: strings to store with the weights (see `read_extra`). ValueError
    for a model without `architecture()` and for reserved names in `extra`.
    """
    path = user_path(path)
    if path.suffix != ".safetensors":
        raise ValueError(f"{path}: a model file's name ends in .safetensors")
    tensors, metadata = model_file(model, extra=extra)
    write_model(path, tensors, metadata)


def model_file(model: nn.Module, *, extra: Mapping[str, str] | None = None) -> tuple[dict[str, Tensor], dict[str, str]]:
    """What `save_model` writes: tensors by their names, which are the model's own memory, and metadata."""
    describe = getattr(model, "architecture", None)
    if describe is None:
        raise ValueError(f"{type(model).__name__} has no architecture(); pass the model itself, without its wrapper")
    extra = dict(extra or {})
    if taken := sorted(name for name in extra if name.startswith(RESERVED)):
        raise ValueError(f"extra {taken}: names that begin with '{RESERVED}' are taken; choose others")
    metadata = {**extra, f"{RESERVED}format": FORMAT_VERSION, f"{RESERVED}architecture": json.dumps(describe())}
    tied = _tied(model)  # a tensor with several names is stored once
    state = {name: tensor for name, tensor in model.state_dict().items() if name not in tied}
    return {ours: state[name].detach() for name, ours in unwrapped(state).items()}, metadata


def write_model(path: Path, tensors: Mapping[str, Tensor], metadata: dict[str, str]) -> None:
    """Write a model file from what `model_file` gave, whole or not at all."""
    tensors = {name: tensor.cpu().contiguous() for name, tensor in tensors.items()}
    with whole_path(path) as temporary:
        temporary.touch()
        mode = temporary.stat().st_mode  # as the umask says; safetensors makes files that only their owner can read
        save_file(tensors, temporary, metadata=metadata)
        temporary.chmod(mode)


def load_model(
    path: str | Path,
    *,
    num_frames: int | None = None,
    image_size: int | None = None,
    device: str | torch.device = "cpu",
) -> nn.Module:
    """Read a model of ours or a published one: float32, in eval mode, on `device`.

    path: one of five things: a .safetensors file that `save_model` wrote; a `step-*` folder with model.safetensors; a
    run's `checkpoints` folder, whose file `latest` names the newest step folder; a .pth file of LaViLa or EgoVLP; a
    name of the zoo, whose file is downloaded once.
    num_frames: frames of the longest clip. For more than stored, the temporal embedding is resampled linearly. For
    fewer, its first ones are kept. The reference does both.
    image_size: side in pixels. The spatial embedding is resampled bicubically. The reference refuses this.
    CheckpointError if nothing is found or downloaded, if the file is damaged, or if its tensors do not fit.
    """
    file = find_model(path)
    architecture, state = _read(file)
    if not isinstance(architecture.get("tower", architecture), dict):
        raise CheckpointError(f"{file}: holds no architecture (its tower is not a table)")
    tower, prefix = (architecture["tower"], "visual.") if "tower" in architecture else (architecture, "")
    stored_frames, stored_size = tower.get("num_frames"), tower.get("image_size")
    tower["num_frames"] = stored_frames if num_frames is None else num_frames
    tower["image_size"] = stored_size if image_size is None else image_size
    try:
        with torch.device("meta"):  # allocates shapes only, since the weights come from the file
            model = build_model(architecture)
    except ValueError as error:
        raise CheckpointError(f"{file}: {error}") from error
    except (TypeError, KeyError, AttributeError) as error:  # its parts have other types than ours
        raise CheckpointError(f"{file}: holds no architecture of this package ({error})") from error
    for name, resized, resize in (
        (f"{prefix}temporal_embed", tower["num_frames"] != stored_frames, inflate_temporal_embed),
        (f"{prefix}pos_embed", tower["image_size"] != stored_size, resize_pos_embed),
    ):
        if resized and name in state:
            wanted = model.get_parameter(name).shape[1]
            log.info("%s: %s resampled from %d to %d positions", file, name, state[name].shape[1], wanted)
            state[name] = resize(state[name], wanted)
    _fill(model, state, file=file)
    return model.to(device).eval()


def read_extra(path: str | Path) -> dict[str, str]:
    """The `extra` that `save_model` stored, from anything that `load_model` can read.

    A published file gives `pictures`: JSON of mean and std of 0..255 RGB and of the frames of a clip.
    """
    file = find_model(path)
    if is_pickled(file):
        return {"pictures": json.dumps(read_published(file).pictures())}
    return {name: value for name, value in _read_metadata(file).items() if not name.startswith(RESERVED)}


@dataclass(frozen=True, kw_only=True)
class TrainedOn:
    """The training data of a model, as far as its file describes it."""

    file: Path
    mean: tuple[float, ...]  # R, G, B on 0..255; empty = not said
    std: tuple[float, ...]  # R, G, B on 0..255; empty = not said
    frames: int | None  # number of frames of a clip
    image_size: int | None  # side of a picture, pixels
    text: str  # kind of its text tower: clip or distilbert; "" = it has none
    task_facts: dict[str, Any]  # the facts for its task, with `classes` (`lavila.tasks.TaskFacts`)


def trained_on(path: str | Path) -> TrainedOn:
    """The training data of the model at `path`, which is anything that `load_model` reads. Reads no weights.

    CheckpointError as in `load_model`, and for facts of another form.
    """
    file = find_model(path)
    if is_pickled(file):
        published = read_published(file)
        architecture, pictures = published.architecture, published.pictures()
        metadata: dict[str, str] = {}
    else:
        metadata = _read_metadata(file)
        try:
            architecture, pictures = (
                json.loads(metadata.get(name, "{}")) for name in (f"{RESERVED}architecture", "pictures")
            )
        except (ValueError, RecursionError) as error:
            raise CheckpointError(f"{file}: its metadata is not JSON ({error}); write it with save_model") from error
    try:
        tower = architecture.get("tower", architecture)
        found = TrainedOn(
            file=file,
            mean=tuple(float(value) for value in pictures.get("mean", ())),
            std=tuple(float(value) for value in pictures.get("std", ())),
            frames=tower.get("num_frames"),
            image_size=tower.get("image_size"),
            text=TEXT_TOWERS.get(str(architecture.get("kind")), ""),
            task_facts=_task_facts(metadata),
        )
    except (TypeError, ValueError, AttributeError) as error:
        raise CheckpointError(f"{file}: describes its training data in another form than ours ({error})") from error
    sound = all(map(math.isfinite, found.mean)) and all(math.isfinite(value) and value > 0 for value in found.std)
    if not sound or {len(found.mean), len(found.std)} - {0, 3}:
        raise CheckpointError(
            f"{file}: says mean {list(found.mean)} and std {list(found.std)} of its pictures; each is three finite "
            "numbers, those of std above 0; write the file again with save_model"
        )
    return found


def _task_facts(metadata: Mapping[str, str]) -> dict[str, Any]:
    """The entries of a file that are JSON, except those that every model has. Other entries may be any strings."""
    found = {}
    for name, text in metadata.items():
        if name == "pictures" or name.startswith(RESERVED):
            continue
        try:
            found[name] = json.loads(text)
        except (ValueError, RecursionError):
            continue
    return found


def inflate_temporal_embed(embed: Tensor, frames: int, mode: Inflation = "bilinear") -> Tensor:
    """Temporal embedding [1,T,D] -> [1,frames,D].

    For fewer frames the first ones are kept, in any mode. For more, `bilinear` resamples linearly between frame
    centres, `interp` repeats the nearest, and `zeros` appends zeros. The names are LaViLa's. ValueError for another
    mode or shape.
    """
    if embed.ndim != 3 or embed.shape[0] != 1 or frames < 1:
        raise ValueError(f"temporal embedding {tuple(embed.shape)} to {frames} frames: expected [1, T, D] and >= 1")
    stored = embed.shape[1]
    if mode not in ("bilinear", "zeros", "interp"):
        raise ValueError(f"mode={mode!r}: expected one of ['bilinear', 'interp', 'zeros']")
    if frames <= stored:
        return embed[:, :frames].clone()
    if mode == "zeros":
        return torch.cat([embed, embed.new_zeros(1, frames - stored, embed.shape[2])], dim=1)
    how = "linear" if mode == "bilinear" else "nearest"
    return interpolate(embed.transpose(1, 2), size=frames, mode=how).transpose(1, 2).contiguous()


def resize_pos_embed(embed: Tensor, positions: int) -> Tensor:
    """Spatial embedding [1,1+N,D] -> [1,positions,D] by bicubic resampling of the square patch grid.

    The class token's embedding (the first) is kept. ValueError if either count is not one more than a square.
    """
    stored, wanted = (round((count - 1) ** 0.5) for count in (embed.shape[1], positions))
    if stored**2 != embed.shape[1] - 1 or wanted**2 != positions - 1:
        raise ValueError(f"position embedding of {embed.shape[1]} to {positions}: expected 1 + a square number of each")
    grid = torch.unflatten(embed[:, 1:], 1, (stored, stored)).permute(0, 3, 1, 2)
    grid = interpolate(grid, size=(wanted, wanted), mode="bicubic", align_corners=False)
    return torch.cat([embed[:, :1], grid.flatten(2).transpose(1, 2)], dim=1)


def find_model(path: str | Path) -> Path:
    """The file that a path or a name of the zoo means, downloaded if necessary. CheckpointError if there is none."""
    path = user_path(path)
    if path.is_file():
        if path.suffix == ".safetensors" or is_pickled(path):
            return path
        raise CheckpointError(f"{path}: not a model file; can be read: {READABLE}")
    if (path / WEIGHTS).is_file():
        return path / WEIGHTS
    path = path / OF_A_RUN if (path / OF_A_RUN / LATEST).is_file() else path
    if (path / LATEST).is_file():
        step = (path / LATEST).read_text(encoding="utf-8").strip()
        if step in {"", ".", ".."} or Path(step).name != step:
            raise CheckpointError(f"{path / LATEST} says {step!r}: expected the name of a step folder beside it")
        if (path / step / WEIGHTS).is_file():
            return path / step / WEIGHTS
        raise CheckpointError(
            f"{path / LATEST} names {step!r}, but there is no {path / step / WEIGHTS}; give another step folder"
        )
    if str(path) in ZOO:
        return fetch(ZOO[str(path)])
    near = difflib.get_close_matches(path.name.lower(), ZOO, n=3, cutoff=0.6)
    raise CheckpointError(
        f"no model at {str(path)!r}: looked for the file {path}, {path / WEIGHTS} and {path / LATEST}"
        + (f"; did you mean the published {' or '.join(near)}?" if near else "")
        + f"; can be read: {READABLE}"
    )


def _read(file: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """The architecture and the tensors, with all floats as float32."""
    if is_pickled(file):
        published = read_published(file)
        architecture, state = published.architecture, published.state()
    else:
        text = _read_metadata(file)[f"{RESERVED}architecture"]
        try:
            architecture, stored = json.loads(text), load_file(file)
        except (ValueError, RecursionError) as error:
            raise CheckpointError(f"{file}: its architecture is not JSON ({error})") from error
        if not isinstance(architecture, dict):
            raise CheckpointError(f"{file}: holds no architecture (it is not a table)")
        names = unwrapped(stored)
        if wrappers := taken_off(names):
            log.info("%s: names lose what wrappers added to them: %s", file, " ".join(wrappers))
        state = {ours: stored[name] for name, ours in names.items()}
    return architecture, {n: tensor.float() if tensor.is_floating_point() else tensor for n, tensor in state.items()}


def _read_metadata(file: Path) -> dict[str, str]:
    try:
        with safe_open(file, framework="pt") as opened:
            metadata = opened.metadata() or {}
    except SafetensorError as error:
        raise CheckpointError(f"{file}: not a whole safetensors file ({error}); copy or train it again") from error
    version = metadata.get(f"{RESERVED}format")
    if version != FORMAT_VERSION or f"{RESERVED}architecture" not in metadata:
        raise CheckpointError(
            f"{file}: model format {version!r}, expected {FORMAT_VERSION!r}; write it with this version's save_model"
        )
    return dict(metadata)


def _fill(model: nn.Module, state: dict[str, Tensor], *, file: Path) -> None:
    """Give a model on the meta device its weights. CheckpointError lists missing, extra and misshapen tensors."""
    wanted = model.state_dict()
    for name, twin in _tied(model).items():
        if name not in state and twin in state:
            state[name] = state[twin]
    constants = {name: value for name, value in constants_of(model).items() if name in state and name not in wanted}
    for name, value in constants.items():
        if state[name].shape == value.shape and torch.equal(state[name].to(value.dtype), value):
            del state[name]
    if dropped := [name for name in constants if name not in state]:
        log.info("%s: constant buffers dropped: %s", file, ", ".join(dropped))
    _check_fit(state, wanted, changed=[name for name in constants if name in state], file=file)
    try:
        model.load_state_dict(state, assign=True)
    except RuntimeError as error:
        raise CheckpointError(f"{file}: {one_line(error)}") from error
    assert not any(tensor.is_meta for tensor in itertools.chain(model.parameters(), model.buffers()))


def _tied(model: nn.Module) -> dict[str, str]:
    """The name of each parameter that shares the tensor of an earlier one -> the earlier name."""
    first: dict[int, str] = {}
    names = ((name, first.setdefault(id(p), name)) for name, p in model.named_parameters(remove_duplicate=False))
    return {name: twin for name, twin in names if name != twin}


def _check_fit(state: Mapping[str, Tensor], wanted: Mapping[str, Tensor], *, changed: list[str], file: Path) -> None:
    found = {
        "missing": [name for name in wanted if name not in state],
        "left over": [name for name in state if name not in wanted and name not in changed],
        "misshapen": [
            f"{name} {list(state[name].shape)} instead of {list(wanted[name].shape)}"
            for name in wanted
            if name in state and state[name].shape != wanted[name].shape
        ],
        "not the constants that they should be": changed,
    }
    if any(found.values()):
        problems = "; ".join(f"{what}: {listed(names)}" for what, names in found.items() if names)
        raise CheckpointError(f"{file}: tensors do not fit the architecture: {problems}; get or save the file again")
