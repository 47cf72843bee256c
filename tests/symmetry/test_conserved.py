"""Charges: by hand, by the identity of gradients, and along gradient flow by an ODE solver."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from architectures.attention import Rotary, rotate_half
from conserving import (
    Classes,
    Convolutions,
    GatedUnits,
    Heads,
    Normalised,
    Units,
    linear_layers,
    lora,
    made,
)
from torch import Tensor, nn
from torch.nn import functional

from metaopt import symmetries
from metaopt.symmetry.conserved import charges, form, halves, named, parameters_of
from metaopt.symmetry.groups import Group, Slot, Symmetry

Make = Callable[[], nn.Module]


def relu() -> nn.Module:
    return Units(functional.relu)


def leaky() -> nn.Module:
    return Units(partial(functional.leaky_relu, negative_slope=0.1))


def cubed() -> nn.Module:
    return Units(lambda h: h**3)


def gelu() -> nn.Module:
    return Units(functional.gelu)


def rotary() -> nn.Module:
    return Rotary(rotate_half)


SHAPES = {rotary: (2, 5, 6), Convolutions: (3, 2, 5, 5), lora: (4, 3)}


def example(make: Make) -> Tensor:
    shape = SHAPES.get(make, (2, 3, 3) if "eads" in str(make) else (4, 3))
    return torch.randn(shape, dtype=torch.float64)


def squares(tensor: Tensor, *axes: int) -> Tensor:
    return tensor.detach().square().sum(axes)


def rows(layer: Any) -> Tensor:
    """Weight and bias, [out, in + 1]."""
    return torch.cat([layer.weight, layer.bias[:, None]], 1).detach()


def blocks(matrix: Tensor, width: int) -> Tensor:
    """x x^T of each block of rows."""
    x = matrix.unflatten(0, (-1, width))
    return x @ x.mT


class TestByHand:
    @pytest.mark.parametrize("make", [relu, leaky])
    def test_units_have_the_difference_of_squared_norms(self, make: Make) -> None:
        model = made(make)
        found = charges(model)
        want = squares(rows(model.a), 1) - squares(model.b.weight, 0)
        assert found.keys() == {"a -> b"}
        torch.testing.assert_close(found["a -> b"], want, rtol=1e-14, atol=0)

    def test_powers_weight_what_reads_them(self) -> None:
        model = made(cubed)
        want = squares(rows(model.a), 1) - 3 * squares(model.b.weight, 0)
        torch.testing.assert_close(charges(model)["a -> b"], want, rtol=1e-14, atol=0)

    def test_of_gated_units_the_linear_branch_counts(self) -> None:
        model = made(GatedUnits)
        want = squares(rows(model.up), 1) - squares(model.down.weight, 0)
        assert charges(model).keys() == {"up -> down"}
        torch.testing.assert_close(charges(model)["up -> down"], want, rtol=1e-14, atol=0)

    def test_channels_count_all_their_entries(self) -> None:
        model = made(Convolutions)
        found = charges(model, example=example(Convolutions))
        readers = model.b.weight.unflatten(0, (2, 3))
        first = squares(model.a.weight, 1, 2, 3) + squares(model.a.bias[:, None], 1)
        first -= squares(readers, 1, 3, 4).flatten()
        second = squares(model.b.weight, 1, 2, 3) + squares(model.b.bias[:, None], 1)
        second -= squares(model.c.weight.unflatten(1, (6, 4)), 0, 2)
        torch.testing.assert_close(found["a -> b"], first, rtol=1e-14, atol=0)
        torch.testing.assert_close(found["b -> c"], second, rtol=1e-14, atol=0)

    def test_linear_layers_have_a_symmetric_matrix(self) -> None:
        model = made(linear_layers)
        (found,) = charges(model).values()
        w, v = rows(model[0]), model[1].weight.detach()
        torch.testing.assert_close(found, w @ w.T - v.T @ v, rtol=1e-13, atol=1e-15)
        assert torch.equal(found, found.T)

    @pytest.mark.parametrize("shared", [1, 2])
    def test_each_head_has_a_matrix_and_shared_keys_have_one(self, shared: int) -> None:
        model = made(partial(Heads, shared))
        found = charges(model, example=example(Heads))
        few = 4 // shared
        queries = blocks(rows(model.q), 2).unflatten(0, (few, shared)).sum(1)
        outputs = blocks(model.o.weight.detach().T, 2).unflatten(0, (few, shared)).sum(1)
        want = {
            "q": queries - blocks(rows(model.k), 2),
            "k": queries - blocks(rows(model.k), 2),
            "v": blocks(rows(model.v), 2) - outputs,
        }
        linear = {n: one for n, one in found.items() if one.dim() == 3}
        assert len(linear) == 2
        for name, one in linear.items():
            sign = -1 if name.startswith("k") else 1
            torch.testing.assert_close(sign * one, want[name[0]], rtol=1e-13, atol=1e-14)

    def test_rotated_pairs_have_the_difference_of_squared_norms(self) -> None:
        model = made(rotary)
        found = charges(model, example=example(rotary))
        moved = named(symmetries(model, example(rotary)))
        (name,) = (n for n, one in moved.items() if one.group is Group.ROTARY)
        # Halves: entry i of a head goes with entry i + 2.
        q, k = (squares(rows(f).unflatten(0, (2, 2, 2)), 1, 3) for f in (model.wq, model.wk))
        torch.testing.assert_close(found[name].flatten(), (q - k).flatten())

    def test_normalised_weights_have_their_squared_norm(self) -> None:
        model = made(partial(Normalised, False))
        found = charges(model, example=example(relu))
        torch.testing.assert_close(found["a"], squares(rows(model.a), 0, 1)[None])

    def test_translations_have_sums_over_the_units(self) -> None:
        for make in (Classes, partial(Normalised, True)):
            model = made(make)
            found = charges(model, example=example(relu))
            torch.testing.assert_close(found["a.weight"], model.a.weight.detach().sum(0))
            torch.testing.assert_close(found["a.bias"], model.a.bias.detach().sum(0)[None])

    def test_adapters_have_a_matrix_of_their_rank(self) -> None:
        pytest.importorskip("peft")
        model = made(lora)
        (found,) = charges(model, example=example(lora)).values()
        a, b = (model.get_submodule(f"2.lora_{x}.default").weight.detach() for x in "AB")
        torch.testing.assert_close(found, a @ a.T - b.T @ b)
        assert_orthogonal(lora, model)

    def test_single_precision_weights_have_charges_in_double_precision(self) -> None:
        model = made(relu).float()
        want = squares(rows(model.a).double(), 1) - squares(model.b.weight.double(), 0)
        assert torch.equal(charges(model)["a -> b"], want)


ALL = [
    *(relu, leaky, cubed, GatedUnits, Convolutions, linear_layers, Heads, partial(Heads, 2)),
    *(rotary, partial(Normalised, False), partial(Normalised, True), Classes),
]


def backward(make: Make, model: nn.Module) -> None:
    outputs = model(example(make)).flatten(0, -2)
    functional.cross_entropy(outputs, torch.randint(2, (len(outputs),))).backward()


def assert_orthogonal(make: Make, model: nn.Module) -> None:
    """<w, grad L> = 0; for a linear group W_in G_in^T = G_out^T W_out, as a whole matrix."""
    found = named(symmetries(model, example(make)))
    assert found
    for _ in range(3):
        model.zero_grad()
        backward(make, model)
        weights = parameters_of(model, found.values())
        w = {path: p.detach() for path, p in weights.items()}
        g = {path: p.grad for path, p in weights.items() if p.grad is not None}
        for name, symmetry in found.items():
            if symmetry.group is Group.TRANSLATION:
                assert form(symmetry, g, g).abs().max() < 1e-13, name
                continue
            incoming, outgoing = halves(symmetry, w, g)
            assert (incoming - outgoing).abs().max() < 1e-13, name
            if symmetry.outgoing:
                assert incoming.abs().max() > 1e-5, name


@pytest.mark.parametrize("make", ALL, ids=[f"model{i}" for i in range(len(ALL))])
def test_gradients_are_orthogonal_on_every_batch(make: Make) -> None:
    assert_orthogonal(make, made(make))


def test_of_linear_layers_the_product_of_weights_and_gradients_is_one_matrix() -> None:
    model = made(linear_layers)
    backward(linear_layers, model)
    one, two = model
    with_bias = torch.cat([one.weight.grad, one.bias.grad[:, None]], 1)
    product = rows(one) @ with_bias.T
    torch.testing.assert_close(product, two.weight.grad.T @ two.weight, rtol=0, atol=1e-14)
    assert (product - product.T).abs().max() > 1e-3


def test_the_form_is_symmetric_and_linear() -> None:
    model = made(Convolutions)
    found = named(symmetries(model, example(Convolutions)))
    paths = parameters_of(model, found.values())
    x, y, z = ({path: torch.randn_like(p) for path, p in paths.items()} for _ in range(3))
    both = {path: 2 * x[path] + z[path] for path in x}
    for symmetry in found.values():
        torch.testing.assert_close(form(symmetry, x, y), form(symmetry, y, x))
        sums = 2 * form(symmetry, x, y) + form(symmetry, z, y)
        torch.testing.assert_close(form(symmetry, both, y), sums)


def test_missing_paths_count_as_zero() -> None:
    model = made(relu)
    (symmetry,) = named(symmetries(model)).values()
    w = {"b.weight": model.b.weight.detach()}
    torch.testing.assert_close(form(symmetry, w, w), -squares(model.b.weight, 0))
    with pytest.raises(ValueError, match="none of its parameters is given"):
        form(symmetry, {}, {})


def symmetry_of(group: Group, *paths: str) -> Symmetry:
    slots = tuple(Slot(*path.rpartition(".")[::2], axis=0) for path in paths)
    return Symmetry("a -> b", group, 4, slots, (), allows=frozenset({group}))


def test_names_are_unique() -> None:
    groups = [Group.SCALING, Group.LINEAR, Group.LINEAR, Group.PERMUTATION]
    given = [symmetry_of(group, "a.bias") for group in groups]
    other = Symmetry("a", Group.SCALING, 4, (), ())
    found = named([*given, other])
    assert list(found) == [
        "a -> b (positive scaling)",
        "a -> b (general linear)",
        "a -> b (general linear) 2",
        "a",
    ]
    assert list(found.values()) == [*given[:3], other]


def test_discrete_and_orthogonal_groups_have_none() -> None:
    assert charges(made(gelu)) == {}
    tanh = made(partial(Units, torch.tanh))
    assert {one.group for one in symmetries(tanh)} <= {Group.SIGNS, Group.PERMUTATION}
    assert charges(tanh) == {}


def test_buffers_and_other_models_are_refused() -> None:
    model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4))
    moved = symmetry_of(Group.SCALING, "0.weight", "1.running_mean")
    with pytest.raises(ValueError, match=r"moves '1.running_mean', which is no parameter"):
        charges(model, [moved])
    with pytest.raises(ValueError, match=r"the model has no tensor 'a.weight'"):
        charges(model, symmetries(made(relu)))
