"""The study: statistics of a hand-made case, budgets, and the least loss."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from support import basis_of, tiny_config

from metaopt.base import config
from metaopt.base.errors import UserError
from metaopt.base.loss_statistics import resamples
from metaopt.base.process import World
from metaopt.evaluation.config import EvalConfig
from metaopt.evaluation.evaluate import unseen_tasks
from metaopt.meta.build import meta_optimizer
from metaopt.meta.config import TrainConfig
from metaopt.meta.trainer import MetaTrainer
from metaopt.tasks.least_loss import rank_bound
from studies.pool import alone
from studies.study.config import HAND_MADE, StudyConfig, smoked
from studies.study.evaluation import (
    Compared,
    RunOf,
    best_hand_made,
    excess,
    least_losses,
    right_to_rounding,
)
from studies.study.plan import Point, Study, budget
from studies.study.result import checked, ratios

CPU = torch.device("cpu")


def study_config(*overrides: str) -> StudyConfig:
    return config.load(StudyConfig, "study.yaml", overrides)


def contender(name: str, kind: str, *losses: list[float], rounding: float = 0.0) -> Compared:
    """Runs of one inner step from a loss of 1; each list is one seed's losses of the tasks."""
    about: dict[str, Any] = {
        "seconds_per_step": 1.0,
        "gradients_per_step": 1.0,
        "teleport": None,
        "origin": {},
    }
    arrays = [np.array([[1.0] * len(row), row]) for row in losses]
    seeds = range(len(losses)) if kind == "learned" else [None]
    runs = [
        RunOf(seed, array, array, about, rounding)
        for seed, array in zip(seeds, arrays, strict=True)
    ]
    return Compared(name, name, kind, runs)


PAIR = contender("coordinate_update_tele", "learned", [1.0, 4.0], [4.0, 4.0])
RIVAL = contender("coordinate_update", "learned", [4.0, 8.0], [1.0, 32.0])
ADAM = contender("Adam@10", "baseline", [8.0, 8.0])
REFERENCE = contender("solve W2", "reference", [1e-9, 1e-9])
INDEX = resamples(2, 100, 0)


def test_ratios_seed_by_seed_over_seeds_and_the_worst_against_the_best() -> None:
    found = {row.seed: row for row in ratios(PAIR, RIVAL, INDEX) if row.step == 1}
    assert found["0"].ratio == pytest.approx((1 / 4 * 4 / 8) ** 0.5)
    assert found["1"].ratio == pytest.approx((4 / 1 * 4 / 32) ** 0.5)
    # Over seeds the pair has 2, 4 and its rival 2, 16; the worst seed is 1, the rival's best too.
    assert found["all"].ratio == pytest.approx((2 / 2 * 4 / 16) ** 0.5)
    assert found["all"].win_rate == 0.5
    assert found["worst/best"].ratio == pytest.approx((4 / 1 * 4 / 32) ** 0.5)
    # Of two tasks every interval ends at the two quotients.
    assert found["0"].ci95 == pytest.approx([1 / 4, 1 / 2])
    against_one = {row.seed: row for row in ratios(PAIR, ADAM, INDEX) if row.step == 1}
    assert against_one["0"].ratio == pytest.approx((1 / 8 * 4 / 8) ** 0.5)
    assert against_one["1"].ratio == pytest.approx(0.5)


def test_only_first_order_methods_are_hand_made_rivals() -> None:
    assert best_hand_made([PAIR, ADAM, REFERENCE], 1) is ADAM
    assert best_hand_made([PAIR, REFERENCE], 1) is None


def test_claims_are_met_in_each_seed_or_not_at_all() -> None:
    bars = [
        "{row: coordinate_update_tele, below: {1: 4}}",
        "{row: coordinate_update_tele, below: {1: 3}}",
        "{row: coordinate_update_tele, against: coordinate_update, below: {1: 0.6}}",
        "{row: coordinate_update_tele, against: hand-made, below: {1: 0.6}}",
        "{row: coordinate_update_tele, against: hand-made, below: {1: 0.4}}",
        "{row: coordinate_update_tele, below: {1000: 4}}",
    ]
    study = study_config("seeds=[0, 1]", f"bars=[{', '.join(bars)}]")
    rows = checked(study, {"default": [PAIR, RIVAL, ADAM]}, INDEX)
    met = [row.met_in_each for row in rows if row.step == 1]
    assert met == [True, False, False, True, False]
    assert rows[1].met == {"0": True, "1": False, "all": True}
    # Seed 1 has the quotients 4 and 1/8: the upper end of its interval is above any bar.
    assert rows[2].met == {"0": True, "1": False, "all": False, "worst/best": False}
    assert [row.what for row in rows[5:]] == ["tasks diverged"] * 2


