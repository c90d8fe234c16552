"""Configs: strict keys, words for errors, recipes, and numbers that end in arrays."""

import numpy as np
import pytest

from leignn_jax.errors import ConfigError
from leignn_jax.models.config import ALL_VARIANTS, PRESETS
from leignn_jax.training.api import checked_config
from leignn_jax.training.config import TrainConfig, by_content, dump_config, load_config, make_config
from leignn_jax.training.strict_yaml import parse_yaml, read_yaml


def test_defaults_and_round_trip(tmp_path):
    config = make_config(
        {"data": {"train": "a.extxyz"}, "model": {"preset": "small"}}, ["optimizer.learning_rate=1e-3"]
    )
    assert config.optimizer.learning_rate == 1e-3
    path = tmp_path / "config.yaml"
    text = dump_config(config)
    path.write_text(text)
    again = load_config(path)
    assert (again.optimizer, again.data) == (config.optimizer, config.data)
    assert again.model_for(("Si",)) == config.model_for(("Si",))
    assert dump_config(again) == text


def test_a_dumped_fine_tuning_leaves_its_model_to_what_it_starts_from():
    config = make_config({"run": {"start_from": "pretrained.safetensors"}})
    again = make_config(parse_yaml(dump_config(config)))
    assert again == config
    assert again.model == {}


@pytest.mark.parametrize("variant", [None, *ALL_VARIANTS])
def test_a_dumped_model_outlives_its_preset(variant, monkeypatch):
    config = make_config({"model": {"preset": "small"} | ({"variant": variant} if variant else {})})
    meant, text = config.model_for(("Si", "O")), dump_config(config)
    monkeypatch.setitem(PRESETS, "small", {"features": 8, "layers": 1, "num_radial": 3})
    again = make_config(parse_yaml(text))
    assert again.model_for(("Si", "O")) == meant
    assert dump_config(again) == text


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"dta": {}}, r"unknown key 'dta': did you mean 'data'\?"),
        ({"optimizer": {"lerning_rate": 1}}, r"'optimizer\.lerning_rate': did you mean 'learning_rate'\?"),
        ({"model": {"featurs": 64}}, r"model: unknown key 'featurs': did you mean 'features'\?"),
        ({"model": {"preset": "smal"}}, r"did you mean 'small'\?"),
        ({"optimizer": {"learning_rate": -1}}, r"optimizer\.learning_rate = -1: .*greater than 0"),
        ({"data": {"batch_size": 2.5}}, r"data\.batch_size = 2\.5"),
        ({"loss": {"forces": "l3"}}, r"loss\.forces = 'l3'"),
        ({"model": {"features": 7}}, "even"),
        ({"loss": {"force_source": "direct"}}, r"model\.direct_forces=true"),
        ({"recipe": "mine"}, "recipe = 'mine'"),
    ],
)
def test_mistakes_are_explained(values, message):
    with pytest.raises(ConfigError, match=message):
        make_config(values)


def test_overrides():
    assert make_config({}, ["run.epochs=3", "model.cutoff=4.5"]).model == {"cutoff": 4.5}
    with pytest.raises(ConfigError, match=r"write section\.key=value"):
        make_config({}, ["epochs"])
    with pytest.raises(ConfigError, match="did you mean 'epochs'"):
        make_config({}, ["run.epoch=3"])


def test_files(tmp_path):
    with pytest.raises(FileNotFoundError):
        load_config(tmp_path / "absent.yaml")
    path = tmp_path / "config.yaml"
    path.write_text("data: [")
    with pytest.raises(ConfigError, match=r"config\.yaml: not readable as YAML"):
        load_config(path)
    path.write_text("run: {epochs: 1, epochs: 2}")
    with pytest.raises(ConfigError, match="'epochs' stands twice"):
        load_config(path)
    path.write_text("!!python/object/apply:os.system ['true']")
    with pytest.raises(ConfigError, match="not readable"):
        load_config(path)
    path.write_text("- 1")
    with pytest.raises(ConfigError, match="sections"):
        load_config(path)


def test_warm_up_is_at_most_a_tenth_of_the_training():
    for settings, steps in (({"epochs": 3}, 3.0), ({"epochs": 20}, 20.0), ({"epochs": 100}, 20.0)):
        assert make_config({"run": settings}).hyperparameters(10).warmup_steps == pytest.approx(steps)
    said = make_config({"run": {"epochs": 3}, "optimizer": {"warmup_epochs": 2}})
    assert said.hyperparameters(10).warmup_steps == 20.0


def test_published_recipe():
    config = make_config({"recipe": "published", "optimizer": {"clip_norm": 5.0}})
    hyper = config.hyperparameters(10)
    assert config.optimizer.algorithm == "amsgrad"
    assert config.loss.kinds(stressed=False).source == "direct"
    assert (hyper.learning_rate, hyper.clip_norm, hyper.plateau_patience) == (5e-4, 5.0, 5.0)
    assert np.isinf(hyper.decay_steps)
    assert hyper.weights.forces == 0.999
    assert config.model_for(("H", "O")).features == 512


