"""The processes of a run, and how they exchange data.

``World`` is the single process of an ordinary start: all its methods are trivial, and it does not
use ``torch.distributed``. ``Processes`` has the same methods for a process that ``torchrun``
started, so that callers have one code path for both:

    share      process r of N takes the contiguous slice r of a batch
    mean_      gradients and numbers of the shares -> those of the whole batch
    gather     the values of each process -> all processes
    collect    the values of each process -> the first process
    on_first   what the first process does or reads -> all processes

Tensors on the CPU go through gloo, tensors on CUDA devices through nccl. Every process must call
the same methods in the same order.
"""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from typing import Any, NoReturn, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor
from tqdm import tqdm

from metaopt.base.errors import ProcessLostError, UserError

T = TypeVar("T")

GRACE = 5.0
"""Seconds that the other processes wait for the first one to say why all of them end."""
_TOLD = "metaopt/told"
_ENVIRONMENT = ("RANK", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")


class World:
    """The only process of a run.

    Attributes:
        rank: the number of this process, from 0.
        size: N, the number of processes.
        local_rank: the number of this process among those on its machine.
        local_size: the number of processes on this machine.
    """

    rank: int = 0
    size: int = 1
    local_rank: int = 0
    local_size: int = 1

    @property
    def first(self) -> bool:
        """Whether this is the process that writes files and prints."""
        return self.rank == 0

    def share(self, total: int, field: str) -> slice:
        """The contiguous slice of a batch of ``total`` that this process works on.

        The lengths of slices differ by at most one, the longer ones first.

        Args:
            total: B.
            field: the field of the configuration that holds B, for the error.

        Raises:
            UserError: if there are more processes than items.
        """
        if total < self.size:
            raise UserError(
                f"field {field}: found {total}, expected at least {self.size}, one for each process"
            )
        least, longer = divmod(total, self.size)
        start = self.rank * least + min(self.rank, longer)
        return slice(start, start + least + (self.rank < longer))

    def mean_(
        self,
        gradients: Sequence[Tensor],
        means: Tensor,
        maxima: Tensor,
        votes: Sequence[bool],
        weight: float,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """From means over the shares of all processes to means over the whole batch.

        All processes get the same bits. A number that is not finite in one process is not finite in
        the result.

        Args:
            gradients: gradients of the mean over this process's share; overwritten by those of the
                mean over the batch.
            means: numbers that are means over the share, [n].
            maxima: numbers that are maxima over the share, [m].
            votes: v yes-or-no answers of this process.
            weight: the size of the share divided by the size of the batch.

        Returns:
            The means [n] and maxima [m] over the batch, and how many processes voted yes, [v].
        """
        return means, maxima, torch.tensor(votes)

    def gather(self, value: T) -> list[T]:
        """The values of all processes, by rank, in every process: plain data, arrays, tensors."""
        return [value]

    def collect(self, value: T) -> list[T]:
        """The values of all processes, by rank, in the first process; elsewhere an empty list."""
        return [value]

    def on_first(self, function: Callable[[], T]) -> T:
        """Call ``function`` in the first process; all return its result, or raise its error.

        Only a ``UserError`` is passed on to the other processes.
        """
        return function()

    def say(self, line: str) -> None:
        """Print a line, once for all processes, above progress bars."""
        if self.first:
            tqdm.write(line)

    def part(self, line: str) -> None:
        """Print on stderr, once for all processes, why all of them end now."""
        print(line, file=sys.stderr, flush=True)

    def close(self) -> None:
        """Close the connections to the other processes."""

    def leave(self, status: int) -> NoReturn:
        """End this process."""
        sys.exit(status)


class Processes(World):
    """One of N processes that ``torchrun`` started; see ``World``.

    Args:
        environment: the environment in which torchrun has set ranks, sizes and an address.
    """

    def __init__(self, environment: Mapping[str, str]) -> None:
        # Not at the top: a torch without torch.distributed has no such module.
        from torch.distributed.rendezvous import rendezvous

        self.rank = int(environment["RANK"])
        self.size = int(environment["WORLD_SIZE"])
        self.local_rank = int(environment["LOCAL_RANK"])
        self.local_size = int(environment["LOCAL_WORLD_SIZE"])
        on_cuda = torch.cuda.is_available() and dist.is_nccl_available()
        with _others_alive():
            # The store over which the processes find each other; ``part`` uses it too.
            self._store, _, _ = next(rendezvous("env://", self.rank, self.size))
            dist.init_process_group(
                "cpu:gloo,cuda:nccl" if on_cuda else "gloo",
                store=self._store,
                rank=self.rank,
                world_size=self.size,
            )

    def mean_(
        self,
        gradients: Sequence[Tensor],
        means: Tensor,
        maxima: Tensor,
        votes: Sequence[bool],
        weight: float,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """One all-reduce of a sum; for maxima each process has entries of its own in it."""
        own_maxima = maxima.new_zeros(self.size, len(maxima))
        own_maxima[self.rank] = maxima
        own_votes = maxima.new_zeros(len(votes))
        for i, vote in enumerate(votes):
            # Unlike a copy of the list, this does not make the host wait for a CUDA device.
            own_votes[i].fill_(vote)
        weighted = torch.cat([*(G.flatten() for G in gradients), means]).mul_(weight)
        buffer = torch.cat([weighted, own_maxima.flatten(), own_votes])
        with _others_alive():
            dist.all_reduce(buffer)
        sizes = [G.numel() for G in gradients]
        *summed, means, all_maxima, cast = buffer.split(
            [*sizes, len(means), own_maxima.numel(), len(votes)]
        )
        for G, total in zip(gradients, summed, strict=True):
            G.copy_(total.view_as(G))
        return means, all_maxima.view_as(own_maxima).amax(0), cast

    def gather(self, value: T) -> list[T]:
        """The values of all processes, by rank, in every process."""
        gathered: list[Any] = [None] * self.size
        with _others_alive():
            dist.all_gather_object(gathered, value)
        return gathered

    def collect(self, value: T) -> list[T]:
        """The values of all processes, by rank, in the first process; elsewhere an empty list."""
        gathered: list[Any] | None = [None] * self.size if self.first else None
        with _others_alive():
            dist.gather_object(value, gathered, dst=0)
        return gathered or []

    def on_first(self, function: Callable[[], T]) -> T:
        """Call ``function`` in the first process; all return its result, or raise its error."""
        outcome: list[Any] = [None, None]
        if self.first:
            try:
                outcome[0] = function()
            except UserError as error:
                outcome[1] = str(error)
        with _others_alive():
            dist.broadcast_object_list(outcome, src=0, device=torch.device("cpu"))
        if outcome[1] is not None:
            raise UserError(outcome[1])
        return outcome[0]

    def part(self, line: str) -> None:
        """The first process prints the line; the others wait for it, and print it otherwise."""
        # torchrun sends SIGTERM to the others once one has left; the line has to be printed first.
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, signal.SIG_IGN)
        if not self.first:
            with suppress(RuntimeError):
                deadline = time.monotonic() + GRACE
                while time.monotonic() < deadline:
                    if self._store.check([_TOLD]):
                        return
                    time.sleep(0.05)
        super().part(line)
        # If the process that held the store has ended, no process is left that waits for it.
        with suppress(RuntimeError):
            self._store.set(_TOLD, "")

    def close(self) -> None:
        """End the process group."""
        dist.destroy_process_group()

    def leave(self, status: int) -> NoReturn:
        """End this process at once; all files have been written and closed.

        An ordinary exit can abort: while the interpreter shuts down, a thread of the process group
        may still need it (seen: "terminate called without an active exception", exit status -6).
        """
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)


def join(environment: Mapping[str, str] = os.environ) -> World:
    """The processes of this run: ``Processes`` if torchrun started more than one, else ``World``.

    Args:
        environment: the environment variables.

    Raises:
        UserError: if the environment names a number of processes, but not their ranks or address.
        ProcessLostError: if the other processes do not come.
    """
    if environment.get("WORLD_SIZE", "1") == "1":
        return World()
    absent = [name for name in _ENVIRONMENT if name not in environment]
    if absent or not dist.is_available():
        reason = f"{', '.join(absent)} not set" if absent else "torch has no torch.distributed"
        raise UserError(
            f"environment variable WORLD_SIZE: found {environment['WORLD_SIZE']!r}, but {reason}; "
            f"start with torchrun, or unset it for one process"
        )
    return Processes(environment)


@contextmanager
def _others_alive() -> Iterator[None]:
    """Turn the error of a collective call, which a lost process causes, into an error of ours."""
    try:
        yield
    except RuntimeError as error:
        raise ProcessLostError("a process of the run was lost") from error