@pytest.mark.parametrize(("rounding", "level"), [(5.0, False), (6.0, True)])
def test_a_claim_is_level_where_all_losses_are_down_to_rounding(
    rounding: float, level: bool
) -> None:
    """The largest geometric mean is 32 ** 0.5, of the rival's second seed: 5.66."""
    bar = "{row: coordinate_update_tele, against: coordinate_update, below: {1: 1}}"
    study = study_config("seeds=[0, 1]", f"bars=[{bar}]")
    both = [
        contender("coordinate_update_tele", "learned", [1.0, 4.0], [4.0, 4.0], rounding=rounding),
        contender("coordinate_update", "learned", [4.0, 8.0], [1.0, 32.0], rounding=rounding),
    ]
    assert checked(study, {"default": both}, INDEX)[0].level == level


def test_outputs_are_right_to_rounding_within_twice_that_of_the_first_error() -> None:
    settings = config.load(EvalConfig, "eval.yaml", ["tasks=2", "dtype=float64"])
    eps = np.finfo(np.float64).eps
    found = right_to_rounding(np.array([[1e6, 4e6], [1.0, 1.0]]), settings)
    assert found == pytest.approx(4 * eps**2 * 2e6)


def test_a_claim_whose_row_or_rival_was_left_out_is_not_met() -> None:
    bars = [
        "{row: coordinate_update, below: {1: 4}}",
        "{row: coordinate_update, against: hand-made, below: {1: 1}}",
        "{row: coordinate_update_tele, against: coordinate_update, below: {1: 1}}",
    ]
    study = study_config("seeds=[0, 1]", f"bars=[{', '.join(bars)}]")
    rows = [row for row in checked(study, {"default": [PAIR]}, INDEX) if row.step == 1]
    assert [row.what for row in rows] == [
        "loss",
        "ratio to hand-made",
        "ratio to coordinate_update",
    ]
    assert [(row.found, row.met_in_each) for row in rows] == [({}, False)] * 3


NARROW = ["tasks=5", "dtype=float64", "task.width=3", "task.samples=7", "task.inputs=9"]


def test_the_least_loss_is_reached_and_no_weights_are_below_it() -> None:
    settings = config.load(EvalConfig, "eval.yaml", NARROW)
    least, tasks = least_losses(settings), unseen_tasks(settings, CPU, World())
    _, _, Vh = torch.linalg.svd(tasks.Y, full_matrices=False)
    H = Vh[:, :3]
    W1 = torch.where(H > 0, H, H / settings.task.slope) @ torch.linalg.pinv(tasks.X)
    loss = tasks.loss((W1, tasks.Y @ H.mT)).numpy()
    assert least.min() > 0.1
    np.testing.assert_allclose(loss, least, rtol=1e-9)
    moved = tasks.loss((W1 + 0.01 * tasks.initial[0], tasks.Y @ H.mT)).numpy()
    assert (moved > least).all()
    assert (excess(np.stack([moved, least]), least, settings)[0] == moved - least).all()
    # At the least loss itself what is left is rounding, and not 0.
    floor = excess(np.stack([moved, least]), least, settings)[1]
    np.testing.assert_allclose(floor, np.finfo(np.float64).eps * least)


def test_the_least_loss_of_other_families() -> None:
    assert not least_losses(config.load(EvalConfig, "eval.yaml", ["tasks=5"])).any()
    # With more samples than inputs it is searched for; no loss is below the bound by rank.
    inexact = config.load(EvalConfig, "eval.yaml", [*NARROW, "task.inputs=5"])
    tasks = unseen_tasks(inexact, CPU, World())
    found = least_losses(inexact)
    assert (found > rank_bound(tasks).numpy() - 1e-9).all()
    assert (found < tasks.loss(tasks.initial).numpy()).all()
    with pytest.raises(UserError, match="two layers"):
        least_losses(config.load(EvalConfig, "eval.yaml", [*NARROW, "task.layers=3"]))


