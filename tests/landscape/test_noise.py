"""The noise that symmetries see: against one backward pass a sample, by hooks and without."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import pytest
import torch
from separate_heads import Heads
from torch import Tensor, nn
from torch.nn.functional import linear, mse_loss

from metaopt import symmetries, teleport
from metaopt.landscape import noise as noise_module
from metaopt.landscape.noise import noise, noise_stack
from metaopt.landscape.plain_layers import PlainLayers
from metaopt.landscape.samples import Samples
from metaopt.symmetry.conserved import halves
from metaopt.symmetry.groups import Group, Slot, Symmetry


class _Sequence(nn.Module):
    """Linear layers on sequences, and heads of attention."""

    def __init__(self) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(6, 5), nn.Linear(5, 6)
        self.attention = nn.MultiheadAttention(6, 2, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.down(self.up(x).relu())
        y: Tensor = self.attention(x, x, x, need_weights=False)[0].mean(1)
        return y


class _Outside(nn.Module):
    """A weight that is read outside of its layer too."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(6, 5), nn.Linear(5, 6)

    def forward(self, x: Tensor) -> Tensor:
        h = self.first(x) + linear(x * x, self.first.weight, self.first.bias)
        y: Tensor = self.second(h)
        return y


class _Twice(nn.Module):
    """A layer that is called twice."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(6, 5), nn.Linear(5, 6)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.second((self.first(x) + self.first(x * x)).relu())
        return y


class _LaterTwice(_Twice):
    """A layer that is called twice, but not on a few samples."""

    def forward(self, x: Tensor) -> Tensor:
        h = self.first(x)
        h = h if len(x) < 6 else h / 2 + self.first(x) / 2
        y: Tensor = self.second(h.relu())
        return y


class _Tied(nn.Module):
    """Two layers with one weight, and a third of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.again, self.second = nn.Linear(6, 5), nn.Linear(6, 5), nn.Linear(5, 6)
        self.again.weight, self.again.bias = self.first.weight, self.first.bias

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.second((self.first(x) + self.again(x * x)).relu())
        return y


