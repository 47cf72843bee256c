"""A user's task families: exact gradients, mini-batches named by task and step, mistakes."""

from __future__ import annotations

import json
import math
import re
import sys
from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from differences import Replay, assert_matches_differences, meta_loss
from hypothesis import given
from hypothesis import strategies as st
from places import PRETRAINED
from running import assert_one_line, run_here
from support import FEW, UPDATE, amplify_head, regression, relative_error, seeds
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional

import metaopt
from metaopt.base.config import check
from metaopt.base.errors import UserError
from metaopt.base.streams import Stream, choices, item_generator
from metaopt.meta.build import meta_optimizer
from metaopt.meta.config import TrainConfig
from metaopt.meta.trainer import MetaTrainer
from metaopt.meta.unroll import rollout, second_order
from metaopt.optim.learned import LearnedRule
from metaopt.rules.build import hand_made
from metaopt.tasks.config import TaskConfig
from metaopt.tasks.own_batch import LossFamily, LossTasks
from metaopt.tasks.regression import TaskBatch

CPU = torch.device("cpu")
HERE = "test_families"


class Logistic(metaopt.Family):
    """Two classes told apart by a plane, with label noise; data kept apart to be judged on."""

    apart = True

    def __init__(self, inputs: int = 4, batch: int | None = 8, examples: int = 24) -> None:
        self.inputs = inputs
        self.batch = batch
        self.examples = examples

    def sample(self, generator: np.random.Generator) -> metaopt.Task:
        plane = generator.normal(size=self.inputs)
        points = generator.normal(size=(2 * self.examples, self.inputs))
        noise = 0.3 * generator.normal(size=len(points))
        x, y = torch.from_numpy(points), torch.from_numpy((points @ plane + noise > 0).astype(int))
        weights = {
            "W": torch.from_numpy(generator.normal(size=(2, self.inputs))),
            "b": torch.zeros(2, dtype=torch.float64),
        }
        n = self.examples
        return metaopt.Task(weights, data=(x[:n], y[:n]), test=(x[n:], y[n:]) if self.apart else ())

    def loss(self, weights: dict[str, Tensor], data: tuple[Tensor, ...], *shared: Tensor) -> Tensor:
        x, y = data
        return functional.cross_entropy(x @ weights["W"].mT + weights["b"], y)


class Whole(Logistic):
    """The same in full batches, judged on what they are trained on."""

    apart = False

    def __init__(self) -> None:
        super().__init__(batch=None)


class Net(metaopt.Family):
    """Any nn.Module, on rows of a data set that all tasks share."""

    batch = 5

    def __init__(self) -> None:
        generator = np.random.default_rng(0)
        self.net = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.LayerNorm(4), nn.Linear(4, 2))
        self.shared = tuple(torch.from_numpy(generator.normal(size=(30, k))) for k in (3, 2))

    def sample(self, generator: np.random.Generator) -> metaopt.Task:
        rows = torch.from_numpy(generator.permutation(30)[:12])
        return metaopt.Task(metaopt.fresh_weights(self.net, generator), (rows,))

    def loss(self, weights: dict[str, Tensor], data: tuple[Tensor, ...], *shared: Tensor) -> Tensor:
        x, y = (tensor[data[0]] for tensor in shared)
        return (functional_call(self.net, weights, (x,)) - y).square().mean()


def draw(own: metaopt.Family, start: int = 0, count: int = 3) -> LossTasks:
    family = LossFamily(own, f"{HERE}:{type(own).__name__}")
    return family.sample(Stream.TRAIN, 7, start, count, torch.float64)


def own_config(options: dict[str, Any] | None = None, family: str = "Logistic", **meta: Any) -> Any:
    return {
        "name": "own",
        "label": "own",
        "task": {"family": f"{HERE}:{family}", "options": options},
        "rules": {"update": UPDATE | {"outer_lr": 3e-2}},
        "meta": {"batch": 4, "outer_steps": 4, "steps": 6, "unroll": 3} | meta,
        "validation": {"every": 2, "tasks": 8},
    }


