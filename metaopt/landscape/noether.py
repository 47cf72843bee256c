"""What SGD does to the charges of a model, a step, on average.

    w' = (1 - lr wd) w - lr g^,   C = <w, w>,   <w, g^> = 0 for the gradient g^ of each mini-batch

    E[C'] - C = lr^2 <g, g>  +  lr^2 f / S (incoming - outgoing noise)  +  ((1 - lr wd)^2 - 1) C
                gradient        noise                                      decay

This is exact, not of first order. S is the batch size, g the mean gradient, f = 1 if batches are
drawn with replacement, else (N - S) / (N - 1). The noise vanishes at the noise equilibrium.

Weights in front of a normalisation have no outgoing half and no equilibrium: |w|^4 grows by
2 lr^2 E|g~|^2 a step, g~ the gradient of a mini-batch at |w| = 1, until decay stops it.

References:
    Ziyin et al., Parameter Symmetry and Noise Equilibrium of SGD, arXiv 2402.07193, in continuous
    time; Kunin et al., Neural Mechanics, arXiv 2012.04728.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from metaopt.base.tables import markdown_table
from metaopt.landscape.data import Data
from metaopt.landscape.equilibrium import equilibria
from metaopt.landscape.noise import quadratic, seen_noise
from metaopt.landscape.samples import Loss, Samples
from metaopt.symmetry.conserved import form, parameters_of
from metaopt.symmetry.groups import Group, Symmetry


@dataclass(frozen=True)
class Step:
    """How SGD steps.

    Attributes:
        lr: the learning rate.
        decay: (1 - lr wd)^2 - 1, what decay alone does to a charge of 1.
        noise: lr^2 f / S, the factor of the noise.
    """

    lr: float
    decay: float
    noise: float


@dataclass(frozen=True)
class Flow:
    """What SGD does to the charge of one symmetry in a step, and where that ends.

    Charges and their changes are [k] for positive scaling, [k, k] for a general linear group, with
    a first axis for blocks if there are several (heads), and [blocks] for a scale and rotation.

    Attributes:
        symmetry: the symmetry.
        charge: C.
        gradient: lr^2 <g, g>, the part of the mean gradient in the change of C.
        noise: lr^2 f / S (incoming - outgoing), the part of the noise.
        decay: ((1 - lr wd)^2 - 1) C, the part of weight decay.
        distance: t*: exp(t*) w is the equilibrium. Infinite where there is none.
        rate: by which share t - t* shrinks in a step near the equilibrium: [k], for a general
            linear group k of its rates, the slowest among them. 0 where there is none.
        remark: why there is no equilibrium, or what is there instead; "" if there is one.
        growth: 2 lr^2 E|g~|^2, by which |w|^4 grows in a step, of weights in front of a
            normalisation; None for all others.
    """

    symmetry: Symmetry
    charge: Tensor
    gradient: Tensor
    noise: Tensor
    decay: Tensor
    distance: Tensor
    rate: Tensor
    remark: str = ""
    growth: Tensor | None = None

    @property
    def drift(self) -> Tensor:
        """E[C'] - C, the sum of the three parts."""
        return self.gradient + self.noise + self.decay

    @property
    def steps(self) -> Tensor:
        """1 / rate, the steps in which t - t* shrinks e times."""
        return 1 / self.rate


class Noether(dict[str, Flow]):
    """What SGD does to each charge, by the symmetry's name; it can be printed.

    Attributes:
        samples: N.
        setting: batch size, learning rate and weight decay, as they were given.
    """

    def __init__(self, flows: dict[str, Flow], samples: int, setting: str) -> None:
        super().__init__(flows)
        self.samples, self.setting = samples, setting

    def rows(self) -> list[dict[str, Any]]:
        """One plain dictionary for each symmetry, e.g. for ``pandas.DataFrame``.

        Returns:
            Of each: ``symmetry`` (its name), ``group``, ``blocks``, ``size``, the Frobenius norms
            ``charge``, ``gradient``, ``noise``, ``decay`` and ``drift``, ``distance`` (the largest
            modulus of an eigenvalue of t*), ``steps`` (the most of what moves at all) and
            ``remark``.
        """
        return [
            {
                "symmetry": name,
                "group": str(flow.symmetry.group),
                "blocks": flow.symmetry.blocks,
                "size": flow.symmetry.size,
                **{
                    key: float(getattr(flow, key).norm())
                    for key in ("charge", "gradient", "noise", "decay", "drift")
                },
                "distance": _farthest(flow),
                "steps": _slowest(flow),
                "remark": flow.remark,
            }
            for name, flow in self.items()
        ]

    def __str__(self) -> str:
        keys = ("charge", "gradient", "noise", "decay", "distance", "steps")
        rows = self.rows()
        table = markdown_table(
            ["symmetry", "group", *("t*" if key == "distance" else key for key in keys)],
            [[row["symmetry"], row["group"], *(f"{row[key]:.3g}" for key in keys)] for row in rows],
        )
        remarks = [f"{row['symmetry']}: {row['remark']}" for row in rows if row["remark"]]
        head = (
            f"SGD on {self.samples} samples, {self.setting}\n"
            f"norms of charges and of their changes in a step, distance to the noise equilibrium, "
            f"steps in which it shrinks e times"
        )
        return "\n".join([head, table, *remarks])

    __repr__ = __str__


def noether(
    model: nn.Module,
    loss: Loss,
    data: Data,
    batch_size: int,
    lr: float,
    weight_decay: float = 0,
    symmetries: Iterable[Symmetry] | None = None,
    example: Any = None,
    replacement: bool = True,
) -> Noether:
    """E[C'] - C = lr^2 <g, g> + lr^2 f / S (incoming - outgoing noise) + ((1 - lr wd)^2 - 1) C.

    The change of each charge by one step of SGD without momentum, exact in expectation over
    mini-batches; f = 1 with replacement, (N - S) / (N - 1) without.

    Args:
        model: any module in which a sample has a gradient of its own.
        loss: (outputs, targets) -> a scalar, the mean over the samples.
        data: a pair (inputs, targets), or an iterable of such pairs that can be run through more
            than once (see ``Samples``).
        batch_size: S, the samples of a mini-batch of SGD, at least 1.
        lr: the learning rate, above 0.
        weight_decay: wd, at least 0, as torch's SGD adds wd w to the gradient.
        symmetries: those to look through; None: ``metaopt.symmetries(model, example)``. Only those
            that have a quadratic charge are returned.
        example: inputs of the model to find symmetries with; None: the first samples.
        replacement: whether the samples of a mini-batch are drawn independently.

    Returns:
        By the symmetry's name, as in ``metaopt.charges``: charge, drift and equilibrium.

    Raises:
        ValueError: if a setting is out of range, there are fewer than 2 samples, a sample has no
            gradient of its own (batch normalisation or dropout in training), or a symmetry does
            not hold for each sample or moves a parameter that is not trained.
    """
    samples = Samples(model, loss, data)
    step = _step(samples.count, batch_size, lr, weight_decay, replacement)
    chosen = quadratic(samples, symmetries, example)
    weights = parameters_of(samples.model, chosen.values())
    _require_trained(weights)
    wide = {path: weight.detach().double() for path, weight in weights.items()}
    noise = seen_noise(samples, chosen)
    ends = equilibria(samples, chosen)
    flows = {}
    for name, symmetry in chosen.items():
        charge, seen = form(symmetry, wide, wide), noise[name]
        parts = (
            charge,
            step.lr**2 * (seen.mean_incoming - seen.mean_outgoing),
            step.noise * (seen.incoming - seen.outgoing),
            step.decay * charge,
        )
        if symmetry.outgoing and symmetry.incoming:
            end = ends[name]
            rate = step.noise * end.pace
            flows[name] = Flow(symmetry, *parts, end.distance, rate, end.reason)
        else:
            flows[name] = _norm_alone(symmetry, step, *parts)
    setting = f"batches of {batch_size}, learning rate {lr:g}, weight decay {weight_decay:g}"
    return Noether(flows, samples.count, setting)


def _norm_alone(
    symmetry: Symmetry, step: Step, charge: Tensor, gradient: Tensor, noise: Tensor, decay: Tensor
) -> Flow:
    """Weights whose scale leaves the loss alone: d|w|^4 = 2 lr^2 E|g~|^2 - 4 lr wd |w|^4."""
    # One step adds (gradient + noise) = lr^2 E|g|^2 = lr^2 E|g~|^2 / |w|^2 to |w|^2.
    squared = charge * (gradient + noise)
    parts = charge, gradient, noise, decay
    if step.decay == 0:
        distance = torch.full_like(charge, math.inf) * charge.sign()
        remark = "no equilibrium: |w| only grows, since the loss does not see it"
        return Flow(symmetry, *parts, distance, 0 * charge, remark, 2 * squared)
    end = (squared / -step.decay).sqrt()
    distance = (end / charge.abs()).log() / 2 * charge.sign()
    rate = torch.full_like(charge, -2 * step.decay)
    remark = "an equilibrium with weight decay alone, by the law of |w|^4"
    return Flow(symmetry, *parts, distance, rate, remark, 2 * squared)


def _farthest(flow: Flow) -> float:
    if flow.symmetry.group is Group.LINEAR and bool(flow.distance.isfinite().all()):
        return float(torch.linalg.eigvalsh(flow.distance).abs().max())
    return float(flow.distance.abs().max())


def _slowest(flow: Flow) -> float:
    moving = flow.rate[flow.rate > 0]
    return float(1 / moving.min()) if len(moving) else math.inf


def _step(count: int, batch_size: int, lr: float, weight_decay: float, replacement: bool) -> Step:
    if batch_size < 1 or (not replacement and batch_size > count):
        most = "" if replacement else f" and at most {count}, the number of samples"
        raise ValueError(f"batch_size must be at least 1{most}, found {batch_size}")
    if not 0 < lr < math.inf:
        raise ValueError(f"lr must be finite and above 0, found {lr}")
    if not 0 <= weight_decay < math.inf:
        raise ValueError(f"weight_decay must be finite and at least 0, found {weight_decay}")
    share = 1.0 if replacement else (count - batch_size) / max(1, count - 1)
    return Step(lr, (1 - lr * weight_decay) ** 2 - 1, lr**2 * share / batch_size)


def _require_trained(weights: dict[str, nn.Parameter]) -> None:
    for path, weight in weights.items():
        if not weight.requires_grad:
            raise ValueError(
                f"{path!r} is not trained, so that SGD does not conserve the charges of symmetries "
                f"that move it: leave them out"
            )