@pytest.mark.parametrize(("steps", "unroll", "outer_steps"), [(4, 2, 4), (8, 3, 7), (5, 5, 3)])
def test_budgets_are_what_meta_training_uses(steps: int, unroll: int, outer_steps: int) -> None:
    settings = tiny_config(steps=steps, unroll=unroll, outer_steps=outer_steps)
    trainer = MetaTrainer(settings, CPU)
    while not trainer.finished:
        trainer.outer_step()
    used = budget(settings)
    assert used.inner_steps == used.gradients == trainer.progress.inner_steps
    assert used.trajectories == pytest.approx(trainer.trajectories)


def test_unequal_budgets_are_refused(tmp_path: Path) -> None:
    Study(study_config(), tmp_path, "cpu").check_budgets()
    more = "controls=[{name: more, config: coordinate_update.yaml, group: coordinate, "
    unequal = study_config(more + "set: {meta.batch: 9}}]", "bars=[]")
    with pytest.raises(UserError, match=r"trajectories of coordinate_update_tele are .* of more "):
        Study(unequal, tmp_path, "cpu").check_budgets()


def test_a_row_is_a_configuration_with_overrides(tmp_path: Path) -> None:
    study = study_config("families.narrow={width: 10}")
    planner, row = Study(study, tmp_path, "cpu"), study.row("lstm_update_tele_narrow")
    run = planner.training(row, 7, share=0.25, point=Point(2.0, 0.3))
    whole = planner.training(row, 7).settings
    assert run.settings.task.width == 10
    assert (run.settings.seed, run.settings.name) == (7, row.name)
    assert basis_of(run.settings.rules.update).free == 0.3
    assert run.settings.meta.outer_steps == whole.meta.outer_steps // 4
    for place, rule in run.settings.rules.by_name().items():
        assert rule.learning_rate == pytest.approx(2 * whole.rules.by_name()[place].learning_rate)
    assert run.folder != planner.training(row, 7).folder
    assert planner.training(row, 7).folder == planner.training(row, 7).folder


def test_the_control_for_capacity_has_the_parameters_of_the_pair(tmp_path: Path) -> None:
    study = study_config()
    planner = Study(study, tmp_path, "cpu")
    pair, alone, control = (
        sum(
            p.numel()
            for p in meta_optimizer(planner.training(study.row(row), 0).settings).parameters()
        )
        for row in ("coordinate_update_tele", "coordinate_update", "capacity")
    )
    assert alone < 0.9 * pair
    assert control == pytest.approx(pair, rel=0.02)


@pytest.mark.parametrize("kind", ["coordinate", "lstm"])
def test_the_teleporter_of_the_pair_may_do_what_that_of_lr_tele_may(kind: str) -> None:
    pair = config.load(TrainConfig, f"{kind}_update_tele.yaml").rules.teleport
    alone = config.load(TrainConfig, f"{kind}_lr_tele.yaml").rules.step_teleport
    for field in ("hidden", "scale", "free"):
        assert getattr(pair, field) == getattr(alone, field)
    field = "basis"
    basis, own = getattr(pair, field), getattr(alone, field)
    if basis != own:
        # Then a row of its study lends it to the other.
        study, name = config.load(StudyConfig, f"study_{kind}.yaml"), f"{kind}_lr_tele_{basis}"
        assert study.row(name).set["rules.step_teleport.basis"] == basis
        assert name in {bar.against for bar in study.bars}


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("seeds=[0, 0]", "each one once"),
        ("bars=[{row: nobody, below: {1: 1}}]", "found 'nobody'"),
        ("learned=[{name: a, config: b.yaml, group: none}]", "found 'none', known here: coord"),
        ("task=3", "unknown field task; did you mean tasks"),
    ],
)
def test_mistakes_are_one_line(override: str, message: str) -> None:
    with pytest.raises(UserError, match=message) as caught:
        study_config(override)
    assert "\n" not in str(caught.value)


def test_the_smoke_keeps_what_it_names() -> None:
    study = study_config()
    assert study.smoke is not None
    small = config.check(StudyConfig, smoked(study), "smoke")
    assert {row.name for row in small.rows} == set(study.smoke.rows)
    assert set(small.families) == set(study.families)
    assert len(small.ablations.rows) == 1
    there = {*study.smoke.rows, HAND_MADE, None}
    bars = [bar for bar in study.bars if {bar.row, bar.against} <= there]
    assert {bar.against for bar in bars} == {HAND_MADE, None}
    assert small.bars == bars


def test_two_studies_do_not_share_a_folder(tmp_path: Path) -> None:
    another = pytest.raises(UserError, match="another study works there")
    with alone(tmp_path), another, alone(tmp_path):
        pass
    with alone(tmp_path):
        assert (tmp_path / ".lock").is_file()
