"""The rule of eigenbases: its frames, its directions, and what its steps do not depend on."""

from __future__ import annotations

import pytest
import torch
from families import own_config
from torch import Tensor

from metaopt.base.config import ConfigError, check
from metaopt.base.network import Weights
from metaopt.meta.build import meta_optimizer
from metaopt.meta.config import TrainConfig
from metaopt.rules.averaging import AHEAD, averages
from metaopt.rules.base import State
from metaopt.rules.composed import MetaOptimizer
from metaopt.rules.learned import eigen, eigen_frames, symmetric
from metaopt.rules.learned.eigen import EigenUpdateLSTM
from metaopt.rules.learned.eigen_config import EigenConfig
from metaopt.rules.learned.eigen_steps import BLOCK, Adam, Means, OrthogonalStep, Sign
from metaopt.rules.rule_config import Place
from metaopt.tasks.base import Observation
from metaopt.tasks.config import TaskConfig

SHAPES = [(5, 7), (4, 5), (5, 1), (1, 6)]
SQUARE = [(5, 5), (6, 6)]
"""One gradient fixes their frames; a longer side has directions that it says nothing of."""


def rule(is_trained: bool = True, **options: object) -> EigenUpdateLSTM:
    config = EigenConfig.model_validate({"kind": "eigen_lstm", **options})
    made = config.make(Place("update", TaskConfig(), 0))
    assert isinstance(made, EigenUpdateLSTM)
    with torch.no_grad():
        for tensor in (made.head.W, made.head.b):
            tensor.mul_(0 if not is_trained else 0.3 / tensor.abs().max())
    return made.double()


def drawn(seed: int, shapes: list[tuple[int, int]] = SHAPES) -> Weights:
    generator = torch.Generator().manual_seed(seed)
    return tuple(torch.randn(2, *s, generator=generator, dtype=torch.float64) for s in shapes)


def run(made: EigenUpdateLSTM, weights: Weights, grads: list[Weights]) -> tuple[Weights, State]:
    """Weights and state after these gradients."""
    optimizer = MetaOptimizer({"update": made}, None)
    states = optimizer.initial_rule_states(Observation(weights, weights, (), None))
    for G in grads:
        proposal, states = optimizer.propose(Observation(weights, G, (), None), states)
        step = optimizer.carry_out(weights, proposal, states, None)  # type: ignore[arg-type]
        weights, states = step.weights, step.state
    return weights, states["update"]


@torch.no_grad()
def test_the_first_frame_holds_the_eigenvectors() -> None:
    (G,) = drawn(0, [(5, 7)])
    products = torch.zeros(2, 1, symmetric.entries(5) + symmetric.entries(7), dtype=torch.float64)
    frames = torch.zeros(2, 1, 5 * 5 + 7 * 7, dtype=torch.float64)
    (frame,) = eigen_frames.after((G,), products, frames, [1], 1024).each
    turned = eigen_frames.into(frame, G)
    for gram in (turned @ turned.mT, turned.mT @ turned):
        assert (gram - torch.diag_embed(gram.diagonal(dim1=1, dim2=2))).abs().max() < 1e-10
    torch.testing.assert_close(eigen_frames.out_of(frame, turned), G)


@torch.no_grad()
def test_refreshed_frames_come_nearer_to_the_eigenvectors() -> None:
    (G,) = drawn(0, [(6, 6)])
    # Running means of equal matrices, so that they stay.
    products = torch.zeros(2, 1, 2 * symmetric.entries(6), dtype=torch.float64)
    for X, flat in zip((G, G.mT), products[:, 0].chunk(2, dim=1), strict=True):
        symmetric.add_gram(flat, X, 1.0)
    frames = torch.eye(6, dtype=torch.float64).flatten().repeat(2)[None, None].repeat(2, 1, 1)
    off = []
    for _ in range(3):
        for _ in range(20):
            found = eigen_frames.after((G,), products, frames, [10], 1024)
            frames = found.frames
        torch.testing.assert_close(found.products, products)
        turned = eigen_frames.into(found.each[0], G)
        gram = turned @ turned.mT
        off.append(float((gram - torch.diag_embed(gram.diagonal(dim1=1, dim2=2))).abs().max()))
    assert off[2] < off[1] < off[0] < 10


