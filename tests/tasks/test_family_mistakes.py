"""Mistakes in a user's family, and about one, end in one line."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from families import Logistic, own_config, save_informed
from running import assert_one_line, run_here
from torch import Tensor
from torch.nn import functional

import metaopt
from metaopt.base.config import check
from metaopt.tasks.config import TaskConfig

HERE = __name__


class NoLoss(metaopt.Family):
    def sample(self, generator: np.random.Generator) -> metaopt.Task:
        return Logistic().sample(generator)


class Fails(Logistic):
    def loss(self, weights: dict[str, Tensor], data: tuple[Tensor, ...], *shared: Tensor) -> Tensor:
        raise KeyError("no weights\nof that name")


class FailsInTorch(Logistic):
    def loss(self, weights: dict[str, Tensor], data: tuple[Tensor, ...], *shared: Tensor) -> Tensor:
        return data[0] @ weights["W"]


class NotScalar(Logistic):
    def loss(self, weights: dict[str, Tensor], data: tuple[Tensor, ...], *shared: Tensor) -> Tensor:
        return weights["b"]


class Negative(Logistic):
    def loss(self, weights: dict[str, Tensor], data: tuple[Tensor, ...], *shared: Tensor) -> Tensor:
        return super().loss(weights, data) - 100


class Infinite(Logistic):
    def loss(self, weights: dict[str, Tensor], data: tuple[Tensor, ...], *shared: Tensor) -> Tensor:
        return (weights["b"].square().sum()).sqrt()


class Dropout(Logistic):
    def loss(self, weights: dict[str, Tensor], data: tuple[Tensor, ...], *shared: Tensor) -> Tensor:
        return super().loss({k: functional.dropout(W) for k, W in weights.items()}, data)


class Uneven(Logistic):
    def sample(self, generator: np.random.Generator) -> metaopt.Task:
        return Logistic(inputs=int(generator.integers(3, 1000))).sample(generator)


class Empty(Logistic):
    def sample(self, generator: np.random.Generator) -> Any:
        return None


class Lengths(Logistic):
    def sample(self, generator: np.random.Generator) -> metaopt.Task:
        task = super().sample(generator)
        return metaopt.Task(task.weights, (task.data[0], task.data[1][1:]))


class WholeNumbers(Logistic):
    def sample(self, generator: np.random.Generator) -> metaopt.Task:
        return metaopt.Task({"W": torch.ones(3, dtype=torch.int64)}, super().sample(generator).data)


def function() -> None: ...


@pytest.mark.parametrize(
    ("family", "words"),
    [
        ("nowhere:Family", ["no module nowhere"]),
        (f"{HERE}.inner:Family", [f"{HERE}.inner"]),
        (f"{HERE}:Missing", [f"module {HERE} has no Missing"]),
        (f"{HERE}:function", ["subclass of metaopt.Family"]),
        (f"{HERE}:Path", ["subclass of metaopt.Family"]),
        (f"{HERE}:NoLoss", ["does not define loss"]),
        (f"{HERE}:Fails", ["loss raised KeyError", "test_family_mistakes.py:"]),
        (f"{HERE}:FailsInTorch", ["loss raised RuntimeError", "test_family_mistakes.py:"]),
        (f"{HERE}:NotScalar", ["[2]", "scalar"]),
        (f"{HERE}:Negative", ["loss", "-9", "at least 0"]),
        (f"{HERE}:Infinite", ["gradient", "'b'", "not finite"]),
        (f"{HERE}:Dropout", ["loss raised RuntimeError", "random"]),
        (f"{HERE}:Uneven", ["weights['W']", "alike in all tasks"]),
        (f"{HERE}:Empty", ["sample", "NoneType", "metaopt.Task"]),
        (f"{HERE}:Lengths", ["data", "[[24, 4], [23]]"]),
        (f"{HERE}:WholeNumbers", ["weights['W']", "int64"]),
        ("broken_module:Family", ["importing it raised ModuleNotFoundError", "not_there"]),
        ("quadratic", ["leaky_relu_regression", "package.module:ClassName"]),
        ("os.system('x'):Y", ["package.module:ClassName"]),
    ],
)
def test_mistakes_in_a_family_end_in_one_line(
    family: str,
    words: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (tmp_path / "broken_module.py").write_text("import not_there\n")
    config = own_config()
    config["task"]["family"] = family
    (tmp_path / "mine.yaml").write_text(json.dumps(config))
    monkeypatch.setattr(sys, "path", [*sys.path])
    assert run_here("train_meta.py", ["--config", "mine.yaml"], tmp_path, monkeypatch) == 2
    assert_one_line(capsys.readouterr().err, "mine.yaml", "task.family", *words)
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["task.options={frobnicate: 3}"], ["task.options", "frobnicate", "inputs: 'int'"]),
        (["task.options={batch: 0}"], ["batch", "0", "whole number"]),
        (["task.options={batch: [1]}"], ["task.options.batch", "[1]"]),
        (["task.width=30"], ["width", "options: {width: 30}"]),
        (["meta.rescale=0.5"], ["meta.rescale"]),
        (["rules.update.kind=lstm"], ["rules", "coordinate_lstm"]),
        (
            ["rules.update={kind: informed_lstm, outer_lr: 1}"],
            ["rules", "only the loss", "coordinate_lstm"],
        ),
        (["rules.teleport={kind: coordinate_lstm, outer_lr: 1}", "teleporter={}"], ["rules"]),
        (["task.family=leaky_relu_regression", "task.options={width: 3}"], ["options"]),
    ],
)
def test_mistakes_about_a_family_end_in_one_line(
    overrides: list[str],
    words: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (tmp_path / "mine.yaml").write_text(json.dumps(own_config()))
    sets = [part for override in overrides for part in ("--set", override)]
    assert run_here("train_meta.py", ["--config", "mine.yaml", *sets], tmp_path, monkeypatch) == 2
    assert_one_line(capsys.readouterr().err, "mine.yaml", *words)


def test_a_rule_that_reads_layer_inputs_alone_on_a_family_ends_in_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    save_informed(tmp_path / "informed.safetensors")
    sets = ["task.family=families:Logistic", "baselines=[]", "tasks=2", "steps=2", "bootstrap=10"]
    arguments = [part for value in sets for part in ("--set", value)]
    arguments += ["--checkpoints", "informed.safetensors"]
    assert run_here("eval_meta.py", arguments, tmp_path, monkeypatch) == 2
    captured = capsys.readouterr()
    assert captured.err.splitlines()[-1] == (
        "nothing is left to evaluate: no optimizer fits these tasks"
    )
    assert "Traceback" not in captured.err
    assert "left out: informed:" in captured.out
    assert "only the loss is" in captured.out


def test_references_are_not_for_families_that_keep_their_network_to_themselves(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    sets = ["task.family=families:Logistic", "baselines=[K-FAC]"]
    arguments = [part for value in sets for part in ("--set", value)]
    assert run_here("eval_meta.py", arguments, tmp_path, monkeypatch) == 2
    assert_one_line(capsys.readouterr().err, "K-FAC", "only the loss")


@pytest.mark.parametrize("options", [None, {}, {"width": 3, "slope": 0.1, "deep": True, "a": None}])
def test_options_are_kept_and_families_without_any_are_written_as_ever(
    options: dict[str, Any] | None,
) -> None:
    config = TaskConfig(family="my_tasks:Mine", options=options)
    written = config.model_dump(mode="json")
    assert ("options" in written) == (options is not None)
    assert check(TaskConfig, json.loads(json.dumps(written)), "again") == config
    assert "options" not in json.loads(TaskConfig().model_dump_json())


def test_the_familys_name_is_all_that_a_configuration_is_checked_for() -> None:
    assert TaskConfig(family="never.imported:Here").is_own