def trained(outer: int, **sections: Any) -> MetaTrainer:
    run = MetaTrainer(check(TrainConfig, own_config(**sections), "own"), CPU)
    for _ in range(outer):
        run.outer_step()
    return run


# Loss and gradient.


class SameAs(metaopt.Family):
    """The package's own regression tasks, by nothing but their loss."""

    def __init__(self, tasks: TaskBatch) -> None:
        self.tasks = tasks
        self.drawn = 0

    def sample(self, generator: np.random.Generator) -> metaopt.Task:
        b = self.drawn
        self.drawn += 1
        weights = {f"W{i}": W[b] for i, W in enumerate(self.tasks.initial)}
        return metaopt.Task(weights, (self.tasks.X[b].mT, self.tasks.Y[b].mT))

    def loss(self, weights: dict[str, Tensor], data: tuple[Tensor, ...], *shared: Tensor) -> Tensor:
        A, Y = data
        *inner, last = weights.values()
        for W in inner:
            A = self.tasks.s(A @ W.mT)
        return 0.5 * (A @ last.mT - Y).square().sum()


@FEW
@given(sizes=st.lists(st.integers(1, 5), min_size=3, max_size=5), seed=seeds)
def test_loss_and_gradient_are_those_of_the_same_tasks_by_hand(sizes: list[int], seed: int) -> None:
    wanted = regression(sizes, samples=3, seed=seed)
    tasks = draw(SameAs(wanted), count=wanted.size)
    found, expected = tasks.observe(tasks.initial), wanted.observe(wanted.initial)
    torch.testing.assert_close(found.loss, expected.loss, rtol=1e-12, atol=0)
    for mine, by_hand in zip(found.grads, expected.grads, strict=True):
        assert relative_error(mine, by_hand) < 1e-12


def test_gradient_descent_takes_the_same_path_by_hand() -> None:
    wanted = regression([3, 4, 2], samples=3, seed=1)
    tasks = draw(SameAs(wanted), count=wanted.size)
    paths = [rollout(batch, hand_made("GD", {"lr": 1e-3}, 5), 5)[0] for batch in (tasks, wanted)]
    torch.testing.assert_close(*paths, rtol=1e-10, atol=0)
    assert (paths[0][1:] < paths[0][:-1]).all()


