"""Fast geometric ensembling: the schedule, members, SWA, what is given back, resumed runs."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any, cast

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import metaopt
from metaopt.landscape.between.tensors import tensors_of_model
from metaopt.optim.fge import cyclic_rate

F = nn.functional
HIGH, LOW, CYCLE = 0.1, 0.01, 8


class Residual(nn.Module):
    """A small ResNet: a stem, one block with BatchNorm, a head."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(1, 4, 3, padding=1, bias=False)
        self.first = nn.BatchNorm2d(4)
        self.conv = nn.Conv2d(4, 4, 3, padding=1, bias=False)
        self.second = nn.BatchNorm2d(4)
        self.head = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.first(self.stem(x)))
        x = torch.relu(x + self.second(self.conv(x)))
        return cast(Tensor, self.head(x.mean((2, 3))))


def data() -> tuple[Tensor, Tensor]:
    torch.manual_seed(1)
    x = torch.randn(48, 1, 6, 6)
    return x, (x[:, 0, :3].sum((1, 2)) > 0).long() + (x[:, 0, 3:].sum((1, 2)) > 2).long()


def batches(count: int = 6) -> list[tuple[Tensor, Tensor]]:
    x, y = data()
    return list(zip(x.chunk(count), y.chunk(count), strict=True))


def residual() -> tuple[Residual, torch.optim.SGD]:
    """A network that has begun to train, with its optimizer."""
    torch.manual_seed(0)
    model = Residual()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9, weight_decay=1e-3)
    for x, y in batches():
        optimizer.zero_grad()
        F.cross_entropy(model(x), y).backward()
        optimizer.step()
    return model, optimizer


def mlp() -> nn.Sequential:
    torch.manual_seed(0)
    layers = nn.Linear(36, 8), nn.ReLU(), nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 3)
    return nn.Sequential(nn.Flatten(), *layers)


