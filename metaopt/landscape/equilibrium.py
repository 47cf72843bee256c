"""The noise equilibrium of a model's orbit: how far it is, and how fast SGD gets there.

    g = exp(t*),   incoming noise = outgoing noise at g w, for all symmetries together

Near it, with C = <w, w> at g w, and c = lr^2 f / S the factor of the noise in a step,

    scaling          t - t* shrinks by c (s_in + s_out) / (a + b) a step
    general linear   by c times the eigenvalues of (A + B)^-1 (S_in + S_out), k of the k (k + 1) / 2
                     rates, the slowest among them

where s_in and s_out are the halves of the noise at g w, a and b those of the weights, and all other
symmetries are held at their equilibrium. (From dC/dt = 2 (a + b) and the change of the noise with
t, -2 (s_in + s_out). For matrices both are x -> M x + x M on symmetric x; x = v v^T with
S v = r H v solves them.)

Reference: Ziyin et al., arXiv 2402.07193, theorem on the fixed point.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from metaopt.landscape.gradients import Full
from metaopt.landscape.moments import Moments
from metaopt.landscape.noise import noise_stack, without_block
from metaopt.landscape.samples import Samples
from metaopt.symmetry.balancing import balanced, logarithm
from metaopt.symmetry.conserved import parameters_of
from metaopt.symmetry.groups import Group, Symmetry
from metaopt.symmetry.modules import touches_of
from metaopt.symmetry.touch import gradients
from metaopt.symmetry.touch import weights as moved_weights


@dataclass(frozen=True)
class Equilibrium:
    """Where on the orbit the noise moves a charge no longer.

    Attributes:
        distance: t*, the equilibrium is at exp(t*) w: [k] for positive scaling, [k, k], symmetric,
            for a general linear group, with a first axis for blocks if there are several, and
            [blocks] for a scale and rotation. Infinite where there is none.
        pace: how fast t shrinks to t* near it, in units of lr^2 f / S a step: [k], for a general
            linear group k of its rates. 0 where there is no equilibrium.
        reason: why there is none; "" if there is one.
    """

    distance: Tensor
    pace: Tensor
    reason: str = ""


def equilibria(samples: Samples, symmetries: Mapping[str, Symmetry]) -> dict[str, Equilibrium]:
    """The noise equilibrium of symmetries together, by name.

    Args:
        samples: model, loss and data.
        symmetries: by name, those with quadratic charges.

    Raises:
        ValueError: if there are fewer than 2 samples, or a sample has no gradient of its own.
    """
    if not symmetries:
        return {}
    several = list(symmetries.values())
    stacks = noise_stack(samples, several)
    found = balanced(several, stacks, like="gradients")
    touches = touches_of(found.items())
    weights = parameters_of(samples.model, several)
    there = {p: moved_weights(weight.double(), touches[p]) for p, weight in weights.items()}
    noise = {
        path: gradients(rows.movedim(0, -1), touches[path]).movedim(-1, 0)
        for path, rows in stacks.items()
    }
    result = {}
    for name, symmetry in symmetries.items():
        pace = _paces(symmetry, there, noise)
        distance = logarithm(symmetry, found[symmetry]).to(pace.device)
        reason = found.reasons.get(symmetry, "")
        if symmetry in found.limits:
            limit = found.limits[symmetry].to(pace.device)
            distance, pace = distance + limit, torch.where(limit == 0, pace, 0)
        elif reason:
            distance, pace = torch.full_like(distance, torch.inf), torch.zeros_like(pace)
        result[name] = Equilibrium(
            without_block(symmetry, distance), without_block(symmetry, pace), reason
        )
    return result


def _paces(
    symmetry: Symmetry, weights: Mapping[str, Tensor], noise: Mapping[str, Tensor]
) -> Tensor:
    """(s_in + s_out) / (a + b), or the eigenvalues of (A + B)^-1 (S_in + S_out), [blocks, k].

    Args:
        symmetry: the symmetry.
        weights: {path: tensor}, at the equilibrium.
        noise: {path: [rows, *shape]}, a stack of the noise there.
    """
    # A slot that moves by the power p has p^2 in the second derivative, and p in the form.
    twice = replace(
        symmetry,
        incoming=tuple(replace(slot, power=slot.power**2) for slot in symmetry.incoming),
        outgoing=tuple(replace(slot, power=slot.power**2) for slot in symmetry.outgoing),
    )
    sums = []
    for stack in (noise, {path: weight[None] for path, weight in weights.items()}):
        moments = Moments({"": twice})
        for path in {slot.path for slot in symmetry.slots}:
            moments.add(path, Full(stack[path]))
        incoming, outgoing = moments.halves("")
        sums.append(incoming + outgoing)
    of_noise, of_weights = sums
    if symmetry.group is not Group.LINEAR:
        return (of_noise / of_weights).nan_to_num(0)
    # Directions in which there are no weights cannot be left or reached.
    sizes, vectors = torch.linalg.eigh(of_weights)
    least = torch.finfo(sizes.dtype).eps * symmetry.size * sizes.amax(-1, keepdim=True)
    roots = torch.where(sizes > least, sizes.rsqrt(), 0)
    whitened = roots[..., None] * (vectors.mT @ of_noise @ vectors) * roots[..., None, :]
    return torch.linalg.eigvalsh(whitened)
