"""The rule that is taken where none is named, and that refusals name."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path

import models
import pytest
import torch
from cases import learned_rule, train_config
from models import UPDATES, equal, take_steps
from places import PRETRAINED

import metaopt
from metaopt.base import shipped
from metaopt.base.shipped import DEFAULT
from metaopt.meta.build import meta_optimizer


def test_without_a_name_it_is_the_default(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    learned_rule(UPDATES).save(tmp_path / f"{DEFAULT}.safetensors")
    monkeypatch.setattr(shipped, "PRETRAINED", tmp_path)
    problems = [models.perceptron() for _ in range(3)]
    optimizers = [
        metaopt.LearnedOptimizer(problems[0].model, lr=0.5),
        metaopt.LearnedOptimizer(problems[1].model, DEFAULT, 0.5),
        metaopt.LearnedOptimizer(problems[2].model.parameters(), lr=0.5),
    ]
    for problem, optimizer in zip(problems, optimizers, strict=True):
        assert optimizer.rule.origin == "shipped"
        take_steps(problem, optimizer, 2)
        assert equal(problem.weights(), problems[0].weights())


@pytest.mark.skipif(
    not (PRETRAINED / f"{DEFAULT}.safetensors").is_file(),
    reason=f"checkpoints/pretrained/{DEFAULT}.safetensors is not there yet",
)
@models.every_model
def test_what_ships_trains_any_model(make: Callable[[], models.Problem]) -> None:
    problem = make()
    optimizer = metaopt.LearnedOptimizer(problem.model)
    first = problem.backward()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        take_steps(problem, optimizer, 20)
    optimizer.eval()
    assert problem.loss() < first


def informed() -> metaopt.LearnedRule:
    config = train_config("lstm", rules={"update": {"kind": "informed_lstm", "outer_lr": 1e-3}})
    return metaopt.LearnedRule(meta_optimizer(config), config)


@pytest.mark.parametrize(
    ("rule", "wanted"),
    [
        (learned_rule("lstm_update"), "fit any shapes"),
        (learned_rule("coordinate_lstm_step"), "take a rule with updates of its own"),
        (informed(), "take a rule that does without"),
    ],
    ids=["flattened", "step", "informed"],
)
def test_a_rule_that_does_not_fit_names_one_that_does(
    rule: metaopt.LearnedRule, wanted: str
) -> None:
    with pytest.raises(ValueError, match=rf"^[^\n]*{wanted}[^\n]*{DEFAULT}[^\n]*$"):
        metaopt.LearnedOptimizer(models.convolutional().model, rule)


def test_so_does_a_step_without_the_inputs_of_layers() -> None:
    problem = models.convolutional().to(torch.float64)
    config = train_config("coordinate_lstm_update")
    rule = metaopt.LearnedRule(meta_optimizer(config), config)
    optimizer = metaopt.LearnedOptimizer(problem.model, rule)
    problem.backward()
    with pytest.raises(ValueError, match=rf"^[^\n]*inputs of layers[^\n]*{DEFAULT}[^\n]*$"):
        optimizer.step()
