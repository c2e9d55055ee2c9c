"""Every config loads; every mistake is an error in one line that names where it is and what is allowed."""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, get_args, get_origin, get_type_hints

import pytest
import yaml

from lavila.config import load
from lavila.config.load import CONFIG_DIR, known_names, load_config, to_dict, to_yaml
from lavila.config.schema import ConfigError, Range, RunConfig, check, ranges


@pytest.mark.parametrize("name", known_names())
def test_every_config_loads_and_reads_back(name: str, tmp_path: Path) -> None:
    config = load_config(name)
    assert isinstance(config, RunConfig)
    copy = tmp_path / "copy.yaml"
    copy.write_text(to_yaml(config))
    assert load_config(copy) == config


@pytest.mark.parametrize("name", [n for n in known_names() if "/" not in n])
def test_a_recipe_opens_with_its_command(name: str) -> None:
    head = (CONFIG_DIR / f"{name}.yaml").read_text().partition("\nbase:")[0]
    assert f"--config {name}" in head and "cost" in head.lower() and "score" in head.lower()


def test_every_field_has_a_sentence() -> None:
    source = (Path(load.__file__).parent / "schema.py").read_text().splitlines()
    fields = [
        line for line in source if line.startswith("    ") and ": " in line and " = " in line and "raise" not in line
    ]
    declared = [line for line in fields if line.split(":")[0].strip().isidentifier()]
    assert len(declared) > 40
    for line in declared:
        assert "  # " in line or "field(default_factory" in line, line


def write(folder: Path, name: str, text: str) -> Path:
    path = folder / f"{name}.yaml"
    path.write_text(text)
    return path


def test_later_layers_win_depth_first(tmp_path: Path) -> None:
    write(tmp_path, "deep", "{seed: 1, data: {frames: 2, batch_size: 8}}")
    write(tmp_path, "left", "{base: deep.yaml, data: {frames: 3}}")
    write(tmp_path, "right", "{data: {image_size: 64}}")
    top = write(tmp_path, "top", "{base: [left.yaml, right.yaml], data: {stride: 5}}")
    config = load_config(top, ["data.batch_size=16", "data.crop_scale=[0.3,1]", "data.decoder=host"])
    assert (config.seed, config.data.frames, config.data.image_size, config.data.stride) == (1, 3, 64, 5)
    assert (config.data.batch_size, config.data.crop_scale, config.data.decoder) == (16, (0.3, 1.0), "host")
    assert (config.name, config.run_dir) == ("top", "runs/top")


def test_of_several_configs_the_later_one_wins(tmp_path: Path) -> None:
    first = write(tmp_path, "first", "{seed: 1, data: {frames: 2, batch_size: 8, folder: there}}")
    second = write(tmp_path, "second", "{data: {frames: 3}}")
    third = write(tmp_path, "third", "{data: {train: '${data.folder}/set', folder: here}}")
    config = load_config([first, second, third], ["data.batch_size=16"])
    assert (config.seed, config.data.frames, config.data.batch_size, config.data.train) == (1, 3, 16, "here/set")
    assert (config.name, config.run_dir) == ("first-second-third", "runs/first-second-third")
    with pytest.raises(ConfigError, match=r"first\.yaml and .*second\.yaml: data\.image_size=65"):
        load_config([first, write(tmp_path, "second", "{data: {image_size: 65}}")])
    with pytest.raises(ConfigError, match=r"data\.nowhere"):
        load_config(first, ["data.train=${data.nowhere}"])


