"""The study of rivals: a run and a stack are one, tunings see their own rows, and its figures."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional

import metaopt
from metaopt.base.errors import UserError
from metaopt.base.shipped import DEFAULT
from metaopt.base.streams import Stream
from studies.noether.folder import Folder
from studies.rivals import chosen, contenders, data, networks, page, plan, result, training
from studies.rivals.contenders import ADAMW, COSINE, FREE, SOAP, Contender
from studies.rivals.data import IGNORED, Parts, Rows
from studies.rivals.plan import BEST, TRIALS, Runs, Size
from studies.rivals.tasks import BERT, TEN, Task, classes

X = torch.randn(60, 3, generator=torch.Generator().manual_seed(0))
PARTS = data.cut(X, X @ torch.ones(3, 2), 99)
TINY = Task(
    "tiny",
    "a line",
    lambda: nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2)),
    lambda: PARTS,
    functional.mse_loss,
    batch=5,
    together=True,
)
HAND_MADE = {one.name: one for one in contenders.hand_made()}


@pytest.mark.parametrize("name", HAND_MADE)
def test_a_stack_is_its_runs_side_by_side(name: str) -> None:
    contender, marks = HAND_MADE[name], (0, 3, 6)
    rates = contender.grid[:3:2]
    found = training.together(TINY, contender, rates, 6, Stream.TEST, (0, 1), marks)
    for i, rate in enumerate(rates):
        for seed in (0, 1):
            one = training.alone(TINY, contender, rate, 6, Stream.TEST, seed, marks)
            np.testing.assert_allclose(found[:, i, seed], one, rtol=2e-5)


def test_a_shorter_run_has_the_first_batches_of_a_longer_one() -> None:
    short, long = (training.start(TINY, 36, Stream.TEST, 0, steps) for steps in (3, 7))
    assert torch.equal(short.rows, long.rows[:3])
    for a, b in zip(short.model.parameters(), long.model.parameters(), strict=True):
        assert torch.equal(a, b)
    for stream, seed in ((Stream.VALIDATION, 0), (Stream.TEST, 1)):
        other = training.start(TINY, 36, stream, seed, 3)
        assert not torch.equal(other.rows, short.rows)
        assert not torch.equal(next(other.model.parameters()), next(short.model.parameters()))


def test_parts_share_no_row_and_each_stream_has_its_own() -> None:
    parts = [PARTS.train, PARTS.validation, PARTS.test]
    rows = [tuple(row) for part in parts for row in part.x.tolist()]
    assert sorted(rows) == sorted(map(tuple, X.tolist()))
    assert training.judged_part(PARTS, Stream.TEST) is PARTS.test
    assert training.judged_part(PARTS, Stream.VALIDATION) is PARTS.validation


def test_masked_words_are_those_that_are_asked_for() -> None:
    rows = data.masked_words().test
    assert torch.equal(rows.x == 1, rows.y != IGNORED)
    assert ((rows.x == 1).any(1)).all()
    assert 0.1 < (rows.x == 1).float().mean() < 0.2
    # A loss that counts one of them is the loss of that one.
    logits = torch.randn(*rows.x.shape, data.WORDS)
    shown = rows.y != IGNORED
    assert classes(logits, rows.y) == pytest.approx(
        functional.cross_entropy(logits[shown], rows.y[shown])
    )


def test_the_character_that_comes_next() -> None:
    rows = data.characters().train
    assert torch.equal(rows.x[:, 1:], rows.y[:, :-1])
    assert rows.x.max() <= len(data.CHARACTERS)


@pytest.mark.parametrize("task", TEN, ids=lambda task: task.name)
def test_each_network_fits_its_loss(task: Task) -> None:
    pytest.importorskip("PIL")
    rows = task.parts().validation
    model = task.make()
    loss = task.loss(model(rows.x[:8]), rows.y[:8])
    loss.backward()
    assert loss.isfinite()
    assert all(p.grad is not None for p in model.parameters())


def test_there_are_ten_tasks_and_the_bert_of_the_bar() -> None:
    assert len({task.name for task in TEN}) == 10
    assert BERT in {task.name for task in TEN}


def test_muon_takes_neither_embeddings_nor_the_head() -> None:
    model = networks.NeuralGrams(7, 3)
    assert [id(p) for p in contenders.hidden_matrices(model)] == [id(model.hidden.weight)]


@pytest.mark.parametrize("name", ["Schedule-Free AdamW", "SOAP", "Muon", "Prodigy"])
def test_packaged_rivals_train(name: str) -> None:
    pytest.importorskip("pytorch_optimizer")
    one = next(one for one in contenders.packaged() if one.name == name)
    losses = training.alone(TINY, one, one.grid[2], 40, Stream.TEST, 0, (0, 40))
    assert losses[1] < losses[0]


def test_all_rivals_try_the_same_shares_of_their_ranges() -> None:
    shares = []
    for one in contenders.hand_made():
        low, high = np.log(one.grid[0]), np.log(one.grid[-1])
        shares.append((np.log(one.draws(4)) - low) / (high - low))
        assert len(one.grid) == 5
    assert np.ptp(shares, axis=0).max() < 1e-9
    assert all(0 <= share <= 1 for share in shares[0])


SIZE = Size((2, 4), (1, 8), 2, 1, 3, 5, 2)


class MadeUp(Runs):
    """Grids are best at 2 with their second rate, at 4 with their third; a seed adds a tenth."""

    def _run(
        self, rates: tuple[float, ...], horizon: int, stream: Stream, seeds: Sequence[int]
    ) -> Any:
        marks = self.size.marks(horizon)
        grid = self.contender.grid
        best = [grid[(2 if mark > 2 else 1) % len(grid)] for mark in marks]
        return np.array(
            [
                [
                    [(1 + abs(np.log(rate / b)) + seed / 10) / (mark + 1) for seed in seeds]
                    for rate in rates
                ]
                for mark, b in zip(marks, best, strict=True)
            ]
        )

    def cost(self) -> training.Cost:
        return training.Cost(2e-3, 1e-3, 100)


class Never(MadeUp):
    """Whatever runs is wrong."""

    def _run(self, *_: Any) -> Any:
        raise AssertionError


def test_each_column_has_its_own_rate_and_nothing_is_run_twice(tmp_path: Path) -> None:
    folder = plan.folder(tmp_path, TINY)
    folder.path.mkdir()
    for name, told in ((COSINE, True), (ADAMW, False)):
        contender = HAND_MADE[name]
        runs = MadeUp(TINY, contender, SIZE, folder, lambda _: None)
        found = runs.outcome()
        best = found.cells[BEST]
        assert (best[2].rate, best[4].rate) == contender.grid[1:3]
        assert best[4].losses == pytest.approx([1 / 5, 1.1 / 5])
        assert set(best) == ({1, 2, 4, 8} if told else {2, 4})
        tried = contender.draws(SIZE.trials)
        assert {cell.rate for cell in found.cells[TRIALS].values()} <= set(tried)
        for rates in found.cells.values():
            if told:
                assert (rates[1].rate, rates[8].rate) == (rates[2].rate, rates[4].rate)
        assert Never(TINY, contender, SIZE, folder, print).outcome() == found
        with pytest.raises(AssertionError):
            Never(TINY, replace(contender, version="trained on"), SIZE, folder, print).outcome()
    nothing = MadeUp(TINY, HAND_MADE[COSINE], SIZE, plan.Kept(tmp_path, "nothing"), print)
    with pytest.raises(plan.NotRunError):
        nothing.outcome()


def test_other_data_and_networks_have_other_pieces(tmp_path: Path) -> None:
    wider = replace(TINY, make=lambda: nn.Linear(3, 2))
    other = replace(TINY, parts=lambda: data.cut(X, X[:, :2], 99))
    stems = [plan.folder(tmp_path, one).stem for one in (TINY, TINY, wider, other)]
    assert stems[0] == stems[1]
    assert len(set(stems)) == 3


def test_a_loss_that_grows_or_is_no_number_is_a_divergence(tmp_path: Path) -> None:
    class Bad(MadeUp):
        def _run(
            self, rates: tuple[float, ...], horizon: int, stream: Stream, seeds: Sequence[int]
        ) -> Any:
            found = np.ones((len(self.size.marks(horizon)), len(rates), len(seeds)))
            found[-1] = [np.inf, 9.9][: len(seeds)]
            return found

    cells = Bad(TINY, HAND_MADE[ADAMW], SIZE, Folder(tmp_path, "bad"), lambda _: None).outcome()
    assert [cells.cells[BEST][step].diverged for step in (2, 4)] == [0, 1]
    assert cells.cells[BEST][4].losses == [1e30, 9.9]


def compared(tmp_path: Path) -> dict[str, Any]:
    """The JSON of two tasks, where losses of all are made up."""
    learned = Contender("ours", HAND_MADE[ADAMW].make, (1.0,), learned=True)
    packaged = [replace(HAND_MADE[ADAMW], name=name) for name in (SOAP, FREE)]
    everyone = [learned, HAND_MADE[ADAMW], HAND_MADE[COSINE], *packaged]
    tasks = {}
    for name in ("tiny", "other"):
        task = replace(TINY, name=name)
        folder = plan.folder(tmp_path, task)
        folder.path.mkdir(exist_ok=True)
        of = {
            one.name: asdict(MadeUp(task, one, SIZE, folder, lambda _: None).outcome())
            for one in everyone
        }
        tasks[name] = {"about": task.about, "contenders": of}
    found = {
        "size": asdict(SIZE),
        "missing": ["MNIST left out."],
        "text": "a text",
        "versions": {"torch": "2"},
        "contenders": {
            one.name: {"learned": one.learned, "grid": one.grid, "told": one.told}
            for one in everyone
        },
        "tasks": tasks,
    }
    return json.loads(json.dumps(found))


def test_speed_ups_count_the_steps_that_adamw_needs(tmp_path: Path) -> None:
    found = compared(tmp_path)
    told = {1: 1.0, 2: 0.5, 4: 0.25, 8: 0.125}
    for task in found["tasks"].values():
        for step, loss in told.items():
            task["contenders"][COSINE]["cells"][BEST][str(step)]["losses"] = [loss, loss]
        # Half of AdamW's loss after 2 steps is that after 4; nothing of it is 0.01; 3 is at once.
        task["contenders"]["ours"]["cells"][BEST]["2"]["losses"] = [0.25, 0.25]
        task["contenders"]["ours"]["cells"][BEST]["4"]["losses"] = [0.01, 3.0]
        task["contenders"]["ours"]["cost"]["seconds"] = 4e-3
    at_2 = result.speed_ups(found, "ours", BEST, 2)
    assert (at_2["steps"], at_2["ci95"]) == (2.0, [2.0, 2.0])
    assert at_2["seconds"] == pytest.approx(1.0)
    assert (at_2["never"], at_2["at_fewest"]) == (0, 0)
    at_4 = result.speed_ups(found, "ours", BEST, 4)
    assert (at_4["never"], at_4["at_fewest"]) == (2, 2)
    assert at_4["by_task"] == [[2.0, 0.25]] * 2
    own = result.speed_ups(found, COSINE, BEST, 4)
    assert own["steps"] == 1.0


def test_the_page_says_what_is_met_and_what_is_left_out(tmp_path: Path) -> None:
    found = compared(tmp_path)
    for task in found["tasks"].values():
        for cell in task["contenders"]["ours"]["cells"][BEST].values():
            cell["losses"] = [loss / 1e3 for loss in cell["losses"]]
    found |= result.comparison(found)
    bars = {one["bar"]: one["met"] for one in found["bars"]["ours"]}
    assert bars[f"speed-up over {COSINE}, in steps, at 2"]
    assert bars["a step's time to SOAP's"]
    assert bars["runs of 4 that diverge"]
    text = page.text(found)
    assert "- MNIST left out." in text
    assert f"`ours` meets {len(bars)} of the {len(bars)} bars" in text
    assert "At 2 steps it is ahead of: AdamW, constant; AdamW, cosine; SOAP;" in text
    for cell in found["tasks"]["tiny"]["contenders"]["ours"]["cells"][BEST].values():
        cell["losses"] = [1e6, 1e6]
    worse = result.bars(found, "ours", found | result.comparison(found))
    assert [one["met"] for one in worse if "loss to" in one["bar"]] == [False]


def test_the_middle_half_is_what_is_averaged() -> None:
    assert result.interquartile_mean(np.array([100.0, 1, 2, 3, 4, 5, 6, -9])) == 3.5


def test_seeds_are_drawn_within_the_tasks_that_are_drawn() -> None:
    index = result.both_levels(4, 3)
    of_tasks = index.reshape(len(index), 4, 3) // 3
    assert (of_tasks == of_tasks[:, :, :1]).all()
    assert np.bincount(index.ravel(), minlength=12).min() > 0


def test_other_columns_have_other_steps_between_them() -> None:
    size = chosen.columns(Size(), [100, 400])
    assert size.columns == (100, 400)
    assert size.between == (25, 50, 200, 800)
    assert [size.column_of(step) for step in size.between] == [100, 100, 400, 400]


def test_a_name_that_is_not_there_is_told() -> None:
    with pytest.raises(UserError, match="--tasks: found 'sudoku', expected some of a; b"):
        chosen.named("--tasks", ["sudoku"], ["a", "b"])
    assert chosen.named("--tasks", ["b", "a"], ["a", "b"]) == ["a", "b"]


def test_what_an_optimizer_keeps_is_counted() -> None:
    adamw = training.cost(TINY, HAND_MADE[ADAMW], 2)
    numbers = sum(p.numel() for p in TINY.make().parameters())
    # Two moments of each number, and a count of steps for each tensor; float32.
    assert adamw.state_bytes == 4 * (2 * numbers + 4)
    assert (
        training.cost(TINY, HAND_MADE["SGD with momentum, constant"], 2).state_bytes == 4 * numbers
    )
    assert 0 < adamw.step_seconds <= adamw.seconds


def test_rows_apart_are_a_fifth_or_400() -> None:
    parts: Parts = data.cut(torch.zeros(5000, 1), torch.zeros(5000), 98)
    assert [len(rows.x) for rows in (parts.train, parts.validation, parts.test)] == [4200, 400, 400]
    assert isinstance(parts.test, Rows)


def test_only_rules_that_hear_a_horizon_are_told_the_step() -> None:
    told = [one.name for one in contenders.told_the_step([DEFAULT, "digits_update_tele"])]
    assert told == [f"{DEFAULT}, told the step"]
    (one,) = contenders.told_the_step([DEFAULT])
    trainer = one.trainer(nn.Linear(4, 2), 1.0, 9)
    (optimizer,) = trainer.optimizers
    assert isinstance(optimizer, metaopt.LearnedOptimizer)
    assert optimizer.horizon == 9
    assert not trainer.schedules
