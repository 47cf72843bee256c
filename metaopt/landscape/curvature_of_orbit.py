"""How strongly curves on an orbit bend: kappa of t -> exp(t T) w at t = 0.

    kappa = |n| / |w'|^2,   n = w'' - (<w', w''> / |w'|^2) w'

which is sqrt(|w'|^2 |w''|^2 - <w', w''>^2) / |w'|^3, over all weights as one vector. All groups
move at once, w(t) = exp(t T_m) .. exp(t T_1) w, so that a layer between two of them has the cross
term of both in w'': -2 T_2 W T_1 for a matrix that T_2 makes and T_1 reads.

Reference: Zhao, Gower, Walters and Yu, arXiv 2305.13404, section 4.2.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.func import jvp, vmap

from metaopt.landscape.data import Data, pairs_of
from metaopt.landscape.estimate import Estimate, mean_and_error
from metaopt.landscape.subgroup import random_generator
from metaopt.landscape.through_data import kappa_through_data, layers_of, seen_by
from metaopt.landscape.velocities import Direction, Weights, bend, chosen_symmetries, derivatives
from metaopt.symmetry.discovery.find import plain
from metaopt.symmetry.elements import Draws
from metaopt.symmetry.groups import Symmetry

Curve = Callable[[Tensor], Weights]
"""t, a scalar tensor -> weights."""


def kappa(weights: Weights, directions: Sequence[Direction]) -> Tensor:
    """kappa of w(t) = exp(t T_m) .. exp(t T_1) w at t = 0, a scalar; differentiable in w and T.

    Args:
        weights: w, by path. Tensors that a symmetry moves and that are not given count as fixed.
        directions: symmetries with their generators, in the order in which they act.
    """
    return bend(*derivatives(weights, directions))


def curvature_of(curve: Curve, zero: Tensor) -> Tensor:
    """kappa of any curve at t = 0, by two forward derivatives, a scalar.

    Args:
        curve: t -> weights.
        zero: 0 as a scalar tensor, of the dtype and on the device of the weights.
    """
    one = torch.ones_like(zero)

    def slope(t: Tensor) -> Weights:
        return jvp(curve, (t,), (one,))[1]

    return bend(*jvp(slope, (zero,), (one,)))


@dataclass(frozen=True, eq=False)
class Curvature(Estimate):
    """kappa over random generators, its mean and standard error.

    Attributes:
        values: kappa of each draw, float64 [draws].
        groups: what moved: the names of symmetries, or of layers that move through the data.
    """

    values: Tensor
    groups: tuple[str, ...]

    def __str__(self) -> str:
        return f"curvature of the orbit: {super().__str__()} ({len(self.values)} draws)"


def curvature(
    model: nn.Module,
    data: Data | None = None,
    draws: int = 100,
    symmetries: Sequence[Symmetry] | None = None,
    seed: int = 0,
) -> Curvature:
    """The mean over random generators T of kappa of exp(t T) w at t = 0.

        kappa = sqrt(|w'|^2 |w''|^2 - <w', w''>^2) / |w'|^3

    All groups move at once, each by a generator of normal numbers of Frobenius norm 1 in each
    block. Curves and curvatures are computed in float64. Nothing of the loss is read, and the model
    stays as it is.

    Without data the curves are those of the model's symmetries that act linearly: they are exact,
    and the outputs do not change along them. With data the general linear groups between the linear
    layers of a plain MLP act through the inputs (``landscape.through_data``), by least squares if
    there are more samples than a layer has inputs, so that outputs change along these curves.

    Args:
        model: any module; with data ``nn.Sequential`` of linear layers and invertible activations.
        data: a pair (inputs, targets), or an iterable of such pairs; each draw takes the next one.
            None: the symmetries of the model.
        draws: how many generators, at least 2.
        symmetries: those to move along, without data. None: all that ``metaopt.symmetries(model)``
            finds, act linearly and assume nothing.
        seed: of the generators, at least 0.

    Raises:
        ValueError: if there are fewer than 2 draws, the model has no symmetry that acts linearly,
            the curves stand still (all weights are 0), both data and symmetries are given, or the
            model is no plain MLP although data are given.

    References:
        Zhao, Gower, Walters and Yu, arXiv 2305.13404, section 4.2. There T has uniform numbers on
        [0, 1), and terms that two groups have in common are left out.
    """
    if draws < 2:
        raise ValueError(f"a standard error needs at least 2 draws, found {draws}")
    if data is not None and symmetries is not None:
        raise ValueError("data and symmetries exclude each other: with data all layers move")
    model = plain(model)
    weights = {path: value.detach().double() for path, value in model.named_parameters()}
    if data is None:
        chosen = chosen_symmetries(model, symmetries)
        values = torch.stack([kappa(weights, one) for one in _drawn(chosen, draws, seed)])
        groups = tuple(symmetry.name for symmetry in chosen)
    else:
        values, groups = _through_data(model, weights, data, draws, seed)
    if not bool(values.isfinite().all()):
        raise ValueError("the weights that move are 0 or not finite, so that a curve has no bend")
    return Curvature(*mean_and_error(values), values.cpu(), groups)


def _drawn(symmetries: Sequence[Symmetry], draws: int, seed: int) -> Iterator[list[Direction]]:
    """For each draw a generator of each symmetry."""
    numbers = [Draws(f"curvature, {one.group}: {one.name}", seed).of() for one in symmetries]
    for _ in range(draws):
        yield [(s, random_generator(s, n)) for s, n in zip(symmetries, numbers, strict=True)]


def _through_data(
    model: nn.Module, weights: Weights, data: Data, draws: int, seed: int
) -> tuple[Tensor, tuple[str, ...]]:
    """kappa of each draw, [draws], and the paths of the layers that move."""
    layers = layers_of(model)
    names = tuple(layer.weight for layer in layers[:-1])
    numbers = {name: Draws(f"curvature through data: {name}", seed).of() for name in names}
    pairs = [inputs for inputs, _ in pairs_of(data)]
    found = []
    for i, inputs in enumerate(pairs[:draws]):
        # Batch i has draws i, i + len(pairs), ..
        count = len(range(i, draws, len(pairs)))
        seen = seen_by(weights, layers, inputs.to(weights[names[0]]))
        generators = []
        for name in names:
            k = len(weights[name])
            M = torch.from_numpy(numbers[name].standard_normal((count, k, k)))
            generators.append((M / M.norm(dim=(1, 2), keepdim=True)).to(weights[name]))
        found.append(
            vmap(lambda *M, seen=seen: kappa_through_data(weights, layers, seen, M))(*generators)
        )
    return torch.cat(found), names
