"""Steps of matrices: polar factors, sizes, and what a rule keeps."""

from __future__ import annotations

import pytest
import torch
from paired import NETWORKS, observed, pairs_in

from metaopt.rules.learned.matrix import MatrixUpdateLSTM
from metaopt.rules.learned.matrix_steps import Normalised, Orthogonal
from metaopt.rules.learned.turns import served


def random(*shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(0)).double()


@pytest.mark.parametrize("shape", [(7, 3), (3, 7), (4, 4), (1, 5)])
def test_orthogonal_steps_are_polar_factors_of_unit_size(shape: tuple[int, int]) -> None:
    m = random(2, 3, *shape)
    (step,) = Orthogonal()([m])
    U, _, V = torch.linalg.svd(m, full_matrices=False)
    assert torch.allclose(step, max(shape) ** 0.5 * U @ V, atol=0.05 * max(shape) ** 0.5)
    assert torch.allclose(step.square().mean((-2, -1)), torch.ones(2, 3).double(), atol=0.05)


@pytest.mark.parametrize("steps", [Orthogonal(), Normalised()], ids=["orthogonal", "normalised"])
def test_steps_do_not_depend_on_the_scale_and_stay_0(steps: Orthogonal | Normalised) -> None:
    m = random(1, 1, 4, 3)
    one, other, nothing = steps([m, 1e-3 * m, 0 * m])
    assert torch.allclose(one, other, atol=1e-6)
    assert not bool(nothing.any())


def test_squares_are_kept_of_vectors_that_no_pair_moves_alone() -> None:
    make, width = NETWORKS["heads"]
    net = make()
    pairs = pairs_in(net, width)
    seen = observed(net, pairs, random(6, width))
    rule = MatrixUpdateLSTM(4, 1.0, Orthogonal(), 0.0, 0, "test").double()
    _, state = rule.propose(seen, rule.initial_state(seen))
    names = [name for name, p in net.named_parameters() if p.requires_grad]
    sizes = [p.numel() for p in net.parameters()]
    has = {n: bool(v.any()) for n, v in zip(names, state["v"].split(sizes, dim=2), strict=True)}
    assert {name for name, yes in has.items() if yes} == {"attention.out_proj.bias", "head.bias"}


def test_sides_take_turns_and_b_comes_first() -> None:
    counts = torch.arange(1.0, 5.0)
    assert served(counts).tolist() == [-1, 1, -1, 1]
