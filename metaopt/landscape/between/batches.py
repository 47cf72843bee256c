"""Mini-batches without end, whose place can be kept and found again."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import Tensor

from metaopt.base.streams import Stream, item_generator
from metaopt.landscape.data import Data, pairs_of, tensors_of, with_tensors

SHUFFLES = 2**32
"""Orders of epochs are the items of their stream from here on."""

Pair = tuple[Any, Tensor]


class Batches:
    """Runs through data again and again.

    The state is that of torch's generator and of the data's own (``data.generator``, as a
    DataLoader has) when the epoch began, with the number of batches since: a shuffled order is then
    drawn again, and what was seen of it skipped.

    Args:
        data: a pair (inputs, targets), or an iterable of such pairs.
        batch_size: rows of each batch of a pair, in a new order in each epoch; rows that fill no
            batch are left out of their epoch. None: the data as they come.
        seed: of the orders.
        device: where batches are moved to.

    Raises:
        ValueError: if the data are none of these, or a batch size is given for an iterable or is
            not from 1 to the number of rows.
    """

    def __init__(self, data: Data, batch_size: int | None, seed: int, device: torch.device) -> None:
        self._data = data
        self._pairs: Iterable[Pair] = pairs_of(data)
        self._seed, self._device, self._batch_size = seed, device, batch_size
        self.epoch, self.position = -1, 0
        self._began: dict[str, Tensor] = {}
        self._left: Iterator[Pair] = iter(())
        if batch_size is not None:
            if not isinstance(data, tuple | list) or not isinstance(data[-1], Tensor):
                raise ValueError("batch_size cuts a pair (inputs, targets): leave it out here")
            if not 1 <= batch_size <= len(data[1]):
                raise ValueError(
                    f"batch_size must be from 1 to {len(data[1])}, the samples of data, found "
                    f"{batch_size}"
                )

    def next(self) -> Pair:
        """The next batch, on the device; raises ``ValueError`` if the data are empty."""
        pair = next(self._left, None)
        if pair is None:
            self._begin(self.epoch + 1)
            pair = next(self._left, None)
        if pair is None:
            raise ValueError("data hold no batches")
        self.position += 1
        inputs, targets = pair
        leaves = (x.to(self._device, non_blocking=True) for x in tensors_of(inputs))
        return with_tensors(inputs, leaves), targets.to(self._device, non_blocking=True)

    def state(self) -> dict[str, Any]:
        """Where it is."""
        return {"epoch": self.epoch, "position": self.position, "began": dict(self._began)}

    def resume(self, state: dict[str, Any]) -> None:
        """Go to where a state was taken; torch's generator is then another."""
        if state["epoch"] < 0:
            return
        torch.set_rng_state(state["began"]["torch"])
        if "own" in state["began"]:
            self._data.generator.set_state(state["began"]["own"])
        self._begin(state["epoch"])
        for _ in range(state["position"]):
            next(self._left)
        self.position = state["position"]

    def _begin(self, epoch: int) -> None:
        self._began = {"torch": torch.get_rng_state()}
        own = getattr(self._data, "generator", None)
        if isinstance(own, torch.Generator):
            self._began["own"] = own.get_state()
        self.epoch, self.position = epoch, 0
        self._left = iter(self._pairs) if self._batch_size is None else self._cut(epoch)

    def _cut(self, epoch: int) -> Iterator[Pair]:
        inputs, targets = next(iter(self._pairs))
        size = self._batch_size or len(targets)
        numbers = item_generator(Stream.CURVES, self._seed, SHUFFLES + epoch)
        order = torch.from_numpy(numbers.permutation(len(targets)))
        for start in range(0, len(order) - size + 1, size):
            chosen = order[start : start + size]
            leaves = (x[chosen.to(x.device)] for x in tensors_of(inputs))
            yield with_tensors(inputs, leaves), targets[chosen.to(targets.device)]
