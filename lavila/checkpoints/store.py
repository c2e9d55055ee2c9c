"""Models in files: our own form, and those that LaViLa and EgoVLP published.

Ours is safetensors whose metadata holds the architecture, so that a file alone is enough to load it. Metadata keys:
`lavila.format` (version of this layout), `lavila.architecture` (JSON), and whatever the writer adds. Published files
are recognised in `published`. Nothing in a file is executed: a checkpoint from a stranger cannot run code.
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
from typing import Any, Literal, Protocol

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn.functional import interpolate

from lavila.checkpoints.errors import CheckpointError
from lavila.checkpoints.published import constants_of, read_published
from lavila.checkpoints.zoo import ZOO, fetch
from lavila.files import whole_path
from lavila.pickles.tensors import SUFFIXES

__all__ = [
    "LATEST",
    "WEIGHTS",
    "Inflation",
    "TrainedOn",
    "build_model",
    "find_model",
    "inflate_temporal_embed",
    "load_model",
    "read_extra",
    "resize_pos_embed",
    "save_model",
    "trained_on",
]

log = logging.getLogger(__name__)

FORMAT_VERSION = "1"
WEIGHTS = "model.safetensors"
LATEST = "latest"
RESERVED = "lavila."
READABLE = (
    f"a .safetensors file, a step folder with {WEIGHTS}, a checkpoints folder with the file '{LATEST}', a .pth file of "
    "LaViLa or EgoVLP, or a name that `python -m lavila.checkpoints.zoo_command` lists"
)
NAMES_SHOWN = 8

Inflation = Literal["bilinear", "zeros", "interp"]


class Describable(Protocol):
    """A model that can say how to build it again."""

    def architecture(self) -> dict[str, Any]: ...


KINDS = {"classifier", "dual_encoder", "dual_encoder_distilbert", "narrator", "timesformer"}  # of architectures


TEXT_TOWERS = {"dual_encoder": "clip", "dual_encoder_distilbert": "distilbert"}  # kind of architecture -> of tower


def _model_class(kind: str) -> type[Any]:
    """The class for a kind of architecture, imported only now: what some of them import takes seconds."""
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

    model: has `architecture()`; unwrap DistributedDataParallel and torch.compile first. extra: strings to keep beside
    the weights (see `read_extra`). ValueError for a model that cannot describe itself and for names that are taken.
    """
    path = Path(path)
    if path.suffix != ".safetensors":
        raise ValueError(f"{path}: a model file's name ends in .safetensors")
    describe = getattr(model, "architecture", None)
    if describe is None:
        raise ValueError(f"{type(model).__name__} has no architecture(); pass the model itself, without its wrapper")
    extra = dict(extra or {})
    if taken := sorted(name for name in extra if name.startswith(RESERVED)):
        raise ValueError(f"extra {taken}: names that begin with '{RESERVED}' are taken; choose others")
    metadata = {
        **extra,
        f"{RESERVED}format": FORMAT_VERSION,
        f"{RESERVED}architecture": json.dumps(describe()),
    }
    tied = _tied(model)  # is stored once
    tensors = {n: tensor.detach().cpu().contiguous() for n, tensor in model.state_dict().items() if n not in tied}
    with whole_path(path) as temporary:
        temporary.touch()
        mode = temporary.stat().st_mode  # as the umask has it; safetensors makes files that only their owner can read
        save_file(tensors, temporary, metadata=metadata)
        temporary.chmod(mode)


def load_model(
    path: str | Path,
    *,
    num_frames: int | None = None,
    image_size: int | None = None,
    device: str | torch.device = "cpu",
) -> nn.Module:
    """Read a model of ours or a published one, float32, in eval mode, on `device`.

    path: a .safetensors file written by `save_model`, a `step-*` folder that holds model.safetensors, a run's
    `checkpoints` folder, whose file `latest` names the newest step folder, a .pth file of LaViLa or EgoVLP, or a name
    of the zoo, whose file is downloaded unless it has been before.
    num_frames: longest clip the model shall take. More than stored: the temporal embedding is resampled linearly;
    fewer: its first ones are kept (both as the reference does).
    image_size: side in pixels. The spatial embedding is resampled bicubically (the reference refuses this).
    CheckpointError where nothing is found or downloaded, the file is damaged, or names or shapes of tensors do not fit.
    """
    file = find_model(path)
    architecture, state = _read(file)
    if not isinstance(architecture.get("tower", architecture), dict):
        raise CheckpointError(f"{file}: names an architecture that is none (its tower is no table)")
    tower, prefix = (architecture["tower"], "visual.") if "tower" in architecture else (architecture, "")
    stored_frames, stored_size = tower.get("num_frames"), tower.get("image_size")
    tower["num_frames"] = stored_frames if num_frames is None else num_frames
    tower["image_size"] = stored_size if image_size is None else image_size
    try:
        with torch.device("meta"):  # shapes only: the weights come from the file
            model = build_model(architecture)
    except ValueError as error:
        raise CheckpointError(f"{file}: {error}") from error
    except (TypeError, KeyError, AttributeError) as error:  # parts of other types than ours
        raise CheckpointError(f"{file}: names an architecture that is none ({error})") from error
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
    """What `save_model` was given as `extra`, from anything `load_model` can read.

    Of a published file: `pictures`, the JSON of mean and std of 0..255 RGB and of the frames of a clip.
    """
    file = find_model(path)
    if file.suffix in SUFFIXES:
        return {"pictures": json.dumps(read_published(file).pictures())}
    return {name: value for name, value in _read_metadata(file).items() if not name.startswith(RESERVED)}


