"""Ten times past the horizon: what the benchmark measures, in tiny sizes, and that it goes on."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from cases import learned_rule

from metaopt.base import checkpoint
from metaopt.base.streams import Stream
from metaopt.tasks.own_batch import LossFamily
from studies import long_run

SIZE = replace(long_run.SMOKE, marks=(2, 4), seeds=2)


def test_rows_are_of_both_and_are_kept(tmp_path: Path) -> None:
    rule = learned_rule("layer_units")
    path = tmp_path / "rule.safetensors"
    rule.save(path)
    job = long_run.Job(1, "none", SIZE, path, tmp_path, "digest")
    row = long_run.of_network(job)
    tasks = LossFamily(long_run.DeepDigits(1), "DeepDigits").sample(Stream.TEST, 0, 0, 2)
    start = tasks.loss(tasks.initial)
    assert row.marks == [2, 4]
    assert len(row.pair) == len(row.alone) == 2
    assert row.pair != row.alone
    assert row.pair[0] != float(start.log().mean().exp())
    np.testing.assert_allclose(row.ratio[0], row.pair[-1] / row.alone[-1], rtol=1e-6)
    assert row.ratio[1] <= row.ratio[0] <= row.ratio[2]
    assert row.largest >= max(float(W.abs().max()) for W in tasks.initial)
    assert row.not_finite == 0
    again = replace(job, rule=tmp_path / "gone.safetensors")
    assert long_run.of_network(again) == row, "found again without the rule"
    assert "updates alone" in long_run.table([row])


def test_what_is_not_finite_is_counted() -> None:
    size = replace(SIZE, seeds=3)
    job = long_run.Job(1, "none", size, Path(), Path(), "")
    good = long_run._Run(np.ones((2, 3)), np.ones(3))
    bad = long_run._Run(np.array([[1.0] * 3, [1.0, np.nan, 1.0]]), np.array([1.0, np.nan, 2.0]))
    assert long_run._row(job, bad, good).not_finite == 1
    assert long_run._row(job, good, good).not_finite == 0


def test_deep_networks_have_what_their_name_says() -> None:
    for depth, kind in ((1, "none"), (6, "LayerNorm"), (2, "BatchNorm")):
        net = long_run.DeepDigits(depth, kind).net
        kinds = [type(module).__name__ for module in net.children()]
        assert kinds.count("Linear") == depth + 1
        assert kinds.count("ReLU") == depth
        assert sum("Norm" in name for name in kinds) == (0 if kind == "none" else depth)


def test_what_falls_short_is_said() -> None:
    job = long_run.Job(3, "none", SIZE, Path(), Path(), "")
    one = np.ones((2, 2))
    alone = long_run._Run(one, np.ones(2))
    assert long_run.shortfalls([long_run._row(job, alone, alone)]) == []
    worse = long_run._Run(1.5 * one, np.full(2, 99.0))
    (line,) = long_run.shortfalls([long_run._row(job, worse, alone)])
    assert line == "3 hidden layers, normalisation none: loss 1.5 times that of the updates alone"
    large = long_run._Run(one, np.array([1.0, 101.0]))
    (line,) = long_run.shortfalls([long_run._row(job, large, alone)])
    assert "a weight of 101" in line
    broken = long_run._Run(one * np.nan, np.array([np.nan, 1.0]))
    assert "1 seeds are not finite" in long_run.shortfalls([long_run._row(job, broken, alone)])[0]


def test_figures_are_of_a_rule_whatever_else_its_file_tells(tmp_path: Path) -> None:
    rule = learned_rule("layer_units")
    digests = []
    for name, training in (("a", {}), ("b", {"commit": "x"})):
        rule.training = training
        rule.save(tmp_path / name)
        digests.append(long_run._digest(SIZE, checkpoint.read(tmp_path / name)))
    assert digests[0] == digests[1]
    with torch.no_grad():
        next(rule.optimizer.parameters()).mul_(2)
    rule.save(tmp_path / "c")
    assert long_run._digest(SIZE, checkpoint.read(tmp_path / "c")) != digests[0]
