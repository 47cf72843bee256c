"""Steps of matrices: polar factors, sizes, and what a rule keeps."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from paired import NETWORKS, observed, pairs_in

from metaopt.rules.learned.layer import entries, mean_squares
from metaopt.rules.learned.matrix import MatrixUpdateLSTM
from metaopt.rules.learned.matrix_starts import STARTS, VECTOR_SIZE
from metaopt.rules.learned.matrix_steps import Both, MatrixSteps, Normalised, Orthogonal
from metaopt.rules.learned.turns import begins, served
from metaopt.tasks.base import Observation

LAST = STARTS["last"]


def random(*shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(0)).double()


@pytest.mark.parametrize("shape", [(7, 3), (3, 7), (4, 4), (1, 5)])
def test_orthogonal_steps_are_polar_factors_of_unit_size(shape: tuple[int, int]) -> None:
    m = random(2, 3, *shape)
    (step,) = Orthogonal()([m])
    U, _, V = torch.linalg.svd(m, full_matrices=False)
    assert torch.allclose(step, max(shape) ** 0.5 * U @ V, atol=0.05 * max(shape) ** 0.5)
    assert torch.allclose(step.square().mean((-2, -1)), torch.ones(2, 3).double(), atol=0.05)


@pytest.mark.parametrize(
    "steps", [Orthogonal(), Normalised(), Both()], ids=["orthogonal", "normalised", "both"]
)
def test_steps_do_not_depend_on_the_scale_and_stay_0(steps: MatrixSteps) -> None:
    m = random(1, 1, 4, 3)
    one, other, nothing = steps([m, 1e-3 * m, 0 * m])
    assert torch.allclose(one, other, atol=1e-6)
    assert not bool(nothing.any())


def test_both_are_the_orthogonal_steps_and_then_the_normalised_ones() -> None:
    means = [random(2, 3, 4, 5), random(2, 3, 2, 2)]
    alone = zip(Orthogonal()(means), Normalised()(means), strict=True)
    for found, parts in zip(Both()(means), alone, strict=True):
        assert torch.equal(found, torch.cat(parts, dim=1))


def test_squares_are_kept_of_vectors_that_no_pair_moves_alone() -> None:
    make, width = NETWORKS["heads"]
    net = make()
    pairs = pairs_in(net, width)
    seen = observed(net, pairs, random(6, width))
    rule = MatrixUpdateLSTM(4, 1.0, Orthogonal(), LAST, 0.0, None, 0.2, 1, 0, "test").double()
    _, state = rule.propose(seen, rule.initial_state(seen))
    names = [name for name, p in net.named_parameters() if p.requires_grad]
    sizes = [p.numel() for p in net.parameters()]
    has = {n: bool(v.any()) for n, v in zip(names, state["v"].split(sizes, dim=2), strict=True)}
    assert {name for name, yes in has.items() if yes} == {"attention.out_proj.bias", "head.bias"}


def test_sides_take_turns_and_b_comes_first() -> None:
    counts = torch.arange(1.0, 7.0)
    assert served(counts, 1).tolist() == [-1, 1, -1, 1, -1, 1]
    assert served(counts, 3).tolist() == [-1, -1, -1, 1, 1, 1]
    assert begins(counts, 3).tolist() == [True, False, False, True, False, False]


def one_matrix(gradient: torch.Tensor) -> Observation:
    """A matrix of weights, 0.1 each, with this gradient [out, rest]."""
    w = torch.full((1, *gradient.shape), 0.1, dtype=torch.float64)
    return Observation(weights=(w,), grads=(gradient[None],), inputs=(), loss=None)


def sizes_of_steps(gradients: list[torch.Tensor], fades: int | None = None) -> list[float]:
    """Of an untrained rule without decay, in units of what a first step would have there."""
    rule = MatrixUpdateLSTM(4, 0.0, Orthogonal(), LAST, 0.0, fades, 0.2, 1, 0, "test").double()
    state = rule.initial_state(one_matrix(gradients[0]))
    found = []
    for t, gradient in enumerate(gradients, 1):
        seen = one_matrix(gradient)
        proposal, state = rule.propose(seen, state)
        assert proposal.updates is not None
        assert proposal.decays is not None
        step = proposal.updates[0] - proposal.decays[0]
        unit = LAST.size / max(gradient.shape) ** 0.5 / (1 + t / LAST.shrinks_after)
        found.append(float(step.square().mean().sqrt()) / unit)
    return found


def first_steps(*shapes: tuple[int, int]) -> list[torch.Tensor]:
    """Of an untrained rule, without decay: the first step of each parameter, [out, rest]."""
    rule = MatrixUpdateLSTM(4, 0.0, Orthogonal(), LAST, 0.0, None, 0.2, 1, 0, "test").double()
    own = tuple(random(1, *shape) for shape in shapes)
    seen = Observation(weights=own, grads=own, inputs=(), loss=None)
    proposal, _ = rule.propose(seen, rule.initial_state(seen))
    assert proposal.updates is not None
    assert proposal.decays is not None
    pairs = zip(proposal.updates, proposal.decays, strict=True)
    return [(update - decay)[0].detach() for update, decay in pairs]


@pytest.mark.parametrize(("width", "count"), [(6, 1), (6, 4), (48, 4)])
def test_singular_values_of_steps_depend_on_the_number_of_matrices_alone(
    width: int, count: int
) -> None:
    tall, wide = (first_steps(*[shape] * count)[0] for shape in ((width, 3), (3, width)))
    wanted = LAST.size / count**0.5 / (1 + 1 / LAST.shrinks_after)
    assert torch.linalg.svdvals(tall).numpy() == pytest.approx([wanted] * 3, rel=0.05)
    assert torch.linalg.svdvals(wide).numpy() == pytest.approx([LAST.wide * wanted] * 3, rel=0.05)


def test_the_first_step_of_a_vector_has_the_size_of_later_ones() -> None:
    rule = MatrixUpdateLSTM(4, 0.0, Orthogonal(), LAST, 0.0, None, 0.2, 1, 0, "test").double()
    own = (random(1, 5, 1),)
    seen = Observation(weights=own, grads=own, inputs=(), loss=None)
    state = rule.initial_state(seen)
    for t in range(1, 20):
        proposal, state = rule.propose(seen, state)
        assert proposal.updates is not None
        assert proposal.decays is not None
        step = (proposal.updates[0] - proposal.decays[0]).detach().abs() * (
            1 + t / LAST.shrinks_after
        )
        assert step.flatten().numpy() == pytest.approx([VECTOR_SIZE] * 5, rel=1e-2)


def test_steps_are_whole_while_gradients_stay_and_end_with_them() -> None:
    G = random(5, 4)
    stays = sizes_of_steps([G] * 30)
    assert stays == pytest.approx([stays[0]] * 30, rel=1e-6)
    shrinks = sizes_of_steps([0.8**t * G for t in range(30)])
    assert all(after < before for before, after in pairwise(shrinks))
    # Both means are geometric sums: of 0.9 and 0.8, and of the squares.
    m = sum(0.1 * 0.9 ** (29 - t) * 0.8**t for t in range(30)) / (1 - 0.9**30)
    v = sum(0.001 * 0.999 ** (29 - t) * 0.64**t for t in range(30)) / (1 - 0.999**30)
    assert shrinks[-1] / shrinks[0] == pytest.approx(m / v**0.5, rel=0.02)


def test_steps_are_short_where_gradients_cancel() -> None:
    G = random(5, 4)
    noise = sizes_of_steps([(-1) ** t * G for t in range(60)])
    # The mean at 0.9 of signs in turn is 0.1 / 1.9.
    assert noise[-1] / noise[0] == pytest.approx(0.1 / 1.9, rel=0.3)


def test_what_is_learned_fades() -> None:
    G = [random(5, 4) for _ in range(300)]

    def last(scale: float, fades: int | None) -> torch.Tensor:
        rule = MatrixUpdateLSTM(
            4, scale, Orthogonal(), LAST, 0.0, fades, 0.2, 1, 0, "test"
        ).double()
        state = rule.initial_state(one_matrix(G[0]))
        for gradient in G:
            proposal, state = rule.propose(one_matrix(gradient), state)
        assert proposal.updates is not None
        return proposal.updates[0]

    untrained, for_ever, faded = last(0.0, None), last(30.0, None), last(30.0, 10)
    assert (faded - untrained).norm() < 0.01 * (for_ever - untrained).norm()


def test_mean_squares_have_both_derivatives_at_zero() -> None:
    x = torch.zeros(1, 2, 3, dtype=torch.float64, requires_grad=True)
    (first,) = torch.autograd.grad(mean_squares([x], entries((x,))).sum(), x, create_graph=True)
    (second,) = torch.autograd.grad(first.sum(), x)
    assert not first.any()
    torch.testing.assert_close(second, torch.full_like(x, 2 / 6))


def test_mean_squares_of_one_trajectory_are_those_of_many() -> None:
    generator = torch.Generator().manual_seed(3)
    W = tuple(torch.randn(1, *s, generator=generator).double() for s in ((4, 5), (3, 1)))
    many = tuple(w.expand(2, -1, -1) for w in W)
    with torch.no_grad():
        found = mean_squares(W, entries(W))
        torch.testing.assert_close(found.expand(2, -1, -1), mean_squares(many, entries(many)))