def test_a_config_is_frozen_and_plain(tmp_path: Path) -> None:
    config = load_config("model/tiny")
    with pytest.raises(dataclasses.FrozenInstanceError):
        config.seed = 3  # type: ignore[misc]
    assert yaml.safe_load(to_yaml(config)) == to_dict(config)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["data.batch_sizee=8"], r"\(data\.batch_sizee=8\).*'batch_size'.*train, val, "),
        (["zzz=8"], r"\(zzz=8\).*name, run_dir, seed"),
        (["data.decoder=tpu"], r"\(data\.decoder=tpu\).*'tpu'.*'auto', 'nvdec', 'dali_cpu', 'host'"),
        (["data.batch_size=many"], r"\(data\.batch_size=many\).*'many'.*whole number"),
        (["batch_size=8"], r"\(batch_size=8\).*'data\.batch_size' or 'views\.batch_size'"),
        (["data.crop_scale=[a,b]"], r"data\.crop_scale: is \['a', 'b'\].*2 numbers$"),
        (["data.mean={a: 1}"], r"data\.mean: is \{'a': 1\}.*numbers"),
        (["data.mean=[1,2,x]"], r"data\.mean: is \[1, 2, 'x'\].*numbers"),
        (["task.heads=verb"], r"task\.heads: is 'verb'.*list of texts"),
        (["engine.stop_signals=[SIGFOO]"], r"engine\.stop_signals: .*SIGFOO.*'SIGTERM'"),
        (["model.pre_norm=maybe"], r"model\.pre_norm: is 'maybe'.*true or false"),
        (["data.val=null"], r"data\.val: is None.*text"),
        (["evals.x.data=3"], r"evals\.x\.data: is 3.*section"),
        (["evals.x.data.val=[1]"], r"evals\.x: data\.val: is \[1\].*text"),
        (["data=3"], r"\(data=3\).*train, val"),
        (["data.crop_scale=[1,2,3]"], r"data\.crop_scale.*\[1, 2, 3\].*2 numbers"),
        (["data.crop_scale=half"], r"data\.crop_scale.*'half'.*2 numbers"),
        (["--fast"], r"\(--fast\).*key=value"),
        (["data.batch_size=0"], r"configs/model/tiny\.yaml.*data\.batch_size=0.*1"),
        (["data.host_memory_gib=0"], r"data\.host_memory_gib=0\.0"),
        (["data.host_memory_gib=inf"], r"data\.host_memory_gib=inf"),
        (["keep_checkpoints=0"], r"keep_checkpoints=0"),
        (["data.image_size=65"], r"data\.image_size=65.*model\.patch_size=16.*data\.image_size=64"),
        (["model.heads=7"], r"model\.width=\d+.*model\.heads=7"),
        (["data.flip=2"], r"data\.flip=2\.0.*0.*1$"),
        (["data.crop_scale=[0.5,2]"], r"data\.crop_scale=\[0\.5,2\.0\].*2\.0.*0.*1$"),
        (["data.crop_ratio=[2,1]"], r"data\.crop_ratio=\[2\.0,1\.0\]"),
        (["optim.accumulate=3"], r"data\.batch_size=64.*optim\.accumulate=3"),
        (["optim.clip_grad_norm=1", "optim.clip_grad_value=2"], r"optim\.clip_grad_norm=1\.0.*_value=2\.0"),
        (["optim.epochs=2", "optim.warmup_epochs=3"], r"optim\.warmup_epochs=3\.0.*optim\.epochs=2"),
        (["optim.backbone_lr_multiplier=1"], r"optim\.backbone_lr_multiplier.*'lr_multiplier'"),
    ],
    ids=lambda value: value[0] if isinstance(value, list) else "",
)  # fmt: skip
def test_mistakes_on_the_command_line(overrides: list[str], message: str) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        load_config("model/tiny", overrides)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("text", ["007", "2024-01-01", "yes", "1_0", "0x1f", "1e3", "12:30:00"])
def test_a_name_is_taken_as_it_is_written(text: str) -> None:
    config = load_config("model/tiny", [f"run_dir={text}", f"evals.often.data.val={text}", f'data.val="{text}"'])
    assert (config.run_dir, config.evals["often"].data["val"], config.data.val) == (text, text, text)


