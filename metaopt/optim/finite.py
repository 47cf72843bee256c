"""A step that would leave numbers that are not finite is not taken at all.

    w, h <- w', h'   where gradients, w, w' and the rule's state h' are finite in every entry
    w, h             else, and an error that names the parameter and the step

On the CPU the error comes before anything is written. On CUDA to ask for a number is to wait for
the device: there the step is masked on the device, and the error comes with the first later step
that finds the answer arrived.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from metaopt.optim.states import StateLayout
from metaopt.optim.stepper import Advance
from metaopt.rules.composed import tensors_of


class NonFiniteError(RuntimeError):
    """A step was not taken: a weight, a gradient or the rule's state is or would not be finite.

    Weights and state are those of before that step. The message is one line with the parameter and
    the number of the step, counted from 1 over all runs that were resumed from each other.
    """


@dataclass(frozen=True)
class Looked:
    """Tensors of one kind that have to be finite.

    Attributes:
        says: a sentence with ``{}`` for the name of what is not.
        names: of the tensors.
        tensors: all of one dtype and device.
        nearer: says more of the tensor at a position that is not, where there is time to look.
    """

    says: str
    names: Sequence[str]
    tensors: Sequence[Tensor]
    nearer: Callable[[int], str] | None = None


@dataclass(frozen=True)
class _Asked:
    """Flags on their way from the device.

    Attributes:
        step: its number.
        causes: a sentence for each flag.
        flags: on the CPU, true where all is finite.
        is_there: whether they have arrived.
    """

    step: int
    causes: list[str]
    flags: Tensor
    is_there: Callable[[], bool]


class FiniteWatch:
    """Looks at what steps read and write, without waiting for the device.

    Args:
        device: that the parameters lie on.

    Attributes:
        device: the same.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self._waits = waits_for(device)
        self._asked: deque[_Asked] = deque()

    def look(self, step: int, looked: Sequence[Looked]) -> Tensor | None:
        """Whether all is finite, a boolean on the device; None where that is certain already.

        Args:
            step: its number.
            looked: in the order in which they are named.

        Raises:
            NonFiniteError: on the CPU, for the first tensor that is not.
        """
        if self._waits:
            for kind in looked:
                for position, tensor in enumerate(kind.tensors):
                    if not _is_finite(tensor):
                        name = (kind.nearer or kind.names.__getitem__)(position)
                        raise _error(step, kind.says.format(name))
            return None
        tensors = [tensor for kind in looked for tensor in kind.tensors]
        # The largest entry: a sum of finite numbers may overflow.
        flags = torch.stack(torch._foreach_norm(tensors, math.inf)).isfinite()
        causes = [kind.says.format(name) for kind in looked for name in kind.names]
        self._asked.append(_Asked(step, causes, *to_host(flags)))
        return flags.all()

    def report(self) -> None:
        """Raise for a step that is known by now not to have been taken.

        Raises:
            NonFiniteError: on devices that are not waited for.
        """
        while self._asked and self._asked[0].is_there():
            asked = self._asked.popleft()
            if not bool(asked.flags.all()):
                # What it would have ended in follows from that.
                while self._asked and self._asked[0].step == asked.step:
                    self._asked.popleft()
                raise _error(asked.step, asked.causes[int(asked.flags.int().argmin())])


def given(
    names: Sequence[str], weights: Sequence[Tensor], grads: Sequence[Tensor | None]
) -> list[Looked]:
    """What a step starts from: the weights that move, and their gradients."""
    seen = [(n, W, G) for n, W, G in zip(names, weights, grads, strict=True) if G is not None]
    moving = [name for name, _, _ in seen]
    return [
        Looked("{} is not finite", moving, [W for _, W, _ in seen]),
        Looked("the gradient of {} is not finite", moving, [G for _, _, G in seen]),
    ]


def made(
    names: Sequence[str], parameters: Sequence[Tensor], new: Advance, layout: StateLayout
) -> list[Looked]:
    """What a step ends in: weights, rounded as they would be written, and the rule's state."""
    seen = [
        (name, W.to(p.dtype).to(W))
        for name, p, W in zip(names, parameters, new.weights, strict=True)
        if p.grad is not None
    ]
    found = [*tensors_of(new.after)]
    keys = [f"{rule}.{name}" for rule, name, _ in found]

    def nearer(position: int) -> str:
        rule, name, tensor = found[position]
        index = layout.owner(rule, name, ~tensor.isfinite())
        return keys[position] if index is None else f"{keys[position]} of {names[index]}"

    says = "{} would not be finite any more"
    return [
        Looked(says, [name for name, _ in seen], [W for _, W in seen]),
        Looked(
            says.format("{} in the rule's state"), keys, [tensor for _, _, tensor in found], nearer
        ),
    ]


def waits_for(device: torch.device) -> bool:
    """Whether numbers are read as soon as they are computed."""
    return device.type != "cuda"


def to_host(flags: Tensor) -> tuple[Tensor, Callable[[], bool]]:
    """A copy on the CPU that will be there in a while, and whether it is."""
    host = torch.empty(flags.shape, dtype=flags.dtype, device="cpu", pin_memory=True)
    host.copy_(flags, non_blocking=True)
    arrived = torch.cuda.Event()
    arrived.record(torch.cuda.current_stream(flags.device))
    return host, arrived.query


def _is_finite(tensor: Tensor) -> bool:
    # One pass at the speed of memory; only a sum that is not finite leaves open what it comes from.
    return math.isfinite(tensor.sum().item()) or bool(tensor.isfinite().all())


def _error(step: int, cause: str) -> NonFiniteError:
    return NonFiniteError(
        f"step {step}: {cause}; the step was not taken, weights and state are those before it: "
        f"leave out or clip what led there, or go back to an earlier state and lower lr"
    )
