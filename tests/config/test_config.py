# ruff: noqa: E501 - messages are quoted whole
"""Every config loads; every mistake is told in one line that names where it is and what is allowed."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import yaml

from lavila.config import load
from lavila.config.load import CONFIG_DIR, known_names, load_config, to_dict, to_yaml
from lavila.config.schema import ConfigError, Decoder, RunConfig


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
    assert (config.data.batch_size, config.data.crop_scale, config.data.decoder) == (16, (0.3, 1.0), Decoder.host)
    assert (config.name, config.run_dir) == ("top", "runs/top")


def test_a_config_is_frozen_and_plain(tmp_path: Path) -> None:
    config = load_config("model/tiny")
    with pytest.raises(dataclasses.FrozenInstanceError):
        config.seed = 3  # type: ignore[misc]
    assert yaml.safe_load(to_yaml(config)) == to_dict(config)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["data.batch_sizee=8"], r"command line \(data\.batch_sizee=8\): data\.batch_sizee: no such key\. Did you mean 'batch_size'\? Allowed here: train, val, "),
        (["zzz=8"], r"command line \(zzz=8\): zzz: no such key\. Allowed here: name, run_dir, seed"),
        (["data.decoder=tpu"], r"command line \(data\.decoder=tpu\): data\.decoder: Invalid value 'tpu', expected one of \[auto, nvdec, dali_cpu, host\]"),
        (["data.batch_size=many"], r"command line \(data\.batch_size=many\): data\.batch_size: Value 'many' of type 'str' could not be converted to Integer"),
        (["data=3"], r"command line \(data=3\): data: is 3; it is a section with the keys train, val"),
        (["data.crop_scale=[1,2,3]"], r"data\.crop_scale: is \[1, 2, 3\]; it is a list of 2 numbers"),
        (["data.crop_scale=half"], r"data\.crop_scale: is 'half'; it is a list of 2 numbers"),
        (["--fast"], r"command line \(--fast\): an override has the form key=value, such as data\.batch_size=8"),
        (["data.batch_size=0"], r"configs/model/tiny\.yaml with data\.batch_size=0: data\.batch_size=0: must be at least 1"),
        (["data.host_memory_gib=0"], r"data\.host_memory_gib=0\.0: must be a number above 0"),
        (["data.host_memory_gib=inf"], r"data\.host_memory_gib=inf: must be a number above 0"),
        (["keep_checkpoints=0"], r"keep_checkpoints=0: must be at least 1"),
        (["data.image_size=65"], r"data\.image_size=65 is not a multiple of model\.patch_size=16; try data\.image_size=64"),
        (["model.heads=7"], r"model\.width=\d+ is not a multiple of model\.heads=7"),
        (["data.flip=2"], r"data\.flip=2\.0: a chance lies between 0 and 1"),
        (["data.crop_scale=[0.5,2]"], r"data\.crop_scale=\[0\.5,2\.0\]: needs 0 < low <= high <= 1"),
        (["data.crop_ratio=[2,1]"], r"data\.crop_ratio=\[2\.0,1\.0\]: needs 0 < low <= high$"),
        (["optim.accumulate=3"], r"data\.batch_size=64 cannot be split into optim\.accumulate=3 equal passes"),
        (["optim.epochs=2", "optim.warmup_epochs=3"], r"optim\.warmup_epochs=3\.0 is longer than optim\.epochs=2"),
        (["task.head_weights=[1,2]"], r"task\.head_weights=\[1\.0, 2\.0\] are 2 weights for the 3 heads verb, noun, action"),
        (["task.heads=[]"], r"task\.heads is empty: name at least one of verb, noun, action"),
    ],
    ids=lambda value: value[0] if isinstance(value, list) else "",
)  # fmt: skip
def test_mistakes_on_the_command_line(overrides: list[str], message: str) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        load_config("model/tiny", overrides)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("data: {batch_sizee: 2}", r"bad\.yaml: data\.batch_sizee: no such key\. Did you mean 'batch_size'\?"),
        ("data: {decoder: tpu}", r"bad\.yaml: data\.decoder: Invalid value 'tpu'"),
        ("data: [", r"bad\.yaml: not YAML: "),
        ("- 1", r"bad\.yaml: holds a list; a config file maps keys to values"),
        ("base: {a: 1}", r"bad\.yaml: base: \{'a': 1\}: must be a name or a list of names"),
        ("base: model/tinny", r"bad\.yaml: base: no config named 'model/tinny'\. Did you mean 'model/tiny'\? Known: "),
        ("base: bad.yaml", r"base: goes in a circle: .*bad\.yaml -> .*bad\.yaml"),
    ],
)
def test_mistakes_in_a_file(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        load_config(write(tmp_path, "bad", text))
    assert "\n" not in str(caught.value)


def test_an_unknown_name_gets_the_nearest_and_all() -> None:
    with pytest.raises(
        ConfigError, match=r"no config named 'quickstrat'\. Did you mean 'quickstart'\? Known: .*model/tiny"
    ):
        load_config("quickstrat")
    with pytest.raises(ConfigError, match=r"no config named '/nowhere/x\.yaml'"):
        load_config("/nowhere/x.yaml")


def test_a_file_that_is_not_text_is_named(tmp_path: Path) -> None:
    path = tmp_path / "binary.yaml"
    path.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ConfigError, match=r"binary\.yaml: cannot be read"):
        load_config(path)
