"""Mini-batches of data, round after round; the place can be saved and gone on from bit for bit."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from metaopt.landscape.data import Data, pairs_of, tensors_of, with_tensors

Pair = tuple[Any, Tensor]


class Rounds:
    """The pairs (inputs, targets) of data in their order, begun again at the end of each round.

    A ``DataLoader`` that shuffles draws a new order for each round, from torch's generator or from
    its own. To go on in the middle of a round, the generators are put back to where they were at
    its start, and the batches that were taken are passed over.

    Args:
        data: a pair, or an iterable of pairs that can be run through again.
        device: where batches go.

    Attributes:
        taken: how many batches of this round were taken.

    Raises:
        ValueError: if the data are neither.
    """

    def __init__(self, data: Data, device: torch.device) -> None:
        self.taken = 0
        self._pairs, self._device = pairs_of(data), device
        self._own = _generators(data)
        self._at_start = self._random()
        self._round: Iterator[Pair] | None = None

    def __next__(self) -> Pair:
        if self._round is None:
            self._begin()
        assert self._round is not None
        pair = next(self._round, None)
        if pair is None:
            if self.taken == 0:
                raise ValueError("data hold no samples")
            self._begin()
            return next(self)
        self.taken += 1
        return on_device(pair, self._device)

    def state_dict(self) -> dict[str, Any]:
        """The place in the round, and the generators, at its start and now."""
        return {"taken": self.taken, "at_start": self._at_start, "now": self._random()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from a place in the same data.

        Args:
            state: from ``state_dict``.

        Raises:
            ValueError: if the round of these data is shorter.
        """
        self._put_back(state["at_start"])
        self._begin()
        assert self._round is not None
        for number in range(state["taken"]):
            if next(self._round, None) is None:
                raise ValueError(
                    f"the run that is gone on with took {state['taken']} batches of its round, but "
                    f"these data have {number}: pass the same data"
                )
        self.taken = state["taken"]
        self._put_back(state["now"])

    def _begin(self) -> None:
        self._at_start = self._random()
        self._round, self.taken = iter(self._pairs), 0

    def _random(self) -> list[Tensor]:
        states = [torch.get_rng_state(), *(one.get_state() for one in self._own)]
        return [*states, torch.cuda.get_rng_state(self._device)] if self._is_cuda else states

    def _put_back(self, states: list[Tensor]) -> None:
        if len(states) != 1 + len(self._own) + self._is_cuda:
            raise ValueError(
                "the run that is gone on with had another number of random generators: pass the "
                "same data, on the same kind of device"
            )
        torch.set_rng_state(states[0])
        for one, state in zip(self._own, states[1:], strict=False):
            one.set_state(state)
        if self._is_cuda:
            torch.cuda.set_rng_state(states[-1], self._device)

    @property
    def _is_cuda(self) -> bool:
        return self._device.type == "cuda"


def on_device(pair: Pair, device: torch.device) -> Pair:
    """A pair of inputs and targets, with all tensors on a device."""
    inputs, targets = pair
    return with_tensors(inputs, (x.to(device) for x in tensors_of(inputs))), targets.to(device)


def _generators(data: Any) -> list[torch.Generator]:
    """The generators that a ``DataLoader`` and its sampler draw from."""
    holders = (data, getattr(data, "sampler", None))
    found = [getattr(holder, "generator", None) for holder in holders]
    return list({id(g): g for g in found if isinstance(g, torch.Generator)}.values())
