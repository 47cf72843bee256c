"""``Teleporting``: any optimizer of torch, with searched teleports at some of its steps.

    w' = w - eta d(grad L(g . w)),   g = argmax of the objective on the orbit

Where all symmetries are exact, the teleport comes first: the gradients that the parameters hold
and the optimizer's state move with the weights, so that the step is that of a run begun at g . w.
After moves that read data, or go along a level set, gradients are not known: there it comes after
the step, and the next gradient is taken at the new weights.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer

from metaopt.landscape.data import Data
from metaopt.landscape.samples import Loss
from metaopt.symmetry.groups import Symmetry
from metaopt.symmetry.motion import Motion, motions_of
from metaopt.teleport.module import found_symmetries, teleport
from metaopt.teleport.objectives import OfModel
from metaopt.teleport.optimizer_state import (
    POLICIES,
    require_known,
    require_optimizer_of,
    unwrapped,
)
from metaopt.teleport.search import require_bounded
from metaopt.teleport.search_report import SearchReport
from metaopt.teleport.searched import LEVEL_SET

STEPS = "teleporting"
"""The key in the state dictionary: how many steps were taken."""

AtStep = Callable[[int], Data]
"""The number of a step, from 1 -> data."""


class Teleporting(Optimizer):
    """An optimizer around another one, which teleports the model at some of its steps.

    It is used in the place of the other: learning rate schedulers, closures, ``GradScaler`` and
    ``state_dict`` work as with the other alone. A run that is resumed from its state goes on bit
    for bit. Of several processes with the same weights, each has to search with the same gradients:
    those that they have averaged, or the same data.

    Args:
        optimizer: the optimizer that trains the model, any of torch's or of yours.
        model: the model.
        every: teleports at steps every, 2 every, ..; steps are counted from 1.
        at: or at these steps.
        objective: what is searched for, as in ``metaopt.teleport``; ``level_set`` needs no
            symmetries.
        loss: of the search, as in ``metaopt.teleport``. If neither loss nor data are given,
            ``gradient_norm`` takes the gradients that the parameters hold: the mini-batch of the
            step, at no further pass.
        data: the data of the search, as in ``metaopt.teleport``; or a function of the number of the
            step that gives them.
        fresh: other data for the drift, likewise.
        symmetries: as in ``metaopt.teleport``. None: they are looked for once.
        state: ``transport`` or ``reset``, as in ``metaopt.teleport``.
        search: further arguments of ``metaopt.teleport``: maximise, steps, lr, max_norm, tolerance,
            starts, seed.

    Attributes:
        optimizer: the other optimizer.
        taken: how many steps were taken.
        reports: (number of the step, ``SearchReport``) of the teleports of this process.

    Raises:
        ValueError: if not exactly one of every and at is given, they are not at least 1, or an
            argument is one that ``metaopt.teleport`` refuses.

    References:
        Zhao, Gower, Walters and Yu, arXiv 2305.13404, algorithm 1.
    """

    _step_supports_amp_scaling = False
    """GradScaler divides gradients itself: a fused optimizer would not see its scale in here."""

    def __init__(
        self,
        optimizer: Optimizer,
        model: nn.Module,
        *,
        every: int | None = None,
        at: Collection[int] | None = None,
        objective: str | OfModel = "gradient_norm",
        loss: Loss | None = None,
        data: Data | AtStep | None = None,
        fresh: Data | AtStep | None = None,
        symmetries: Sequence[Symmetry | Motion] | None = None,
        state: str = "transport",
        **search: Any,
    ) -> None:
        # Not that of torch: groups and state are those of the other optimizer.
        self.optimizer = optimizer
        self.taken = 0
        self._is_lost = False
        self.reports: list[tuple[int, SearchReport]] = []
        self._model, self._loss, self._data, self._fresh = model, loss, data, fresh
        self._when = _when(every, at)
        if state not in POLICIES:
            raise ValueError(f"state must be one of {', '.join(POLICIES)}, found {state!r}")
        inner = unwrapped(optimizer)
        require_optimizer_of(inner, model)
        if state == "transport" and objective != LEVEL_SET:
            require_known(inner)
        listed: Sequence[Symmetry | Motion] = ()
        if objective != LEVEL_SET:
            listed = found_symmetries(model) if symmetries is None else symmetries
        motions, _ = motions_of(listed)
        self._moves = bool(motions) or objective == LEVEL_SET
        if not self._moves and (listed or symmetries is not None):
            # That none are there at all has been said where they were looked for.
            warnings.warn("nothing is teleported: no symmetry to search along", stacklevel=2)
        self._is_first = objective != LEVEL_SET and all(motion.is_exact for motion in motions)
        if objective != LEVEL_SET:
            require_bounded(motions, search.get("max_norm", 0.5))
        self._arguments = {
            "symmetries": listed,
            "objective": objective,
            "state": state,
            **search,
        }

    def step(self, closure: Callable[[], Any] | None = None) -> Any:  # type: ignore[override]
        """One step of the optimizer, with a teleport if its turn has come.

        Args:
            closure: as the optimizer takes it.
        """
        number = self.taken + 1
        is_due = self._moves and self._when(number)
        if is_due and self._is_first:
            if closure is not None and self._loss is None:
                # The gradients that it is to move.
                with torch.enable_grad():
                    closure()
            self._teleport(number)
        found = self.optimizer.step() if closure is None else self.optimizer.step(closure)
        self.taken = number
        if is_due and not self._is_first:
            self._teleport(number)
        return found

    def _teleport(self, number: int) -> None:
        lost = [path for path, p in self._model.named_parameters() if not _is_finite(p)]
        if lost:
            # The run is lost, but that is for the user to find, as with the optimizer alone.
            if not self._is_lost:
                self._is_lost = True
                warnings.warn(
                    f"not teleported at step {number}: weights or gradients of {lost[0]!r} are not "
                    f"finite",
                    stacklevel=3,
                )
            return
        report = teleport(
            self._model,
            loss=self._loss,
            data=self._data(number) if callable(self._data) else self._data,
            fresh=self._fresh(number) if callable(self._fresh) else self._fresh,
            optimizer=self.optimizer,
            **self._arguments,
        )
        self.reports.append((number, report))

    def state_dict(self) -> dict[str, Any]:
        """The other optimizer's, with the number of steps taken."""
        return {**self.optimizer.state_dict(), STEPS: {"taken": self.taken}}

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Go on from a state; one of the other optimizer alone counts steps from 0.

        Args:
            state_dict: from ``state_dict``.
        """
        own = {key: value for key, value in state_dict.items() if key != STEPS}
        self.optimizer.load_state_dict(own)
        self.taken = int(state_dict.get(STEPS, {"taken": 0})["taken"])

    def zero_grad(self, set_to_none: bool = True) -> None:
        """That of the other optimizer."""
        self.optimizer.zero_grad(set_to_none=set_to_none)

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """That of the other optimizer."""
        self.optimizer.add_param_group(param_group)

    @property
    def param_groups(self) -> list[dict[str, Any]]:  # type: ignore[override]
        """Those of the other optimizer."""
        return self.optimizer.param_groups

    @param_groups.setter
    def param_groups(self, groups: list[dict[str, Any]]) -> None:
        self.optimizer.param_groups = groups

    @property
    def state(self) -> Any:  # type: ignore[override]
        """That of the other optimizer."""
        return self.optimizer.state

    @state.setter
    def state(self, state: Any) -> None:
        self.optimizer.state = state

    def __getattr__(self, name: str) -> Any:
        # Before __init__, as when it is copied, there is no other optimizer yet.
        if name == "optimizer":
            raise AttributeError(name)
        return getattr(self.optimizer, name)

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__.copy()

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)

    def __repr__(self) -> str:
        return f"Teleporting({self._arguments['objective']!r}, {self.optimizer!r})"


def _is_finite(parameter: nn.Parameter) -> bool:
    grad = parameter.grad
    tensors = (parameter.detach(),) if grad is None else (parameter.detach(), grad)
    return all(bool(torch.isfinite(one).all()) for one in tensors)


def _when(every: int | None, at: Collection[int] | None) -> Callable[[int], bool]:
    """Whether a step's turn has come."""
    if (every is None) == (at is None):
        raise ValueError("give exactly one of every and at")
    if every is not None:
        if every < 1:
            raise ValueError(f"every must be at least 1, found {every}")
        return _Every(every)
    assert at is not None
    wanted = frozenset(at)
    if any(number < 1 for number in wanted):
        raise ValueError(f"at must hold numbers of steps from 1 on, found {min(wanted)}")
    return wanted.__contains__


class _Every:
    """Whether a number is a multiple of another; an object, so that it can be pickled."""

    def __init__(self, every: int) -> None:
        self._every = every

    def __call__(self, number: int) -> bool:
        return number % self._every == 0
