"""YAML files and `key=value` arguments -> RunConfig. The only module that knows OmegaConf.

A config file is YAML that sets fields of `RunConfig`. `base: [data/ek100_cls, model/tsf_l]` at its top names files
that come first (depth first, a later one wins). Several configs can be named, too: what a later one sets replaces what
an earlier one sets, so that `toy` makes any recipe small. Nothing else composes. Layers join one after another, and
each is checked against the schema then, so that an error names the file or the argument it came from.

A value that begins with `~/` or `~name/` is a path in a home folder. No shell expands it in a file or a `key=value`.
"""

from __future__ import annotations

import copy
import dataclasses
import difflib
import logging
import typing
from collections.abc import Iterator, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import yaml
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from lavila.config.schema import ConfigError, RunConfig, check, types_of
from lavila.errors import one_line
from lavila.files import user_path

log = logging.getLogger(__name__)

# libyaml's, which PyYAML's wheels have, take a tenth of the time of those in Python.
_LOADER: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
_DUMPER: Any = getattr(yaml, "CSafeDumper", yaml.SafeDumper)

CONFIG_DIR = Path(__file__).resolve().parents[1] / "configs"


def load_config(name: str | Path | Sequence[str | Path], overrides: Sequence[str] = ()) -> RunConfig:
    """The config called `name` with `key=value` overrides applied, checked.

    Args:
        name: a file under `lavila/configs/` without its `.yaml`, such as `quickstart` or `data/sample`, or the path of
            a file. Or several of these, of which later ones win; the run is then called by all their names.
        overrides: arguments such as `data.batch_size=8`; values are YAML, so `data.crop_scale=[0.3,1]` is a pair.

    Raises:
        ConfigError: one line with the file or argument, the key, what was found and what is allowed.
    """
    names = [name] if isinstance(name, str | Path) else name
    paths = [_find(str(one), wanted_by=None) for one in names]
    merged = copy.deepcopy(_schema())
    layers = [layer for path in paths for layer in _file_layers(path, chain=())]
    given = [_override_layer(text) for text in overrides]
    for source, values in layers + given:
        _merge(merged, values, source)
    shown = " and ".join(map(_shown, paths)) + (f" with {' '.join(overrides)}" if overrides else "")
    try:
        config = OmegaConf.to_object(merged)
    except OmegaConfBaseException as error:
        raise ConfigError(f"{shown}: {str(error).splitlines()[0]}") from None
    assert isinstance(config, RunConfig)
    run_name = config.name or "-".join(path.stem for path in paths)
    config = dataclasses.replace(config, name=run_name, run_dir=config.run_dir or f"runs/{run_name}")
    config = _with_fitting_warmup(config, [*([values] for _, values in layers), [values for _, values in given]])
    try:
        check(config)
        for evaluation in config.evals:
            evaluation_config(config, evaluation)
    except ConfigError as error:
        raise ConfigError(f"{shown}: {error}") from None
    return config


def _with_fitting_warmup(config: RunConfig, layers: Sequence[Sequence[dict[str, Any]]]) -> RunConfig:
    """The config with a warm-up of at most the run's length, if a later layer than the warm-up's made the run short.

    layers: what each sets; all arguments are one layer. A warm-up that was set with the length stays, for `check`.
    """

    def last(key: str) -> int:
        return max(
            (place for place, sets in enumerate(layers) if any(key in one.get("optim", {}) for one in sets)), default=-1
        )

    epochs, warmup = config.optim.epochs, config.optim.warmup_epochs
    if warmup <= epochs or epochs < 1 or last("epochs") <= last("warmup_epochs"):
        return config
    log.warning("optim.epochs=%d: the warm-up of %g epochs is shortened to that", epochs, warmup)
    return dataclasses.replace(config, optim=dataclasses.replace(config.optim, warmup_epochs=float(epochs)))


def evaluation_config(config: RunConfig, name: str) -> RunConfig:
    """What `evals.<name>` evaluates with: the run's settings, but for those in its `data`, `views` and `task`.

    Raises:
        ConfigError: a key or a value of these that does not fit, named with the evaluation.
    """
    own = to_dict(config.evals[name])
    run = OmegaConf.merge(_schema(), to_dict(config) | {"evals": {}, "keep_best": ""})
    _merge(run, {section: own[section] for section in ("data", "views", "task")}, f"evals.{name}")
    merged = OmegaConf.to_object(run)
    assert isinstance(merged, RunConfig)
    try:
        check(merged)
    except ConfigError as error:
        raise ConfigError(f"evals.{name}: {error}") from None
    return merged


def to_dict(config: object) -> dict[str, Any]:
    """A config as plain dicts, lists, numbers and strings, ready for YAML or JSON."""
    assert dataclasses.is_dataclass(config) and not isinstance(config, type)
    return {field.name: _plain(getattr(config, field.name)) for field in dataclasses.fields(config)}


