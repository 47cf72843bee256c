"""Models of odd code, and what a flow says of them in one line."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from metaopt.symmetry.discovery.flow import AS_ON_EXAMPLE, Flow, Variable
from metaopt.symmetry.discovery.running import run

Forward = Callable[[Any, Tensor], Any]
PLAIN = "linear(0 wa ba)1; linear(1 wb bb)2 -> 2"
WITH_RELU = "linear(0 wa ba)1; relu(1)2; linear(2 wb bb)3 -> 3"
ALL = "bb wb ba wa"


class Odd(nn.Module):
    """Two layers, and any code around them."""

    def __init__(self, forward: Forward, prepare: Callable[[Any], Any] | None = None) -> None:
        super().__init__()
        self.a = nn.Linear(4, 6)
        self.b = nn.Linear(6, 3)
        self.code = forward
        if prepare is not None:
            prepare(self)

    def forward(self, x: Tensor) -> Any:
        return self.code(self, x)


def written(flow: Flow) -> str:
    """The calls in one line; ``wa, ba, wb, bb`` are the two layers', others are numbered."""
    short = {"a.weight": "wa", "a.bias": "ba", "b.weight": "wb", "b.bias": "bb"}
    numbers: dict[Variable, str] = {}

    def said(variable: Variable) -> str:
        if variable.path:
            return short.get(variable.path, variable.path)
        if variable.constant is not None:
            return "constant"
        return numbers.setdefault(variable, str(len(numbers)))

    def listed(found: list[Variable]) -> str:
        return " ".join(map(said, found))

    lines = [f"{c.name}({listed(c.inputs)}){listed(c.outputs)}" for c in flow.calls]
    return "; ".join(lines) + " -> " + listed(flow.outputs)


def state(model: nn.Module) -> list[Any]:
    """All that a run must not change."""
    tensors = [
        (path, id(t), t.detach().clone().numpy().tobytes(), t._version, t.requires_grad, t.grad)
        for path, t in model.state_dict(keep_vars=True).items()
    ]
    attributes = [{k: id(v) for k, v in module.__dict__.items()} for module in model.modules()]
    draws = (torch.get_rng_state().tolist(), random.getstate(), np.random.get_state()[1].tolist())  # type: ignore[index]
    return [tensors, attributes, draws, nn.Module.__call__, torch.is_grad_enabled()]


def recorded(model: nn.Module, training: bool) -> Flow:
    """The flow of a run, which changes neither the model nor its inputs."""
    x = torch.randn(4, 4)
    before, inputs = state(model), x.clone()
    flow = run(model, x, training)
    assert state(model) == before
    assert torch.equal(x, inputs)
    assert x._version == 0
    assert flow.assumes == AS_ON_EXAMPLE
    assert flow.training is training
    return flow