def test_the_rate_is_high_at_the_ends_and_low_in_the_middle() -> None:
    assert cyclic_rate(0, CYCLE, HIGH, LOW) == cyclic_rate(CYCLE, CYCLE, HIGH, LOW) == HIGH
    assert cyclic_rate(CYCLE // 2, CYCLE, HIGH, LOW) == LOW
    for quarter in (CYCLE // 4, 3 * CYCLE // 4, 5 * CYCLE // 4):
        assert cyclic_rate(quarter, CYCLE, HIGH, LOW) == pytest.approx((HIGH + LOW) / 2)
    assert cyclic_rate(1, 2, HIGH, LOW) == LOW


def by_hand(
    model: nn.Module, optimizer: torch.optim.Optimizer, cycles: int
) -> list[dict[str, Tensor]]:
    """The weights at the lowest rates of a loop that is written out."""
    members: list[dict[str, Tensor]] = []
    step, pairs = 0, batches()
    model.train()
    while len(members) < cycles:
        x, y = pairs[step % len(pairs)]
        step += 1
        for group in optimizer.param_groups:
            group["lr"] = cyclic_rate(step, CYCLE, HIGH, LOW)
        optimizer.zero_grad()
        F.cross_entropy(model(x), y).backward()
        optimizer.step()
        if step % CYCLE == CYCLE // 2:
            members.append({p: x.clone() for p, x in tensors_of_model(model).items()})
    return members


def test_members_are_the_weights_at_the_lowest_rates_of_a_plain_loop() -> None:
    model, optimizer = residual()
    wanted = by_hand(*copy.deepcopy((model, optimizer)), cycles=3)
    # A copy of both together: its optimizer has the copy's parameters.
    model.eval()
    found = metaopt.fge(model, optimizer, batches(), CYCLE, (HIGH, LOW), cycles=3)
    assert len(found) == 3
    assert found.trace is not None
    assert found.trace.members.tolist() == [4, 12, 20]
    for one, other in zip(found.members, wanted, strict=True):
        assert one.keys() == other.keys()
        assert all(torch.equal(one[path], other[path]) for path in one)
    # Rates and modes are given back; the model has the last member's weights, and no gradients.
    assert optimizer.param_groups[0]["lr"] == 0.05
    assert not model.training
    assert all(torch.equal(x, wanted[-1][p]) for p, x in tensors_of_model(model).items())
    assert all(p.grad is None for p in model.parameters())


def test_the_ensemble_is_the_mean_of_softmax_and_swa_the_mean_of_weights() -> None:
    model, optimizer = residual()
    found = metaopt.fge(model, optimizer, batches(), CYCLE, (HIGH, LOW), cycles=3)
    x, y = data()
    with torch.no_grad():
        each = torch.stack([found.model(m)(x).softmax(1) for m in range(3)])
        torch.testing.assert_close(found(x), each.mean(0))
    for path, weight in found.averaged.named_parameters():
        mean = torch.stack([member[path] for member in found.members]).mean(0)
        torch.testing.assert_close(weight.detach(), mean)
    # Statistics of the first BatchNorm after a refresh: those of what comes into it.
    seen = cast(Residual, found.averaged).stem(x).detach()
    refreshed = cast(Residual, found.averaged).first.running_mean
    torch.testing.assert_close(refreshed, seen.mean((0, 2, 3)), rtol=1e-4, atol=1e-5)
    assert float(F.cross_entropy(found.averaged(x), y).detach()) < 1.0


def test_a_pair_is_cut_into_mini_batches() -> None:
    model, optimizer = residual()
    seen: list[Tensor] = []
    hook = model.stem.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    found = metaopt.fge(model, optimizer, data(), 10, (HIGH, LOW), cycles=1, batch_size=12)
    hook.remove()
    # Five steps; then the mean of weights, a copy with the hook, sees all data in four parts.
    assert [len(x) for x in seen] == [12] * 9
    x, _ = data()
    # An epoch has each sample once; the next one has another order.
    first = torch.cat(seen[:4]).flatten(1).sum(1)
    torch.testing.assert_close(first.sort().values, x.flatten(1).sum(1).sort().values)
    assert not torch.equal(seen[4], seen[0])
    refreshed = cast(Residual, found.averaged).first.running_mean
    wanted = cast(Residual, found.averaged).stem(x).detach().mean((0, 2, 3))
    torch.testing.assert_close(refreshed, wanted, rtol=1e-4, atol=1e-5)


def test_the_trace_has_rate_error_and_distance(tmp_path: Path) -> None:
    model, optimizer = residual()
    start = copy.deepcopy(model)
    x, y = data()
    found = metaopt.fge(
        model, optimizer, batches(), CYCLE, (HIGH, LOW), cycles=2, watch=(x, y)
    ).trace
    assert found is not None
    rates = [cyclic_rate(step, CYCLE, HIGH, LOW) for step in range(1, 13)]
    assert found.rate.tolist() == rates
    pairs = zip(model.parameters(), start.parameters(), strict=True)
    away = torch.stack([(a - b).norm() for a, b in pairs]).norm().item()
    assert float(found.distance[-1]) == pytest.approx(away)
    assert found.watched.tolist() == list(range(13))
    with torch.no_grad():
        outputs = model.eval()(x)
    assert float(found.watched_loss[-1]) == pytest.approx(float(F.cross_entropy(outputs, y)))
    wrong = (outputs.argmax(1) != y).double().mean()
    assert float(found.watched_error[-1]) == pytest.approx(float(wrong))
    figure = found.plot(tmp_path / "trace.svg")
    assert figure.axes[0].get_title() == "learning rate"
    assert (tmp_path / "trace.svg").stat().st_size > 0


def loader(seed: int = 3) -> DataLoader[Any]:
    generator = torch.Generator().manual_seed(seed)
    return DataLoader(TensorDataset(*data()), 10, shuffle=True, generator=generator)


def with_dropout() -> tuple[nn.Module, torch.optim.AdamW]:
    model = nn.Sequential(*mlp(), nn.Dropout(0.2))
    return model, torch.optim.AdamW(model.parameters(), lr=0.01)


@pytest.mark.parametrize("teleport", [None, 0.2])
def test_a_resumed_run_has_the_same_bits(tmp_path: Path, teleport: float | None) -> None:
    arguments: dict[str, Any] = {"teleport": teleport, "seed": 5}

    def run(path: Path | None, cycles: int) -> tuple[metaopt.Ensemble, Any]:
        torch.manual_seed(7)
        model, optimizer = with_dropout()
        torch.manual_seed(8)
        shuffled = loader()
        watched = data()
        return metaopt.fge(
            model,
            optimizer,
            shuffled,
            6,
            (0.02, 0.001),
            cycles=cycles,
            folder=path,
            watch=watched,
            **arguments,
        ), optimizer

    whole, optimizer = run(None, 4)
    path = tmp_path / "run"
    run(path, 2)
    torch.randn(5)
    found, other = run(path, 4)
    for name, tensor in whole.state_dict().items():
        assert torch.equal(found.state_dict()[name], tensor), name
    for name in ("rate", "loss", "error", "distance", "watched_loss"):
        assert torch.equal(getattr(found.trace, name), getattr(whole.trace, name)), name
    assert other.param_groups[0]["lr"] == 0.01
    loaded = metaopt.Ensemble.load(path / "ensemble.safetensors", with_dropout()[0])
    assert torch.equal(loaded(data()[0]), whole(data()[0]))
    assert loaded.trace is not None
    assert torch.equal(loaded.trace.members, torch.tensor([3, 9, 15, 21]))
    states = zip(optimizer.state.values(), other.state.values(), strict=True)
    assert all(torch.equal(a[key], b[key]) for a, b in states for key in a)
    with pytest.raises(ValueError, match="has 4 members already, cycles must be at least that"):
        run(path, 3)
    arguments["seed"] = 6
    with pytest.raises(ValueError, match="the run there has seed 5, found 6"):
        run(path, 4)


def test_data_that_are_watched_change_nothing() -> None:
    found = []
    for watch in (None, DataLoader(TensorDataset(*data()), 16, shuffle=True)):
        torch.manual_seed(7)
        model, optimizer = with_dropout()
        order = DataLoader(TensorDataset(*data()), 10, shuffle=True)
        found.append(metaopt.fge(model, optimizer, order, 6, (0.02, 0.001), cycles=2, watch=watch))
    first, second = (one.state_dict() for one in found)
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_a_teleported_start_leaves_outputs_as_they_were() -> None:
    model = mlp().double()
    x, y = data()
    x = x.double()
    before, weights = model(x).detach(), copy.deepcopy(model)
    still = torch.optim.SGD(model.parameters(), lr=0.0, momentum=0.9)
    found = metaopt.fge(model, still, (x, y), 4, (0.0, 0.0), cycles=3, teleport=0.5, seed=1)
    moved = [member["1.weight"] for member in found.members]
    pairs = zip([tensors_of_model(weights)["1.weight"], *moved], moved, strict=False)
    assert all(float((one - other).detach().norm()) > 0.1 for one, other in pairs)
    for member in range(3):
        torch.testing.assert_close(found.model(member)(x).detach(), before)
    torch.testing.assert_close(found(x).detach(), before.softmax(1))
    # Points of one orbit, whose mean is on no orbit of theirs.
    away = (found.averaged(x) - before).norm() / before.norm()
    assert float(away.detach()) > 0.02
    again = mlp().double()
    still = torch.optim.SGD(again.parameters(), lr=0.0, momentum=0.9)
    same = metaopt.fge(
        again, still, (x, y), 4, (0.0, 0.0), cycles=3, teleport={"norm": 0.5}, seed=1
    )
    assert all(torch.equal(a["1.weight"], b) for a, b in zip(same.members, moved, strict=True))


def test_groups_keep_their_ratios_and_rates_may_be_tensors() -> None:
    model = mlp()
    rate = torch.tensor(0.02)
    groups: list[dict[str, Any]] = [
        {"params": model[1].parameters(), "lr": rate},
        {"params": model[3].parameters()},
    ]
    optimizer = torch.optim.Adam(groups, lr=torch.tensor(0.01), foreach=False, capturable=False)
    seen = []
    optimizer.register_step_pre_hook(
        lambda opt, *_: seen.append([float(group["lr"]) for group in opt.param_groups])
    )
    metaopt.fge(model, optimizer, data(), 4, (0.2, 0.1), cycles=1)
    assert seen == [pytest.approx([0.15, 0.075]), pytest.approx([0.1, 0.05])]
    assert optimizer.param_groups[0]["lr"] is rate
    assert float(rate) == pytest.approx(0.02)


def test_regression_averages_outputs() -> None:
    torch.manual_seed(0)
    model = nn.Linear(3, 2)
    x, y = torch.randn(20, 3), torch.randn(20, 2)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    found = metaopt.fge(model, optimizer, (x, y), 4, (0.1, 0.01), loss=F.mse_loss, cycles=2)
    each = torch.stack([found.model(m)(x) for m in range(2)])
    torch.testing.assert_close(found(x), each.mean(0))
    assert found.trace is not None
    assert bool(found.trace.error.isnan().all())
    assert "loss" in found.trace.plot().axes[1].get_title()


def test_a_learned_optimizer_and_frozen_batch_norm() -> None:
    model = Residual()
    model.first.eval()
    before = cast(Tensor, model.first.running_mean).clone()
    optimizer = metaopt.LearnedOptimizer(model, "digits_update_tele")
    found = metaopt.fge(model, optimizer, batches(), 2, (1.0, 0.1), cycles=2)
    assert optimizer.param_groups[0]["lr"] == 1.0
    assert torch.equal(found.members[-1]["first.running_mean"], before)
    assert "first.running_mean" not in found.stacked.tensors() or model.training


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"cycle": 3}, "cycle must be an even number of steps, at least 2, found 3"),
        ({"average": "mean"}, "average must be 'softmax', 'outputs' or a function"),
        ({"cycles": 0}, "cycles must be at least 1, found 0"),
        ({"lr": (0.1, 0.2)}, r"lr must be \(high, low\) with 0 <= low <= high"),
        ({"data": []}, "data hold no batches"),
        ({"data": iter(batches())}, "that can be run through twice"),
        ({"lr": (1e30, 1e30)}, "is not finite after step 2: take smaller rates"),
        (
            {"loss": F.binary_cross_entropy_with_logits, "data": (data()[0], torch.ones(48, 3))},
            "what is averaged",
        ),
    ],
)
def test_what_is_wrong_is_said(changed: dict[str, Any], message: str) -> None:
    model = mlp()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    arguments: dict[str, Any] = {
        "data": batches(),
        "cycle": 4,
        "lr": (0.1, 0.01),
        "cycles": 1,
    } | changed
    with pytest.raises(ValueError, match=message):
        metaopt.fge(model, optimizer, **arguments)
    assert optimizer.param_groups[0]["lr"] == 0.1
    with pytest.raises(ValueError, match="none of its"):
        metaopt.fge(nn.Linear(2, 2), optimizer, batches(), 4, (0.1, 0.01))
