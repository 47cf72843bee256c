"""A step that would leave numbers that are not finite is not taken, and an error says so.

    w, h <- w', h'   if the gradients, w, w' and the rule's state h' are finite in every entry
    w, h <- w, h     otherwise; the error names the parameter and the step

On the CPU the error is raised before anything is written. On CUDA, reading a number would wait for
the device. There the step is masked on the device, and the first later step that finds the answer
on the CPU raises the error.
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

    Weights and state stay as they were before that step. The message is one line that names the
    parameter and the number of the step, counted from 1; a resumed training counts on.
    """


@dataclass(frozen=True)
class Looked:
    """Tensors of one kind that have to be finite.

    Attributes:
        says: the sentence for the error, with ``{}`` for the name of the tensor that is not finite.
        names: the names of the tensors.
        tensors: the tensors, all of one dtype and device.
        nearer: says more of the tensor at a position that is not finite, if there is time to look.
    """

    says: str
    names: Sequence[str]
    tensors: Sequence[Tensor]
    nearer: Callable[[int], str] | None = None


@dataclass(frozen=True)
class _Asked:
    """Flags of one step that are being copied from the device to the CPU.

    Attributes:
        step: the number of the step.
        causes: the sentence of each flag for the error.
        flags: one boolean for each check, on the CPU: true if all entries are finite.
        is_there: whether the copy is complete.
    """

    step: int
    causes: list[str]
    flags: Tensor
    is_there: Callable[[], bool]


class FiniteWatch:
    """Looks at what steps read and write, without waiting for the device.

    Args:
        device: the device of the parameters.

    Attributes:
        device: the device of the parameters.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self._waits = waits_for(device)
        self._asked: deque[_Asked] = deque()

    def look(self, step: int, looked: Sequence[Looked]) -> Tensor | None:
        """Check tensors: a boolean on the device, true if all are finite; None if already certain.

        Args:
            step: the number of the step.
            looked: the tensors; an error names the first one that is not finite.

        Raises:
            NonFiniteError: on the CPU, if a tensor is not finite.
        """
        if self._waits:
            if _are_finite([tensor for kind in looked for tensor in kind.tensors]):
                return None
            for kind in looked:
                for position, tensor in enumerate(kind.tensors):
                    if not _is_finite(tensor):
                        name = (kind.nearer or kind.names.__getitem__)(position)
                        raise _error(step, kind.says.format(name))
            return None
        tensors = [tensor for kind in looked for tensor in kind.tensors]
        # The largest entry is compared, since a sum of finite numbers may overflow.
        flags = torch.stack(torch._foreach_norm(tensors, math.inf)).isfinite()
        causes = [kind.says.format(name) for kind in looked for name in kind.names]
        self._asked.append(_Asked(step, causes, *to_host(flags)))
        return flags.all()

    def report(self) -> None:
        """Raise the error of an earlier step, if the device has reported one by now.

        Raises:
            NonFiniteError: on devices that ``look`` does not wait for.
        """
        while self._asked and self._asked[0].is_there():
            asked = self._asked.popleft()
            if not bool(asked.flags.all()):
                # The later checks of the step fail because of this one.
                while self._asked and self._asked[0].step == asked.step:
                    self._asked.popleft()
                raise _error(asked.step, asked.causes[int(asked.flags.int().argmin())])


def given(
    names: Sequence[str], weights: Sequence[Tensor], grads: Sequence[Tensor | None]
) -> list[Looked]:
    """The tensors that a step starts from: the weights that move, and their gradients."""
    seen = [(n, W, G) for n, W, G in zip(names, weights, grads, strict=True) if G is not None]
    moving = [name for name, _, _ in seen]
    return [
        Looked("{} is not finite", moving, [W for _, W, _ in seen]),
        Looked("the gradient of {} is not finite", moving, [G for _, _, G in seen]),
    ]


def made(
    names: Sequence[str], parameters: Sequence[Tensor], new: Advance, layout: StateLayout
) -> list[Looked]:
    """The tensors that a step ends in: weights as they are written, and the rule's state."""
    seen = [
        (name, W.to(p.dtype).to(W))
        for name, p, W in zip(names, parameters, new.weights, strict=True)
        if p.grad is not None
    ]
    before = {(rule, name): tensor for rule, name, tensor in tensors_of(new.before)}
    # What a step hands on as it was has been looked at when it was made.
    found = [
        (rule, name, tensor)
        for rule, name, tensor in tensors_of(new.after)
        if tensor is not before.get((rule, name))
    ]
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
    """Whether the answer is read at once, as on the CPU, rather than by a later step."""
    return device.type != "cuda"


def to_host(flags: Tensor) -> tuple[Tensor, Callable[[], bool]]:
    """A copy on the CPU that is complete later, and a function that says whether it is."""
    host = torch.empty(flags.shape, dtype=flags.dtype, device="cpu", pin_memory=True)
    host.copy_(flags, non_blocking=True)
    arrived = torch.cuda.Event()
    arrived.record(torch.cuda.current_stream(flags.device))
    return host, arrived.query


def _are_finite(tensors: Sequence[Tensor]) -> bool:
    """Whether all entries of all tensors are finite; False also where a square overflowed."""
    return math.isfinite(torch.stack(torch._foreach_norm([*tensors])).sum().item())


def _is_finite(tensor: Tensor) -> bool:
    # One pass at the speed of memory; only a sum that is not finite leaves open what it comes from.
    return math.isfinite(tensor.sum().item()) or bool(tensor.isfinite().all())


def _error(step: int, cause: str) -> NonFiniteError:
    return NonFiniteError(
        f"step {step}: {cause}; the step was not taken, weights and state are those before it: "
        f"leave out or clip what led there, or go back to an earlier state and lower lr"
    )
