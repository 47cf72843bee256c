"""Planted moves are found again; assignments against brute force; models stay as they are."""

from __future__ import annotations

from collections.abc import Callable
from copy import deepcopy
from itertools import permutations

import pytest
import torch
from alignments import Attention, ResNet, cnn, mlp, noisy, planted
from support import signed
from torch import Tensor, nn

from metaopt.landscape.between.align import By, align
from metaopt.landscape.between.align_solutions import scales
from metaopt.symmetry.discovery.find import symmetries
from metaopt.symmetry.groups import Group

IMAGES = signed(12 * 64, 1, seed=1).reshape(12, 1, 8, 8)
ROWS, TOKENS = signed(20, 6, seed=2), signed(60, 3, seed=3).reshape(12, 5, 3)
LABELS = torch.arange(20) % 3


def weight(model: nn.Module, path: str) -> Tensor:
    return model.get_parameter(path).detach()


def distance(a: nn.Module, b: nn.Module) -> float:
    pairs = zip(a.parameters(), b.parameters(), strict=True)
    return sum(float((x - y).detach().square().sum()) for x, y in pairs) ** 0.5


def tensors(model: nn.Module) -> dict[str, Tensor]:
    return {path: value.clone() for path, value in model.state_dict().items()}


CASES: dict[str, tuple[Callable[[], nn.Module], Tensor]] = {
    "relu": (lambda: mlp(nn.ReLU), ROWS),
    "tanh": (lambda: mlp(nn.Tanh), ROWS),
    "linear": (lambda: mlp(nn.Identity, (6, 4, 4, 5)), ROWS),
    "cnn": (cnn, IMAGES),
    "resnet": (ResNet, IMAGES),
    "heads": (Attention, TOKENS),
    "grouped": (lambda: Attention(4, 2), TOKENS),
}


