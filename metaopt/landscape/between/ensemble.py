"""An ensemble: one structure, the weights of many members, and the mean of what they predict.

    p(x) = 1/M sum_m a(f(x; w_m)),   a = softmax for classes, the identity for numbers

What differs from member to member is kept in stacks [M, *shape], so that ``torch.func`` can run
all members in one pass (on accelerators: CPUs are faster one member after the other); what all have
in common, such as frozen weights, is kept once.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from copy import deepcopy
from dataclasses import fields
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save
from torch import Tensor, nn
from torch.func import functional_call, vmap

from metaopt.base.files import write_atomically
from metaopt.landscape.between.ensemble_trace import Trace
from metaopt.landscape.between.structure import require_equal
from metaopt.landscape.between.tensors import require_fitting, set_tensors, tensors_of_model
from metaopt.landscape.samples import plain_attention

Average = str | Callable[[Any], Tensor]
"""What is averaged: ``softmax`` of the outputs, the ``outputs``, or a function of the outputs."""
SOFTMAX, OUTPUTS = "softmax", "outputs"
ONE_BY_ONE = ("cpu",)
"""Kinds of devices on which one pass for all members is the slower way, up to three times."""
_SOFTMAX_LOSSES = (nn.functional.cross_entropy, nn.CrossEntropyLoss)
_OUTPUT_LOSSES = (
    nn.functional.mse_loss,
    nn.functional.l1_loss,
    nn.functional.smooth_l1_loss,
    nn.functional.huber_loss,
    nn.MSELoss,
    nn.L1Loss,
    nn.SmoothL1Loss,
    nn.HuberLoss,
)
_STRUCTURE, _STACKED, _TRACE = "averaged.", "stacked.", "trace."


class Ensemble(nn.Module):
    """p(x) = 1/M sum_m a(f(x; w_m)): called as the model is, it returns the mean prediction.

    Of classes these are **probabilities** [N, C, ..], not logits: take ``log_probabilities`` for
    ``nll_loss``, and do not hand probabilities to ``cross_entropy``. Of numbers it is the mean of
    the outputs.

    It predicts and does not train: members always run in evaluation mode. ``to``, ``half`` and
    ``state_dict`` work as for any module; a state dictionary of another number of members can be
    loaded. Beside the members it holds one more set of weights, those of ``averaged``.

    Args:
        model: the structure: the module that members are weights of. It is kept as ``averaged``
            and not copied, and what all members have in common is read from it.
        members: the parameters and buffers of each member, {path: tensor}, as of
            ``named_parameters`` and ``named_buffers``. What a member leaves out is that of
            ``model``.
        average: what is averaged. ``softmax``: probabilities; ``outputs``: the outputs themselves;
            or a function of the outputs, as ``torch.sigmoid``.
        axis: that of classes, of which probabilities are taken: 1, as ``cross_entropy`` has it, or
            another, as the last of token models [N, T, C].
        trace: the course of the run that made it, if there was one.

    Attributes:
        averaged: the structure. After ``metaopt.fge`` it holds the mean of the members' weights,
            with BatchNorm statistics of its own (SWA).
        average: what is averaged.
        axis: that of classes.
        trace: rate, error and distance by step; None if it was not made by ``metaopt.fge``.

    Raises:
        ValueError: if there is no member, a path is none of the model, or the shapes differ.

    References:
        Garipov et al., Loss Surfaces, Mode Connectivity, and Fast Ensembling of DNNs, arXiv
        1802.10026; Izmailov et al., Averaging Weights Leads to Wider Optima, arXiv 1803.05407.
    """

    def __init__(
        self,
        model: nn.Module,
        members: Sequence[Mapping[str, Tensor]],
        average: Average = SOFTMAX,
        axis: int = 1,
        trace: Trace | None = None,
    ) -> None:
        super().__init__()
        require_average(average)
        if not members:
            raise ValueError("an ensemble needs at least one member, found none")
        self.averaged = model
        self.average, self.axis = average, axis
        self.trace = trace
        self.stacked = _Stacked(len(members), _differing(model, members))
        self._vectorised = True
        self.train(False)

    def forward(self, *inputs: Any, **named: Any) -> Tensor:
        """The mean prediction: probabilities [N, C, ..], or the mean of the outputs.

        Args:
            inputs: what the model is called with.
            named: its keyword arguments.
        """
        return self._each(self._averaged_part, inputs, named).mean(0)

    def log_probabilities(self, *inputs: Any, **named: Any) -> Tensor:
        """log p(x), computed without underflow: what ``nll_loss`` takes.

        Args:
            inputs: what the model is called with.
            named: its keyword arguments.

        Raises:
            ValueError: if outputs are averaged, which are no probabilities.
        """
        if self.average == OUTPUTS:
            raise ValueError("the ensemble averages outputs, which are no probabilities")
        each = self._each(self._log, inputs, named)
        return each.logsumexp(0) - math.log(len(self))

    def __len__(self) -> int:
        return int(self.stacked.number)

    @property
    def members(self) -> list[dict[str, Tensor]]:
        """The parameters and buffers of each member, by path; views, not copies."""
        common = tensors_of_model(self.averaged)
        stacks = self.stacked.tensors()
        return [common | {path: x[m] for path, x in stacks.items()} for m in range(len(self))]

    def model(self, index: int) -> nn.Module:
        """A member as a module of its own, in evaluation mode.

        Args:
            index: which one, from 0 on; negative ones count from the last.

        Raises:
            IndexError: if there is no such member.
        """
        weights = self.members[index]
        found = deepcopy(self.averaged).eval()
        set_tensors(found, weights)
        return found

    def train(self, mode: bool = True) -> Ensemble:
        """It stays in evaluation mode, whatever the mode; train ``model(i)`` instead."""
        super().train(False)
        return self

    def save(self, path: str | Path) -> None:
        """Write everything to one safetensors file, atomically.

        Args:
            path: the file.
        """
        tensors = {_STRUCTURE + p: x for p, x in tensors_of_model(self.averaged).items()}
        tensors |= {_STACKED + name: x for name, x in self.stacked.state_dict().items()}
        if self.trace is not None:
            tensors |= {_TRACE + one.name: getattr(self.trace, one.name) for one in fields(Trace)}
        # A file holds no views of other tensors.
        own = {name: x.detach().cpu().clone().contiguous() for name, x in tensors.items()}
        about = {"axis": str(self.axis)}
        if isinstance(self.average, str):
            about["average"] = self.average
        write_atomically(Path(path), save(own, about))

    @classmethod
    def load(
        cls, path: str | Path, model: nn.Module, average: Callable[[Any], Tensor] | None = None
    ) -> Ensemble:
        """An ensemble from a file.

        Args:
            path: a file from ``save``.
            model: a module of the members' structure, with any weights; it is copied.
            average: the function of the outputs that is averaged, if it was one: files hold none.

        Raises:
            ValueError: if the file is one of another structure, or lacks the function.
        """
        with safe_open(str(path), framework="pt") as file:
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
            about = file.metadata() or {}
        named = about.get("average")
        if named is None and average is None:
            raise ValueError(f"{path}: average is a function of the outputs there: pass it again")
        structure, kept = deepcopy(model), _part(tensors, _STRUCTURE)
        own = tensors_of_model(structure)
        require_equal(own.items(), kept.items(), "tensor", (str(path), "the model"))
        set_tensors(structure, kept)
        course = _part(tensors, _TRACE)
        found = cls(
            structure,
            [tensors_of_model(structure)],
            average or named or SOFTMAX,
            int(about.get("axis", 1)),
            Trace(**course) if course else None,
        )
        found.stacked.load_state_dict(_part(tensors, _STACKED))
        some = next(structure.parameters(), None)
        return found if some is None else found.to(some.device)

    def _averaged_part(self, outputs: Any) -> Tensor:
        if callable(self.average):
            return self.average(outputs)
        return outputs.softmax(self.axis) if self.average == SOFTMAX else outputs

    def _log(self, outputs: Any) -> Tensor:
        if callable(self.average):
            return self.average(outputs).log()
        return torch.log_softmax(outputs, self.axis)

    def _each(self, part: Callable[[Any], Tensor], inputs: Any, named: Mapping[str, Any]) -> Tensor:
        """A function of the outputs of each member, [M, ..]."""

        def of_one(tensors: dict[str, Tensor]) -> Tensor:
            return part(functional_call(self.averaged, tensors, inputs, dict(named)))

        stacks = self.stacked.tensors()
        if self._vectorised and stacks and self.stacked.number.device.type not in ONE_BY_ONE:
            try:
                with plain_attention():
                    return vmap(of_one)(stacks)
            except Exception:
                # Operations that vmap does not know raise errors of many kinds. If the model or
                # its inputs are at fault, it raises again below.
                self._vectorised = False
        members = ({path: x[m] for path, x in stacks.items()} for m in range(len(self)))
        return torch.stack([of_one(member) for member in members])


class _Stacked(nn.Module):
    """Tensors {path: [M, *shape]} as buffers, whose names may hold no dot."""

    number: Tensor

    def __init__(self, number: int, tensors: Mapping[str, Tensor]) -> None:
        super().__init__()
        self.register_buffer("number", torch.tensor(number))
        for path, tensor in tensors.items():
            self.register_buffer(path.replace(".", "/"), tensor)

    def tensors(self) -> dict[str, Tensor]:
        named = self.named_buffers()
        return {name.replace("/", "."): tensor for name, tensor in named if name != "number"}

    def _load_from_state_dict(
        self, state_dict: dict[str, Any], prefix: str, *args: Any, **kwargs: Any
    ) -> None:
        found = {k.removeprefix(prefix): x for k, x in state_dict.items() if k.startswith(prefix)}
        if found:
            # Another run may have other members, and others of their tensors in common.
            before, device = dict(self._buffers), self.number.device
            self._buffers.clear()
            for name, tensor in found.items():
                like = before.get(name)
                dtype = tensor.dtype if like is None else like.dtype
                self.register_buffer(name, torch.empty_like(tensor, dtype=dtype, device=device))
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)


def require_average(average: Average) -> None:
    """Raise ``ValueError`` if it is nothing that can be averaged."""
    if not callable(average) and average not in (SOFTMAX, OUTPUTS):
        raise ValueError(
            f"average must be {SOFTMAX!r}, {OUTPUTS!r} or a function of the outputs, found "
            f"{average!r}"
        )


def average_of(loss: Callable[..., Tensor], targets: Tensor) -> Average:
    """What an ensemble of models trained with a loss averages.

    Args:
        loss: the loss: of torch's, as function or module; or one of the user's.
        targets: some of its targets.

    Returns:
        ``softmax`` for cross-entropy, and for any other loss of whole numbers, which are classes;
        ``outputs`` for the losses of regression.

    Raises:
        ValueError: if neither is known.
    """
    kinds = (*_SOFTMAX_LOSSES, *_OUTPUT_LOSSES)
    known = next(
        (k for k in kinds if loss is k or (isinstance(k, type) and isinstance(loss, k))), None
    )
    if known in _SOFTMAX_LOSSES:
        return SOFTMAX
    if known in _OUTPUT_LOSSES:
        return OUTPUTS
    if not targets.is_floating_point():
        return SOFTMAX
    raise ValueError(
        f"what is averaged is not known for this loss with targets of {targets.dtype}: pass "
        f"average={SOFTMAX!r}, {OUTPUTS!r} or a function of the outputs such as torch.sigmoid"
    )


def _differing(model: nn.Module, members: Sequence[Mapping[str, Tensor]]) -> dict[str, Tensor]:
    """Stacks [M, *shape] of the tensors that are not the model's own in all members."""
    own = tensors_of_model(model)
    stacks = {}
    for member in members:
        require_fitting(own, member)
    for path, tensor in own.items():
        each = [member.get(path, tensor).to(tensor.device) for member in members]
        if not all(one is tensor or torch.equal(one, tensor) for one in each):
            stacks[path] = torch.stack(each)
    return stacks


def _part(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {k.removeprefix(prefix): x for k, x in tensors.items() if k.startswith(prefix)}
