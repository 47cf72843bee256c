"""Stacks of few rows have the moments of the tensors that were added."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.func import vmap
from torch.nn.functional import mse_loss

from metaopt import symmetries
from metaopt.landscape import stacks
from metaopt.landscape.noise import gradient_stack, noise_stack
from metaopt.landscape.samples import Samples
from metaopt.landscape.stacks import Stack, mixed_axes
from metaopt.symmetry.conserved import halves
from metaopt.symmetry.elements import Diagonal, Element, Matrix
from metaopt.symmetry.groups import Group, Symmetry
from metaopt.symmetry.modules import touches_of
from metaopt.symmetry.touch import gradients


class _Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(6, 2, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.attention(x, x, x, need_weights=False)[0].mean(1)
        return y


MODELS = {
    "linear": (lambda: nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 5), nn.Linear(5, 6)), (3,)),
    "relu": (lambda: nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 6)), (3,)),
    "attention": (_Attention, (5, 6)),
    "grouped": (
        lambda: nn.Sequential(
            nn.Conv1d(2, 4, 3), nn.Conv1d(4, 4, 3, groups=2), nn.Flatten(), nn.Linear(8, 6)
        ),
        (2, 6),
    ),
}


def _element(symmetry: Symmetry) -> Element:
    shape = (symmetry.blocks, symmetry.size)
    if symmetry.group is Group.SCALING:
        return Diagonal(torch.randn(shape, dtype=torch.float64))
    g = torch.randn(*shape, symmetry.size, dtype=torch.float64)
    return Matrix(g, torch.linalg.inv(g))


@pytest.mark.parametrize("count", [3, 40])
@pytest.mark.parametrize("name", MODELS)
def test_a_stack_has_the_moments_of_all_samples_everywhere_on_the_orbit(
    name: str, count: int
) -> None:
    torch.manual_seed(0)
    make, shape = MODELS[name]
    model = make().double()
    x = torch.randn(count, *shape, dtype=torch.float64)
    samples = Samples(model, mse_loss, (x, torch.randn(count, 6, dtype=torch.float64)))
    found = [s for s in symmetries(model, x) if s.group in (Group.LINEAR, Group.SCALING)]
    assert found
    stack = noise_stack(samples, found)
    mean = gradient_stack(samples, found)
    (each,) = samples.per_sample(list(stack))
    centred = {path: (each[path] - mean[path]) / count**0.5 for path in stack}
    moves = touches_of([(symmetry, _element(symmetry)) for symmetry in found])
    assert all(len(rows) <= count for rows in stack.values())
    for moved in (False, True):
        if moved:
            few, many = (
                {
                    path: torch.stack([gradients(row, moves[path]) for row in rows])
                    for path, rows in given.items()
                }
                for given in (stack, centred)
            )
        else:
            few, many = stack, centred
        for symmetry in found:
            # The rows of a stack belong to one parameter, so that each path stands alone.
            for path in {slot.path for slot in symmetry.slots}:
                sums = [
                    vmap(lambda row, s=symmetry, p=path: halves(s, {p: row}, {p: row}))(rows[path])
                    for rows in (few, many)
                ]
                for a, b in zip(*sums, strict=True):
                    torch.testing.assert_close(a.sum(0), b.sum(0), rtol=1e-9, atol=1e-12)


def test_a_parameter_that_is_only_scaled_has_one_row() -> None:
    model = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2)).double()
    x, y = torch.randn(9, 3, dtype=torch.float64), torch.randn(9, 2, dtype=torch.float64)
    stack = noise_stack(Samples(model, mse_loss, (x, y)), symmetries(model))
    assert {path: tuple(rows.shape) for path, rows in stack.items()} == {
        "0.weight": (1, 4, 3),
        "0.bias": (1, 4),
        "2.weight": (1, 2, 4),
    }


def test_equal_samples_have_no_noise() -> None:
    model = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2)).double()
    x, y = torch.ones(4, 3, dtype=torch.float64), torch.ones(4, 2, dtype=torch.float64)
    samples = Samples(model, mse_loss, (x, y))
    stack, mean = (
        noise_stack(samples, symmetries(model)),
        gradient_stack(samples, symmetries(model)),
    )
    assert all(rows.abs().max() < 1e-15 * (1 + mean[path].norm()) for path, rows in stack.items())


def test_one_sample_has_no_noise() -> None:
    model = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2)).double()
    data = torch.ones(1, 3, dtype=torch.float64), torch.ones(1, 2, dtype=torch.float64)
    with pytest.raises(ValueError, match="noise needs at least 2 samples, found 1"):
        noise_stack(Samples(model, mse_loss, data), symmetries(model))


def test_a_stack_that_is_too_large_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stacks, "MOST", 100)
    model = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 5), nn.Linear(5, 6))
    assert mixed_axes("1.weight", symmetries(model)) == [0, 1]
    with pytest.raises(ValueError, match=r"'1.weight' needs 4.0e\+02 numbers"):
        Stack("1.weight", torch.zeros(5, 4), symmetries(model), 1000)
