"""studies.transfer: pieces are the whole, inexact actions under guard, failures are shown."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from cases import learned_rule
from cases import tasks as sample

from metaopt.base.process import World
from metaopt.evaluation.config import EvalConfig
from metaopt.evaluation.contenders import Contender, learned_contenders
from metaopt.evaluation.evaluate import Outcome, run_contender, unseen_tasks
from metaopt.rules.composed import MetaOptimizer
from metaopt.symmetry.actions import InexactActionError
from metaopt.tasks.config import TaskConfig
from studies import transfer
from studies.output import PRETRAINED, in_repository
from studies.transfer import (
    Setting,
    contenders,
    evaluation,
    in_pieces,
    joined,
    of_this_family,
    piece_size,
    rows,
    with_teleporter,
    zero_is_reachable,
)

CPU = torch.device("cpu")
SMALL = {"width": 4, "inputs": 5, "outputs": 3, "samples": 4, "layers": 2}
TUNING = (
    "dtype=float64",
    "baselines=[Adam]",
    "tuning.tasks=2",
    "tuning.grids.Adam.lr=[0.01, 0.1]",
    "tuning.grids.Adam.beta1=[0.9]",
    "tuning.grids.Adam.beta2=[0.9]",
)
WIDER = Setting("wider", SMALL | {"width": 6}, steps=3)
# Signed data, since uniform weights and data keep LeakyReLU linear, and everything exact.
SIGNED = {"weights": "gaussian", "data": "gaussian"}


def config_of(setting: Setting, tasks: int = 5) -> EvalConfig:
    return evaluation(setting, tasks, 0, TUNING)


def inexact(guard: str) -> Setting:
    return Setting(guard, SMALL | SIGNED | {"samples": 9}, 3, {"guard": guard})


@pytest.fixture
def paths(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Path]:
    """Checkpoints by kind; what is tuned is kept apart."""
    monkeypatch.setattr(transfer, "TUNED_BASELINES", tmp_path / "tuned.json")
    made = {}
    for kind in ("coordinate_lstm", "lstm"):
        made[kind] = tmp_path / f"{kind}.safetensors"
        learned_rule(kind).save(made[kind])
    return made


def test_pieces_are_the_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    config = config_of(WIDER)
    contender = Contender("c", "learned", learned_rule("coordinate_lstm").optimizer, {})
    whole = run_contender(contender, unseen_tasks(config, CPU, World()), 3, World())
    # 5 tasks in pieces of 2.
    monkeypatch.setattr(transfer, "ROWS", 2 * (6 * 5 + 3 * 6))
    assert piece_size(config.task) == 2
    pieces = in_pieces(contender, config, CPU)
    np.testing.assert_allclose(pieces.losses, whole.losses, rtol=1e-12)
    assert whole.teleport is not None
    # The drift is of rounding, which differs with the size of a batch.
    assert pieces.teleport == pytest.approx(whole.teleport, abs=1e-12)
    assert pieces.teleport is not None
    assert pieces.teleport["norm_mean"] > 0


def test_summaries_are_weighed_by_tasks() -> None:
    contender = Contender("c", "learned", learned_rule("coordinate_lstm").optimizer, {})
    parts = [
        Outcome(contender, np.ones((2, 1)), 1.0, {"norm_mean": 1.0, "drift_max": 3.0}),
        Outcome(contender, np.ones((2, 3)), 2.0, {"norm_mean": 5.0, "drift_max": 2.0}),
    ]
    found = joined(parts)
    assert found.teleport == {"norm_mean": 4.0, "drift_max": 3.0}
    assert found.losses.shape == (2, 4)


def test_memory_is_bounded_by_rows() -> None:
    assert piece_size(TaskConfig()) == 2**17 // 800
    assert piece_size(TaskConfig(width=80)) == 2**17 // 6400
    assert piece_size(TaskConfig(width=1000, inputs=1000)) == 1


@pytest.mark.parametrize(
    ("sizes", "answer"),
    [
        ({}, "yes"),
        ({"width": 80}, "yes"),
        ({"width": 10}, "no"),
        ({"samples": 40}, "no"),
        ({"samples": 40, "outputs": 2, "width": 10}, "not known"),
    ],
)
def test_where_loss_zero_can_be_reached(sizes: dict[str, int], answer: str) -> None:
    task = TaskConfig.model_validate(sizes)
    assert zero_is_reachable(task) == answer
    batch = sample(task, count=2)
    H = batch.observe(batch.initial).inputs[-1]
    solved = batch.loss((batch.initial[0], batch.Y @ torch.linalg.pinv(H)))
    # Solving the last layer shows the first answer; Eckart and Young the second one.
    beyond = torch.linalg.svdvals(batch.Y)[:, task.width :]
    if answer == "yes":
        assert float(solved.max()) < 1e-12
    elif task.width < min(task.outputs, task.samples):
        assert bool((solved >= 0.5 * beyond.square().sum(1)).all())
        assert float(beyond.min()) > 0


def test_an_inexact_action_is_left_to_the_guard(paths: dict[str, Path]) -> None:
    path = paths["coordinate_lstm"]
    config = config_of(inexact("refuse"))
    (plain,) = contenders(Setting("plain"), config, [path], CPU, World())[:1]
    with pytest.raises(InexactActionError):
        in_pieces(plain, config, CPU)
    found = {}
    for guard in ("refuse", "shrink"):
        setting = inexact(guard)
        (fitted,) = contenders(setting, config, [path], CPU, World())[:1]
        assert isinstance(fitted.optimizer, MetaOptimizer)
        teleport = in_pieces(fitted, config, CPU).teleport
        assert teleport is not None
        assert teleport["drift_max"] <= 1e-4
        found[guard] = teleport
    # These generators all drift too far as they are, and go through once they are shrunk.
    assert found["refuse"]["refused_share"] == 1
    assert found["refuse"]["norm_mean"] == 0
    assert found["shrink"]["refused_share"] < 0.5
    assert found["shrink"]["norm_mean"] > 0


def test_without_fields_the_engine_stays(paths: dict[str, Path]) -> None:
    rule = learned_rule("coordinate_lstm")
    contender = Contender("c", "learned", rule.optimizer, {})
    before = rule.optimizer.engine
    assert with_teleporter(contender, paths["coordinate_lstm"], {}).optimizer is rule.optimizer
    assert rule.optimizer.engine is before


def test_rules_of_other_families_are_left_out() -> None:
    kinds = ("lr_tele", "update", "update_tele")
    wanted = [f"{rule}_{kind}" for rule in ("coordinate", "lstm") for kind in kinds]
    assert [path.stem for path in of_this_family()] == wanted


def test_an_action_that_is_exact_on_any_data_stays() -> None:
    path = PRETRAINED / "lora_update_tele.safetensors"
    (contender,) = learned_contenders([path], CPU, True, World())
    assert isinstance(contender.optimizer, MetaOptimizer)
    before = contender.optimizer.engine
    for guard in ("refuse", "shrink"):
        with_teleporter(contender, path, {"guard": guard})
    assert contender.optimizer.engine is before


def test_a_flattened_rule_is_a_row_that_says_why_it_is_left_out(paths: dict[str, Path]) -> None:
    found = rows(WIDER, config_of(WIDER), list(paths.values()), CPU, World())
    by_name = {row.optimizer: row for row in found}
    assert by_name["lstm"].left_out is not None
    assert "flattened" in by_name["lstm"].left_out
    for name in ("coordinate_lstm", "Adam"):
        assert by_name[name].left_out is None
        assert by_name[name].tasks == 5
        assert set(by_name[name].loss_geomean) == {0}
    assert "left out" in transfer.table(found)


def test_the_settings_are_possible_and_what_was_asked_for() -> None:
    configs = {s.name: evaluation(s, 4, 7, transfer.TUNING) for s in transfer.SETTINGS}
    assert len(configs) == len(transfer.SETTINGS)
    assert configs["horizon 1,000"].steps == 1000
    assert {c.task.width for c in configs.values()} == {5, 10, 20, 40, 80}
    assert configs["all sizes 40"].task.samples == configs["all sizes 40"].task.inputs == 40
    assert {c.task_seed for c in configs.values()} == {7}
    for setting in transfer.SETTINGS:
        task = configs[setting.name].task
        assert bool(setting.teleporter) == (task.samples > task.inputs)


def test_the_command_writes_rows_and_table(
    paths: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(transfer, "SETTINGS", (WIDER, inexact("shrink")))
    monkeypatch.setattr(transfer, "TUNING", TUNING)
    monkeypatch.setattr(transfer, "SHOWN", (0, 1, 3))
    checkpoint = str(paths["coordinate_lstm"])
    arguments = ["--checkpoints", checkpoint, "--tasks", "3"]
    arguments += ["--write-page", str(tmp_path / "transfer.md")]
    monkeypatch.setattr(sys, "argv", ["transfer", *arguments])
    transfer.main(World())
    found = json.loads((tmp_path / "transfer.json").read_text())
    assert [row["setting"] for row in found["rows"]] == 2 * ["wider"] + 2 * ["shrink"]
    pair, adam = found["rows"][:2]
    assert list(pair["loss_geomean"]) == list(adam["loss_geomean"]) == ["0", "1", "3"]
    assert pair["loss_geomean"]["0"] == adam["loss_geomean"]["0"] > 0
    assert adam["teleport"] is None
    assert adam["origin"]["tuned_for_step"] == 3
    page = (tmp_path / "transfer.md").read_text()
    assert page.startswith("<!-- transfer table -->\n3 test tasks")
    assert page.count("coordinate_lstm") == page.count("Adam") == 2


def test_origins_of_the_repository_name_no_machine() -> None:
    found = in_repository({"checkpoint": str(PRETRAINED / "a.safetensors"), "seed": 0})
    assert found == {"checkpoint": "checkpoints/pretrained/a.safetensors", "seed": 0}
    elsewhere = {"checkpoint": str(Path("/elsewhere/a.safetensors"))}
    assert in_repository(elsewhere) == elsewhere
    assert in_repository({"hyperparameters": {}}) == {"hyperparameters": {}}


def test_the_page_is_made_of_the_figures_beside_it() -> None:
    path = transfer.PAGE.path
    content = json.loads(path.with_name("transfer.json").read_text())
    assert f"<!-- transfer table -->\n{transfer.page(content)}\n<!-- end" in path.read_text()
