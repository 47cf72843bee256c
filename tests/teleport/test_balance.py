"""``metaopt.balance``: where it goes, that it stays there, and that it goes there from anywhere."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

import metaopt
from metaopt.landscape.samples import Samples
from metaopt.symmetry.conserved import QUADRATIC
from metaopt.teleport.balance import BY


class Squared(nn.Module):
    """Units of degree two."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(4, 6), nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.b(torch.relu(self.a(x)).square())


class Twice(nn.Module):
    """A layer that is called twice."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.h, self.b = nn.Linear(4, 6), nn.Linear(6, 6, bias=False), nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        for layer in (self.a, self.h, self.h):
            x = torch.relu(layer(x))
        return self.b(x)


class Block(nn.Module):
    """Attention of two heads with one key and value, gated units, a residual stream."""

    def __init__(self) -> None:
        super().__init__()
        self.q, self.k, self.v = (nn.Linear(4, n) for n in (6, 3, 3))
        self.o = nn.Linear(6, 4)
        self.gate, self.up, self.down = nn.Linear(4, 5), nn.Linear(4, 5), nn.Linear(5, 4)
        self.norm, self.head = nn.LayerNorm(4), nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        batch, length, _ = x.shape
        q = self.q(x).view(batch, length, 2, 3).transpose(1, 2)
        k, v = self.k(x).unsqueeze(1), self.v(x).unsqueeze(1)
        mixed = functional.scaled_dot_product_attention(q, k, v).transpose(1, 2)
        x = x + self.o(mixed.reshape(batch, length, 6))
        x = x + self.down(functional.silu(self.gate(x)) * self.up(x))
        return self.head(self.norm(x)).mean(1)


def relu() -> nn.Module:
    return nn.Sequential(
        nn.Linear(4, 7), nn.ReLU(), nn.Linear(7, 6), nn.LeakyReLU(), nn.Linear(6, 3)
    )


def linear() -> nn.Module:
    """More hidden units than inputs: moments are singular."""
    return nn.Sequential(nn.Linear(4, 6, bias=False), nn.Linear(6, 4, bias=False), nn.Linear(4, 4))


MODELS: dict[str, Callable[[], nn.Module]] = {
    "relu": relu,
    "linear": linear,
    "squared": Squared,
    "twice": Twice,
    "block": Block,
}


def made(name: str) -> tuple[nn.Module, tuple[Tensor, Tensor], list[metaopt.Symmetry]]:
    torch.manual_seed(1)
    model = MODELS[name]().double()
    x = torch.randn(12, *([5] if name == "block" else []), 4, dtype=torch.float64)
    example = x if name == "block" else None
    found = [s for s in metaopt.symmetries(model, example) if s.group in QUADRATIC]
    return model, (x, torch.randn_like(model(x))), found


def objective(model: nn.Module, by: str, data: tuple[Tensor, Tensor], paths: list[str]) -> float:
    """What is made least, computed by other means."""
    samples = Samples(model, functional.mse_loss, data)
    if by == "norm":
        return sum(float(model.get_parameter(p).detach().square().sum()) for p in paths)
    if by == "gradient":
        return sum(float(g.square().sum()) for g in samples.mean_gradient(paths).values())
    if by == "noise":
        (each,) = samples.per_sample(paths)
        return sum(float((g - g.mean(0)).square().sum()) / len(g) for g in each.values())
    # mse_loss over outputs y [N, m]: G = 2 J^T J / (N m).
    named = {p: model.get_parameter(p) for p in paths}
    jacobian = torch.func.jacrev(lambda w: torch.func.functional_call(model, w, data[0]))(named)
    return sum(2 * float(j.square().sum()) for j in jacobian.values()) / data[1].numel()


@pytest.mark.parametrize("by", BY)
@pytest.mark.parametrize("name", MODELS)
def test_it_goes_to_the_least_from_anywhere_and_stays(name: str, by: str) -> None:
    model, data, found = made(name)
    paths = list(dict.fromkeys(slot.path for one in found for slot in one.slots))
    start = copy.deepcopy(model)
    outputs, before = model(data[0]).detach(), objective(model, by, data, paths)
    done = metaopt.balance(model, by, loss=functional.mse_loss, data=data, symmetries=found)
    torch.testing.assert_close(model(data[0]), outputs, rtol=0, atol=1e-12 * float(outputs.norm()))
    after = objective(model, by, data, paths)
    assert done.before == pytest.approx(before, rel=1e-9)
    assert done.after == pytest.approx(after, rel=1e-9)
    assert after < before
    assert done.residual < 1e-10
    # No point of the orbit that is near has less.
    for seed in range(3):
        near = copy.deepcopy(model)
        metaopt.teleport(near, norm=0.05, seed=seed, symmetries=found)
        assert objective(near, by, data, paths) >= after * (1 - 1e-10)
    # From another point of the orbit it goes to the same weights, and a second call moves nothing.
    again = copy.deepcopy(model)
    metaopt.balance(again, by, loss=functional.mse_loss, data=data, symmetries=found)
    metaopt.teleport(start, norm=0.7, seed=3, symmetries=found)
    metaopt.balance(start, by, loss=functional.mse_loss, data=data, symmetries=found)
    for path, weight in model.named_parameters():
        torch.testing.assert_close(again.get_parameter(path), weight, rtol=0, atol=1e-9)
        torch.testing.assert_close(start.get_parameter(path), weight, rtol=0, atol=1e-8)


def test_at_the_noise_equilibrium_noise_moves_no_charge() -> None:
    model, data, found = made("relu")
    metaopt.balance(model, "noise", loss=functional.mse_loss, data=data, symmetries=found)
    seen = metaopt.noise(model, functional.mse_loss, data, symmetries=found)
    for one in seen.values():
        torch.testing.assert_close(one.incoming, one.outgoing, rtol=1e-10, atol=1e-15)


def test_optimizer_state_moves_along() -> None:
    """A step of SGD with momentum after both ways round ends at the same function."""
    model, data, found = made("relu")
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    for _ in range(3):
        optimizer.zero_grad()
        functional.mse_loss(model(data[0]), data[1]).backward()
        optimizer.step()
    forms = {}
    for moved in (False, True):
        if moved:
            metaopt.balance(model, optimizer=optimizer, symmetries=found)
        momentum = {p: optimizer.state[p]["momentum_buffer"] for p in model.parameters()}
        forms[moved] = [float((p.detach() * v).sum()) for p, v in momentum.items()]
    # <w, v> of each tensor is what one side gains and the other loses; the whole stays.
    assert sum(forms[True]) == pytest.approx(sum(forms[False]), rel=1e-10)
    assert forms[True] == pytest.approx(forms[False], rel=1e-10)


def test_lora_at_its_start_is_left_alone_and_said() -> None:
    model = nn.Sequential(nn.Linear(6, 2, bias=False), nn.Linear(2, 5, bias=False)).double()
    nn.init.zeros_(model.get_parameter("1.weight"))
    before = copy.deepcopy(model.state_dict())
    done = metaopt.balance(model)
    assert "ranks 2 and 0 of 2" in done.left["0 -> 1"]
    assert "ranks 2 and 0 of 2" in str(done)
    for path, weight in model.state_dict().items():
        assert torch.equal(weight, before[path])


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"by": "size"}, "by must be one of norm, gradient, noise, sharpness, found 'size'"),
        ({"by": "noise"}, "by='noise' looks at gradients of samples: loss and data must be given"),
        ({"state": "keep"}, "state must be one of transport, reset, found 'keep'"),
    ],
)
def test_mistakes_end_in_one_line(given: dict[str, Any], said: str) -> None:
    model, _, _ = made("relu")
    with pytest.raises(ValueError, match="^" + said.replace("(", "[(]")):
        metaopt.balance(model, **given)


def test_batch_normalisation_in_training_is_refused() -> None:
    model = nn.Sequential(nn.Linear(4, 5), nn.BatchNorm1d(5), nn.ReLU(), nn.Linear(5, 2))
    data = torch.randn(8, 4), torch.randn(8, 2)
    with pytest.raises(ValueError, match=r"call model\.eval\(\)"):
        metaopt.balance(model, "noise", loss=functional.mse_loss, data=data, example=data[0])


def test_what_rests_on_an_assumption_is_left_alone_with_a_warning() -> None:
    model = nn.Sequential(nn.Linear(4, 5), nn.BatchNorm1d(5), nn.ReLU(), nn.Linear(5, 2))
    with pytest.warns(UserWarning, match="pass example=x"):
        metaopt.balance(model)


def summed(outputs: Tensor, targets: Tensor) -> Tensor:
    return functional.mse_loss(outputs, targets, reduction="sum")


def test_what_cannot_be_right_is_refused() -> None:
    model, (x, y), found = made("relu")
    poisoned = x.clone()
    poisoned[5, 0] = torch.nan
    before = copy.deepcopy(model.state_dict())

    def penalised(outputs: Tensor, targets: Tensor) -> Tensor:
        size = sum((p.square().sum() for p in model.parameters()), torch.zeros(()))
        return functional.mse_loss(outputs, targets) + size

    for by in ("gradient", "noise", "sharpness"):
        for loss, data, said in (
            (functional.mse_loss, (poisoned, y), "not finite"),
            (summed, (x, y), "no mean over the samples"),
            (penalised, (x, y), "reads the model's weights"),
        ):
            with pytest.raises(ValueError, match=said):
                metaopt.balance(model, by, loss=loss, data=data, symmetries=found)
    with pytest.raises(ValueError, match="no mean over the samples"):
        metaopt.noise(model, summed, [(x[:1], y[:1]), (x[1:], y[1:])])
    for path, weight in model.state_dict().items():
        assert torch.equal(weight, before[path])


def test_symmetries_of_another_model_are_refused() -> None:
    found = metaopt.symmetries(nn.Sequential(nn.Linear(4, 5), nn.ReLU(), nn.Linear(5, 3)))
    other = nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3)).double()
    x = torch.randn(8, 4, dtype=torch.float64)
    data = x, torch.randn(8, 3, dtype=torch.float64)
    for by in ("gradient", "noise", "sharpness"):
        with pytest.raises(ValueError, match="does not hold for each sample"):
            metaopt.balance(other, by, loss=functional.mse_loss, data=data, symmetries=found)
    frozen, _, own = made("relu")
    frozen.get_parameter("2.weight").requires_grad_(False)
    with pytest.raises(ValueError, match=r"'2\.weight' is frozen"):
        metaopt.balance(frozen, symmetries=own)


def test_a_group_of_which_gradients_see_a_part_stays() -> None:
    torch.manual_seed(1)
    model = nn.Sequential(nn.Linear(6, 5, bias=False), nn.Linear(5, 2, bias=False)).double()
    x = torch.randn(8, 6, dtype=torch.float64)
    data = x, torch.randn(8, 2, dtype=torch.float64)
    before = copy.deepcopy(model.state_dict())
    done = metaopt.balance(model, "gradient", loss=functional.mse_loss, data=data)
    assert "gradients do not reach all directions" in done.left["0 -> 1"]
    for path, weight in model.state_dict().items():
        assert torch.equal(weight, before[path])


def test_where_nothing_is_found_nothing_moves() -> None:
    model = nn.Linear(4, 3)
    with pytest.warns(UserWarning, match="nothing is balanced"):
        done = metaopt.balance(
            model, "gradient", loss=summed, data=(torch.ones(2, 4), torch.ones(2, 3))
        )
    assert done.after == 0


def test_an_estimate_says_so() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 5), nn.ReLU(), nn.Linear(5, 70)).double()
    x = torch.randn(6, 4, dtype=torch.float64)
    data = x, torch.randn(6, 70, dtype=torch.float64)
    done = metaopt.balance(model, "sharpness", loss=functional.mse_loss, data=data)
    assert done.is_estimated
    assert "estimated from random draws" in str(done)
