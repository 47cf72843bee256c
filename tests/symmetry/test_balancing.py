"""The least norm on an orbit, and the closed forms that it is made of."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import Tensor, nn

import metaopt
from metaopt.symmetry.balancing import balanced, logarithm
from metaopt.symmetry.geometric_mean import geometric_mean, least
from metaopt.symmetry.modules import move, touches_of


def root(k: int, rank: int, seed: int) -> Tensor:
    """A root [2, k, k] of moments of this rank."""
    x = torch.randn(2, rank, k, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    return torch.linalg.qr(torch.cat([x, torch.zeros(2, k, k, dtype=torch.float64)], 1), mode="r").R


def chain(widths: list[int], act: type[nn.Module] | None = nn.ReLU) -> nn.Sequential:
    """Layers, with an activation between them or none."""
    torch.manual_seed(0)
    layers: list[nn.Module] = []
    for n, m in itertools.pairwise(widths):
        layers += [nn.Linear(n, m, bias=act is not None), *([act()] if act else [])]
    return nn.Sequential(*(layers[:-1] if act else layers)).double()


def weights(model: nn.Module) -> dict[str, Tensor]:
    return {path: p.detach()[None] for path, p in model.named_parameters()}


def test_the_geometric_mean_solves_its_equation() -> None:
    a, b = (x.mT @ x for x in (root(4, 6, 0), root(4, 5, 1)))
    p = geometric_mean(a, b)
    torch.testing.assert_close(p @ a @ p, b)
    assert bool((torch.linalg.eigvalsh(p) > 0).all())
    # One dimension: e^(4 t) = b / a for g = e^t.
    torch.testing.assert_close(geometric_mean(a[:, :1, :1], b[:, :1, :1]) ** 2, (b / a)[:, :1, :1])


@pytest.mark.parametrize("rank", [6, 2, 0])
def test_no_element_has_a_smaller_norm(rank: int) -> None:
    """Also where both have the same rank below k."""
    roots = root(4, rank, 0), root(4, rank, 1)
    g, inverse, exists = least(*roots)
    a, b = (x.mT @ x for x in roots)
    assert bool(exists.all())
    torch.testing.assert_close(g @ inverse, torch.eye(4, dtype=torch.float64).expand(2, 4, 4))

    def norm(g: Tensor, inverse: Tensor) -> Tensor:
        of = (
            torch.einsum("nij,njk,nik->n", g, a, g),
            torch.einsum("nji,njk,nki->n", inverse, b, inverse),
        )
        return of[0] + of[1]

    torch.testing.assert_close(g @ a @ g.mT, inverse.mT @ b @ inverse)
    for seed in range(5):
        draws = torch.Generator().manual_seed(seed)
        h = torch.linalg.matrix_exp(
            0.1 * torch.randn(2, 4, 4, dtype=torch.float64, generator=draws)
        )
        other = norm(h @ g, inverse @ torch.linalg.inv(h))
        assert bool((other >= norm(g, inverse) * (1 - 1e-12)).all())


def test_sides_of_different_rank_have_none() -> None:
    g, _, exists = least(root(4, 6, 0), root(4, 2, 1))
    assert not bool(exists.any())
    assert torch.equal(g, torch.eye(4, dtype=torch.float64).expand(2, 4, 4))


def test_one_layer_of_units_has_its_closed_form() -> None:
    model = chain([3, 5, 2])
    (one,) = metaopt.symmetries(model)
    found = balanced([one], weights(model), "weights")
    first, second = model.get_submodule("0"), model.get_submodule("2")
    assert isinstance(first, nn.Linear)
    assert isinstance(second, nn.Linear)
    into = first.weight.square().sum(1) + first.bias.square()
    t = (second.weight.square().sum(0) / into).log() / 4
    torch.testing.assert_close(logarithm(one, found[one])[0], t.detach())


@pytest.mark.parametrize(
    ("widths", "act"), [([4, *[6] * 10, 3], nn.ReLU), ([4] * 12, None)], ids=["units", "matrices"]
)
def test_deep_nets_are_balanced_to_rounding(widths: list[int], act: type[nn.Module] | None) -> None:
    model = chain(widths, act)
    found_in = metaopt.symmetries(model)
    found = balanced(found_in, weights(model), "weights")
    assert len(found) == 10
    assert found.residual < 1e-12
    move(model, touches_of(found.items()))
    size = sum(float(p.detach().square().sum()) for p in model.parameters())
    for charge in metaopt.charges(model, found_in).values():
        assert float(charge.abs().max()) < 1e-12 * size
    touched = {slot.path for one in found_in for slot in one.slots}
    after = sum(
        float(p.detach().square().sum()) for n, p in model.named_parameters() if n in touched
    )
    assert after == pytest.approx(found.after, rel=1e-12)
    assert found.after < found.before


def test_units_with_nothing_on_one_side_stay_and_are_said() -> None:
    model = chain([3, 5, 2])
    with torch.no_grad():
        model.get_parameter("2.weight")[:, [1, 3]] = 0
        model.get_parameter("0.weight")[3] = 0
        model.get_parameter("0.bias")[3] = 0
    (one,) = metaopt.symmetries(model)
    found = balanced([one], weights(model), "weights")
    t = logarithm(one, found[one])[0]
    assert t[1] == t[3] == 0
    assert found.reasons[one].startswith("1 of 5 units have nothing on one side")
    assert found.limits[one][0].tolist() == [0, -torch.inf, 0, 0, 0]
    assert found.unseen[one][0].tolist() == [False, False, False, True, False]


def test_a_stack_is_as_good_as_its_moments() -> None:
    model = chain([3, 5, 4, 2])
    found_in = metaopt.symmetries(model)
    stacks = {
        path: torch.randn(7, *p.shape, dtype=torch.float64) for path, p in model.named_parameters()
    }
    roots = {path: x.square().sum(0, keepdim=True).sqrt() for path, x in stacks.items()}
    several = [balanced(found_in, x, "gradients") for x in (stacks, roots)]
    for one in found_in:
        torch.testing.assert_close(*(logarithm(one, found[one]) for found in several))


def test_a_stack_that_is_missing_is_said() -> None:
    model = chain([3, 5, 2])
    with pytest.raises(ValueError, match=r"no stack is given for '2\.weight'"):
        balanced(
            metaopt.symmetries(model),
            {"0.weight": torch.ones(1, 5, 3), "0.bias": torch.ones(1, 5)},
            "weights",
        )


@pytest.mark.parametrize("condition", [1e3, 1e5, 1e7])
def test_products_of_any_condition_reach_their_nuclear_norm(condition: float) -> None:
    """min |W1|^2 + |W2|^2 over W2 W1 = M is twice the sum of M's singular values."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 4, bias=False), nn.Linear(4, 5, bias=False)).double()
    with torch.no_grad():
        for p in model.parameters():
            u, s, v = torch.linalg.svd(p, full_matrices=False)
            p.copy_(
                u
                @ torch.diag(torch.logspace(0, -float(torch.tensor(condition).log10()), 4)).to(s)
                @ v
            )
        product = model.get_parameter("1.weight") @ model.get_parameter("0.weight")
    found = balanced(metaopt.symmetries(model), weights(model), "weights")
    assert not found.reasons
    assert found.residual < 1e-10
    assert found.after == pytest.approx(2 * float(torch.linalg.svdvals(product).sum()), rel=1e-10)
