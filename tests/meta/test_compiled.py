"""Compiled inner steps against those operation by operation."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch
from cases import FLAT
from support import UPDATE, UPDATE_AND_TELEPORT, tiny_config
from torch import Tensor, fx

from metaopt.meta import build, compiling
from metaopt.meta.compiled import CompiledSteps
from metaopt.meta.compiling import LONG, NO_COMPILER
from metaopt.meta.config import TrainConfig
from metaopt.meta.joint import Compiler, Runs, as_recorded, inductor
from metaopt.meta.trainer import MetaTrainer
from metaopt.meta.unroll import Advance, operation_by_operation
from metaopt.meta.windows import StepByStep
from metaopt.rules.composed import MetaOptimizer, States
from metaopt.tasks.base import Observation, Tasks

CPU = torch.device("cpu")
EIGEN = {"kind": "eigen_lstm", "hidden": 3}
DIRECTIONS = UPDATE | {"basis": "directions"}
FLOAT64 = {"dtype": "float64"}


def doubled(*arguments: object, **meta: object) -> TrainConfig:
    return tiny_config(*arguments, **meta).model_copy(update=FLOAT64)  # type: ignore[arg-type]


CONFIGS = {
    "update": doubled(steps=4, unroll=3, outer_steps=3, hide={"loss": 1.0}),
    "directions": doubled(
        {"update": DIRECTIONS, "teleport": DIRECTIONS}, {}, outer_steps=2, order=2
    ),
    "flattened": doubled({"update": FLAT, "teleport": FLAT}, {"guard": "shrink"}, outer_steps=2),
    # What is drawn next is in the state, a parameter has no gradient, a step has a second one.
    "random": doubled(
        {"update": UPDATE, "teleport": {"kind": "random", "norms": [0.3, 0.1]}},
        {"limit": "capped"},
        outer_steps=2,
    ),
    # It has no state.
    "gradient descent": doubled(
        {"update": {"kind": "gd", "lr": 0.1}, "teleport": UPDATE}, {}, outer_steps=2
    ),
    "frozen": doubled({"update": UPDATE, "teleport": UPDATE | {"frozen": True}}, {}, outer_steps=2),
    "around": doubled(UPDATE_AND_TELEPORT, {"order": "around"}, outer_steps=2),
    "in groups": doubled(batch=3, group=2, outer_steps=2, order=2),
}
HIDDEN = doubled(steps=3, unroll=1, outer_steps=18, hide={"left": 0.5})
"""Whether rules are told how many steps are left: two kinds of trajectories."""


def trained(config: TrainConfig, advance: Advance | None = None) -> list[Tensor]:
    """The parameters after all outer steps."""
    trainer = MetaTrainer(config, CPU)
    if advance is not None:
        loss = build.meta_loss(config.meta)
        of_group = StepByStep(trainer.optimizer, trainer.observe, loss, advance)
        trainer.windows._windows = of_group  # type: ignore[attr-defined]
    while not trainer.finished:
        trainer.outer_step()
    return [p.detach() for p in trainer.optimizer.parameters()]


def assert_equal_to_rounding(config: TrainConfig, compiler: Compiler) -> None:
    said: list[str] = []
    plain, compiled = trained(config), trained(config, CompiledSteps(compiler, said.append))
    assert not said
    for one, other in zip(plain, compiled, strict=True):
        torch.testing.assert_close(other, one, rtol=1e-9, atol=1e-12)
    assert not torch.equal(plain[0], next(MetaTrainer(config, CPU).optimizer.parameters()))


def assert_not_compiled(config: TrainConfig, compiler: Compiler, why: str) -> None:
    """All runs as it is, bit for bit, and one line says why."""
    said: list[str] = []
    plain, other = trained(config), trained(config, CompiledSteps(compiler, said.append))
    assert len(said) == 1
    assert said[0].endswith(f"compiled: {why} (meta.compile=never does not try)")
    assert all(map(torch.equal, plain, other))


def strict(graph: fx.GraphModule, inputs: list[Tensor]) -> Runs:
    """The graph itself, for inputs as they were told to a compiler and no others."""
    like = [_told(t) for t in inputs]

    def run(*given: Tensor) -> Sequence[Tensor]:
        assert [_told(t) for t in given] == like
        return as_recorded(graph, inputs)(*given)

    return run


def _told(tensor: Tensor) -> tuple[object, ...]:
    # The stride of a dimension of size 1 says nothing.
    strides = [s for s, size in zip(tensor.stride(), tensor.shape, strict=True) if size > 1]
    return tensor.shape, strides, tensor.dtype


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS.keys())
def test_what_is_recorded_is_the_step_and_its_derivative(config: TrainConfig) -> None:
    assert_equal_to_rounding(config, strict)


@pytest.mark.skipif(not compiling.has_compiler(), reason="needs a C++ compiler")
def test_torchs_compiler_keeps_the_meta_gradient() -> None:
    """First order: weights are an output twice, and have a derivative once."""
    assert_equal_to_rounding(doubled({"update": FLAT}, steps=4, unroll=2, outer_steps=2), inductor)


def test_one_tensor_for_two_outputs_keeps_both_derivatives() -> None:
    """As compilers merge what is equal."""

    def merging(graph: fx.GraphModule, inputs: list[Tensor]) -> Runs:
        def run(*given: Tensor) -> list[Tensor]:
            found: list[Tensor] = []
            for tensor in graph(*given):
                equal = [one for one in found if torch.equal(one, tensor)]
                found.append(equal[0] if equal else tensor)
            return found

        return run

    assert_equal_to_rounding(CONFIGS["flattened"], merging)


def test_each_kind_of_trajectories_is_compiled_once() -> None:
    """Two graphs of each."""
    compiled = 0

    def counting(graph: fx.GraphModule, inputs: list[Tensor]) -> Runs:
        nonlocal compiled
        compiled += 1
        return graph

    assert_equal_to_rounding(HIDDEN, counting)
    assert compiled == 4


def test_where_compiling_fails_steps_run_as_they_are() -> None:
    def failing(graph: fx.GraphModule, inputs: list[Tensor]) -> Runs:
        raise RuntimeError("no space left\non the disk")

    config = doubled(steps=4, unroll=2, outer_steps=2)
    assert_not_compiled(config, failing, "RuntimeError: no space left")


def test_numbers_that_python_reads_are_not_recorded() -> None:
    """An eigenbasis turns when counts say so; a graph would hold the counts of its recording."""
    config = doubled({"update": EIGEN}, steps=4, unroll=2, outer_steps=2)
    why = "RuntimeError: numbers of tensors are read in Python (tolist)"
    assert_not_compiled(config, as_recorded, why)


def test_states_that_begin_with_a_graph_keep_it(monkeypatch: pytest.MonkeyPatch) -> None:
    begin = MetaOptimizer.initial_state

    def learned(self: MetaOptimizer, tasks: Tasks, observation: Observation) -> States:
        states = begin(self, tasks, observation)
        own = states["update"]
        own["h0"] = own["h0"] + next(self.parameters()).mean()
        return states

    monkeypatch.setattr(MetaOptimizer, "initial_state", learned)
    assert_equal_to_rounding(CONFIGS["update"], strict)


def test_rules_of_ones_own_run_as_they_are() -> None:
    rule = {"kind": "signed_steps:SignedSteps"}
    config = tiny_config({"update": rule}, None, outer_steps=LONG)
    assert compiling.advance(config, CPU, print) is operation_by_operation


@pytest.mark.parametrize(
    ("meta", "found", "said"),
    [
        ({"outer_steps": LONG // 3, "unroll": 3}, True, "half a minute"),
        ({"outer_steps": LONG // 3 - 1, "unroll": 3}, False, None),
        ({"outer_steps": LONG // 30, "steps": 30, "truncation": "whole"}, True, "half a minute"),
        ({"outer_steps": LONG // 3, "steps": 2, "unroll": 3}, False, None),
        ({"outer_steps": LONG, "unroll": 3, "compile": "never"}, False, None),
        ({"outer_steps": LONG, "batch": 65, "group": 5}, True, "half a minute"),
        ({"outer_steps": 1, "batch": 65, "compile": "always"}, False, "meta.group"),
        ({"outer_steps": 1, "compile": "always"}, True, "half a minute"),
        ({"outer_steps": LONG, "estimator": {"kind": "pes"}}, False, None),
        ({"outer_steps": 1, "estimator": {"kind": "pes"}, "compile": "always"}, False, "pes"),
    ],
)
def test_long_runs_are_compiled(
    meta: dict[str, object], found: bool, said: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(compiling, "has_compiler", lambda: True)
    config = tiny_config(**meta)  # type: ignore[arg-type]
    assert isinstance(compiling.advance(config, CPU, print), CompiledSteps) == found
    line = compiling.note(config, CPU)
    assert line is None if said is None else line is not None and said in line


def test_without_a_compiler_long_runs_say_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compiling, "has_compiler", lambda: False)
    config = tiny_config(outer_steps=LONG)
    assert compiling.advance(config, CPU, print) is operation_by_operation
    line = compiling.note(config, CPU)
    assert line is not None
    assert NO_COMPILER in line
    assert compiling.note(tiny_config(outer_steps=1), CPU) is None


def test_graphs_of_a_device_come_before_compiled_steps() -> None:
    config = tiny_config(outer_steps=LONG, compile="always")
    device = torch.device("cuda")
    assert compiling.advance(config, device, print) is operation_by_operation
    line = compiling.note(config, device)
    assert line is not None
    assert "replayed" in line
