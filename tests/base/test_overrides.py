"""Overrides are typed like their field, and the resolved file reads back as what was meant."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml
from configurations import BASE, EVALUATION, TRAINING, error_of, relative_name
from support import UPDATE, tiny_config

from metaopt.base.config import ConfigError, load, to_yaml
from metaopt.base.errors import shown
from metaopt.evaluation.config import EvalConfig
from metaopt.meta.config import RandomHorizonConfig, TrainConfig
from metaopt.rules.hand_made import AdamConfig


@pytest.mark.parametrize(
    ("override", "section", "field", "value"),
    [
        ("meta.batch=5", "meta", "batch", 5),
        ("meta.epsilon=1e-3", "meta", "epsilon", 1e-3),
        ("meta.epsilon=2E+2", "meta", "epsilon", 200.0),
        ("meta.epsilon=3", "meta", "epsilon", 3.0),
        ("meta.clip=null", "meta", "clip", None),
        ("meta.clip=", "meta", "clip", None),
        ("meta.clip=2.5", "meta", "clip", 2.5),
        ("meta.loss=sum", "meta", "loss", "sum"),
        ("task.slope=.5", "task", "slope", 0.5),
    ],
)
def test_overrides_are_typed_like_the_field(
    override: str, section: str, field: str, value: Any
) -> None:
    found = getattr(getattr(load(TrainConfig, BASE, [override]), section), field)
    assert found == value
    assert type(found) is type(value)


@pytest.mark.parametrize("name", ["7", "1.5", "1e3", "1e-3", "007", "run"])
def test_names_may_look_like_numbers(name: str) -> None:
    assert load(TrainConfig, BASE, [f"name={name}"]).name == name


def test_overrides_of_lists_and_sections() -> None:
    config = load(EvalConfig, "eval.yaml", ["baselines=[GD,Adam@7]", "tuning.grids.GD.lr=[1e-3,1]"])
    assert config.baselines == ["GD", "Adam@7"]
    assert config.tuning.grids["GD"]["lr"] == [1e-3, 1]
    adam = load(
        TrainConfig,
        "coordinate_update.yaml",
        [
            "rules.update={kind: adam, lr: 1e-3}",
            "rules.update.beta1=0.5",
            "rules.teleport={kind: lstm, outer_lr: 1e-4}",
            "teleporter.max_norm=0.5",
        ],
    )
    assert adam.rules.update == AdamConfig(kind="adam", lr=1e-3, beta1=0.5)
    assert adam.teleporter is not None
    assert adam.teleporter.max_norm == 0.5


def test_a_section_that_is_not_written_has_its_default_kind() -> None:
    found = load(TrainConfig, BASE, ["meta.horizon.low=4"]).meta.horizon
    assert isinstance(found, RandomHorizonConfig)
    assert found.low == 4
    both = ["meta.horizon.kind=curriculum", "meta.horizon.first=5"]
    assert load(TrainConfig, BASE, both).meta.horizon.kind == "curriculum"


def test_the_last_override_counts() -> None:
    assert load(TrainConfig, BASE, ["seed=1", "seed=2"]).seed == 2


@pytest.mark.parametrize(
    "override", ["meta", "=3", "meta.=3", ".meta=3", "meta.batch.x=3", "meta.batch=[1", "seed=*a"]
)
def test_overrides_that_are_none(override: str) -> None:
    assert f"--set {override}" in error_of(Path(BASE), override)


# The resolved file.


@pytest.mark.parametrize("path", [*TRAINING, *EVALUATION], ids=relative_name)
def test_resolved_yaml_round_trips(path: Path, tmp_path: Path) -> None:
    kind: Any = EvalConfig if path in EVALUATION else TrainConfig
    config = load(kind, path)
    resolved = tmp_path / "config.yaml"
    resolved.write_text(to_yaml(config))
    assert load(kind, resolved) == config


@pytest.mark.parametrize(
    "label", ["7", "1e3", "1e-3", "null", "true", "2024-01-01", "a: b", "é", " a", "0x1", "#"]
)
def test_any_label_round_trips(label: str, tmp_path: Path) -> None:
    config = tiny_config().model_copy(update={"label": label})
    resolved = tmp_path / "config.yaml"
    resolved.write_text(to_yaml(config), encoding="utf-8")
    assert load(TrainConfig, resolved) == config


@pytest.mark.parametrize("value", [1e-3, 1e-7, 5e-324, 1e22, 0.1, 3.0])
def test_floats_round_trip(value: float, tmp_path: Path) -> None:
    config = tiny_config({"update": UPDATE | {"scale": value}})
    resolved = tmp_path / "config.yaml"
    resolved.write_text(to_yaml(config))
    assert load(TrainConfig, resolved) == config


def test_resolved_yaml_writes_every_field_out() -> None:
    written = yaml.safe_load(to_yaml(load(TrainConfig, BASE)))
    assert set(written) == set(TrainConfig.model_fields)
    assert written["meta"]["epsilon"] == 1e-7


@pytest.mark.parametrize(
    "override",
    [f"task.outputs{'.' * 500}=1", "task.slope=a\nb: c", f"name{'.a' * 3000}=1", f"x{'y' * 900}"],
)
def test_overrides_are_told_in_a_short_line(override: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load(TrainConfig, "coordinate_update.yaml", [override])
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 500


def test_values_are_shown_in_bounded_space() -> None:
    deep: Any = "x"
    for _ in range(30):
        deep = [deep] * 9
    assert len(shown(deep)) <= 60
    assert shown(10**5000).startswith("a whole number of 16610 bits")
    assert shown({"a": 1}) == "{'a': 1}"