class _TimeFirst(nn.Module):
    """Layers whose inputs have time on the first axis, and as many times as samples."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(6, 5), nn.Linear(5, 6)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.second(self.first(x.transpose(0, 1)).relu()).sum(0)
        return y


MODELS: dict[str, tuple[Callable[[], nn.Module], Sequence[int], int]] = {
    "relu": (lambda: nn.Sequential(nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 6)), (6,), 0),
    "in place": (lambda: nn.Sequential(nn.Linear(6, 5), nn.ReLU(True), nn.Linear(5, 6)), (6,), 0),
    "linear": (lambda: nn.Sequential(*(nn.Linear(6, 6) for _ in range(3))), (6,), 0),
    "convolution": (
        lambda: nn.Sequential(
            nn.Conv2d(2, 4, (3, 2), stride=(2, 1), padding=(1, 0)),
            nn.ReLU(),
            nn.Conv2d(4, 6, 2, groups=2, dilation=(1, 2)),
            nn.Flatten(),
            nn.Linear(24, 6),
        ),
        (2, 5, 5),
        0,
    ),
    "one dimension": (
        lambda: nn.Sequential(
            nn.Conv1d(2, 3, 3), nn.Conv1d(3, 2, 2), nn.Flatten(), nn.Linear(6, 6)
        ),
        (2, 6),
        0,
    ),
    "same": (
        lambda: nn.Sequential(
            nn.Conv1d(2, 3, 4, padding="same"), nn.ReLU(), nn.Flatten(), nn.Linear(12, 6)
        ),
        (2, 4),
        2,
    ),
    "sequence": (_Sequence, (4, 6), 4),
    # The gradient by the bias of keys is 0, and in floating point nothing but rounding.
    "heads": (Heads, (4, 6), 0),
    "outside": (_Outside, (6,), 2),
    "twice": (_Twice, (6,), 2),
    "tied": (_Tied, (6,), 2),
    "time first": (_TimeFirst, (4, 6), 4),
}
"""Model, shape of one sample, and how many parameters hooks must leave to ``torch.func``."""


def _made(name: str) -> tuple[nn.Module, tuple[Tensor, Tensor]]:
    torch.manual_seed(0)
    make, shape, _ = MODELS[name]
    x, y = torch.randn(9, *shape), torch.randn(9, 6)
    return make().double(), (x.double(), y.double())


def _truth(model: nn.Module, x: Tensor, y: Tensor, symmetry: Symmetry) -> list[Tensor]:
    """Covariances and means of both halves, from one backward pass a sample."""
    several = []
    for n in range(len(x)):
        model.zero_grad()
        mse_loss(model(x[n : n + 1]), y[n : n + 1]).backward()
        several.append({p: v.grad for p, v in model.named_parameters() if v.grad is not None})
    model.zero_grad()
    mean = {path: torch.stack([one[path] for one in several]).mean(0) for path in several[0]}
    of_mean = halves(symmetry, mean, mean)
    second = [halves(symmetry, one, one) for one in several]
    incoming, outgoing = (
        torch.stack([pair[side] for pair in second]).mean(0) - of_mean[side] for side in (0, 1)
    )
    return [incoming, outgoing, *of_mean]


def _close(found: noise_module.Noise, wanted: dict[str, list[Tensor]]) -> None:
    assert found
    for name, one in found.items():
        shown = [one.incoming, one.outgoing, one.mean_incoming, one.mean_outgoing]
        scale = max(float(half.abs().max()) for half in wanted[name])
        for a, b in zip(shown, wanted[name], strict=True):
            assert (a.reshape(b.shape) - b).abs().max() < 1e-10 * scale


@pytest.mark.parametrize("batch", [9, 4])
@pytest.mark.parametrize("name", MODELS)
def test_hooks_and_torch_func_agree_with_one_backward_pass_a_sample(
    name: str, batch: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, (x, y) = _made(name)
    found = symmetries(model, x)
    data = [(x[n : n + batch], y[n : n + batch]) for n in range(0, 9, batch)]
    by_hooks = noise(model, mse_loss, data, found)
    wanted = {key: _truth(model, x, y, one.symmetry) for key, one in by_hooks.items()}
    _close(by_hooks, wanted)
    monkeypatch.setattr(PlainLayers, "each", lambda *_: {})
    _close(noise(model, mse_loss, data, found), wanted)


@pytest.mark.parametrize("name", MODELS)
def test_hooks_take_plain_layers_and_no_others(name: str) -> None:
    model, (x, y) = _made(name)
    paths = [path for path, _ in model.named_parameters()]
    samples = Samples(model, mse_loss, (x, y))
    layers = PlainLayers(samples, x[:4], y[:4], samples.each(paths, x[:4], y[:4]))
    each = layers.each(x, y)
    assert len(paths) - len(each) == MODELS[name][2]
    wanted = samples.each(paths, x, y)
    for path, gradients in each.items():
        torch.testing.assert_close(gradients.full(), wanted[path], rtol=1e-11, atol=1e-14)
    assert not any(module._forward_hooks for module in model.modules())


def test_a_layer_that_is_called_twice_later_is_left_out_then() -> None:
    torch.manual_seed(0)
    model = _LaterTwice().double()
    x, y = torch.randn(9, 6).double(), torch.randn(9, 6).double()
    (symmetry,) = symmetries(_Twice())
    _close(
        noise(model, mse_loss, (x, y), [symmetry]), {symmetry.name: _truth(model, x, y, symmetry)}
    )


def test_float32_models_are_summed_in_float64() -> None:
    model, (x, y) = _made("relu")
    wide = noise(model, mse_loss, (x, y))["0 -> 2"]
    narrow = noise(model.float(), mse_loss, (x.float(), y.float()))["0 -> 2"]
    assert narrow.incoming.dtype is torch.float64
    torch.testing.assert_close(narrow.incoming, wide.incoming, rtol=1e-5, atol=0)


def test_shapes_traces_and_what_is_printed() -> None:
    model, (x, y) = _made("heads")
    found = noise(model, mse_loss, (x, y))
    assert found.samples == 9
    for one in found.values():
        assert one.incoming.shape == one.outgoing.shape == (2, 3, 3)
        assert one.traces[0].shape == (2,)
        assert torch.equal(one.traces[0], one.incoming.diagonal(dim1=1, dim2=2).sum(1))
    rows = found.rows()
    assert [row["symmetry"] for row in rows] == list(found)
    assert rows[0]["incoming"] == float(found[rows[0]["symmetry"]].traces[0].sum())
    assert str(found).startswith("noise of 9 samples\n| symmetry")
    assert all(name in str(found) for name in found)


@pytest.mark.parametrize("name", ["relu", "linear", "convolution"])
def test_the_stack_has_the_same_noise(name: str) -> None:
    model, data = _made(name)
    found = symmetries(model, data[0])
    stack = noise_stack(Samples(model, mse_loss, data), found)
    for one in noise(model, mse_loss, data, found).values():
        longest = max(len(stack[slot.path]) for slot in one.symmetry.slots)
        padded = {
            path: torch.cat([rows, rows.new_zeros(longest - len(rows), *rows.shape[1:])])
            for path, rows in stack.items()
        }
        sums = [
            halves(one.symmetry, row, row)
            for row in ({path: rows[r] for path, rows in padded.items()} for r in range(longest))
        ]
        for side, half in enumerate((one.incoming, one.outgoing)):
            total = torch.stack([pair[side] for pair in sums]).sum(0)
            torch.testing.assert_close(total.reshape(half.shape), half, rtol=1e-9, atol=1e-12)


def test_noise_moves_along_the_orbit_like_squares_of_gradients() -> None:
    model, data = _made("relu")
    before = noise(model, mse_loss, data)["0 -> 2"]
    weight = model.get_parameter("0.weight").detach().clone()
    teleport(model, norm=1.0, seed=3)
    factor = (model.get_parameter("0.weight").detach() / weight)[:, 0]
    after = noise(model, mse_loss, data)["0 -> 2"]
    torch.testing.assert_close(after.incoming, before.incoming / factor**2)
    torch.testing.assert_close(after.outgoing, before.outgoing * factor**2)


def test_a_symmetry_that_fails_for_a_sample_is_refused_by_name() -> None:
    model = nn.Sequential(nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 6)).double()
    wrong = Symmetry(
        "0 -> 2",
        Group.SCALING,
        5,
        (Slot("0", "weight", 0), Slot("0", "bias", 0)),
        (Slot("2", "weight", 1),),
    )
    _, data = _made("relu")
    with pytest.raises(ValueError, match="'0 -> 2' does not hold for each sample") as caught:
        noise(model, mse_loss, data, [wrong])
    assert "\n" not in str(caught.value)


def test_batch_normalisation_in_training_is_refused_and_in_evaluation_not() -> None:
    model = nn.Sequential(nn.Linear(6, 5), nn.BatchNorm1d(5), nn.ReLU(), nn.Linear(5, 6)).double()
    _, data = _made("relu")
    with pytest.raises(ValueError, match=r"'1' normalises over the samples.*call model.eval\(\)"):
        noise(model, mse_loss, data)
    assert noise(model.eval(), mse_loss, data)


def test_one_sample_is_refused() -> None:
    model, (x, y) = _made("relu")
    with pytest.raises(ValueError, match="noise needs at least 2 samples, found 1"):
        noise(model, mse_loss, (x[:1], y[:1]))


def test_a_model_without_charges_has_no_rows() -> None:
    model = nn.Sequential(nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 6)).double()
    _, data = _made("relu")
    assert noise(model, mse_loss, data).rows() == []