@dataclass(frozen=True, kw_only=True)
class TrainedOn:
    """What a model was trained on, as far as its file says."""

    file: Path
    mean: tuple[float, ...]  # R, G, B on 0..255; empty = not said
    std: tuple[float, ...]  # R, G, B on 0..255; empty = not said
    frames: int | None  # a clip has
    image_size: int | None  # side of a picture, pixels
    text: str  # kind of its text tower: clip or distilbert; "" = it has none
    task_facts: dict[str, Any]  # what it says for its task (`lavila.tasks.TaskFacts`)


def trained_on(path: str | Path) -> TrainedOn:
    """What the model at `path`, anything that `load_model` reads, was trained on. Reads no weights.

    CheckpointError as `load_model` raises it, and for a file that says something else than expected.
    """
    file = find_model(path)
    if file.suffix in SUFFIXES:
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
            raise CheckpointError(f"{file}: its metadata is no JSON ({error}); write it with save_model") from error
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
        raise CheckpointError(f"{file}: says what it was trained on in another form than ours ({error})") from error
    sound = all(map(math.isfinite, found.mean)) and all(math.isfinite(value) and value > 0 for value in found.std)
    if not sound or {len(found.mean), len(found.std)} - {0, 3}:
        raise CheckpointError(
            f"{file}: says mean {list(found.mean)} and std {list(found.std)} of its pictures; each is three finite "
            "numbers, those of std above 0; write the file again with save_model"
        )
    return found


def _task_facts(metadata: Mapping[str, str]) -> dict[str, Any]:
    """The entries of a file that are JSON, but for those that every model has. Others may keep other strings there."""
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

    Fewer frames: the first ones are kept, whatever the mode. More: `bilinear` resamples linearly between frame centres,
    `interp` repeats the nearest, `zeros` appends zeros. The names are LaViLa's. ValueError for another mode or shape.
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

    The class token's embedding (the first) is kept. ValueError where either count is not one more than a square.
    """
    stored, wanted = (round((count - 1) ** 0.5) for count in (embed.shape[1], positions))
    if stored**2 != embed.shape[1] - 1 or wanted**2 != positions - 1:
        raise ValueError(f"position embedding of {embed.shape[1]} to {positions}: expected 1 + a square number of each")
    grid = torch.unflatten(embed[:, 1:], 1, (stored, stored)).permute(0, 3, 1, 2)
    grid = interpolate(grid, size=(wanted, wanted), mode="bicubic", align_corners=False)
    return torch.cat([embed[:, :1], grid.flatten(2).transpose(1, 2)], dim=1)


def find_model(path: str | Path) -> Path:
    """The file that a user's path or zoo name means, downloaded if need be. CheckpointError where there is none."""
    path = Path(path)
    if path.is_file():
        if path.suffix == ".safetensors" or path.suffix in SUFFIXES:
            return path
        raise CheckpointError(f"{path}: not a model file; can be read: {READABLE}")
    if (path / WEIGHTS).is_file():
        return path / WEIGHTS
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
    """Architecture and tensors, floats as float32."""
    if file.suffix in SUFFIXES:
        published = read_published(file)
        architecture, state = published.architecture, published.state()
    else:
        text = _read_metadata(file)[f"{RESERVED}architecture"]
        try:
            architecture, state = json.loads(text), load_file(file)
        except (ValueError, RecursionError) as error:
            raise CheckpointError(f"{file}: names an architecture that is no JSON ({error})") from error
        if not isinstance(architecture, dict):
            raise CheckpointError(f"{file}: names an architecture that is none (it is no table)")
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
    """Give a model on the meta device its weights. CheckpointError lists what is missing, left over or misshapen."""
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
        raise CheckpointError(f"{file}: {' '.join(str(error).split())}") from error
    assert not any(tensor.is_meta for tensor in itertools.chain(model.parameters(), model.buffers()))


def _tied(model: nn.Module) -> dict[str, str]:
    """Names of parameters that are one tensor with an earlier one -> the name of that."""
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
        "of other values than the constants they should be": changed,
    }
    if any(found.values()):
        problems = "; ".join(f"{what}: {_shorten(names)}" for what, names in found.items() if names)
        raise CheckpointError(f"{file}: tensors do not fit the architecture: {problems}; get or save the file again")


def _shorten(names: list[str]) -> str:
    rest = len(names) - NAMES_SHOWN
    return ", ".join(names[:NAMES_SHOWN]) + (f" and {rest} more" if rest > 0 else "")