@pytest.mark.parametrize("decays", [[0.5], [0.5, 0.9]])
@torch.no_grad()
def test_means_kept_in_frames_are_the_means(decays: list[float]) -> None:
    grads = [drawn(seed) for seed in range(25)]
    _, state = run(rule(mean_decays=decays), drawn(100), grads)
    frames = eigen_frames.pairs(state["frames"], SHAPES, 1024)
    kept = state["m"].split([out * rest for out, rest in SHAPES], dim=2)
    for i, frame in enumerate(frames):
        for k, decay in enumerate(decays):
            mean = torch.zeros_like(grads[0][i])
            for G in grads:
                mean = torch.lerp(G[i], mean, decay)
            own = kept[i][:, k].unflatten(1, SHAPES[i])
            torch.testing.assert_close(eigen_frames.out_of(frame, own), mean)


@torch.no_grad()
def test_turning_squares_keeps_their_sum() -> None:
    (v,) = drawn(0, [(5, 7)])
    U, V = (torch.linalg.qr(x)[0] for x in drawn(1, [(5, 5), (7, 7)]))
    moved = eigen_frames.turned(eigen_frames.squared((U, V)), v.square()[:, None])
    torch.testing.assert_close(moved.sum((1, 2, 3)), v.square().sum((1, 2)))


@torch.no_grad()
def test_steps_turn_with_the_units_on_both_sides() -> None:
    W, grads = drawn(50, SQUARE), [drawn(seed, SQUARE) for seed in range(12)]
    U, V = ([torch.linalg.qr(x)[0] for x in drawn(seed, SQUARE)] for seed in (60, 61))

    def turn(tensors: Weights) -> Weights:
        return tuple(u @ x @ v.mT for u, x, v in zip(U, tensors, V, strict=True))

    moved, _ = run(rule(), W, grads)
    apart, _ = run(rule(), turn(W), [turn(G) for G in grads])
    for one, other in zip(turn(moved), apart, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-6, atol=1e-7)


@torch.no_grad()
def test_steps_do_not_depend_on_the_units_of_the_loss() -> None:
    W, grads = drawn(50, SQUARE), [drawn(seed, SQUARE) for seed in range(12)]
    one, _ = run(rule(), W, grads)
    other, _ = run(rule(), W, [tuple(1e3 * G for G in each) for each in grads])
    for a, b in zip(one, other, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-9)


@torch.no_grad()
def test_without_frames_the_first_step_is_a_sign() -> None:
    made = rule(False, directions=["adam"], largest_side=1, weight_decay=0.0)
    W, G = drawn(0), drawn(1)
    new, state = run(made, W, [G])
    length = eigen.LENGTH / (1 + 1 / eigen.FALLS_AFTER)
    sizes = [(2 * 7) ** -0.5, (2 * 5) ** -0.5] + 2 * [eigen.VECTOR_SIZE * 2**-0.5]
    c = eigen.AVERAGED / (1 + eigen.AVERAGED)
    found = zip(averages(new, state[AHEAD]), W, G, sizes, strict=True)
    for x, w, g, by in found:
        # The average of w and of w - by sign(g), but for entries that are nearly 0.
        torch.testing.assert_close(x - w, -c * by * length * g.sign(), rtol=1e-2, atol=1e-3)


@torch.no_grad()
def test_what_has_no_gradient_stays() -> None:
    W = drawn(0)
    grads = [(G[0], torch.zeros_like(G[1]), *G[2:]) for G in map(drawn, range(5))]
    new, _ = run(rule(), W, grads)
    assert torch.equal(new[1], W[1])
    assert not torch.equal(new[0], W[0])


