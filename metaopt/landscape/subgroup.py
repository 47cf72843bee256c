"""One-parameter subgroups exp(t T) of the groups that a model's symmetries have."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn
from torch.linalg import matrix_exp

from metaopt.symmetry.discovery.find import symmetries
from metaopt.symmetry.elements import Diagonal, Draws, Element, Matrix, ScaledRotation, Translation
from metaopt.symmetry.groups import Group, Symmetry
from metaopt.symmetry.modules import require

CONTINUOUS = (
    Group.LINEAR,
    Group.ORTHOGONAL,
    Group.ROTARY,
    Group.SCALING,
    Group.TRANSLATION,
)
"""Groups that have one-parameter subgroups."""
SKEW = 1e-12
"""|T + T^T| / |T| up to which T is skew."""


def found_symmetry(model: nn.Module, wanted: Symmetry | str) -> Symmetry:
    """A symmetry of a model, given itself or by its name, whose group is continuous.

    Args:
        model: the model.
        wanted: the symmetry; or its name or short name, with `` (group)`` after it where several
            have one name.

    Raises:
        ValueError: if the model has no such symmetry, several have the name, or its group is
            discrete.
    """
    if isinstance(wanted, Symmetry):
        for slot in wanted.slots:
            require(model, wanted, slot)
        _require_continuous([wanted], wanted.name)
        return wanted
    listed = symmetries(model)
    matching = [one for one in listed if wanted in _names(one)]
    if not matching:
        known = ", ".join(repr(one.short_name) for one in listed if one.group in CONTINUOUS)
        raise ValueError(f"the model has no symmetry {wanted!r}, it has {known or 'none'}")
    continuous = _require_continuous(matching, wanted)
    if len(continuous) > 1:
        which = ", ".join(repr(f"{one.name} ({one.group})") for one in continuous)
        raise ValueError(f"several symmetries are called {wanted!r}: {which}")
    return continuous[0]


def _names(symmetry: Symmetry) -> set[str]:
    plain = {symmetry.name, symmetry.short_name}
    return plain | {f"{name} ({symmetry.group})" for name in plain}


def _require_continuous(found: list[Symmetry], name: str) -> list[Symmetry]:
    continuous = [one for one in found if one.group in CONTINUOUS]
    if not continuous:
        raise ValueError(
            f"symmetry {name!r} is discrete ({found[0].group}), an orbit needs one of "
            f"{', '.join(CONTINUOUS)}"
        )
    return continuous


@dataclass(frozen=True)
class Subgroup:
    """t -> exp(t T).

    Attributes:
        symmetry: the symmetry whose group it is part of.
        T: the generator, float64 on the CPU (see ``orbit``); for a translation an empty tensor,
            the direction of each slot comes from the random numbers.
        numbers: the random numbers of the symmetry.
    """

    symmetry: Symmetry
    T: Tensor
    numbers: Draws

    @staticmethod
    def of(symmetry: Symmetry, generator: Tensor | str | None, seed: int) -> Subgroup:
        """The subgroup of a generator, which is a tensor, ``identity``, ``random`` or None.

        Raises:
            ValueError: if T is no generator of the group, or the seed is negative.
        """
        if seed < 0:
            raise ValueError(f"seed must not be negative, found {seed}")
        numbers = Draws(f"{symmetry.group}: {symmetry.name}", seed)
        has_identity = symmetry.group not in (Group.ORTHOGONAL, Group.TRANSLATION)
        if generator is None:
            generator = "identity" if has_identity else "random"
        if isinstance(generator, Tensor):
            T = _given(symmetry, generator)
        elif generator == "identity" and has_identity:
            T = _identity(symmetry)
        elif generator == "random":
            T = random_generator(symmetry, numbers.of())
        elif generator == "identity":
            raise ValueError(
                f"the identity is no generator of the {symmetry.group} group of "
                f"{symmetry.short_name!r}: give generator='random' or a tensor"
            )
        else:
            raise ValueError(
                f"generator must be a tensor, 'identity' or 'random', found {generator!r}"
            )
        return Subgroup(symmetry, T, numbers)

    def at(self, t: float) -> Element:
        """exp(t T)."""
        match self.symmetry.group:
            case Group.LINEAR:
                return Matrix(matrix_exp(t * self.T), matrix_exp(-t * self.T))
            case Group.ORTHOGONAL:
                g = matrix_exp(t * self.T)
                return Matrix(g, g.mT)
            case Group.ROTARY:
                return ScaledRotation(t * self.T[:, 0], t * self.T[:, 1])
            case Group.SCALING:
                return Diagonal(t * self.T)
            case _:
                return Translation(self.symmetry.blocks, t, self.numbers)


def _shape(symmetry: Symmetry) -> tuple[int, ...]:
    """The shape of T."""
    blocks, size = symmetry.blocks, symmetry.size
    match symmetry.group:
        case Group.SCALING:
            return (blocks, size)
        case Group.ROTARY:
            return (blocks, 2)
        case Group.TRANSLATION:
            return (blocks, 0)
        case _:
            return (blocks, size, size)


def _identity(symmetry: Symmetry) -> Tensor:
    T = torch.zeros(_shape(symmetry), dtype=torch.float64, device="cpu")
    match symmetry.group:
        case Group.LINEAR:
            T.diagonal(dim1=-2, dim2=-1).fill_(1)
        case Group.ROTARY:
            T[:, 0] = 1
        case _:
            T.fill_(1)
    return T


def random_generator(symmetry: Symmetry, numbers: np.random.Generator) -> Tensor:
    """A generator of Frobenius norm 1 in each block, of normal numbers (see ``Subgroup.T``)."""
    T = torch.from_numpy(numbers.standard_normal(_shape(symmetry)))
    if symmetry.group is Group.ORTHOGONAL:
        T = T - T.mT
    # ||t I + u J||_F = sqrt(2) ||(t, u)||.
    norm = 2**-0.5 if symmetry.group is Group.ROTARY else 1.0
    T = T.flatten(1)
    return (norm * T / T.norm(dim=1, keepdim=True)).reshape(_shape(symmetry))


def _given(symmetry: Symmetry, generator: Tensor) -> Tensor:
    name, wanted = symmetry.short_name, _shape(symmetry)
    if symmetry.group is Group.TRANSLATION:
        raise ValueError(
            f"symmetry {name!r} is a translation, whose generator comes from the seed: "
            f"give generator='random'"
        )
    T = generator.detach().to("cpu", torch.float64)
    if symmetry.blocks == 1 and T.shape == wanted[1:]:
        T = T[None]
    if T.shape != wanted:
        raise ValueError(
            f"symmetry {name!r} ({symmetry.group}) needs a generator of shape {list(wanted)}, "
            f"found {list(generator.shape)}"
        )
    if not bool(T.isfinite().all()):
        raise ValueError("the generator must be finite")
    if symmetry.group is Group.ORTHOGONAL and bool((T + T.mT).norm() > SKEW * T.norm()):
        raise ValueError(
            f"symmetry {name!r} is orthogonal, so that its generator must be skew: give (T - T^T)/2"
        )
    return T
