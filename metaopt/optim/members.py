"""The parameters of an optimizer: which they are, in what order rules see them, and their names.

Users change groups by hand, beside ``add_param_group``, and exchange the parameters of a model. So
who stands in the groups is looked at anew at each step.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from metaopt.optim.half import working_dtype
from metaopt.optim.replicas import require_whole
from metaopt.symmetry.discovery.find import plain

Parameters = Iterable[Tensor] | Iterable[dict[str, Any]] | Iterable[tuple[str, Tensor]]
"""What ``torch.optim`` takes: parameters, named parameters or groups."""


def trainable(model: nn.Module | Parameters, params: Parameters | None) -> Parameters:
    """The parameters to optimise: those given, or all trainable ones of the model.

    Args:
        model: or parameters.
        params: or None.
    """
    if params is not None:
        return params
    if isinstance(model, nn.Module):
        return [p for p in model.parameters() if p.requires_grad]
    return model


class Member(NamedTuple):
    """A parameter as it stands in its group.

    Attributes:
        place: the position of its group, and its own position in the group.
        parameter: the object.
        shape: the shape that it has now.
        kind: its device and dtype now.
    """

    place: tuple[int, int]
    parameter: Tensor
    shape: torch.Size
    kind: tuple[torch.device, torch.dtype]

    def is_as(self, other: Member) -> bool:
        """Whether nothing has changed."""
        return self.parameter is other.parameter and (self.place, self.shape, self.kind) == (
            other.place,
            other.shape,
            other.kind,
        )


class Members:
    """All parameters with entries that stand in the groups.

    Args:
        model: in whose order rules see them, whatever the groups; or None.
        groups: the groups of the optimizer.

    Attributes:
        standing: they, in the order of the groups.
        places: (group, position in it) of each parameter, in the order in which rules see them.
        parameters: in the same order.
        in_order_names: the names of ``parameters``.
        names: the name of each parameter by its ``id``: from the model, the groups or its place.
        device: the device of all parameters.
        dtype: the dtype that rules compute in.

    Raises:
        ValueError: where something else stands there, or one of them twice, or none; where rules
            cannot work on them.
    """

    def __init__(self, model: nn.Module | None, groups: Sequence[Mapping[str, Any]]) -> None:
        self.standing = _standing(groups)
        # Of a part that is empty here, another process may have some.
        require_whole((p for group in groups for p in group["params"]), model)
        ranks: dict[int, int] = {}
        if model is not None:
            ranks = {id(p): rank for rank, p in enumerate(model.parameters())}
        in_order = sorted(self.standing, key=lambda m: ranks.get(id(m.parameter), len(ranks)))
        self.places = [member.place for member in in_order]
        self.parameters = [member.parameter for member in in_order]
        if not self.parameters:
            raise ValueError("found no parameters but empty ones, expected some to optimise")
        devices = {p.device for p in self.parameters}
        if len(devices) != 1:
            names = ", ".join(sorted(map(str, devices)))
            raise ValueError(f"parameters must lie on one device, found {names}")
        (self.device,) = devices
        if self.device.type == "meta":
            raise ValueError(
                "parameters: found them on the device meta, which has shapes and no numbers, "
                "expected CPU or CUDA: make the optimizer after the model has its weights"
            )
        self.dtype = working_dtype(self.parameters)
        self.names = _names(model, groups)
        self.in_order_names = [self.names[id(p)] for p in self.parameters]

    def are_still(self, groups: Sequence[Mapping[str, Any]]) -> bool:
        """Whether the parameters stand in the groups as they did."""
        now = _standing(groups)
        return len(now) == len(self.standing) and all(map(Member.is_as, now, self.standing))

    def since(self, before: Members) -> tuple[list[Tensor], list[Tensor]]:
        """The parameters that have left since, and those of another shape now (with a warning).

        Raises:
            RuntimeError: where one has another device or dtype.
        """
        old = {id(member.parameter): member for member in before.standing}
        reshaped = []
        for member in self.standing:
            was = old.pop(id(member.parameter), member)
            if member.kind != was.kind:
                raise RuntimeError(
                    "the model has another device or dtype than when this optimizer was made: make "
                    "it after model.to(...)"
                )
            if member.shape != was.shape:
                reshaped.append(member.parameter)
        for p in reshaped:
            warnings.warn(
                f"{self.names[id(p)]} has another shape by now, {list(p.shape)}: its state begins "
                f"anew",
                stacklevel=5,
            )
        return [member.parameter for member in old.values()], reshaped

    def require_in_model(self, model: nn.Module | None) -> None:
        """Refuse to go on with a parameter in whose place the model has another one by now.

        Raises:
            RuntimeError: where the one in its place is not optimised.
            ValueError: where the model was cut into parts meanwhile.
        """
        if model is None:
            return
        own = {id(p) for p in self.parameters}
        now = dict(plain(model).named_parameters())
        # Where some are gone, the model may have them in another form.
        is_whole = own <= {id(p) for p in now.values()}
        require_whole(self.parameters if is_whole else [*self.parameters, *now.values()], model)
        for (g, i), p in zip(self.places, self.parameters, strict=True):
            there = now.get(self.names[id(p)], p)
            if there.requires_grad and id(there) not in own:
                raise RuntimeError(
                    f"{self.names[id(p)]} is another parameter of the model than the one that this "
                    f"optimizer was given, and would never move: put it in "
                    f"param_groups[{g}]['params'][{i}], or make the optimizer anew"
                )


def _standing(groups: Sequence[Mapping[str, Any]]) -> list[Member]:
    """All parameters with entries, in the order of the groups.

    Raises:
        ValueError: where something else stands there, or one of them twice.
    """
    found: list[Member] = []
    for g, group in enumerate(groups):
        parameters = group.get("params")
        if not isinstance(parameters, list | tuple):
            raise ValueError(
                f"param_groups[{g}]['params']: found {type(parameters).__name__}, expected a list "
                f"of parameters"
            )
        for i, p in enumerate(parameters):
            if not isinstance(p, Tensor) or not p.is_leaf:
                kind = "a tensor that was computed" if isinstance(p, Tensor) else type(p).__name__
                raise ValueError(
                    f"param_groups[{g}]['params'][{i}]: found {kind}, expected a parameter"
                )
            if p.numel():
                found.append(Member((g, i), p, p.shape, (p.device, p.dtype)))
    seen: dict[int, tuple[int, int]] = {}
    for one in found:
        (a, b), (g, i) = seen.setdefault(id(one.parameter), one.place), one.place
        if (a, b) != (g, i):
            raise ValueError(
                f"param_groups[{g}]['params'][{i}] is param_groups[{a}]['params'][{b}]: expected "
                f"each parameter once"
            )
    return found


def _names(model: nn.Module | None, groups: Sequence[Mapping[str, Any]]) -> dict[int, str]:
    """The name of each parameter by its ``id``: the model's, or of the groups, or its place."""
    names: dict[int, str] = {}
    for g, group in enumerate(groups):
        given = group.get("param_names", ())
        for i, p in enumerate(group["params"]):
            names[id(p)] = given[i] if i < len(given) else f"param_groups[{g}]['params'][{i}]"
    if model is not None:
        names |= {id(p): name for name, p in plain(model).named_parameters()}
    return names