def flatten(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested dicts as one, with keys such as `data.batch_size`."""
    flat: dict[str, Any] = {}
    for key, value in values.items():
        flat |= flatten(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value}
    return flat


def to_yaml(config: RunConfig) -> str:
    """The whole resolved config as YAML; `load_config` reads it back to an equal one."""
    text = yaml.dump(to_dict(config), Dumper=_DUMPER, sort_keys=False, allow_unicode=True, default_flow_style=None)
    return str(text)


def known_names() -> list[str]:
    """Every name that `load_config` accepts."""
    return sorted(path.relative_to(CONFIG_DIR).with_suffix("").as_posix() for path in CONFIG_DIR.rglob("*.yaml"))


@cache
def _schema() -> Any:
    """The schema for OmegaConf, which takes long to make. Copy it before anything is merged into it."""
    return OmegaConf.structured(RunConfig)


def _plain(value: object) -> Any:
    if dataclasses.is_dataclass(value):
        return to_dict(value)
    if isinstance(value, dict):
        return {key: _plain(entry) for key, entry in value.items()}
    return list(value) if isinstance(value, tuple) else value


def _shown(path: Path) -> str:
    for root in (CONFIG_DIR.parent, Path.cwd()):
        if path.is_relative_to(root):
            return path.relative_to(root).as_posix()
    return str(path)


def _find(name: str, *, wanted_by: Path | None) -> Path:
    if name.endswith((".yaml", ".yml")):
        path = (Path() if wanted_by is None else wanted_by.parent) / user_path(name)
        if path.is_file():
            return path.resolve()
    elif (CONFIG_DIR / f"{name}.yaml").is_file():
        return CONFIG_DIR / f"{name}.yaml"
    elif user_path(name).is_file():
        raise ConfigError(f"--config {name}: a config is a .yaml file; give one that ends so")
    names = known_names()
    near = difflib.get_close_matches(name, names, n=1)
    where = f"{_shown(wanted_by)}: base: " if wanted_by else ""
    hint = f" Did you mean '{near[0]}'?" if near else ""
    raise ConfigError(f"{where}no config named '{name}'.{hint} Known: {', '.join(names)}; or the path of a .yaml file")


def _file_layers(path: Path, *, chain: tuple[Path, ...]) -> list[tuple[str, dict[str, Any]]]:
    """This file and the files it builds on, in the order in which they are merged."""
    if path in chain:
        raise ConfigError(f"base: goes in a circle: {' -> '.join(_shown(p) for p in (*chain, path))}")
    try:
        values = yaml.load(path.read_text(encoding="utf-8"), Loader=_LOADER)
    except yaml.YAMLError as error:
        raise ConfigError(f"{_shown(path)}: not YAML: {' '.join(str(error).split())}") from None
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{_shown(path)}: cannot be read: {error}") from None
    values = {} if values is None else values
    if not isinstance(values, dict):
        raise ConfigError(f"{_shown(path)}: holds a {type(values).__name__}; a config file maps keys to values")
    bases = values.pop("base", [])
    bases = [bases] if isinstance(bases, str) else bases
    if not isinstance(bases, list) or not all(isinstance(base, str) for base in bases):
        raise ConfigError(f"{_shown(path)}: base: {bases!r}: must be a name or a list of names")
    layers: list[tuple[str, dict[str, Any]]] = []
    for base in bases:
        layers += _file_layers(_find(base, wanted_by=path), chain=(*chain, path))
    return [*layers, (_shown(path), _at_home(values))]


def _override_layer(text: str) -> tuple[str, dict[str, Any]]:
    source = f"command line ({text})"
    key, equals, value = text.partition("=")
    if not equals or not key:
        raise ConfigError(f"{source}: an override has the form key=value, such as data.batch_size=8")
    try:
        parsed = yaml.load(value, Loader=_LOADER) if value else ""
    except yaml.YAMLError:
        parsed = value
    parts = key.split(".")
    if _hint_of(parts) is str and not isinstance(parsed, str | list | dict | None):
        parsed = value.strip()  # a name as it was written: 007, 2024-01-01 and yes are no numbers, dates and truths
    return source, _nested(parts, _at_home(parsed))


def _nested(keys: Sequence[str], value: Any) -> dict[str, Any]:
    """{a: {b: value}} of the keys a and b."""
    for key in reversed(keys):
        value = {key: value}
    found: dict[str, Any] = value
    return found


def _hint_of(keys: Sequence[str]) -> Any:
    """The type of a field; None where there is none."""
    hint: Any = RunConfig
    for place, key in enumerate(keys):
        if dataclasses.is_dataclass(hint) and isinstance(hint, type):
            hint = types_of(hint).get(key)
        elif (entry := _entries_of(hint)) is not None:
            hint = entry
        else:  # evals.NAME.data.KEY: the type of the run's own data.KEY
            return _hint_of(keys[2:]) if place == 3 and keys[0] == "evals" else None
    return hint


def _at_home(value: Any) -> Any:
    """A value of YAML, whose texts that begin with `~` and hold a slash are paths in a home folder."""
    if isinstance(value, dict):
        return {key: _at_home(entry) for key, entry in value.items()}
    if isinstance(value, list):
        return [_at_home(entry) for entry in value]
    return str(user_path(value)) if isinstance(value, str) and value.startswith("~") and "/" in value else value


def _merge(merged: Any, values: dict[str, Any], source: str) -> None:
    """Set what a layer sets. In place: a copy of the whole config for each layer was most of the time of a load."""
    _check_keys(values, RunConfig, source, prefix="")
    try:
        OmegaConf.unsafe_merge(merged, values)
    except (OmegaConfBaseException, TypeError) as error:  # TypeError: a section in the place of a list
        raise ConfigError(f"{source}: {_wrong_value(values, error)}") from None


def _wrong_value(values: dict[str, Any], error: Exception) -> str:
    """Which value of a layer OmegaConf refuses, and what the field is. Its own words name neither in each case."""
    for keys, hint, value in _leaves(values, RunConfig):
        try:
            OmegaConf.merge(_schema(), _nested(keys, value))
        except (OmegaConfBaseException, TypeError):
            if "${" not in str(value):
                return f"{'.'.join(keys)}: is {one_line(repr(value), most=80)}; must be {_kind(hint)}"
    key = getattr(error, "full_key", None)
    reason = str(getattr(error, "msg", None) or error).splitlines()[0]
    return f"{key + ': ' if key else ''}{reason}"


def _leaves(
    values: dict[str, Any], schema: type, keys: tuple[str, ...] = ()
) -> Iterator[tuple[tuple[str, ...], Any, Any]]:
    """(keys, type, value) of each field that a layer sets."""
    hints = types_of(schema)
    for key, value in values.items():
        hint, place = hints[key], (*keys, key)
        if dataclasses.is_dataclass(hint) and isinstance(hint, type):
            yield from _leaves(value, hint, place)
        elif (entry := _entries_of(hint)) is not None:
            for name, named in value.items():
                yield from _leaves(named, entry, (*place, name))
        else:
            yield place, hint, value


def _kind(hint: Any, *, many: bool = False) -> str:
    """What a field holds, in plain words."""
    kinds = typing.get_args(hint)
    if typing.get_origin(hint) is typing.Literal:
        return f"{'names among' if many else 'one of'} {', '.join(map(repr, kinds))}"
    if typing.get_origin(hint) is tuple and Ellipsis in kinds:
        return f"a list of {_kind(kinds[0], many=True)} in square brackets"
    if typing.get_origin(hint) is tuple:
        return f"a list of {len(kinds)} {_kind(kinds[0], many=True)}"
    one, several = {
        int: ("a whole number", "whole numbers"),
        float: ("a number", "numbers"),
        bool: ("true or false", "truths"),
        str: ("a text, which may be empty", "texts"),
    }.get(hint, ("a section of settings", "sections"))
    return several if many else one


def _check_keys(values: dict[str, Any], schema: type, source: str, *, prefix: str) -> None:
    """Name an unknown key, the nearest right one and all that are allowed; OmegaConf names only the nearest."""
    hints = types_of(schema)
    for key, value in values.items():
        if key not in hints:
            near = _elsewhere(str(key)) if not prefix else []
            near = near or difflib.get_close_matches(str(key), hints, n=1)
            hint = f" Did you mean {' or '.join(map(repr, near))}?" if near else ""
            raise ConfigError(f"{source}: {prefix}{key}: no such key.{hint} Allowed here: {', '.join(hints)}")
        section = hints[key]
        if dataclasses.is_dataclass(section):
            if not isinstance(value, dict):
                keys = ", ".join(types_of(section))
                raise ConfigError(f"{source}: {prefix}{key}: is {value!r}; it is a section with the keys {keys}")
            assert isinstance(section, type)
            _check_keys(value, section, source, prefix=f"{prefix}{key}.")
        elif (entry := _entries_of(section)) is not None:
            if not isinstance(value, dict) or not all(isinstance(named, dict) for named in value.values()):
                keys = ", ".join(types_of(entry))
                raise ConfigError(
                    f"{source}: {prefix}{key}: is {value!r}; it maps names to sections with the keys {keys}"
                )
            for name, named in value.items():
                _check_keys(named, entry, source, prefix=f"{prefix}{key}.{name}.")
        elif typing.get_origin(section) is tuple and Ellipsis not in (kinds := typing.get_args(section)):
            if not isinstance(value, list | tuple) or len(value) != len(kinds):
                raise ConfigError(f"{source}: {prefix}{key}: is {value!r}; it is a list of {len(kinds)} numbers")


def _elsewhere(key: str) -> list[str]:
    """The fields of sections that are called so: who types batch_size=8 means one of them."""
    sections = {name: hint for name, hint in types_of(RunConfig).items() if dataclasses.is_dataclass(hint)}
    return [f"{name}.{key}" for name, section in sections.items() if key in types_of(section)]


def _entries_of(hint: Any) -> type | None:
    """The section that each entry of a field is, where the field maps names to sections."""
    kinds = typing.get_args(hint) if typing.get_origin(hint) is dict else ()
    return kinds[1] if kinds and isinstance(kinds[1], type) and dataclasses.is_dataclass(kinds[1]) else None