@pytest.mark.parametrize("own", [Logistic(), Net()], ids=["logistic", "net"])
def test_each_task_has_its_own_gradient(own: metaopt.Family) -> None:
    tasks = draw(own).at(2)
    found = tasks.observe(tasks.initial)
    for b in range(tasks.size):
        weights = {
            name: W[b].reshape(shape).clone().requires_grad_()
            for (name, shape), W in zip(tasks.shapes.items(), tasks.initial, strict=True)
        }
        loss = own.loss(weights, tuple(tensor[b] for tensor in tasks.seen), *tasks.shared)
        grads = torch.autograd.grad(loss, list(weights.values()))
        assert found.loss is not None
        torch.testing.assert_close(found.loss[b], loss, rtol=1e-12, atol=0)
        for mine, G in zip(found.grads, grads, strict=True):
            torch.testing.assert_close(mine[b].flatten(), G.flatten(), rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("order", [1, 2])
def test_meta_gradients_are_those_of_finite_differences(order: int) -> None:
    config = check(TrainConfig, own_config() | {"dtype": "float64"}, "own")
    optimizer, tasks = meta_optimizer(config), draw(Whole(), count=2)
    amplify_head(optimizer.rules["update"], 20)
    replay = Replay()
    meta_loss(optimizer, tasks, {1: replay.record, 2: second_order}[order]).backward()

    def evaluate() -> Tensor:
        replay.rewind()
        return meta_loss(optimizer, tasks, {1: replay.replay, 2: second_order}[order])

    assert_matches_differences(optimizer, evaluate)


# Tasks and mini-batches are named by index and step.


@pytest.mark.parametrize("own", [Logistic(), Net()], ids=["logistic", "net"])
def test_a_task_and_its_minibatches_are_the_same_in_every_batch(own: metaopt.Family) -> None:
    whole, part = draw(own, 0, 6).at(9), draw(own, 2, 3).at(9)
    alike = zip(whole.initial + whole.seen, part.initial + part.seen, strict=True)
    for one, other in alike:
        assert torch.equal(one[2:5], other)
    for one, other in zip(draw(own, 0, 6).select(slice(2, 5)).at(9).seen, part.seen, strict=True):
        assert torch.equal(one, other)
    doubled = draw(own, 2, 3).repeated(2).at(9).seen
    for one, other in zip(doubled, part.seen, strict=True):
        assert torch.equal(one[::2], other)
        assert torch.equal(one[1::2], other)


def test_minibatches_differ_by_step_and_by_task() -> None:
    keys = draw(Logistic(), count=4).keys
    drawn = {
        tuple(row.tolist()) for step in range(50) for row in choices(keys, step, 8, below=1000)
    }
    assert len(drawn) == 4 * 50


@FEW
@given(below=st.integers(1, 2**31), count=st.integers(1, 9), position=st.integers(0, 2**32 - 1))
def test_choices_are_within_their_bound(below: int, count: int, position: int) -> None:
    keys = torch.tensor([[0, 2**32 - 1], [5, 7]])
    drawn = choices(keys, position, count, below)
    assert drawn.shape == (2, count)
    assert int(drawn.min()) >= 0
    assert int(drawn.max()) < below


def test_choices_are_equally_likely() -> None:
    keys = torch.tensor([[3, 1]])
    drawn = choices(keys, 0, 100_000, below=10)[0]
    counts = torch.bincount(drawn, minlength=10)
    # Standard deviation 95 around 10,000.
    assert int((counts - 10_000).abs().max()) < 5 * 95


def test_the_gradient_of_minibatches_is_that_of_all_data_on_average() -> None:
    tasks = draw(Logistic(batch=8), count=2)
    draws = torch.stack([tasks.at(step).observe(tasks.initial).grads[0] for step in range(400)])
    wanted = draw(Logistic(batch=None), count=2).observe(tasks.initial).grads[0]
    standard_error = draws.std(0) / math.sqrt(len(draws))
    assert ((draws.mean(0) - wanted).abs() < 5 * standard_error).all()


def test_items_never_meet_streams_drawn_by_blocks() -> None:
    for index in (0, 1, 2**40):
        counter = item_generator(Stream.TRAIN, 3, index).bit_generator.state["state"]["counter"]
        assert counter.tolist() == [0, index + 1, int(Stream.TRAIN), 0]


def test_trajectories_are_judged_on_what_is_kept_apart() -> None:
    tasks = draw(Logistic())
    losses, _ = rollout(tasks, hand_made("GD", {"lr": 0.1}, 3), 3)
    weights = tasks.initial
    for step in range(4):
        torch.testing.assert_close(losses[step], tasks.loss(weights))
        grads = tasks.at(step).observe(weights).grads
        weights = tuple(W - 0.1 * G for W, G in zip(weights, grads, strict=True))
    x, y = tasks.test
    logits = x @ tasks.initial[0].mT + tasks.initial[1].mT
    by_hand = functional.cross_entropy(logits.flatten(0, 1), y.flatten(), reduction="none")
    torch.testing.assert_close(losses[0], by_hand.view(3, -1).mean(1))


def test_fresh_weights_follow_the_modules_own_initialisation() -> None:
    net = Net().net
    before = torch.random.get_rng_state()
    found, again = (metaopt.fresh_weights(net, np.random.default_rng(4)) for _ in range(2))
    other = metaopt.fresh_weights(net, np.random.default_rng(5))
    assert torch.equal(torch.random.get_rng_state(), before)
    assert found.keys() == dict(net.named_parameters()).keys()
    assert all(torch.equal(found[name], again[name]) for name in found)
    assert not torch.equal(found["0.weight"], other["0.weight"])
    assert float(found["0.weight"].abs().max()) <= 1 / math.sqrt(3)
    assert torch.equal(found["2.weight"], torch.ones(4))


def test_fresh_weights_know_attention_and_refuse_what_they_cannot_draw() -> None:
    attention = nn.MultiheadAttention(4, 2)
    found, other = (metaopt.fresh_weights(attention, np.random.default_rng(s)) for s in (0, 1))
    assert not torch.equal(found["in_proj_weight"], other["in_proj_weight"])
    assert not torch.equal(found["out_proj.weight"], other["out_proj.weight"])
    own = nn.Module()
    own.register_parameter("scale", nn.Parameter(torch.randn(3)))
    with pytest.raises(ValueError, match=r"'inner'.*reset_parameters"):
        metaopt.fresh_weights(nn.Sequential(OrderedDict(inner=own)), np.random.default_rng(0))


# Meta-training.


def test_meta_training_on_a_users_family_learns() -> None:
    run = trained(0, outer_steps=40, batch=8, steps=10, unroll=5)
    before = run.validate()[0]
    while not run.finished:
        assert not run.outer_step().skipped
    after = run.validate()[0]
    assert float((after[-1] / before[-1]).log().mean().exp()) < 0.7
    assert float((after[-1] / after[0]).log().mean().exp()) < 0.7


@pytest.mark.parametrize("estimator", [{"kind": "gradient"}, {"kind": "pes"}])
def test_it_resumes_to_the_same_bits(estimator: dict[str, Any]) -> None:
    unbroken = trained(3, estimator=estimator)
    first = trained(1, estimator=estimator)
    rest = trained(0, estimator=estimator)
    rest.restore(first.state())
    for _ in range(2):
        rest.outer_step()
    phi = [[*run.optimizer.state_dict().values()] for run in (unbroken, rest)]
    for one, other in zip(*phi, strict=True):
        assert torch.equal(one, other)


MODULE = """
import pathlib
pathlib.Path("imported").touch()
from test_families import Logistic as Mine
"""


def save_informed(path: Path) -> None:
    """A rule that reads the inputs of layers, trained on tasks that have them."""
    config = own_config()
    del config["task"]
    config["label"] = "informed"
    config["rules"]["update"] = {"kind": "informed_lstm", "hidden": 3, "outer_lr": 1e-2}
    checked = check(TrainConfig, config, "informed")
    LearnedRule(meta_optimizer(checked), checked).save(path)


def test_scripts_train_and_evaluate_on_a_users_family(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "my_tasks.py").write_text(MODULE)
    config = own_config({"inputs": 3})
    config["task"]["family"] = "my_tasks:Mine"
    (tmp_path / "mine.yaml").write_text(json.dumps(config))
    monkeypatch.setattr(sys, "path", [*sys.path])
    assert run_here("train_meta.py", ["--config", "mine.yaml"], tmp_path, monkeypatch) == 0
    assert (tmp_path / "imported").exists()

    # A checkpoint names the module; reading it imports nothing.
    (tmp_path / "imported").unlink()
    monkeypatch.delitem(sys.modules, "my_tasks")
    rule = metaopt.load(tmp_path / "runs" / "own" / "optimizer.safetensors")
    assert rule.config.task.family == "my_tasks:Mine"
    assert rule.config.task.options == {"inputs": 3}
    model = nn.Linear(3, 1)
    metaopt.LearnedOptimizer(model, rule)
    assert not (tmp_path / "imported").exists()

    paths = [
        str(PRETRAINED / f"{name}.safetensors") for name in ("lstm_update", "coordinate_lr_tele")
    ]
    grids = "{GD: {lr: [0.1, 1]}, L-BFGS: {history: [5]}}"
    sets = [
        "task.family=my_tasks:Mine",
        "baselines=[GD,L-BFGS]",
        f"tuning.grids={grids}",
        "tasks=4",
        "steps=3",
        "tuning.tasks=2",
        "bootstrap=10",
    ]
    arguments = [part for value in sets for part in ("--set", value)]
    save_informed(tmp_path / "informed.safetensors")
    arguments += ["--checkpoints", "runs/own/optimizer.safetensors", *paths, "informed.safetensors"]
    assert run_here("eval_meta.py", arguments, tmp_path, monkeypatch) == 0
    out = capsys.readouterr().out
    assert "left out: LSTM(update):" in out
    assert "left out: coordinate LSTM(lr,tele):" in out
    assert "left out: informed: it reads products of the layers' inputs" in out
    found = json.loads((tmp_path / "runs" / "eval" / "results.json").read_text())
    assert set(found["optimizers"]) == {"own", "GD", "L-BFGS"}
    assert found["family"] == "my_tasks:Mine"
    starts = [entry["loss_mean"][0] for entry in found["optimizers"].values()]
    assert starts == pytest.approx([starts[0]] * 3)


# Mistakes.


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
        (f"{HERE}:TaskBatch", ["subclass of metaopt.Family"]),
        (f"{HERE}:NoLoss", ["does not define loss"]),
        (f"{HERE}:Fails", ["loss raised KeyError", "test_families.py:"]),
        (f"{HERE}:FailsInTorch", ["loss raised RuntimeError", "test_families.py:"]),
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
    sets = [f"task.family={HERE}:Logistic", "baselines=[]", "tasks=2", "steps=2", "bootstrap=10"]
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
    sets = [f"task.family={HERE}:Logistic", "baselines=[K-FAC]"]
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


# The page that explains it.


# Symmetries that a family lists.


class Symmetric(metaopt.Family):
    """A two-layer network, with what is given for its symmetries."""

    batch = 4
    activation: type[nn.Module] = nn.ReLU

    def __init__(self) -> None:
        self.net = nn.Sequential(nn.Linear(3, 4), self.activation(), nn.Linear(4, 2))
        self.symmetries = self.listed()

    def listed(self) -> Any:
        return metaopt.symmetries(nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2)))

    def sample(self, generator: np.random.Generator) -> metaopt.Task:
        x, y = (torch.from_numpy(generator.normal(size=(9, k))) for k in (3, 2))
        return metaopt.Task(metaopt.fresh_weights(self.net, generator), (x, y))

    def loss(self, weights: dict[str, Tensor], data: tuple[Tensor, ...], *shared: Tensor) -> Tensor:
        x, y = data
        return (functional_call(self.net, weights, (x,)) - y).square().mean()


