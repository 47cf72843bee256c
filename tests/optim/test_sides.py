"""State of the sides of matrices goes with its parameter; teleports reset it."""

from __future__ import annotations

import pytest
import torch
from models import convolutional, equal, hand_made, saved, take_steps
from torch import Size, Tensor, nn

import metaopt
from metaopt.rules.base import Proposal, Rule, State
from metaopt.tasks.base import Observation
from metaopt.teleport.optimizer_state import Kept


class RowsAndColumns(Rule):
    """f = -lr G sqrt(sum r / (r c)), r and c the sums of squares of rows and columns so far."""

    def kept(self, name: str) -> Kept:
        return Kept.SIDES

    def sides(self, name: str, shape: Size) -> int:
        return sum(shape) if shape[1] > 1 else 0

    def initial_state(self, observation: Observation) -> State:
        count = sum(self.sides("squares", W.shape[1:]) for W in observation.weights)
        return {"squares": observation.weights[0].new_zeros(1, 1, count)}

    def propose(self, observation: Observation, state: State) -> tuple[Proposal, State]:
        grads = observation.grads
        squares = state["squares"] + torch.cat([self._sums(G) for G in grads], dim=1)[:, None]
        each = squares.split([self.sides("squares", G.shape[1:]) for G in grads], dim=2)
        updates = tuple(self._update(G, own[:, 0]) for G, own in zip(grads, each, strict=True))
        return Proposal(updates=updates), {"squares": squares}

    def _sums(self, G: Tensor) -> Tensor:
        if not self.sides("squares", G.shape[1:]):
            return G.new_zeros(len(G), 0)
        return torch.cat([G.square().sum(2), G.square().sum(1)], dim=1)

    def _update(self, G: Tensor, squares: Tensor) -> Tensor:
        if not self.sides("squares", G.shape[1:]):
            return -0.01 * G
        r, c = squares.split(G.shape[1:], dim=1)
        return -0.01 * G * (r.sum() / (r[:, :, None] * c[:, None])).sqrt()


def test_each_parameter_has_the_columns_of_its_sides() -> None:
    """A kernel [out, in, h, w] counts as the matrix [out, in h w], and vectors have none."""
    problem = convolutional().to(torch.float64)
    optimizer = metaopt.LearnedOptimizer(problem.model, hand_made(RowsAndColumns()))
    squares: dict[Tensor, Tensor | float] = dict.fromkeys(problem.model.parameters(), 0.0)
    for _ in range(3):
        problem.backward()
        for p in squares:
            assert p.grad is not None
            squares[p] = squares[p] + p.grad.clone().flatten(1).square() if p.ndim > 1 else 0.0
        optimizer.step()
    for p, total in squares.items():
        found = optimizer.state[p]["update.squares"]
        if isinstance(total, Tensor):
            torch.testing.assert_close(found, torch.cat([total.sum(1), total.sum(0)])[None])
        else:
            assert found.shape == (1, 0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_training_goes_on_bit_for_bit(dtype: torch.dtype) -> None:
    rule = hand_made(RowsAndColumns())
    problem, other = (convolutional().to(dtype) for _ in range(2))
    optimizer = metaopt.LearnedOptimizer(problem.model, rule)
    take_steps(problem, optimizer, 2)
    again = metaopt.LearnedOptimizer(other.model, rule)
    other.model.load_state_dict(saved(problem.model.state_dict()))
    again.load_state_dict(saved(optimizer.state_dict()))
    for one, own in ((problem, optimizer), (other, again)):
        take_steps(one, own, 2)
    assert equal(problem.weights(), other.weights())


def test_the_state_stays_where_there_is_no_gradient() -> None:
    parameters = [nn.Parameter(torch.ones(2, 3)), nn.Parameter(torch.ones(3, 2))]
    optimizer = metaopt.LearnedOptimizer(parameters, hand_made(RowsAndColumns()))
    for p in parameters:
        p.grad = torch.ones_like(p)
    optimizer.step()
    parameters[0].grad = None
    optimizer.step()
    sums = [optimizer.state[p]["update.squares"] for p in parameters]
    assert torch.equal(sums[0], torch.tensor([[3.0, 3.0, 2.0, 2.0, 2.0]]))
    assert torch.equal(sums[1], 2 * torch.tensor([[2.0, 2.0, 2.0, 3.0, 3.0]]))


def test_a_teleport_resets_the_state_of_what_moved() -> None:
    problem = convolutional()
    optimizer = metaopt.LearnedOptimizer(problem.model, hand_made(RowsAndColumns()))
    take_steps(problem, optimizer, 1)
    before = {name: p.detach().clone() for name, p in problem.model.named_parameters()}
    metaopt.teleport(problem.model, optimizer=optimizer, seed=1)
    moved = {name for name, p in problem.model.named_parameters() if not p.equal(before[name])}
    assert moved
    for name, p in problem.model.named_parameters():
        assert (name in moved) == (p not in optimizer.state)
    take_steps(problem, optimizer, 1)