def test_a_short_run_shortens_the_warmup_of_its_base(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    assert load_config("quickstart").optim.warmup_epochs == 1.5
    for overrides in (["optim.epochs=1"], ["seed=3", "optim.epochs=1"]):
        caplog.clear()
        assert load_config("quickstart", overrides).optim.warmup_epochs == 1.0
        assert "warm-up" in caplog.text  # it is not done in silence
    (tmp_path / "short.yaml").write_text("base: [quickstart]\noptim: {epochs: 1}\n")
    assert load_config(tmp_path / "short.yaml").optim.warmup_epochs == 1.0
    assert load_config(["quickstart", tmp_path / "short.yaml"]).optim.warmup_epochs == 1.0
    caplog.clear()
    assert load_config("quickstart", ["optim.epochs=2"]).optim.warmup_epochs == 1.5
    assert load_config("quickstart", ["optim.epochs=1", "optim.warmup_epochs=0.5"]).optim.warmup_epochs == 0.5
    assert not caplog.text
    for overrides in (["optim.epochs=1", "optim.warmup_epochs=2"], ["optim.warmup_epochs=2", "optim.epochs=1"]):
        with pytest.raises(ConfigError, match=r"optim\.warmup_epochs=2\.0.*optim\.epochs=1"):
            load_config("quickstart", overrides)


def numbers(section: Any, prefix: str = "") -> Iterator[tuple[str, Any, Any]]:
    """(key, type with its range, default) of every field that holds numbers."""
    for name, hint in get_type_hints(section, include_extras=True).items():
        if dataclasses.is_dataclass(hint):
            yield from numbers(hint, f"{prefix}{name}.")
        elif any(kind in (int, float) for kind in kinds(get_type_hints(section)[name])):
            yield f"{prefix}{name}", hint, next(f.default for f in dataclasses.fields(section) if f.name == name)


def kinds(hint: Any) -> list[Any]:
    return list(get_args(hint)) or [hint]


NUMBERS = {key: (hint, default) for key, hint, default in numbers(RunConfig)}
BAD = {
    "data.batch_size": [0, -4], "data.crop_scale": [[0, 1], [0.5, 1.1]], "data.crop_ratio": [[0, 1]],
    "data.mean": [[-1, 0, 0], [0, 0, 256]], "data.std": [[1, 1, 0], [-1, 1, 1]], "data.threads": [-3],
    "data.max_bad_clips": [-1], "data.flip": [-0.1, 1.5], "model.dropout": [2, 1], "model.mlp_ratio": [0],
    "optim.lr": [-1], "optim.betas": [[2, 3], [0.9, 1]], "optim.momentum": [1], "optim.eps": [0],
    "optim.lr_multiplier": [-1], "optim.clip_grad_norm": [-1], "task.head_weights": [[1, -1, 1]],
    "task.label_smoothing": [1], "seed": [-1, 2**63], "views.view_batch_size": [0], "keep_checkpoints": [0],
}  # fmt: skip


def test_every_number_has_a_range() -> None:
    assert len(NUMBERS) >= 40
    for key, (hint, default) in NUMBERS.items():
        for element in kinds(hint) if get_origin(hint) is tuple else [hint]:
            if element is not Ellipsis:
                assert get_origin(element) is Annotated and isinstance(element.__metadata__[0], Range), key
        values = default if isinstance(default, tuple) else [default]
        assert len(list(ranges(hint, default))) == len(values), key


TINY = load_config("model/tiny")


def with_value(section: Any, key: str, value: Any) -> Any:
    name, _, rest = key.partition(".")
    inner = with_value(getattr(section, name), rest, value) if rest else value
    return dataclasses.replace(section, **{name: tuple(inner) if isinstance(inner, list) else inner})


@pytest.mark.parametrize("key", NUMBERS)
def test_a_number_out_of_its_range_names_field_value_and_range(key: str) -> None:
    """Also below any lower bound, and where the field takes fractions NaN and infinity."""
    hint, default = NUMBERS[key]
    count = len(default) if isinstance(default, tuple) and default else {"task.head_weights": 3}.get(key, 3)
    plain = get_args(hint)[0] if get_origin(hint) is Annotated else get_args(get_args(hint)[0])[0]
    values: list[Any] = [*BAD.get(key, []), *([".nan", ".inf", "-.inf"] if plain is float else [])]
    values += [-1e9 if plain is float else -(10**9)]
    for place, value in enumerate(values):
        many = isinstance(default, tuple) and not isinstance(value, list)
        text = f"[{','.join([str(value)] * count)}]" if many else str(value)
        with pytest.raises(ConfigError, match=rf"{re.escape(key)}=.*\d$") as caught:
            if place == 0:
                load_config("model/tiny", [f"{key}={text}"])
            check(with_value(TINY, key, yaml.safe_load(text)))  # a tenth of a second less than from the command line
        assert "\n" not in str(caught.value), value


def test_what_is_read_by_users_of_ranges() -> None:
    assert [str(r) for r in (Range(least=0, below=1), Range(above=0))] == ["at least 0 and below 1", "above 0"]
    assert not Range().holds(math.nan) and not Range().holds(math.inf) and Range().holds(-1e300)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("data: {batch_sizee: 2}", r"bad\.yaml.*data\.batch_sizee.*'batch_size'"),
        ("data: {decoder: tpu}", r"bad\.yaml.*data\.decoder.*'tpu'"),
        ("data: [", r"bad\.yaml.*YAML"),
        ("- 1", r"bad\.yaml.*list"),
        ("base: {a: 1}", r"bad\.yaml.*base.*\{'a': 1\}"),
        ("base: model/tinny", r"bad\.yaml.*base.*'model/tinny'.*'model/tiny'"),
        ("base: bad.yaml", r"base.*bad\.yaml -> .*bad\.yaml"),
    ],
)
def test_mistakes_in_a_file(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        load_config(write(tmp_path, "bad", text))
    assert "\n" not in str(caught.value)


def test_a_file_that_is_no_yaml_is_named(tmp_path: Path) -> None:
    (tmp_path / "notes.md").write_text("seed: 1")
    with pytest.raises(ConfigError, match=r"notes\.md: a config is a \.yaml file"):
        load_config(tmp_path / "notes.md")


def test_epochs_that_cannot_be_shorten_no_warm_up(caplog: pytest.LogCaptureFixture) -> None:
    with pytest.raises(ConfigError, match=r"optim\.epochs=-1: must be at least 1"):
        load_config("ek100_cls_tsf_b", ["optim.epochs=-1"])
    assert not caplog.records


def test_an_unknown_name_gets_the_nearest_and_all() -> None:
    with pytest.raises(ConfigError, match=r"'quickstrat'.*'quickstart'.*model/tiny"):
        load_config("quickstrat")
    with pytest.raises(ConfigError, match=r"'/nowhere/x\.yaml'"):
        load_config("/nowhere/x.yaml")


def test_a_file_that_is_not_text_is_named(tmp_path: Path) -> None:
    path = tmp_path / "binary.yaml"
    path.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ConfigError, match=r"binary\.yaml"):
        load_config(path)