def test_a_recipe_on_top_of_a_config_says_what_was_not_said():
    made = make_config({"data": {"train": "f.xyz"}, "optimizer": {"learning_rate": 1e-4}})
    found = checked_config(made, ["recipe=published"], True)
    assert found.loss.force_source == "direct"
    assert found.optimizer.algorithm == "amsgrad"
    assert found.optimizer.learning_rate == 1e-4
    assert found.model == {"preset": "published"}
    assert checked_config(TrainConfig(recipe="published"), [], True).loss.force_source == "direct"
    with pytest.raises(ConfigError, match="made with the recipe published"):
        checked_config(found, ["recipe=default"], True)
    with pytest.raises(ConfigError, match=r'"keep" needs run\.start_from'):
        checked_config(TrainConfig(data={"train": "f.xyz", "reference_energies": "keep"}), [], True)


def test_elements_of_the_data_must_be_there():
    config = make_config({"model": {"preset": "small", "elements": ["H", "C"]}})
    assert config.model_for(("H",)).elements == ("H", "C")
    with pytest.raises(ConfigError, match="lacks O"):
        config.model_for(("H", "O"))


BOMB = "a: &a [1, 2, 3, 4, 5, 6, 7, 8, 9]\n" + "".join(
    f"{new}: &{new} [{', '.join([f'*{old}'] * 9)}]\n" for old, new in zip("abcdefghij", "bcdefghijk", strict=True)
)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (BOMB, "holds more than 100000 values"),
        (
            "a: &a {x: 1}\nb: &b {" + ", ".join(f"k{i}: *a" for i in range(400)) + "}\nc: [" + "*b, " * 400 + "]",
            "holds more",
        ),
        ("a: &a [*a]\n", "line 1: an alias stands within what it names"),
        ("[" * 5000, "nested too deeply|not readable"),
        ("? [a, b]\n: 1\n", "line 1: a list or section can't be a key"),
        ("? {a: b}\n: 1\n", "line 1: a list or section can't be a key"),
        ("a: 2001-99-99\n", "not readable as YAML"),
        ("a: " + "9" * 5000 + "\n", "not readable as YAML"),
        ("a: *b\n", "not readable as YAML"),
    ],
)
def test_yaml_that_is_no_config(tmp_path, text, message):
    path = tmp_path / "study.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError, match=message):
        read_yaml(path)


def test_overrides_are_bounded_too():
    with pytest.raises(ConfigError, match="not readable as YAML"):
        make_config({}, ["data.train=&a [*a]"])


def test_aliases_and_a_byte_order_mark(tmp_path):
    path = tmp_path / "study.yaml"
    path.write_text("\ufeffa: &a {x: 1}\nb: *a\nc: {<<: *a, y: 2}\n", encoding="utf-8")
    assert read_yaml(path) == {"a": {"x": 1}, "b": {"x": 1}, "c": {"x": 1, "y": 2}}


def test_a_stress_is_learnt_where_there_is_one():
    config = make_config({})
    assert config.loss.kinds(stressed=True).with_stress
    assert not config.loss.kinds(stressed=False).with_stress
    assert config.hyperparameters(1).weights.stress == config.hyperparameters(1).final_weights.stress == 1.0
    assert not make_config({"loss": {"stress_weight": 0}}).loss.kinds(stressed=True).with_stress
    assert make_config({"loss": {"stress_weight": 0, "final_stress_weight": 1}}).loss.kinds(stressed=True).with_stress
    # A head of forces gives no stress, as the published model has it.
    assert not make_config({"recipe": "published"}).loss.kinds(stressed=True).with_stress
    with pytest.raises(ConfigError, match=r"loss\.stress_weight"):
        make_config({"recipe": "published", "loss": {"final_stress_weight": 1.0}})


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"loss": {"ramp": [0.8, 0.2]}}, "begins after its end"),
        ({"optimizer": {"beta1": 1.0}}, "less than 1"),
        ({"model": {"preset": "small"}, "run": {"start_from": "si"}}, "leave it out"),
    ],
)
def test_what_can_not_train_is_refused(values, message):
    with pytest.raises(ConfigError, match=message):
        make_config(values)


def test_isolated_atoms_that_nothing_takes():
    values = {"data": {"train": "a.extxyz", "isolated_atoms": "b.extxyz"}}
    with pytest.raises(ConfigError, match="reference_energies=isolated"):
        make_config(values)
    values["data"]["reference_energies"] = "isolated"
    make_config(values)


def test_an_exponent_without_a_point_is_a_number():
    assert parse_yaml("[1e-3, 2E5, .5e1, 1.5e3, -1e+2]") == [1e-3, 2e5, 5.0, 1.5e3, -100.0]
    assert parse_yaml("[1e, e5, 1e5x, a1e5]") == ["1e", "e5", "1e5x", "a1e5"]


def test_places_are_no_settings():
    one = {"data": {"train": "a/x", "batch_size": 4}, "run": {"out": "there", "start_from": None}}
    other = {"data": {"train": "b/x", "batch_size": 4}, "run": {"out": "here", "start_from": None}}
    assert by_content(one) == by_content(other)
    assert by_content(one, keep=["data.train"]) != by_content(other, keep=["data.train"])
    other["run"]["start_from"] = "si"
    assert by_content(one) != by_content(other)