class Untrue(Symmetric):
    activation = nn.Tanh


class Strings(Symmetric):
    def listed(self) -> Any:
        return ["0 -> 2"]


class TheFunction(Symmetric):
    def listed(self) -> Any:
        return metaopt.symmetries


class Nothing(Symmetric):
    def listed(self) -> Any:
        return ()


@pytest.mark.parametrize(
    ("family", "message"),
    [
        (Untrue, "scaling the hidden units changes the loss by"),
        (Strings, "expected the list that metaopt.symmetries(network) returns"),
        (TheFunction, "expected the list that metaopt.symmetries(network) returns"),
        (Nothing, "lists none"),
    ],
)
def test_symmetries_that_are_none_end_in_a_line(family: type[metaopt.Family], message: str) -> None:
    units = {"kind": "unit_lstm", "hidden": 3, "outer_lr": 1e-3}
    layer = {"kind": "layer_lstm", "hidden": 3, "outer_lr": 1e-3}
    content = own_config(family=family.__name__)
    content |= {
        "rules": {"update": layer, "teleport": units},
        "teleporter": {"action": "units", "guard": "none"},
    }
    with pytest.raises(UserError, match=re.escape(message)) as caught:
        MetaTrainer(check(TrainConfig, content, "own"), CPU)
    assert "\n" not in str(caught.value)
    fitting = content | {"task": {"family": f"{HERE}:Symmetric", "options": None}}
    window = MetaTrainer(check(TrainConfig, fitting, "own"), CPU).outer_step()
    assert window.teleports["norm_mean"] > 0
    assert window.teleports["drift_max"] < 1e-5