@torch.no_grad()
def test_directions_that_follow_are_of_unit_size() -> None:
    (m,) = drawn(0, [(12, 20)])
    flat = m.flatten(1)[:, None]
    means = Means(flat, flat, torch.cat([flat, flat], 1) / 2, [(1.0, 1.0)], [(12, 20)])
    zeros = [torch.zeros_like(m)]
    (both,) = Adam().add(zeros, means, [torch.tensor([[[1.0, 3.0]]]).double().expand(2, 1, 2)])
    torch.testing.assert_close(both, 2 * m)
    share = [torch.ones(2, 1, 1, dtype=torch.float64)]
    (orthogonal,), (sign,) = (d.add(zeros, means, share) for d in (OrthogonalStep(), Sign()))
    # Of root mean square 1: all singular values near sqrt(20).
    values = torch.linalg.svdvals(orthogonal)
    assert values.min() > 0.6 * 20**0.5
    assert values.max() < 1.3 * 20**0.5
    assert (sign * m >= 0).all()
    assert 0.8 < float(sign.square().mean()) < 1.2


@torch.no_grad()
def test_long_sides_are_made_orthogonal_in_blocks() -> None:
    shape = (2 * BLOCK, 3 * BLOCK)
    m = torch.randn(1, *shape, generator=torch.Generator().manual_seed(0))
    flat = m.view(1, 1, -1)
    means = Means(flat, flat, flat, [(1.0,)], [shape])
    (step,) = OrthogonalStep().add([torch.zeros(1, *shape)], means, [torch.ones(1, 1, 1)])
    for block in step[0].split(BLOCK):
        values = torch.linalg.svdvals(block) / shape[1] ** 0.5
        assert values.min() > 0.6
        assert values.max() < 1.3


def test_there_are_as_many_columns_as_it_says() -> None:
    made = rule(largest_side=6)
    W = drawn(0)
    state = made.initial_state(Observation(W, W, (), None))
    # A side of 7 is too long, and vectors have none. Products are symmetric.
    for name, expected in (("frames", 25 + (16 + 25)), ("products", 15 + (10 + 15))):
        assert sum(made.sides(name, torch.Size(shape)) for shape in SHAPES) == expected
        assert state[name].shape == (2, 1, expected)


def test_a_horizon_is_heard_where_it_is_told() -> None:
    made, W = rule(), drawn(0)
    state = made.initial_state(Observation(W, W, (), None))
    G = drawn(1)
    found: list[Tensor] = []
    for left in (None, torch.tensor([1.0, 0.5]).double()):
        proposal, _ = made.propose(Observation(W, G, (), None, left=left), state)
        assert proposal.updates is not None
        found.append(proposal.updates[0])
    assert not torch.equal(found[0], found[1])


def test_untrained_steps_are_as_long_as_is_written() -> None:
    count = torch.tensor([1.0, 50.0, 700.0]).double()[None, None]
    untold = 0.5 / (1 + count / 100)
    for left, share in ((None, 1.0), (1.0, 1.0), (0.5, 1.0), (0.25, 0.5), (0.0, 0.0)):
        told = None if left is None else torch.tensor([left]).double()
        found = eigen._untrained_length(count, told)
        torch.testing.assert_close(found, share * untold, rtol=1e-12, atol=0)


def test_sizes_first_asked_for_within_inference_mode_are_fit_for_meta_gradients() -> None:
    eigen._of_shapes.cache_clear()
    with torch.inference_mode():
        sizes, vectors, counts = eigen._of_shapes(
            ((7, 3), (7, 1)), torch.float64, torch.device("cpu")
        )
    torch.testing.assert_close(sizes.flatten().tolist(), [7**-0.5, eigen.VECTOR_SIZE])
    assert vectors.flatten().tolist() == [0, 1]
    assert counts.flatten().tolist() == [21, 7]
    x = torch.ones_like(sizes, requires_grad=True)
    (x * sizes).sum().backward()
    assert x.grad is not None
    assert torch.equal(x.grad, sizes)


def test_it_takes_no_teleports_but_those_of_pairs() -> None:
    sections = {
        "rules": {"update": {"kind": "eigen_lstm"}, "teleport": {"kind": "unit_lstm"}},
        "teleporter": {"action": "units", "limit": "bounded"},
    }
    with pytest.raises(ConfigError, match=r"expected linear_pairs with rules\.teleport of kind"):
        meta_optimizer(check(TrainConfig, own_config() | sections, "own"))
