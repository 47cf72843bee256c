"""Sharpness and curvature as objectives of a search, with the same random numbers everywhere."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from metaopt.base.streams import Stream, item_generator
from metaopt.landscape.curvature_of_orbit import kappa
from metaopt.landscape.samples import Samples, plain_attention
from metaopt.landscape.sharpness import SHARE, expected_rise, isotropic
from metaopt.landscape.subgroup import random_generator
from metaopt.landscape.through_data import kappa_through_data, layers_of, seen_by
from metaopt.landscape.velocities import Direction
from metaopt.symmetry.elements import Draws
from metaopt.symmetry.motion import GroupMotion, Motion, Tensors
from metaopt.teleport.drift import called
from metaopt.teleport.objectives import Objective
from metaopt.teleport.through_data import DataMotion

RISES = 32
"""Directions of the sharpness."""
CURVES = 16
"""Draws of the curvature."""


class Sharpness(Objective):
    """The mean of L(w + r d) - L(w) over 32 isotropic directions d with their opposites.

    r is 0.05 |w| at the weights where the search begins (see ``metaopt.sharpness``).

    Args:
        samples: model, loss and data.
        seed: of the directions.
    """

    name = "sharpness"

    def __init__(self, samples: Samples, seed: int) -> None:
        named = samples.model.named_parameters()
        paths = [path for path, parameter in named if parameter.requires_grad]
        weights = samples.values(paths)
        squared = sum(float(value.double().square().sum()) for value in weights.values())
        self._samples, self._paths = samples, paths
        self._distance = SHARE * squared**0.5
        numbers = item_generator(Stream.SHARPNESS, seed, 0)
        self._directions = isotropic(weights, RISES, numbers)
        self._vectorises = True

    def at(self, values: Tensors) -> Tensor:
        """The mean rise, with a graph."""
        samples = self._samples
        rises = []
        for inputs, targets in samples.batches():

            def loss(at: dict[str, Tensor], x: object = inputs, y: Tensor = targets) -> Tensor:
                return samples.loss(called(samples.model, {**values, **at}, x), y)

            here = {path: values[path] for path in self._paths}
            with plain_attention():
                rises.append(len(targets) / samples.count * self._rise(loss, here))
        return torch.stack(rises).sum()

    def _rise(self, loss: Callable[[dict[str, Tensor]], Tensor], here: Tensors) -> Tensor:
        if self._vectorises:
            try:
                return expected_rise(loss, here, self._directions, [self._distance]).mean()
            except RuntimeError:
                # Operations that vmap does not know; if they are not at fault, it comes again.
                self._vectorises = False
        far = [
            loss({p: w + sign * self._distance * self._directions[p][i] for p, w in here.items()})
            for i in range(RISES)
            for sign in (1, -1)
        ]
        return torch.stack(far).mean() - loss(dict(here))


class Curvature(Objective):
    """The mean of kappa of exp(t T) w over 16 draws of T (see ``metaopt.curvature``).

    The curves are those of the symmetries that the search moves along; if it moves through data,
    those through these data.

    Args:
        model: the model.
        motions: what the search moves along.
        seed: of the draws.

    Raises:
        ValueError: if no motion among them has such curves.
    """

    name = "curvature"

    def __init__(self, model: nn.Module, motions: Sequence[Motion], seed: int) -> None:
        self._model = model
        self._through = [motion for motion in motions if isinstance(motion, DataMotion)]
        chosen = [motion.symmetry for motion in motions if isinstance(motion, GroupMotion)]
        if not chosen and not self._through:
            raise ValueError(
                "objective 'curvature' needs symmetries of metaopt.symmetries, or those of "
                "metaopt.through_data, which name the curves"
            )
        numbers = [Draws(f"curvature, {one.group}: {one.name}", seed).of() for one in chosen]
        self._directions: list[list[Direction]] = [
            [(s, random_generator(s, n)) for s, n in zip(chosen, numbers, strict=True)]
            for _ in range(CURVES)
        ]
        self._generators: list[list[Tensor]] = []
        if self._through:
            layers = layers_of(model)
            widths = [model.get_parameter(layer.weight).shape[0] for layer in layers[:-1]]
            drawn = item_generator(Stream.SEARCH, seed, 0)
            for _ in range(CURVES):
                T = [torch.from_numpy(drawn.standard_normal((k, k))) for k in widths]
                self._generators.append([M / M.norm() for M in T])

    def at(self, values: Tensors) -> Tensor:
        """The mean curvature, with a graph, in float64."""
        wide = {path: v.double() for path, v in values.items() if v.is_floating_point()}
        if self._through:
            layers = layers_of(self._model)
            X = self._through[0].X.mT.to(next(iter(wide.values())))
            seen = seen_by(wide, layers, X)
            found = [
                kappa_through_data(wide, layers, seen, [M.to(X) for M in one])
                for one in self._generators
            ]
        else:
            found = [kappa(wide, one) for one in self._directions]
        return torch.stack(found).mean()
