"""Many seeds, and far: what diverges is counted, and a stopped run ends as one that was not."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from metaopt.base.streams import Stream
from metaopt.rules.base import Proposal, Rule, State
from metaopt.rules.composed import MetaOptimizer
from metaopt.rules.hand_made import CosineAdamW, GradientDescent
from metaopt.tasks.base import Observation
from metaopt.tasks.own_batch import LossFamily, LossTasks
from studies import endurance
from studies.drop_in_training import BATCH, MODELS, SIDE
from studies.endurance_seeds import Found, OfDropIn, run

SMALL = "two layers, 32 units"
RATE = 1e-3


def _tasks(model: str = SMALL, seeds: int = 3) -> LossTasks:
    family = LossFamily(OfDropIn(model), "OfDropIn")
    return family.sample(Stream.TEST, 0, 0, seeds, torch.float32)


def _of(rule: Rule) -> MetaOptimizer:
    return MetaOptimizer({"update": rule}, None)


class Growing(GradientDescent):
    """w' = factor w for the trajectories of ``which``; all others stay where they are."""

    def __init__(self, factor: float, *which: int) -> None:
        super().__init__(1.0)
        self.factor = factor
        self.which = list(which)

    def propose(self, observation: Observation, state: State) -> tuple[Proposal, State]:
        """(factor - 1) w in some, 0 in others."""
        updates = tuple(torch.zeros_like(W) for W in observation.weights)
        for f, W in zip(updates, observation.weights, strict=True):
            f[self.which] = (self.factor - 1) * W[self.which]
        return Proposal(updates=updates), state


def test_what_blows_up_by_construction_is_counted() -> None:
    tasks = _tasks()
    initial = [max(float(W[b].abs().max()) for W in tasks.initial) for b in range(3)]
    still = run(tasks, _of(Growing(1)), (1, 2), 1)
    assert (still.diverged, still.not_finite) == (0, 0)
    assert still.losses[0] == still.losses[1] == tasks.loss(tasks.initial).tolist()
    assert still.largest == [initial, initial]
    far = run(tasks, _of(Growing(16, 1)), (1, 2), 1)
    assert (far.diverged, far.not_finite) == (1, 0)
    factors = np.array(far.largest) / np.array(initial)
    np.testing.assert_allclose(factors, [[1, 16, 1], [1, 256, 1]], rtol=1e-6)
    farther = run(tasks, _of(Growing(2**60, 0, 2)), (4,), 2)
    assert (farther.diverged, farther.not_finite) == (2, 2)
    assert np.isfinite(farther.losses[0]).tolist() == [False, True, False]


@pytest.mark.parametrize("model", MODELS)
def test_networks_compute_what_those_of_a_user_do(model: str) -> None:
    tasks = _tasks(model, 2)
    network = MODELS[model]().train()
    assert {n: p.shape for n, p in network.named_parameters()} == tasks.shapes
    for b in range(2):
        parts = zip(tasks.shapes.items(), tasks.initial, strict=True)
        weights = {name: W[b].reshape(shape) for (name, shape), W in parts}
        network.load_state_dict(weights, strict=False)
        X, y = tasks.shared
        rows = tasks.test[0][b]
        with torch.no_grad():
            wanted = torch.nn.functional.cross_entropy(network(X[rows]), y[rows])
        torch.testing.assert_close(tasks.loss(tasks.initial)[b], wanted)
    assert X.shape[1] == SIDE**2
    assert tasks.family.batch == BATCH
    assert not any(torch.equal(W[0], W[1]) for W in tasks.initial if W[0].std() > 0)
    assert any(W[0].std() > 0 for W in tasks.initial)


def test_adamw_at_a_constant_rate_is_that_of_torch() -> None:
    tasks = _tasks(seeds=1)
    found = run(tasks, _of(CosineAdamW(RATE, 0.9, endurance.WEIGHT_DECAY, math.inf)), (6,), 2)
    weights = [W[0].clone().requires_grad_() for W in tasks.initial]
    torchs = torch.optim.AdamW(weights, lr=RATE, weight_decay=endurance.WEIGHT_DECAY)
    for step in range(6):
        observed = tasks.at(step).observe(tuple(w.detach()[None] for w in weights))
        for w, G in zip(weights, observed.grads, strict=True):
            w.grad = G[0]
        torchs.step()
    wanted = tasks.loss(tuple(w.detach()[None] for w in weights))
    np.testing.assert_allclose(found.losses[0], wanted.numpy(), rtol=1e-5)


def test_a_stopped_run_ends_as_one_that_was_not(tmp_path: Path) -> None:
    (whole,) = endurance.jobs_of(endurance.SMOKE, "rule", "v")[SMALL, "AdamW, 0.001", 2]
    at_once = endurance.of_job(whole, tmp_path / "one")
    path = tmp_path / "one" / whole.file
    content = path.read_bytes()
    assert endurance.of_job(whole, tmp_path / "one") == at_once
    assert path.read_bytes() == content
    single = [replace(whole, first=first, seeds=1) for first in range(2)]
    first, second = (endurance.of_job(job, tmp_path / "two") for job in single)
    both = first.joined(second)
    np.testing.assert_allclose(both.losses, at_once.losses, rtol=1e-5)
    np.testing.assert_allclose(both.largest, at_once.largest, rtol=1e-5)
    files = {job.file for job in (whole, *single, replace(whole, version="w"))}
    assert len(files) == 4, "nothing is taken for another's"


def test_seeds_of_a_row_are_all_seeds_once() -> None:
    of_rows = endurance.jobs_of(endurance.FULL, "rule.safetensors", "v")
    assert {model for model, _, _ in of_rows} == set(MODELS)
    for (_, optimizer, count), jobs in of_rows.items():
        seeds = [seed for job in jobs for seed in range(job.first, job.first + job.seeds)]
        assert seeds == list(range(count))
        assert (optimizer == "rule") == bool(jobs[0].rule)
        assert all(mark % job.every == 0 for job in jobs for mark in job.marks)
    assert {(seeds, jobs[0].marks[-1]) for (_, name, seeds), jobs in of_rows.items()} == {
        (100, 1000),
        (10, 10000),
    }


def test_what_falls_short_is_said() -> None:
    jobs = endurance.jobs_of(endurance.SMOKE, "rule", "v")
    quiet = Found([[0.5, 2.0]], [[1.0, 2.0]], 0, 0)
    two = replace(quiet, losses=quiet.losses * 2, largest=[[1.0, 1.0], [1.0, 2.0]])

    def told(found: Found) -> list[endurance.Row]:
        own = {key: two if key[2] == 2 else quiet for key in jobs}
        own[SMALL, "rule", 3] = found
        return [endurance._row([jobs[key][0]], [one]) for key, one in own.items()]

    held = told(quiet)
    assert endurance.shortfalls(held) == []
    assert held[0].loss == [1.0]
    assert held[0].worst == [2.0]
    assert endurance.ratio(held[0], held) == 2.0, "AdamW's until the same step"
    assert endurance.ratio(held[1], held) == 1.0
    where = f"{SMALL}, 2 seeds, 2 steps: "
    large = told(replace(quiet, largest=[[101.0, 1.0]]))
    assert endurance.shortfalls(large) == [f"{where}weights are 101 times AdamW's"]
    broken = told(Found([[math.nan, 1.0]], [[math.nan, 1.0]], 1, 1))
    assert endurance.shortfalls(broken) == [f"{where}1 diverged", f"{where}1 are not finite"]
    assert "1 (2)" in endurance.table(held)
