"""The meta-training step in JAX: what a careful user of JAX would have instead of this package.

One ``window`` is one outer step of the same configuration: K inner steps of B trajectories, the
first-order meta-gradient, clip, Adam. All of it is one jitted function with donated buffers, its K
steps one ``lax.scan``. What belongs to one task (``jax_task``) is written for one task and goes
through ``vmap``; the networks, which all tasks share, see all rows in one matmul. The gradient that
the rules are fed is also the direct term of the meta-gradient: the loss enters as its linearisation
L + <G, w - sg(w)>, so that no gradient is computed twice.

The two kinds of rules are arranged differently, each as it ran fastest on 2 CPU cores:

- flattened: a row a trajectory; the scan unrolled, so that XLA runs both networks side by side; one
  matmul for each weight's gradient over the whole window, out of the cotangents of zeros that are
  added to the pre-activations (``jax.grad`` through the scan takes one a step).
- coordinate-wise: feature first; input and hidden state in one matmul; element-wise parts computed
  again in the backward pass (``jax.checkpoint``) instead of being stored.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping
from functools import partial

import jax
import jax.numpy as jnp
from jax import Array, lax
from jax.nn import sigmoid
from torch import Tensor

from benchmarks import jax_features, jax_task
from benchmarks.jax_task import Tree
from benchmarks.parameters import Network
from metaopt.base.fields import DTYPES
from metaopt.base.streams import Stream
from metaopt.meta.config import TrainConfig
from metaopt.meta.schedule import schedule
from metaopt.tasks.build import task_family

BETA1, BETA2, EPSILON = 0.9, 0.999, 1e-8
"""Of ``torch.optim.Adam``."""


def arrays(value: Tensor | list[Tensor]) -> Tree:
    """A tensor, or a list of them, in JAX."""
    if isinstance(value, list):
        return [arrays(item) for item in value]
    return jnp.asarray(value.detach().cpu().numpy())


class JaxStep(ABC):
    """Meta-training of a configuration in JAX, a window at a time.

    Args:
        config: of the run; dtype float64 needs ``jax.enable_x64``.
        initial: the rules to begin with.
    """

    unroll: bool
    """Whether the scan over the window is unrolled."""

    def __init__(self, config: TrainConfig, initial: Mapping[str, Network]) -> None:
        self.config = config
        self.rules = config.rules.by_name()
        self.family = task_family(config.task)
        self.params: Tree = {
            name: {key: arrays(value) for key, value in vars(given).items()}
            for name, given in initial.items()
        }
        self.adam: Tree = tuple(jax.tree.map(jnp.zeros_like, self.params) for _ in range(2))
        self.drawn = self.windows = self.steps_left = 0
        self.tasks: Tree = None
        self.carry: Tree = None
        self._start = jax.jit(self._first_carry)
        self._outer_step = jax.jit(self._update, donate_argnums=(0, 1, 2))

    def window(self) -> float:
        """One outer step, waited for; returns the meta-loss."""
        self._draw_if_due()
        self.windows += 1
        factor = schedule(self.config.meta, self.windows)
        self.params, self.adam, self.carry, meta_loss = jax.block_until_ready(
            self._outer_step(
                self.params, self.adam, self.carry, self.tasks, factor, float(self.windows)
            )
        )
        self.steps_left -= self.config.meta.unroll
        return float(meta_loss)

    def losses_and_gradients(self) -> tuple[Array, Tree]:
        """L(w_1) .. L(w_K) [K, B] of the window that is next, and dM/dphi; nothing is updated."""
        self._draw_if_due()
        gradients, _, (_, losses) = jax.jit(self._gradients)(self.params, self.carry, self.tasks)
        return losses, gradients

    @abstractmethod
    def _rows(self, name: str, w: Tree, observation: Tree) -> Array:
        """What the rule reads, of all tasks."""

    @abstractmethod
    def _zero_state(self, rows: Array, hidden: int) -> Array:
        """h or c before the first step."""

    @abstractmethod
    def _network(self, p: Tree, rows: Array, states: Tree, taps: Tree) -> tuple[Array, Tree, Tree]:
        """(outputs [B, ...], new states, what a gradient over the window needs)."""

    @abstractmethod
    def _gradients(self, params: Tree, carry: Tree, tasks: Tree) -> tuple[Tree, Array, Tree]:
        """(dM/dphi, M, (carry, losses)) of a window."""

    @abstractmethod
    def _for_layers_and_entries(
        self, out: Array, counts: list[int], shaped: int, sizes: int
    ) -> tuple[Array, Array]:
        """Outputs [B, shaped, L] and [B, sizes, entries], with ``counts`` entries of each layer."""

    def _combined(self, name: str, out: Array, w: Tree, observation: Tree) -> Array:
        """What the rule proposes, [B, entries]."""
        rule = self.rules[name]
        counts = {"update": [W[0].size for W in w], "teleport": [self.config.task.width**2]}[name]
        if rule.basis == "entries":
            _, of_entries = self._for_layers_and_entries(out, counts, 0, 1)
            return rule.free * of_entries[:, 0]
        outputs = self._for_layers_and_entries(out, counts, *jax_features.OUTPUTS[name])
        of_task = {"update": jax_features.update, "teleport": jax_features.generator}[name]
        return jax.vmap(partial(of_task, free=rule.free))(w, observation, *outputs)

    def _draw_if_due(self) -> None:
        if self.steps_left > 0:
            return
        config = self.config
        batch, dtype = config.meta.batch, DTYPES[config.dtype]
        tasks = self.family.sample(Stream.TRAIN, config.seed, self.drawn, batch, dtype)
        self.drawn += batch
        self.tasks = arrays([tasks.X, tasks.Y, tasks.X_pinv])
        self.carry = self._start(tuple(arrays(list(tasks.initial))), self.tasks)
        self.steps_left = config.meta.steps

    def _first_carry(self, w: Tree, tasks: Tree) -> Tree:
        observation = self._observe(w, tasks)
        states = {}
        for name, rule in self.rules.items():
            zero = self._zero_state(self._rows(name, w, observation), rule.hidden)
            states[name] = [(zero, zero) for _ in self.params[name]["b"]]
        return w, observation, states

    def _observe(self, w: Tree, tasks: Tree) -> Tree:
        X, Y, _ = tasks
        return jax.vmap(partial(jax_task.observe, slope=self.config.task.slope))(w, X, Y)

    def _step(self, params: Tree, tasks: Tree, carry: Tree, taps: Tree) -> tuple[Tree, Tree]:
        """One inner step: the new carry, and (L(w_{t+1}) [B], what was read)."""
        config, (w, observation, states) = self.config, carry
        X, _, X_pinv = tasks
        outputs, new_states, read = {}, {}, {}
        seen = lax.stop_gradient((w, observation))
        for name, rule in self.rules.items():
            rows = self._rows(name, *seen)
            out, new_states[name], read[name] = self._network(
                params[name], rows, states[name], None if taps is None else taps[name]
            )
            outputs[name] = self._combined(name, rule.scale * out, *seen)
        split = math.prod(w[0].shape[1:])
        f = outputs["update"]
        w = (w[0] + f[:, :split].reshape(w[0].shape), w[1] + f[:, split:].reshape(w[1].shape))
        if config.teleporter is not None:
            move = partial(jax_task.teleport, slope=config.task.slope, config=config.teleporter)
            T = outputs["teleport"].reshape(len(X), config.task.width, config.task.width)
            w = jax.vmap(move)(w, T, X, X_pinv)
        observation = self._observe(w, tasks)
        loss, gradients, _ = observation
        for W, G in zip(w, gradients, strict=True):
            loss = loss + jnp.sum(G * (W - lax.stop_gradient(W)), axis=(1, 2))
        return (w, observation, new_states), (loss, read)

    def _window(self, params: Tree, taps: Tree, carry: Tree, tasks: Tree) -> tuple[Array, Tree]:
        """M of a window, and (carry, losses, what was read)."""
        meta = self.config.meta
        step = partial(self._step, params, tasks)
        carry, (losses, read) = lax.scan(step, carry, taps, length=meta.unroll, unroll=self.unroll)
        if meta.loss == "sum":
            meta_loss = losses.sum(0).mean()
        else:
            meta_loss = jnp.log(losses + meta.epsilon).mean()
        return meta_loss, (carry, losses, read)

    def _update(
        self, params: Tree, adam: Tree, carry: Tree, tasks: Tree, factor: Array, count: Array
    ) -> tuple[Tree, Tree, Tree, Array]:
        """One outer step: (phi, Adam's means, carry, M)."""
        gradients, meta_loss, (carry, _) = self._gradients(params, carry, tasks)
        clip = self.config.meta.clip
        if clip is not None:
            gradients = {name: clipped(own, clip) for name, own in gradients.items()}
        mean, square = adam
        mean = jax.tree.map(lambda m, g: BETA1 * m + (1 - BETA1) * g, mean, gradients)
        square = jax.tree.map(lambda v, g: BETA2 * v + (1 - BETA2) * g * g, square, gradients)
        mean_scale, square_scale = 1 / (1 - BETA1**count), 1 / (1 - BETA2**count)
        new = {}
        for name, rule in self.rules.items():
            rate = rule.outer_lr * factor

            def moved(p: Array, m: Array, v: Array, rate: Array = rate) -> Array:
                return p - rate * m * mean_scale / (jnp.sqrt(v * square_scale) + EPSILON)

            new[name] = jax.tree.map(moved, params[name], mean[name], square[name])
        return new, (mean, square), carry, meta_loss


def clipped(gradient: Tree, largest: float) -> Tree:
    """As ``torch.nn.utils.clip_grad_norm_``."""
    norm = jnp.sqrt(sum(jnp.square(leaf).sum() for leaf in jax.tree.leaves(gradient)))
    return jax.tree.map(lambda leaf: leaf * jnp.minimum(1, largest / (norm + 1e-6)), gradient)


def activated(z: Array, c: Array, axis: int) -> tuple[Array, Array]:
    """(h', c') of a cell whose four gates lie along an axis."""
    i, f, o, u = jnp.split(z, 4, axis)
    c = sigmoid(f) * c + sigmoid(i) * jnp.tanh(u)
    return sigmoid(o) * jnp.tanh(c), c


class FlattenedJaxStep(JaxStep):
    """Rules on the flattened gradient: [B, features]."""

    unroll = True

    def _rows(self, name: str, w: Tree, observation: Tree) -> Array:
        features = partial(jax_features.flat_features, gradient=self.rules[name].gradient)
        return jax.vmap(features)(w, observation)

    def _for_layers_and_entries(
        self, out: Array, counts: list[int], shaped: int, sizes: int
    ) -> tuple[Array, Array]:
        of_layers, of_entries = jnp.split(out, [shaped * len(counts)], axis=1)
        return (
            of_layers.reshape(len(out), shaped, len(counts)),
            of_entries.reshape(len(out), sizes, -1),
        )

    def _zero_state(self, rows: Array, hidden: int) -> Array:
        return jnp.zeros((len(rows), hidden), rows.dtype)

    def _network(self, p: Tree, rows: Array, states: Tree, taps: Tree) -> tuple[Array, Tree, Tree]:
        x, new, read = rows, [], []
        for W_x, W_h, b, (h, c), tap in zip(
            p["W_x"], p["W_h"], p["b"], states, taps["b"], strict=True
        ):
            read.append((x, h))
            x, c = activated(x @ W_x.T + h @ W_h.T + b + tap, c, axis=1)
            new.append((x, c))
        return x @ p["head_weight"].T + p["head_bias"] + taps["head_bias"], new, (read, x)

    def _gradients(self, params: Tree, carry: Tree, tasks: Tree) -> tuple[Tree, Array, Tree]:
        meta = self.config.meta

        def tap(b: Array) -> Array:
            return jnp.zeros((meta.unroll, meta.batch, len(b)), b.dtype)

        taps = {
            name: jax.tree.map(tap, {key: p[key] for key in ("b", "head_bias")})
            for name, p in params.items()
        }
        (meta_loss, (carry, losses, read)), cotangents = jax.value_and_grad(
            lambda taps: self._window(params, taps, carry, tasks), has_aux=True
        )(taps)
        gradients = {}
        for name, d in cotangents.items():
            cells, top = read[name]
            gradients[name] = {
                "W_x": [over_window(dz, x) for dz, (x, _) in zip(d["b"], cells, strict=True)],
                "W_h": [over_window(dz, h) for dz, (_, h) in zip(d["b"], cells, strict=True)],
                "b": [dz.sum((0, 1)) for dz in d["b"]],
                "head_weight": over_window(d["head_bias"], top),
                "head_bias": d["head_bias"].sum((0, 1)),
            }
        return gradients, meta_loss, (carry, losses)


def over_window(dz: Array, x: Array) -> Array:
    """sum of dz x^T over steps and rows, one matmul: [K, B, m], [K, B, n] -> [m, n]."""
    return dz.reshape(-1, dz.shape[-1]).T @ x.reshape(-1, x.shape[-1])


def cell(W: Array, b: Array, x: Array, h: Array, c: Array) -> tuple[Array, Array]:
    """(h', c'), feature first."""
    return activated(W @ jnp.concatenate([x, h]) + b[:, None], c, axis=0)


recomputed_cell = jax.checkpoint(cell)


class CoordinateJaxStep(JaxStep):
    """Rules shared by all coordinates: [features, B * coordinates]."""

    unroll = False

    def _rows(self, name: str, w: Tree, observation: Tree) -> Array:
        of_task = {
            "update": jax_features.update_features,
            "teleport": jax_features.generator_features,
        }[name]
        features = jax.vmap(of_task, out_axes=1)(w, observation)
        return features.reshape(len(features), -1)

    def _for_layers_and_entries(
        self, out: Array, counts: list[int], shaped: int, sizes: int
    ) -> tuple[Array, Array]:
        by_task = out.reshape(shaped + sizes, -1, sum(counts)).swapaxes(0, 1)
        of_coordinates, of_entries = jnp.split(by_task, [shaped], axis=1)
        ends = [sum(counts[: i + 1]) for i in range(len(counts) - 1)]
        parts = jnp.split(of_coordinates, ends, axis=2)
        return jnp.stack([part.mean(2) for part in parts], axis=2), of_entries

    def _zero_state(self, rows: Array, hidden: int) -> Array:
        return jnp.zeros((hidden, rows.shape[1]), rows.dtype)

    def _network(self, p: Tree, rows: Array, states: Tree, taps: Tree) -> tuple[Array, Tree, Tree]:
        x, new = rows, []
        for W_x, W_h, b, (h, c) in zip(p["W_x"], p["W_h"], p["b"], states, strict=True):
            x, c = recomputed_cell(jnp.concatenate([W_x, W_h], axis=1), b, x, h, c)
            new.append((x, c))
        return p["head_weight"] @ x + p["head_bias"][:, None], new, taps

    def _gradients(self, params: Tree, carry: Tree, tasks: Tree) -> tuple[Tree, Array, Tree]:
        (meta_loss, (carry, losses, _)), gradients = jax.value_and_grad(
            lambda params: self._window(params, None, carry, tasks), has_aux=True
        )(params)
        return gradients, meta_loss, (carry, losses)


def jax_step(config: TrainConfig, initial: Mapping[str, Network]) -> JaxStep:
    """The step arranged for the kind of rules that the configuration has."""
    kinds = {rule.kind for rule in config.rules.by_name().values()}
    arranged = {"lstm": FlattenedJaxStep, "coordinate_lstm": CoordinateJaxStep}
    return arranged[kinds.pop()](config, initial)
