"""The LSTM that all learned rules are made of, with a backward pass derived by hand.

    i, f, o = sigmoid(...),  u = tanh(...)   of   W_x x + W_h h + b
    c' = f * c + i * u,      h' = o * tanh(c')

Arrays are [features, rows] for flattened rules, a row being a trajectory, and [blocks, features,
rows] for coordinate-wise ones, a row being a weight (or an entry of a generator) and a block a
trajectory. So the gates are contiguous, which the element-wise part is faster for than for the
layout of ``torch.nn.LSTMCell``, and a product of matrices has blocks for each core (``python -m
benchmarks.lstm_cell``). On a CPU blocks are worked off in groups that its caches hold.

The backward pass cannot itself be differentiated. Meta-gradients need it once only, second-order
ones too: those differentiate the features, which are explicit formulas in the graph. Gradients of
the parameters are summed over a window (``affine``).
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from metaopt.base.streams import Stream, generator
from metaopt.rules.base import State
from metaopt.rules.learned.affine import Affine, AffineModule

GROUP_ELEMENTS = 2**19
"""Gates worked off together on a CPU: 2 MB in float32, and a few times that in all."""

_sigmoid_backward = torch.ops.aten.sigmoid_backward.grad_input
_tanh_backward = torch.ops.aten.tanh_backward.grad_input


def _groups(affine: Affine, h: Tensor, *tensors: Tensor | None) -> Iterator[tuple[Any, ...]]:
    """h [blocks, hidden, rows] and the others, a group of blocks at a time; None stays None."""
    is_small = h.dim() == 2 or 4 * h.numel() <= GROUP_ELEMENTS
    if is_small or h.device.type != "cpu" or not affine.sums.in_groups:
        yield (h, *tensors)
        return
    blocks, hidden, rows = h.shape
    size = max(1, GROUP_ELEMENTS // (4 * hidden * rows))
    for first in range(0, blocks, size):
        group = slice(first, first + size)
        yield tuple(None if t is None else t[group] for t in (h, *tensors))


def _slices(h: Tensor, *tensors: Tensor) -> Iterator[tuple[Tensor, ...]]:
    """A group, one block of which may be large, with so many rows at a time as fit."""
    rows = h.shape[-1]
    if h.dim() == 2 or h.device.type != "cpu" or 4 * h.numel() <= GROUP_ELEMENTS:
        yield (h, *tensors)
        return
    size = max(1, rows * GROUP_ELEMENTS // (4 * h.numel()))
    for first in range(0, rows, size):
        rows_here = slice(first, first + size)
        yield tuple(t[..., rows_here] for t in (h, *tensors))


def _advance(
    z: Tensor, gates: Tensor, c: Tensor, c_new: Tensor, tanh_c: Tensor, h_new: Tensor
) -> None:
    """From the pre-activations z (overwritten), the gates, c', tanh(c') and h' are written.

    tanh x = 2 sigmoid(2 x) - 1: on a CPU, torch's sigmoid is far faster than its tanh.
    """
    z.chunk(4, -2)[3].mul_(2)
    torch.sigmoid(z, out=gates)
    i, f, o, u = gates.chunk(4, -2)
    u.mul_(2).sub_(1)
    torch.mul(f, c, out=c_new).addcmul_(i, u)
    torch.mul(c_new, 2, out=tanh_c).sigmoid_().mul_(2).sub_(1)
    torch.mul(o, tanh_c, out=h_new)


def _retreat(
    dz: Tensor,
    gates: Tensor,
    dh: Tensor | None,
    dc: Tensor | None,
    c: Tensor,
    tanh_c: Tensor,
    dc_old: Tensor,
) -> None:
    """From (dh', dc'), the gradients of c and of the pre-activations are written."""
    hidden = c.shape[-2]
    i, f, o, u = gates.chunk(4, -2)
    di, df, do, du = dz.chunk(4, -2)
    total = dc_old
    if dh is None:
        assert dc is not None
        total.copy_(dc)
        do.zero_()
    else:
        torch.mul(dh, o, out=total)
        _tanh_backward(total, tanh_c, grad_input=total)
        if dc is not None:
            total.add_(dc)
        torch.mul(dh, tanh_c, out=do)
    torch.mul(total, u, out=di)
    torch.mul(total, c, out=df)
    torch.mul(total, i, out=du)
    squashed = dz.narrow(-2, 0, 3 * hidden)
    _sigmoid_backward(squashed, gates.narrow(-2, 0, 3 * hidden), grad_input=squashed)
    _tanh_backward(du, u, grad_input=du)
    total.mul_(f)


class _Cell(torch.autograd.Function):
    """(x, h, c, W_x, W_h, b) -> (h', c'); the last three are those of ``affine``."""

    @staticmethod
    def forward(
        ctx: Any, affine: Affine, x: Tensor, h: Tensor, c: Tensor, *parameters: Tensor
    ) -> tuple[Tensor, Tensor]:
        *blocks, hidden, rows = h.shape
        gates = h.new_empty(*blocks, 4 * hidden, rows)
        c_new, tanh_c, h_new = torch.empty_like(c), torch.empty_like(c), torch.empty_like(h)
        for h_, x_, *rest in _groups(affine, h, x, gates, c, c_new, tanh_c, h_new):
            _advance(affine.in_passing(x_, h_), *rest)
        ctx.affine = affine
        ctx.save_for_backward(x, h, c, gates, tanh_c)
        ctx.set_materialize_grads(False)
        return h_new, c_new

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        dh, dc = grads
        if dh is None and dc is None:
            return (None,) * 7
        x, h, c, gates, tanh_c = ctx.saved_tensors
        affine: Affine = ctx.affine
        _, needs_x, needs_h, needs_c, *needs_parameters = ctx.needs_input_grad
        dx = torch.empty_like(x) if needs_x else None
        dh_old = torch.empty_like(h) if needs_h else None
        dc_old = torch.empty_like(c)
        for h_, x_, dx_, dh_old_, gates_, *rest in _groups(
            affine, h, x, dx, dh_old, gates, dh, dc, c, tanh_c, dc_old
        ):
            dz = affine.sums.place(gates.shape[-2], h_)
            _retreat(dz, gates_, *rest)
            if dx_ is not None:
                affine.pull_back(0, dz, out=dx_)
            if dh_old_ is not None:
                affine.pull_back(1, dz, out=dh_old_)
            if any(needs_parameters):
                affine.sums.add(dz, (x_, h_))
        return None, dx, dh_old, dc_old if needs_c else None, None, None, None


def _cell_without_graph(affine: Affine, x: Tensor, h: Tensor, c: Tensor) -> tuple[Tensor, Tensor]:
    """The same cell, keeping nothing for a backward pass."""
    h_new, c_new = torch.empty_like(h), torch.empty_like(c)
    for group in _groups(affine, h, x, c, c_new, h_new):
        for h_, x_, c_, c_new_, h_new_ in _slices(*group):
            z = affine.in_passing(x_, h_)
            _advance(z, z, c_, c_new_, torch.empty_like(c_), h_new_)
    return h_new, c_new


def cell(affine: Affine, x: Tensor, h: Tensor, c: Tensor) -> tuple[Tensor, Tensor]:
    """One step of one cell: x [.., inputs, r], h and c [.., hidden, r] -> (h', c')."""
    if torch.is_grad_enabled():
        return _Cell.apply(affine, x, h, c, *affine.parameters)
    return _cell_without_graph(affine, x, h, c)


class _Linear(torch.autograd.Function):
    """(h, W, b) -> W h + b."""

    @staticmethod
    def forward(ctx: Any, affine: Affine, h: Tensor, W: Tensor, b: Tensor) -> Tensor:
        ctx.affine = affine
        ctx.save_for_backward(h)
        return affine(h, out=h.new_empty(*h.shape[:-2], W.shape[0], h.shape[-1]))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        (h,) = ctx.saved_tensors
        affine: Affine = ctx.affine
        _, needs_h, *needs_parameters = ctx.needs_input_grad
        dz = grads[0]
        dh = affine.pull_back(0, dz, out=torch.empty_like(h)) if needs_h else None
        if any(needs_parameters):
            place = affine.sums.place(dz.shape[-2], h)
            affine.sums.add(place.copy_(dz), (h,))
        return None, dh, None, None


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


class LSTM(AffineModule):
    """A stack of LSTM cells advanced by one step.

    Args:
        inputs: number of features.
        hidden: size of h and c.
        seed: the seed of the initialisation, uniform on +-1/sqrt(hidden) as in ``torch.nn.LSTM``.
        name: the name of its random stream, so that two networks of one seed differ.
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

    def initial_state(self, *shape: int) -> State:
        """h and c of all cells, zeros; for ``shape`` (rows,) or (blocks, rows)."""
        *blocks, rows = shape
        # A tensor for each: whoever writes into one of them in place writes into that one alone.
        return {
            f"{kind}{layer}": self.b[0].new_zeros(*blocks, self.hidden, rows)
            for layer in range(self.layers)
            for kind in "hc"
        }

    def parameters_of_maps(self) -> Iterator[tuple[Tensor, ...]]:
        """W_x, W_h and b of each cell."""
        return zip(self.W_x, self.W_h, self.b, strict=True)

    def forward(self, x: Tensor, state: State) -> tuple[Tensor, State]:
        """One step: x [.., inputs, r] -> h of the last cell [.., hidden, r], and the new state."""
        new_state: State = {}
        for layer, affine in enumerate(self.maps()):
            x, c = cell(affine, x, state[f"h{layer}"], state[f"c{layer}"])
            new_state[f"h{layer}"], new_state[f"c{layer}"] = x, c
        return x, new_state


class Head(AffineModule):
    """The linear layer after an LSTM: [.., hidden, r] -> [.., outputs, r].

    Args:
        hidden: size of its input.
        outputs: number of outputs.
        seed: the seed of the initialisation.
        name: the name of the random stream of the initialisation.
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

    def parameters_of_maps(self) -> Iterator[tuple[Tensor, ...]]:
        """W and b."""
        yield self.W, self.b

    def forward(self, h: Tensor) -> Tensor:
        """W h + b."""
        (affine,) = self.maps()
        return _Linear.apply(affine, h, *affine.parameters)
