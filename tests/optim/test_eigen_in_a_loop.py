"""The rule of eigenbases in a user's loop: the inner loop's steps, in both modes, resumed."""

from __future__ import annotations

import copy

import torch
from families import own_config
from torch import Tensor, nn

import metaopt
from metaopt.base.config import check
from metaopt.base.network import as_matrices
from metaopt.meta.build import meta_optimizer
from metaopt.meta.config import TrainConfig
from metaopt.optim.learned import LearnedRule
from metaopt.tasks.base import Observation

STEPS = 12


def rule() -> LearnedRule:
    """One whose network says something, without the loss."""
    update = {"kind": "eigen_lstm", "hidden": 4, "scale": 100.0}
    sections = {"rules": {"update": update}, "dtype": "float64"}
    config = own_config(hide={"loss": 0.5, "left": 0.5}) | sections
    checked = check(TrainConfig, config, "own")
    return LearnedRule(meta_optimizer(checked), checked)


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(1, 3, 3), nn.Flatten(), nn.Linear(12, 2)).double()


def backward(model: nn.Module, step: int) -> None:
    model.zero_grad()
    x = torch.randn(5, 1, 4, 4, generator=torch.Generator().manual_seed(step)).double()
    model(x).square().mean().backward()


def matrices(tensors: list[Tensor]) -> tuple[Tensor, ...]:
    return tuple(as_matrices(tensor.detach()[None]) for tensor in tensors)


def test_steps_are_those_of_the_inner_loop() -> None:
    own, model = rule(), network()
    optimizer = metaopt.LearnedOptimizer(model, own)
    twin = network()
    weights = matrices([*twin.parameters()])
    states = own.optimizer.initial_rule_states(Observation(weights, weights, (), None))
    for step in range(STEPS):
        backward(model, step)
        optimizer.step()
        backward(twin, step)
        grads = matrices([p.grad for p in twin.parameters() if p.grad is not None])
        proposal, states = own.optimizer.propose(Observation(weights, grads, (), None), states)
        taken = own.optimizer.carry_out(weights, proposal, states, None)  # type: ignore[arg-type]
        weights, states = taken.weights, taken.state
        with torch.no_grad():
            for p, W in zip(twin.parameters(), weights, strict=True):
                p.copy_(W.reshape(p.shape))
    for p, W in zip(model.parameters(), weights, strict=True):
        torch.testing.assert_close(p.detach(), W.reshape(p.shape), rtol=1e-9, atol=1e-11)
    optimizer.eval()
    averaged = own.optimizer.evaluated(weights, states)
    for p, x, y in zip(model.parameters(), averaged, weights, strict=True):
        torch.testing.assert_close(p.detach(), x.reshape(p.shape), rtol=1e-9, atol=1e-11)
        assert not torch.allclose(x, y, atol=1e-6)


def test_a_training_goes_on_bit_for_bit_from_either_mode() -> None:
    own = rule()
    ends = []
    for mode in ("straight", "train", "eval"):
        model = network()
        optimizer = metaopt.LearnedOptimizer(model, own, horizon=STEPS)
        for step in range(STEPS):
            if step == STEPS // 2 and mode != "straight":
                if mode == "eval":
                    optimizer.eval()
                saved = copy.deepcopy((model.state_dict(), optimizer.state_dict()))
                model = network()
                optimizer = metaopt.LearnedOptimizer(model, own, horizon=STEPS)
                model.load_state_dict(saved[0])
                optimizer.load_state_dict(saved[1])
                optimizer.train()
            backward(model, step)
            optimizer.step()
        ends.append([p.detach().clone() for p in model.parameters()])
    for other in ends[1:]:
        assert all(torch.equal(a, b) for a, b in zip(ends[0], other, strict=True))


def test_weights_that_are_loaded_later_take_the_averages_along() -> None:
    own, model = rule(), network()
    optimizer = metaopt.LearnedOptimizer(model, own)
    with torch.no_grad():
        for p in model.parameters():
            p.add_(3.0)
    before = [p.detach().clone() for p in model.parameters()]
    backward(model, 0)
    optimizer.step()
    optimizer.eval()
    for p, old in zip(model.parameters(), before, strict=True):
        assert float((p.detach() - old).abs().max()) < 1.5
