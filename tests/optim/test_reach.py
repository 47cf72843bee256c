"""How far a rule goes: in the file, the card, the report, evaluation, and once at run time."""

from __future__ import annotations

import copy
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import higher
import pytest
import torch
from cases import learned_rule
from saved_rules import learned
from torch import nn

import metaopt
from metaopt.base import checkpoint
from metaopt.base.checkpoint import CheckpointError
from metaopt.base.process import World
from metaopt.evaluation.contenders import learned_contenders
from metaopt.evaluation.evaluate import tell_horizons
from metaopt.optim import card, show
from metaopt.optim.learned import LearnedRule
from metaopt.optim.reach import PastHorizonWarning, reach_of, record_test
from studies import horizon

STEPS = 3


def short(kind: str = "layer", **training: Any) -> LearnedRule:
    """A rule that was meta-trained for STEPS steps."""
    rule = learned_rule(kind)
    meta = rule.config.meta.model_copy(update={"steps": STEPS})
    config = rule.config.model_copy(update={"meta": meta, "label": "short"})
    return replace(rule, config=config, training=training)


def advance(model: nn.Module, optimizer: torch.optim.Optimizer, steps: int) -> list[str]:
    """Take steps; what was said of the horizon on the way."""
    said = []
    for _ in range(steps):
        optimizer.zero_grad()
        model(torch.ones(4, 3)).square().mean().backward()
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            optimizer.step()
        said += [str(w.message) for w in caught if issubclass(w.category, PastHorizonWarning)]
    return said


def test_it_is_said_once_and_resuming_does_not_forget() -> None:
    model = nn.Linear(3, 2)
    optimizer = metaopt.LearnedOptimizer(model, short())
    assert advance(model, optimizer, STEPS - 1) == []
    state = copy.deepcopy(optimizer.state_dict())
    for other in (optimizer, copy.deepcopy(optimizer)):
        own = other.model
        assert own is not None
        assert advance(own, other, 1) == []
        (line,) = advance(own, other, 4)
        for word in (
            "short",
            f"step {STEPS + 1}",
            "meta-trained for 3 steps",
            "docs/guide/horizons.md",
        ):
            assert word in line
    resumed = metaopt.LearnedOptimizer(model, short())
    resumed.load_state_dict(state)
    assert len(advance(model, resumed, 1)) == 0
    assert len(advance(model, resumed, 1)) == 1
    again = metaopt.LearnedOptimizer(model, short())
    again.load_state_dict(resumed.state_dict())
    assert advance(model, again, 3) == []


def test_a_test_that_went_further_counts() -> None:
    model = nn.Linear(3, 2)
    optimizer = metaopt.LearnedOptimizer(model, short(tested_steps=6))
    assert advance(model, optimizer, 6) == []
    (line,) = advance(model, optimizer, 3)
    assert "meta-trained for 3 steps, tested to 6;" in line


def test_higher_says_it_too() -> None:
    model = nn.Linear(3, 2)
    optimizer = metaopt.LearnedOptimizer(model, short())
    with higher.innerloop_ctx(model, optimizer) as (functional, differentiable):
        for step in range(1, STEPS + 3):
            with warnings.catch_warnings(record=True) as caught:
                warnings.simplefilter("always")
                differentiable.step(functional(torch.ones(4, 3)).square().mean())
            said = [w for w in caught if issubclass(w.category, PastHorizonWarning)]
            assert len(said) == (step == STEPS + 1)


@pytest.mark.parametrize(
    ("horizon", "training", "wanted"),
    [
        ({"kind": "fixed"}, {}, "meta-trained for 1,000 steps"),
        (
            {"kind": "random", "low": 50},
            {"tested_steps": 10000},
            "meta-trained for 1,000 steps (lengths from 50, log-uniform), tested to 10,000",
        ),
        (
            {"kind": "curriculum", "first": 10},
            {},
            "meta-trained for 1,000 steps (lengths that grew from 10)",
        ),
        # Half of the way to where it ends, on a logarithmic scale.
        (
            {"kind": "curriculum", "first": 10, "share": 0.5},
            {"outer_step": 250},
            "meta-trained for 100 steps (lengths that grew from 10)",
        ),
    ],
)
def test_what_is_said_of_lengths(
    horizon: dict[str, Any], training: dict[str, Any], wanted: str
) -> None:
    config = learned_rule("layer").config.model_dump(mode="json")
    config["meta"] |= {"steps": 1000, "unroll": 10, "outer_steps": 1000, "horizon": horizon}
    found = reach_of(type(learned_rule("layer").config).model_validate(config), training, "here")
    assert str(found) == wanted


@pytest.mark.parametrize("tested", [0, -1, True, 2.5, "far", 10**13, [1]])
def test_a_file_that_says_what_cannot_be_is_refused(tmp_path: Path, tested: object) -> None:
    path = tmp_path / "rule.safetensors"
    learned().save(path)
    content = checkpoint.read(path)
    training = content.training | {"tested_steps": tested}
    checkpoint.write(path, replace(content, training=training))
    with pytest.raises(CheckpointError, match="tested_steps: found") as error:
        metaopt.load(path)
    assert "\n" not in str(error.value)


def test_a_test_is_written_into_the_file_and_nothing_else_changes(tmp_path: Path) -> None:
    path = tmp_path / "rule.safetensors"
    rule = learned()
    rule.save(path)
    before = checkpoint.read(path)
    assert record_test(path, 10_000, "python -m studies.long_run").steps == 10_000
    assert record_test(path, 500, "a shorter one").tested == 10_000
    after = checkpoint.read(path)
    assert after.config == before.config
    assert after.training == before.training | {
        "tested_steps": 10_000,
        "tested_by": "python -m studies.long_run",
    }
    assert all(torch.equal(before.tensors[name], t) for name, t in after.tensors.items())
    with pytest.raises(CheckpointError, match="tested_steps"):
        record_test(path, 0, "none")
    for text in (show.report(after, str(path)), card.card(after, str(path))):
        assert f"meta-trained for {rule.config.meta.steps} steps, tested to 10,000" in text
        assert "docs/guide/horizons.md" in text


def test_evaluation_past_the_horizon_says_so(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "rule.safetensors"
    learned().save(path)
    world = World()
    contenders = learned_contenders([path], torch.device("cpu"), True, world)
    last = learned().config.meta.steps
    tell_horizons(contenders, last, world)
    assert "horizon" not in capsys.readouterr().out
    tell_horizons(contenders, last + 1, world)
    said = capsys.readouterr().out
    assert said.count("\n") == 1
    assert f"meta-trained for {last} steps" in said


def test_the_benchmark_runs_past_the_horizon(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "rule.safetensors"
    learned().save(path)
    horizon.main(World(), [str(path), "--steps", "12", "--tasks", "2"])
    rows = [line.split("|")[1].strip() for line in capsys.readouterr().out.splitlines()[1:]]
    assert rows[0] == "inner step"
    assert rows[2:] == ["1", "2", "5", "10", "12"]