@pytest.mark.parametrize("by", ["weights", "activations"])
@pytest.mark.parametrize("name", CASES)
def test_what_is_planted_is_found_again(name: str, by: By) -> None:
    torch.manual_seed(0)
    build, x = CASES[name]
    a = noisy(build())
    b, found = planted(a, x)
    far = distance(a, b)
    moved, report = align(a, b, by, data=(x, LABELS[: len(x)]), symmetries=found)
    assert report.before == pytest.approx(far, rel=1e-12)
    assert report.after == pytest.approx(distance(a, moved), rel=1e-9, abs=1e-15)
    assert report.after < 1e-11 * far
    assert report.drift is not None
    assert report.drift < 1e-12
    for path, value in a.state_dict().items():
        torch.testing.assert_close(moved.state_dict()[path], value, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("act", [nn.GELU, nn.Tanh, nn.ReLU])
def test_one_hidden_layer_is_as_near_as_by_brute_force(act: type[nn.Module]) -> None:
    """Over all permutations of six units, each unit with its best scale or sign."""
    torch.manual_seed(1)
    a, b = (mlp(act, (4, 6, 3)).double() for _ in range(2))
    _, report = align(a, b, "orbit")
    rows = [torch.cat([weight(m, "0.weight"), weight(m, "0.bias")[:, None]], 1) for m in (a, b)]
    columns = [weight(m, "2.weight").T for m in (a, b)]
    p, q = rows[0] @ rows[1].T, columns[0] @ columns[1].T
    square_in, square_out = (rows[1].square().sum(1), columns[1].square().sum(1))
    own = torch.stack([t.square().sum() for one in (rows, columns) for t in one]).sum()
    if act is nn.ReLU:
        _, cost = scales(p, square_in[None], q, square_out[None], signed=False)
        cost = cost + rows[0].square().sum(1)[:, None] + columns[0].square().sum(1)[:, None]
        least = torch.stack([cost[range(6), o].sum() for o in permutations(range(6))]).min()
    else:
        gain = (p + q).abs() if act is nn.Tanh else p + q
        best = torch.stack([gain[range(6), o].sum() for o in permutations(range(6))]).max()
        least = own - 2 * best
    left = least + (weight(a, "2.bias") - weight(b, "2.bias")).square().sum()
    assert report.after**2 == pytest.approx(float(left), rel=1e-9)


def test_two_hidden_layers_reach_brute_force_with_restarts() -> None:
    """576 pairs of permutations; a single start may end in a local minimum, 20 do not here."""
    torch.manual_seed(2)
    a, b = (mlp(nn.GELU, (3, 4, 4, 2)).double() for _ in range(2))
    _, report = align(a, b, restarts=20)
    wa, wb = ([weight(m, f"{i}.weight") for i in (0, 2, 4)] for m in (a, b))
    ba, bb = ([weight(m, f"{i}.bias") for i in (0, 2, 4)] for m in (a, b))
    best = float("inf")
    for first in permutations(range(4)):
        for second in permutations(range(4)):
            one, two = list(first), list(second)
            off = (wa[0] - wb[0][one]).square().sum() + (ba[0] - bb[0][one]).square().sum()
            off += (wa[1] - wb[1][two][:, one]).square().sum()
            off += (ba[1] - bb[1][two]).square().sum() + (wa[2] - wb[2][:, two]).square().sum()
            best = min(best, float(off + (ba[2] - bb[2]).square().sum()))
    assert report.after**2 == pytest.approx(best, rel=1e-9)


@pytest.mark.parametrize("name", ["relu", "tanh", "cnn", "grouped"])
def test_distance_never_rises_and_models_stay(name: str) -> None:
    build, x = CASES[name]
    torch.manual_seed(3)
    a, b = noisy(build(), 1).train(), noisy(build(), 2).train()
    kept = tensors(a), tensors(b)
    after = []
    for by in ("weights", "orbit"):
        moved, report = align(a, b, by, data=(x, LABELS[: len(x)]))  # type: ignore[arg-type]
        after.append(report.after)
        assert report.after <= report.before
        assert report.drift is not None
        assert report.drift < 1e-11
        assert moved.training
    assert after[1] <= after[0] * (1 + 1e-5)
    assert a.training
    assert b.training
    for model, before in zip((a, b), kept, strict=True):
        assert all(torch.equal(value, before[path]) for path, value in model.state_dict().items())


def test_units_that_number_two_axes_of_a_tensor() -> None:
    class Loop(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.loop, self.last = nn.Linear(6, 7), nn.Linear(7, 7), nn.Linear(7, 3)

        def forward(self, x: Tensor) -> Tensor:
            x = self.first(x)
            return self.last(x + torch.relu(self.loop(x)))

    torch.manual_seed(0)
    a = noisy(Loop())
    b, found = planted(a, ROWS)
    _, report = align(a, b, symmetries=found)
    assert report.after < 1e-11 * report.before


def test_report_tells_what_moved() -> None:
    torch.manual_seed(0)
    a = noisy(mlp(nn.Tanh, (4, 5, 2)))
    b = deepcopy(a)
    with torch.no_grad():
        order = torch.tensor([1, 0, 2, 3, 4])
        weight(b, "0.weight").copy_(weight(a, "0.weight")[order])
        weight(b, "0.bias").copy_(weight(a, "0.bias")[order])
        weight(b, "2.weight").copy_(weight(a, "2.weight")[:, order])
        for part in (weight(b, "0.weight")[4], weight(b, "0.bias")[4], weight(b, "2.weight")[:, 4]):
            part *= -1
    _, report = align(a, b)
    by_group = {one.symmetry.group: one for one in report.moved}
    assert by_group[Group.PERMUTATION].permuted == 2
    assert by_group[Group.SIGNS].flipped == 1
    assert report.after == 0
    assert "distance" in str(report)


def test_scales_are_told_as_norm_of_the_generator() -> None:
    torch.manual_seed(0)
    a = noisy(mlp(nn.ReLU, (4, 5, 2)))
    b = deepcopy(a)
    with torch.no_grad():
        for part in (weight(b, "0.weight")[1], weight(b, "0.bias")[1]):
            part *= 3
        weight(b, "2.weight")[:, 1].div_(3)
    _, report = align(a, b)
    (scaling,) = (one for one in report.moved if one.symmetry.group is Group.SCALING)
    assert scaling.generator == pytest.approx(torch.tensor(3.0).log().item(), rel=1e-5)


def test_only_the_given_symmetries_move() -> None:
    torch.manual_seed(0)
    a, b = (mlp(nn.ReLU) for _ in range(2))
    own = [s for s in symmetries(a, permutations=True) if s.group is Group.PERMUTATION][:1]
    moved, report = align(a, b, symmetries=own)
    assert [one.symmetry.name for one in report.moved] == [own[0].name]
    assert torch.equal(weight(moved, "4.weight"), weight(b, "4.weight"))


def test_mistakes_are_named() -> None:
    a, b = mlp(nn.ReLU), mlp(nn.ReLU, (6, 9, 5, 3))
    with pytest.raises(ValueError, match=r"'0\.weight'"):
        align(a, b)
    with pytest.raises(ValueError, match="ReLU"):
        align(a, mlp(nn.Tanh))
    with pytest.raises(ValueError, match="by must be one of"):
        align(a, a, "hope")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="data must be given"):
        align(a, a, "activations")
    with pytest.raises(ValueError, match="restarts"):
        align(a, a, restarts=0)
