"""A saved state, checked as a whole before anything of an optimizer is changed.

A state is taken where it was saved by this rule for parameters of these shapes: each parameter has
all of the rule's tensors, or none of them and begins anew. States that were saved before groups
remembered their rule (``memory``) are known by their tensors alone.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from metaopt.optim.half import UNROUNDED
from metaopt.optim.inputs import rates
from metaopt.optim.memory import (
    AVERAGED,
    NOTHING_YET,
    RULE,
    STEPS,
    TELEPORTS_OFF,
    is_same_rule,
    remembered,
)
from metaopt.optim.modes import TRAINED
from metaopt.optim.states import StateLayout
from metaopt.rules.base import State

_COPIES = {UNROUNDED, TRAINED}
"""What a state holds of the parameter itself."""
_SHOWN = 4
_WHAT_TO_DO = "load it into an optimizer made as the one that saved it was"


@dataclass(frozen=True)
class Owner:
    """The optimizer that a state is for.

    Attributes:
        groups: its groups.
        names: the names of its parameters, by their ``id``.
        rule: its identity.
        layout: the layout of the states of all its rules.
        fresh: a state before the first step for each parameter by its ``id``, given why teleports
            are off in the saved one, or None.
    """

    groups: Sequence[Mapping[str, Any]]
    names: Mapping[int, str]
    rule: str
    layout: StateLayout
    fresh: Callable[[str | None], dict[int, State]]


@dataclass(frozen=True)
class Loaded:
    """A state that fits.

    Attributes:
        states: the state of each parameter, as saved or as before the first step.
        anew: rules that were saved for other hidden units, and begin anew.
        groups: as saved.
        teleports_off: why they were, or None.
        steps: the number of steps that were taken.
        averaged: whether the parameters hold averaged weights.
    """

    states: list[tuple[Tensor, Mapping[str, Tensor]]]
    anew: set[str]
    groups: list[dict[str, Any]]
    teleports_off: str | None
    steps: int
    averaged: bool


def load(
    optimizer: Optimizer,
    state_dict: Any,
    owner: Owner,
    lay_down: Callable[[Loaded], None],
) -> None:
    """``torch.optim.Optimizer.load_state_dict``, with a check and without its casts.

    Args:
        optimizer: the optimizer; its groups are loaded, and its hooks are called.
        state_dict: what its hooks may change before it is checked.
        owner: the same optimizer, as the check sees it.
        lay_down: puts the states in their places, before further hooks are called.

    Raises:
        ValueError: where it does not fit; then nothing is changed.
    """
    found: list[Loaded] = []

    def take(_: Optimizer, given: dict[str, Any]) -> dict[str, Any]:
        found.append(checked(given, owner))
        # torch would cast the states to the parameters' dtype: in half precision that loses bits.
        return {"state": {}, "param_groups": found[-1].groups}

    def put(_: Optimizer) -> None:
        lay_down(found[-1])
        for rule in sorted(found[-1].anew):
            warnings.warn(
                f"the state of {rule} begins anew: it was saved for other hidden units than this "
                f"model has",
                stacklevel=6,
            )

    if not isinstance(state_dict, Mapping):
        _parts(state_dict)
    # After all hooks that change what is given, and before all that change what was loaded.
    handles = (
        optimizer.register_load_state_dict_pre_hook(take),
        optimizer.register_load_state_dict_post_hook(put, prepend=True),
    )
    try:
        Optimizer.load_state_dict(optimizer, state_dict)
    finally:
        for handle in handles:
            handle.remove()


def checked(given: Any, owner: Owner) -> Loaded:
    """A ``state_dict``, as hooks have left it, for an optimizer.

    Raises:
        ValueError: where it is none of this rule on such parameters; one line.
    """
    groups, states = _parts(given)
    _require_sizes(groups, owner)
    rates(groups)
    memory = _memory(given, groups)
    saved_by = memory[RULE]
    if saved_by is not None and not is_same_rule(saved_by, owner.rule):
        raise ValueError(
            f"state_dict: it was saved with the rule {saved_by}, and this optimizer's is "
            f"{owner.rule}: {_WHAT_TO_DO}, or delete '{RULE}' from its groups where the one is the "
            f"other, trained on"
        )
    fresh = owner.fresh(memory[TELEPORTS_OFF])
    pairs = [
        (index, p)
        for saved, own in zip(groups, owner.groups, strict=True)
        for index, p in zip(saved["params"], own["params"], strict=True)
    ]
    unknown = [index for index in states if index not in {index for index, _ in pairs}]
    if unknown:
        raise ValueError(f"state_dict['state']: no group holds {_shown(unknown)}: {_WHAT_TO_DO}")
    at_work = {
        place[0]
        for own in fresh.values()
        for key in own
        if (place := owner.layout.place(key)) is not None
    }
    fitting = [
        (p, _fitting(p, states.get(index, {}), fresh.get(id(p), {}), owner, at_work))
        for index, p in pairs
    ]
    if not _is_ours(given, groups) and not any(states.values()):
        options = sorted({name for group in groups for name in group} - {"params"})
        raise ValueError(
            f"state_dict: found groups with {_shown(options)} and no state, which no "
            f"LearnedOptimizer saves: {_WHAT_TO_DO}"
        )
    # Hidden units come and go while parameters stay: their state is all parameters'.
    layout = owner.layout
    anew = {rule for p, state in fitting for rule in layout.misfits(state, fresh.get(id(p), {}))}
    fitted: list[tuple[Tensor, Mapping[str, Tensor]]] = [
        (p, fresh.get(id(p), {}) | layout.of_the_same_shapes(state, fresh.get(id(p), {})))
        for p, state in fitting
    ]
    said = (memory[TELEPORTS_OFF], memory[STEPS], memory[AVERAGED])
    return Loaded(fitted, anew, groups, *said)


def _parts(given: Any) -> tuple[list[dict[str, Any]], Mapping[Any, Mapping[str, Any]]]:
    if not isinstance(given, Mapping):
        raise ValueError(
            f"state_dict: found a {type(given).__name__}, expected what state_dict() returns"
        )
    groups, states = given.get("param_groups"), given.get("state")
    if not isinstance(groups, list | tuple) or not isinstance(states, Mapping):
        hint = ""
        if any(isinstance(key, str) and key.startswith("state.") for key in given):
            hint = "; a flat one is for torch.distributed.checkpoint's set_optimizer_state_dict"
        raise ValueError(
            f"state_dict: found {_shown(given)}, expected 'state' and 'param_groups' as "
            f"state_dict() returns them{hint}"
        )
    for g, group in enumerate(groups):
        if not isinstance(group, dict) or not isinstance(group.get("params"), list | tuple):
            raise ValueError(
                f"state_dict['param_groups'][{g}]: found no 'params', expected a group as "
                f"state_dict() returns it"
            )
    indices = [index for group in groups for index in group["params"]]
    # torch counts parameters, torch.distributed.checkpoint names them.
    if not all(isinstance(index, int | str) for index in indices) or len({*indices}) < len(indices):
        raise ValueError(
            f"state_dict['param_groups']: found the parameters {_shown(indices)}, expected a "
            f"number or a name for each"
        )
    for index, state in states.items():
        if not isinstance(state, Mapping):
            raise ValueError(
                f"state_dict['state'][{index!r}]: found a {type(state).__name__}, expected named "
                f"tensors"
            )
    return list(groups), states


def _require_sizes(groups: Sequence[Mapping[str, Any]], owner: Owner) -> None:
    found, own = ([len(group["params"]) for group in some] for some in (groups, owner.groups))
    if found != own:
        raise ValueError(
            f"state_dict['param_groups']: found groups of {found} parameters, this optimizer has "
            f"groups of {own}: {_WHAT_TO_DO}"
        )


def _memory(given: Mapping[str, Any], groups: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """What the groups remember; why teleports are off has stood beside them, too."""
    for g, group in enumerate(groups):
        steps = group.get(STEPS, 0)
        if not isinstance(steps, int) or steps < 0:
            raise ValueError(
                f"state_dict['param_groups'][{g}]['{STEPS}']: found {steps!r}, expected a count"
            )
        if not isinstance(averaged := group.get(AVERAGED, False), bool):
            raise ValueError(
                f"state_dict['param_groups'][{g}]['{AVERAGED}']: found {averaged!r}, expected true "
                f"or false"
            )
        for name in (RULE, TELEPORTS_OFF):
            _require_text(f"state_dict['param_groups'][{g}]['{name}']", group.get(name))
    _require_text(f"state_dict['{TELEPORTS_OFF}']", given.get(TELEPORTS_OFF))
    return remembered([*groups, {TELEPORTS_OFF: given.get(TELEPORTS_OFF)}])


def _require_text(field: str, value: Any) -> None:
    if value is not None and not isinstance(value, str):
        raise ValueError(f"{field}: found {value!r}, expected text or None")


def _is_ours(given: Mapping[str, Any], groups: Sequence[Mapping[str, Any]]) -> bool:
    """Whether it says itself that a learned optimizer saved it."""
    return TELEPORTS_OFF in given or any(name in group for group in groups for name in NOTHING_YET)


def _fitting(
    parameter: Tensor, state: Mapping[str, Any], fresh: State, owner: Owner, at_work: set[str]
) -> Mapping[str, Tensor]:
    """The state of a parameter; a fresh one where nothing was saved for it."""
    # torch.distributed.checkpoint leaves an empty place for what it looked for and did not find.
    saved: dict[str, Any] = {
        key: _with_rows(value, parameter, fresh.get(key))
        for key, value in state.items()
        if not isinstance(value, Mapping) or value
    }
    # Of pairs that are not known here, or of others than these.
    for key in [k for k in saved if isinstance(k, str) and owner.layout.does_without(k)]:
        if key not in fresh or getattr(saved[key], "shape", None) != fresh[key].shape:
            del saved[key]
    if not saved:
        return fresh
    field = f"state_dict: the state of {owner.names[id(parameter)]}"
    # A teleporter that was turned off keeps its state, which nothing reads.
    resting = {key for key in saved if _is_at_rest(key, owner, at_work)}
    known = fresh.keys() | _COPIES | resting
    foreign = [key for key in saved if key not in known]
    missing = [key for key in fresh if key not in saved and not owner.layout.begins_anew(key)]
    for says, keys in (("holds", foreign), ("lacks", missing)):
        if keys:
            raise ValueError(
                f"{field} {says} {_shown(keys)}, and the rule here is {owner.rule}: {_WHAT_TO_DO}"
            )
    for key, value in saved.items():
        if not _is_of_numbers(value):
            is_tensor = isinstance(value, Tensor)
            found = f"{value.dtype} on {value.device}" if is_tensor else type(value).__name__
            raise ValueError(
                f"{field}: {key} is {found}, expected a dense tensor of floating-point numbers"
            )
        shape = parameter.shape if key in _COPIES else fresh.get(key, value).shape
        of_units = owner.layout.is_of_units(key) and value.shape[:-1] == shape[:-1]
        if value.shape != shape and not of_units:
            raise ValueError(
                f"{field}: {key} has the shape {list(value.shape)}, expected {list(shape)}, as the "
                f"model has other shapes: {_WHAT_TO_DO}"
            )
    return saved


def _with_rows(value: Any, parameter: Tensor, fresh: Tensor | None) -> Any:
    """A saved tensor [*shape], as versions up to 0.2 wrote hand-made rules' states, as a row."""
    if fresh is None or not isinstance(value, Tensor) or value.shape != parameter.shape:
        return value
    return value[None] if fresh.shape == (1, *parameter.shape) else value


def _is_of_numbers(value: Any) -> bool:
    """Whether it can be copied into a state, and says there what it says here."""
    if not isinstance(value, Tensor) or value.layout != torch.strided or value.is_meta:
        return False
    return value.is_floating_point()


def _is_at_rest(key: Any, owner: Owner, at_work: set[str]) -> bool:
    place = owner.layout.place(str(key))
    return place is not None and place[0] not in at_work


def _shown(names: Any) -> str:
    """A few of many names."""
    some = [str(name) for name in names]
    more = f" and {len(some) - _SHOWN} more" if len(some) > _SHOWN else ""
    return ", ".join(some[:_SHOWN]) + more if some else "nothing"
