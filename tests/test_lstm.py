"""The LSTM against torch's, and its hand-derived backward pass."""

import math

import pytest
import torch
from support import signed
from torch import Tensor, nn

from metaopt.rules import (
    LSTM,
)
from metaopt.rules.lstm import _Cell

LOW, HIGH = 1e-7, 5e-3
COORDINATE = ("update", "group", "step")
SIZES = [5, 4, 3]
DEEP_SIZES = [4, 3, 5, 2]


# The LSTM.


def test_lstm_is_torchs() -> None:
    inputs, hidden, rows, layers = 5, 4, 7, 3
    ours = LSTM(inputs, hidden, seed=0, name="test", layers=layers).double()
    theirs = [
        nn.LSTMCell(inputs if i == 0 else hidden, hidden, dtype=torch.float64)
        for i in range(layers)
    ]
    # torch's gates stand in the order i, f, u, o.
    order = torch.arange(4 * hidden).view(4, hidden)[[0, 1, 3, 2]].flatten()
    for i, cell in enumerate(theirs):
        with torch.no_grad():
            cell.weight_ih.copy_(ours.W_x[i][order])
            cell.weight_hh.copy_(ours.W_h[i][order])
            cell.bias_ih.copy_(ours.b[i][order])
            cell.bias_hh.zero_()
    state = ours.initial_state(rows)
    memory = [(torch.zeros(rows, hidden, dtype=torch.float64),) * 2 for _ in theirs]
    for step in range(5):
        x = 3 * signed(inputs, rows, seed=step)
        h, state = ours(x, state)
        wanted = x.T
        for i, cell in enumerate(theirs):
            memory[i] = cell(wanted, memory[i])
            wanted = memory[i][0]
            torch.testing.assert_close(state[f"c{i}"].T, memory[i][1], rtol=0, atol=1e-12)
        torch.testing.assert_close(h.T, wanted, rtol=0, atol=1e-12)


@pytest.mark.parametrize("constant", ["", "x", "xhc", "Wb", "xWb"])
def test_gradcheck_of_the_cell(constant: str) -> None:
    x, h, c = signed(3, 5, seed=0), signed(2, 5, seed=1), signed(2, 5, seed=2)
    W_x, W_h, b = signed(8, 3, seed=3), signed(8, 2, seed=4), signed(8, seed=5)
    named = [("x", x), ("h", h), ("c", c), ("W", W_x), ("W", W_h), ("b", b)]
    inputs = tuple(tensor.requires_grad_(name not in constant) for name, tensor in named)
    assert torch.autograd.gradcheck(_Cell.apply, inputs)


def test_lstm_starts_from_its_seed_and_name() -> None:
    def flat(seed: int, name: str) -> Tensor:
        return torch.cat([p.detach().flatten() for p in LSTM(3, 4, seed, name).parameters()])

    assert torch.equal(flat(0, "a"), flat(0, "a"))
    assert not torch.isin(flat(0, "a"), torch.cat([flat(0, "b"), flat(1, "a")])).any()
    assert 0.4 < float(flat(0, "a").abs().max()) <= 1 / math.sqrt(4)
