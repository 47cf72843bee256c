"""The worked example: its commands are valid, its tables say what the results say."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from cases import LAYER, run_and_resume, train_config

from metaopt import LearnedRule, symmetries
from metaopt.base.config import load
from metaopt.base.streams import Stream
from metaopt.evaluation.config import EvalConfig
from metaopt.meta.build import meta_optimizer, training_tasks
from metaopt.meta.config import TrainConfig
from metaopt.meta.trainer import MetaTrainer
from metaopt.tasks.build import task_family
from metaopt.tasks.image_networks import NETWORKS
from metaopt.tasks.images import Images
from metaopt.tasks.own_batch import LossFamily
from metaopt.tasks.variations import InTurn
from studies import digits, drop_in_training
from studies.rivals.contenders import COSINE, hand_made, learned


def overrides(command: list[str]) -> list[str]:
    return [command[i + 1] for i, word in enumerate(command) if word == "--set"]


@pytest.mark.parametrize("smoke", [False, True])
def test_the_two_runs_differ_in_their_teleporter_alone(smoke: bool) -> None:
    configs = []
    for pair in (True, False):
        out, command = digits.training(Path("runs"), pair, smoke)
        config = load(TrainConfig, "digits_update_tele.yaml", overrides(command))
        assert out.name == config.name
        configs.append(config.model_dump())
    pair_dump, alone = configs
    assert alone["teleporter"] is None
    differing = {key for key in pair_dump if pair_dump[key] != alone[key]}
    assert differing == {"name", "label", "rules", "teleporter"}
    assert pair_dump["rules"]["update"] == alone["rules"]["update"]


def test_evaluations_are_on_unseen_images() -> None:
    for changed in ((), digits.UNBALANCED):
        command = digits.evaluation(Path("runs"), [Path("a")], changed, smoke=False)
        config = load(EvalConfig, "eval_digits.yaml", overrides(command))
        assert config.tasks == 100
        assert config.steps == 1000
        assert config.task.options is not None
        assert config.task.options["unseen"] is True


def test_tables_have_the_ratios_that_matter() -> None:
    def one(kind: str) -> dict[str, Any]:
        origin = {"tuned_for_step": 2 if kind == "for another step" else 1}
        kind = "learned" if kind == "learned" else "baseline"
        losses = {"loss_geomean": [3.0, 2.0], "loss_q95": [3.5, 2.5]}
        return {"kind": kind, "diverged": 0, "origin": origin} | losses

    pair, alone, adam = "layer LSTM(update,tele) #0", "layer LSTM(update) #0", "Adam"
    late = "Adam@2"
    other = "layer LSTM(update) #1"
    kinds = {pair: "learned", alone: "learned", other: "learned", adam: "baseline"}
    kinds[late] = "for another step"
    found = {
        "steps": 1,
        "optimizers": {name: one(kind) for name, kind in kinds.items()},
        "pairs": [
            {"a": a, "b": b, "step": 1, "ratio": 0.5, "ci95": [0.4, 0.6], "win_rate": 0.9}
            for a in kinds
            for b in kinds
            if a != b
        ],
    }
    lines = digits.tables(found).splitlines()
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines if line]
    compared = {(row[0], row[1]) for row in cells}
    assert {(pair, adam), (alone, adam), (other, adam), (pair, alone)} <= compared
    assert (alone, pair) not in compared
    assert (pair, other) not in compared
    assert (adam, pair) not in compared
    assert (pair, late) not in compared
    assert any("0.500 (0.400 to 0.600)" in line and "90 %" in line for line in lines)


@pytest.mark.parametrize("network", NETWORKS)
def test_networks_are_meta_trained_through(network: str) -> None:
    family = LossFamily(Images(width=8, network=network, judged=12, batch=4), "images")
    family.check()
    tasks = family.sample(Stream.TRAIN, 0, 0, 2)
    assert tasks.units is not None
    options = {"width": 8, "network": network, "judged": 12, "batch": 4}
    task = {"family": "metaopt.tasks.images:Images", "options": options}
    meta = {"batch": 2, "outer_steps": 2, "steps": 2, "unroll": 2, "order": 2}
    config = train_config(
        "layer_units",
        task=task,
        dtype="float32",
        meta=meta | {"objective": "judged"},
        validation={"every": 2, "tasks": 2},
    )
    window = MetaTrainer(config, torch.device("cpu")).outer_step()
    assert not window.skipped
    assert all(norm > 0 for norm in window.grad_norms.values())
    assert window.teleports["drift_max"] < 1e-4


def test_meta_batches_take_turns_and_resume() -> None:
    options = {"width": 4, "judged": 8, "batch": 4}
    more = [options | {"width": 6, "network": "four_layers"}]
    task = {"family": "metaopt.tasks.images:Images", "options": options, "more": more}
    config = train_config(
        "layer",
        task=task,
        meta={"batch": 2, "outer_steps": 8, "steps": 4, "unroll": 2},
        validation={"every": 8, "tasks": 2},
    )

    layers = run_and_resume(config, lambda run: run.tasks and len(run.tasks.initial))
    assert layers == [4, 4, 10, 10, 4, 4, 10, 10]


def test_unbalanced_networks_compute_the_same() -> None:
    plain, moved = Images(width=6), Images(width=6, unbalanced=2.0)
    tasks = [family.sample(np.random.default_rng(3)) for family in (plain, moved)]
    rows = (torch.arange(20),)
    losses = [plain.loss(dict(task.weights), rows, *plain.shared) for task in tasks]
    torch.testing.assert_close(*losses, rtol=1e-5, atol=0)
    name = next(iter(tasks[0].weights))
    assert not torch.allclose(tasks[0].weights[name], tasks[1].weights[name])


def test_a_users_loop_is_measured(tmp_path: Path) -> None:
    config = train_config("layer", dtype="float32", rules={"update": LAYER})
    path = tmp_path / "rule.safetensors"
    LearnedRule(meta_optimizer(config), config).save(path)
    size = drop_in_training.SMOKE
    contenders = [*learned([str(path)]), *hand_made()[:2]]
    found = drop_in_training.rows(size, contenders)
    assert len(found) == len(drop_in_training.MODELS) * len(contenders)
    losses = np.array([row.losses for row in found])
    assert losses.shape == (len(found), len(size.marks), size.seeds)
    assert ((losses > 0) & (losses < 20)).all()
    lines = drop_in_training.table(found, size).splitlines()
    assert len(lines) == 2 + len(found)
    # The rule, to the one rival of the bars that takes part.
    told = next(row for row in found if row.optimizer == COSINE)
    own = found[0]
    ratio = np.exp(np.log(np.array(own.losses[-1]) / np.array(told.losses[-1])).mean())
    row = drop_in_training.ratios(found, size).splitlines()[2]
    assert f"{ratio:.3g} (" in row.split("|")[-2]


@pytest.mark.parametrize("name", drop_in_training.MODELS)
def test_models_of_the_table_are_no_networks_of_meta_training(name: str) -> None:
    torch.manual_seed(0)
    model = drop_in_training.MODELS[name]()
    matrices = {p.shape for p in model.parameters() if p.dim() > 1}
    config = load(TrainConfig, "general_update.yaml")
    families = training_tasks(task_family(config.task), config)
    assert isinstance(families, InTurn)
    assert len(families.families) > 20
    for family in families.families:
        seen = family.sample(Stream.TRAIN, 0, 0, 1)
        # Of its matrices none, but for layers that all networks of ten classes may share.
        assert not matrices <= {*seen.shapes.values()}
    assert symmetries(model)


def test_the_rule_of_digits_saw_one_model_of_the_table() -> None:
    task = load(TrainConfig, "digits_update_tele.yaml").task
    assert task.options is not None
    assert task.more is not None
    networks = [Images(**options).net for options in (task.options, *task.more)]  # type: ignore[arg-type]
    seen = [{p.shape for p in network.parameters() if p.dim() > 1} for network in networks]
    for name, make in drop_in_training.MODELS.items():
        matrices = {p.shape for p in make().parameters() if p.dim() > 1}
        assert any(matrices <= shapes for shapes in seen) == (name == "two layers, 32 units")
