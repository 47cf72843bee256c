"""The LSTM against torch's, its hand-derived backward pass, and gradients summed over a window."""

from __future__ import annotations

import math
from collections.abc import Sequence

import pytest
import torch
from support import signed
from torch import Tensor, nn

from metaopt.rules.learned import affine, lstm
from metaopt.rules.learned.affine import one_window
from metaopt.rules.learned.lstm import LSTM, Head

INPUTS, HIDDEN = 3, 4


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


def network(layers: int = 2) -> tuple[LSTM, Head]:
    return (
        LSTM(INPUTS, HIDDEN, seed=0, name="test", layers=layers).double(),
        Head(HIDDEN, 2, seed=0, name="test").double(),
    )


def plain(
    net: LSTM, head: Head, x: Tensor, state: dict[str, Tensor]
) -> tuple[Tensor, dict[str, Tensor]]:
    """The same step in ordinary operations, differentiated by autograd."""
    new: dict[str, Tensor] = {}
    for layer in range(net.layers):
        h, c = state[f"h{layer}"], state[f"c{layer}"]
        z = net.W_x[layer] @ x + net.W_h[layer] @ h + net.b[layer][:, None]
        i, f, o, u = z.chunk(4, dim=-2)
        c = f.sigmoid() * c + i.sigmoid() * u.tanh()
        x = o.sigmoid() * c.tanh()
        new |= {f"h{layer}": x, f"c{layer}": c}
    return head.W @ x + head.b[:, None], new


def gradients(outputs: list[Tensor], wrt: Sequence[Tensor], retain: bool = False) -> list[Tensor]:
    total = sum(((t + 1) * out.square()).sum() for t, out in enumerate(outputs))
    assert isinstance(total, Tensor)
    return list(torch.autograd.grad(total, wrt, retain_graph=retain))


@pytest.mark.parametrize("steps", [1, 5])
@pytest.mark.parametrize("enough", [1, 7, 640])
@pytest.mark.parametrize("group", [1, 50, 2**19])
@pytest.mark.parametrize("shape", [(1,), (3,), (5, 2)], ids=["1 row", "3 rows", "5 blocks"])
def test_gradients_of_a_window_are_autograds(
    steps: int, enough: int, group: int, shape: tuple[int, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    """However its uses are lined up and its blocks grouped."""
    monkeypatch.setattr(affine, "ENOUGH_ROWS", enough)
    monkeypatch.setattr(lstm, "GROUP_ELEMENTS", group)
    net, head = network()
    *blocks, rows = shape
    xs = [signed(*blocks, INPUTS, rows, seed=t).requires_grad_() for t in range(steps)]
    start = {
        key: signed(*blocks, HIDDEN, rows, seed=9 + i).requires_grad_()
        for i, key in enumerate(net.initial_state(*shape))
    }
    wrt = [*net.parameters(), *head.parameters(), *xs, *start.values()]
    state, ours = start, []
    with one_window():
        for x in xs:
            h, state = net(x, state)
            ours.append(head(h))
    state, theirs = start, []
    for x in xs:
        out, state = plain(net, head, x, state)
        theirs.append(out)
    torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-12)
    for found, wanted in zip(gradients(ours, wrt), gradients(theirs, wrt), strict=True):
        torch.testing.assert_close(found, wanted, rtol=1e-10, atol=1e-10)


def test_rows_that_outgrow_the_line_change_nothing() -> None:
    """More uses than fit side by side: the sum is taken in several products."""
    net, head = network(1)
    rows, steps = affine.ENOUGH_ROWS // 3, 8
    xs = [signed(INPUTS, rows, seed=t) for t in range(steps)]
    parameters = [*net.parameters(), *head.parameters()]

    def outputs() -> list[Tensor]:
        state, found = net.initial_state(rows), []
        for x in xs:
            h, state = net(x, state)
            found.append(head(h))
        return found

    alone = gradients(outputs(), parameters)
    with one_window():
        together = gradients(outputs(), parameters)
    for one, other in zip(alone, together, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-10)


def test_uses_of_one_window_may_differ_in_rows() -> None:
    net, head = network(1)
    xs = [signed(INPUTS, rows, seed=rows) for rows in (3, 5, affine.ENOUGH_ROWS - 2, 2, 700)]
    parameters = [*net.parameters(), *head.parameters()]

    def outputs() -> list[Tensor]:
        return [head(net(x, net.initial_state(x.shape[1]))[0]) for x in xs]

    with one_window():
        together = gradients(outputs(), parameters)
    for one, other in zip(gradients(outputs(), parameters), together, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-10)


def test_a_backward_pass_that_stops_short_leaves_nothing_behind() -> None:
    net, head = network()
    x = signed(INPUTS, 3, seed=0).requires_grad_()
    parameters = [*net.parameters(), *head.parameters()]
    with one_window():
        h, _ = net(x, net.initial_state(3))
        outputs = [head(h)]
    wanted = gradients(outputs, parameters, retain=True)
    gradients(outputs, [x], retain=True)
    for _ in range(2):
        again = gradients(outputs, parameters, retain=True)
        assert all(torch.equal(a, b) for a, b in zip(again, wanted, strict=True))


def test_frozen_parameters_have_no_gradient_and_pass_it_on() -> None:
    net, head = network()
    net.requires_grad_(False)
    x = signed(INPUTS, 3, seed=0).requires_grad_()
    with one_window():
        h, _ = net(x, net.initial_state(3))
        found = gradients([head(h)], [x, *head.parameters()])
    out, _ = plain(net, head, x, net.initial_state(3))
    for a, b in zip(found, gradients([out], [x, *head.parameters()]), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("constant", ["", "x", "state", "parameters"])
def test_gradcheck_of_a_step(constant: str) -> None:
    net, _ = network()
    x = signed(5, INPUTS, 2, seed=0).requires_grad_(constant != "x")
    state = {
        key: signed(5, HIDDEN, 2, seed=i).requires_grad_(constant != "state")
        for i, key in enumerate(net.initial_state(5, 2))
    }
    net.requires_grad_(constant != "parameters")
    names = [name for name, _ in net.named_parameters()]

    def step(x: Tensor, *others: Tensor) -> tuple[Tensor, ...]:
        given = dict(zip(state, others[: len(state)], strict=True))
        values = dict(zip(names, others[len(state) :], strict=True))
        h, new = torch.func.functional_call(net, values, (x, given))
        return h, *new.values()

    assert torch.autograd.gradcheck(step, (x, *state.values(), *net.parameters()))


def test_without_a_graph_the_step_is_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lstm, "GROUP_ELEMENTS", 100)
    net, head = network()
    x, state = signed(5, INPUTS, 2, seed=0), net.initial_state(5, 2)
    with one_window():
        h, recorded = net(x, state)
        out = head(h)
    with torch.no_grad(), one_window():
        again, kept = net(x, state)
        assert torch.equal(head(again), out)
    assert all(torch.equal(kept[key], value) for key, value in recorded.items())


def test_lstm_starts_from_its_seed_and_name() -> None:
    def flat(seed: int, name: str) -> Tensor:
        return torch.cat([p.detach().flatten() for p in LSTM(3, 4, seed, name).parameters()])

    assert torch.equal(flat(0, "a"), flat(0, "a"))
    assert not torch.isin(flat(0, "a"), torch.cat([flat(0, "b"), flat(1, "a")])).any()
    assert 0.4 < float(flat(0, "a").abs().max()) <= 1 / math.sqrt(4)
