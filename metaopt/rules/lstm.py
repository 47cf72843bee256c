"""The LSTM that all learned rules are made of, with a backward pass derived by hand.

    i, f, o = sigmoid(...),  u = tanh(...)   of   W_x x + W_h h + b
    c' = f * c + i * u,      h' = o * tanh(c')

Arrays are feature first, [features, rows]: a row is a trajectory for flattened rules and one weight
(or one entry of a generator) of one trajectory for coordinate-wise ones. In that layout the four
gates are contiguous blocks, which makes the element-wise part, dominant for small hidden sizes,
2 to 3 times faster than ``torch.nn.LSTMCell`` on a CPU (``python -m benchmarks.lstm_cell``).

The backward pass cannot itself be differentiated. Meta-gradients need it once only, second-order
ones too: those differentiate the features, which are explicit formulas in the graph.
"""

from __future__ import annotations

import math
import zlib
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from metaopt.streams import Stream, generator

State = dict[str, Tensor]
"""What a rule remembers from step to step: named tensors, to be cut, kept and resumed."""


def _tanh(x: Tensor) -> Tensor:
    """tanh x = 2 sigmoid(2 x) - 1: on a CPU, torch's sigmoid is far faster than its tanh."""
    return torch.sigmoid(2 * x).mul_(2).sub_(1)


class _Cell(torch.autograd.Function):
    """(x, h, c, W_x, W_h, b) -> (h', c')."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, h: Tensor, c: Tensor, W_x: Tensor, W_h: Tensor, b: Tensor
    ) -> tuple[Tensor, Tensor]:
        hidden = h.shape[0]
        gates = torch.addmm(b[:, None], W_x, x).addmm_(W_h, h)
        gates[3 * hidden :].mul_(2)
        gates.sigmoid_()
        gates[3 * hidden :].mul_(2).sub_(1)
        i, f, o, u = gates.view(4, hidden, -1)
        c_new = (f * c).addcmul_(i, u)
        tanh_c = _tanh(c_new)
        ctx.save_for_backward(x, h, c, W_x, W_h, gates, tanh_c)
        return o * tanh_c, c_new

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        dh, dc = grads
        x, h, c, W_x, W_h, gates, tanh_c = ctx.saved_tensors
        hidden = h.shape[0]
        i, f, o, u = gates.view(4, hidden, -1)
        dc = dc + torch.ops.aten.tanh_backward(dh * o, tanh_c)
        dgates = torch.empty_like(gates)
        torch.mul(dc, u, out=dgates[:hidden])
        torch.mul(dc, c, out=dgates[hidden : 2 * hidden])
        torch.mul(dh, tanh_c, out=dgates[2 * hidden : 3 * hidden])
        torch.mul(dc, i, out=dgates[3 * hidden :])
        squashed = dgates[: 3 * hidden]
        squashed.copy_(torch.ops.aten.sigmoid_backward(squashed, gates[: 3 * hidden]))
        dgates[3 * hidden :].copy_(torch.ops.aten.tanh_backward(dgates[3 * hidden :], u))
        needs_x, needs_h, needs_c, *needs_parameters = ctx.needs_input_grad
        dW_x, dW_h, db = (
            (dgates @ x.T, dgates @ h.T, dgates.sum(1))
            if any(needs_parameters)
            else (None, None, None)
        )
        return (
            W_x.T @ dgates if needs_x else None,
            W_h.T @ dgates if needs_h else None,
            dc * f if needs_c else None,
            dW_x,
            dW_h,
            db,
        )


class Initialiser:
    """Draws parameters from a named stream, one after another."""

    def __init__(self, seed: int, name: str) -> None:
        # A name has 2^31 blocks of the stream to itself.
        self._generator = generator(
            Stream.INITIALISATION, seed, block=zlib.crc32(name.encode()) << 31
        )

    def __call__(self, shape: tuple[int, ...], bound: float) -> nn.Parameter:
        """A parameter uniform on [-bound, bound); on the meta device, its shape alone."""
        values = torch.empty(shape)
        if not values.is_meta:
            values.copy_(torch.from_numpy(self._generator.uniform(-bound, bound, shape)))
        return nn.Parameter(values)


class LSTM(nn.Module):
    """A stack of LSTM cells advanced by one step, feature first.

    Args:
        inputs: number of features.
        hidden: size of h and c.
        seed: of the initialisation, uniform on +-1/sqrt(hidden) as in ``torch.nn.LSTM``.
        name: of the initialisation's stream, so that two networks of one seed differ.
        layers: number of cells (2 in arXiv 2305.13404).
    """

    def __init__(self, inputs: int, hidden: int, seed: int, name: str, layers: int = 2) -> None:
        super().__init__()
        self.hidden = hidden
        self.layers = layers
        draw = Initialiser(seed, name)
        bound = 1 / math.sqrt(hidden)
        self.W_x = nn.ParameterList(
            draw((4 * hidden, inputs if layer == 0 else hidden), bound) for layer in range(layers)
        )
        self.W_h = nn.ParameterList(draw((4 * hidden, hidden), bound) for _ in range(layers))
        self.b = nn.ParameterList(draw((4 * hidden,), bound) for _ in range(layers))

    def initial_state(self, rows: int) -> State:
        """h and c of all cells, zeros, each [hidden, rows]."""
        zeros = self.b[0].new_zeros(self.hidden, rows)
        return {f"{kind}{layer}": zeros for layer in range(self.layers) for kind in "hc"}

    def forward(self, x: Tensor, state: State) -> tuple[Tensor, State]:
        """One step: x [inputs, rows] -> h of the last cell [hidden, rows], and the new state."""
        new_state: State = {}
        for layer in range(self.layers):
            x, c = _Cell.apply(
                x,
                state[f"h{layer}"],
                state[f"c{layer}"],
                self.W_x[layer],
                self.W_h[layer],
                self.b[layer],
            )
            new_state |= {f"h{layer}": x, f"c{layer}": c}
        return x, new_state


class Head(nn.Module):
    """The linear layer after an LSTM, feature first: [hidden, rows] -> [outputs, rows].

    Args:
        hidden: size of its input.
        outputs: number of outputs.
        seed: of the initialisation.
        name: of the initialisation's stream.
        bound: weights and biases start uniform on +-bound; 1/sqrt(hidden), as in torch, by default.
    """

    def __init__(
        self, hidden: int, outputs: int, seed: int, name: str, bound: float | None = None
    ) -> None:
        super().__init__()
        draw = Initialiser(seed, name)
        bound = 1 / math.sqrt(hidden) if bound is None else bound
        self.W = draw((outputs, hidden), bound)
        self.b = draw((outputs,), bound)

    def forward(self, h: Tensor) -> Tensor:
        """W h + b."""
        return torch.addmm(self.b[:, None], self.W, h)
