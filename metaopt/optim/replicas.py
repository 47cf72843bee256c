"""Training in several processes: what is the same in all of them, and what is not.

Replicas of a model stay equal, bit for bit, where every process takes the same step from the same
weights. Gradients are the same once they are averaged (``DistributedDataParallel``); the loss and
the inputs of layers are those of a process's own data:

    loss that rules see = mean of the processes' losses   if the model averages gradients
    loss that rules see = none                            otherwise

For the mean every process has to send its loss, which is certain only if the processes also
exchange gradients. A list of parameters may be only one process's part of them, while a rule reads
statistics of all parameters: in several processes the optimizer has to be given the model.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable

import torch
from torch import Tensor, distributed, nn
from torch.nn.parallel import DistributedDataParallel

from metaopt.symmetry.discovery.find import wrappers


class Replicas:
    """The processes that train a model together.

    Args:
        model: the model given to the optimizer, wrapped or not; or None.

    Attributes:
        shared: the wrapper that averages gradients over the processes, or None.
    """

    def __init__(self, model: nn.Module | None) -> None:
        found = () if model is None else wrappers(model)
        self.shared = next((m for m in found if isinstance(m, DistributedDataParallel)), None)
        self._warned = False

    @property
    def count(self) -> int:
        """The number of processes: 1 without ``torch.distributed``."""
        if not (distributed.is_available() and distributed.is_initialized()):
            return 1
        return distributed.get_world_size(None if self.shared is None else self._group(self.shared))

    def inputs_unknown(self) -> str | None:
        """Why the inputs of layers behind the gradient are not all known here; None if they are."""
        count = self.count
        if count == 1:
            return None
        return f"each of {count} processes sees data of its own"

    def loss(self, own: Tensor | None, like: Tensor) -> Tensor | None:
        """The loss that rules see, equal in all processes; either all processes call this or none.

        Args:
            own: the loss of this process, a scalar, or None.
            like: a tensor of the dtype and on the device that the loss should have.
        """
        count = self.count
        if count == 1:
            return own
        if self.shared is None or self._is_uneven(self.shared):
            if own is not None and not self._warned:
                self._warned = True
                warnings.warn(
                    f"the loss is not heard: each of {count} processes has one of its own, and "
                    f"replicas would drift apart; to have the rule hear the mean, make the "
                    f"optimizer with the DistributedDataParallel model",
                    stacklevel=5,
                )
            return None
        # Sent even if this process has no loss, since the others wait for the message.
        total = like.new_full((), torch.nan) if own is None else own.detach().to(like).clone()
        distributed.all_reduce(total, group=self._group(self.shared))
        return total / count if bool(total.isfinite()) else None

    @staticmethod
    def _group(shared: DistributedDataParallel) -> distributed.ProcessGroup:
        return shared.process_group

    @staticmethod
    def _is_uneven(shared: DistributedDataParallel) -> bool:
        """Whether this is within ``join()``, where processes without data take no steps."""
        return bool(shared._join_config.enable)


def require_whole(parameters: Iterable[Tensor], model: nn.Module | None) -> None:
    """Refuse parameters of which this process has, or may have, only a part.

    Args:
        parameters: the parameters to optimise.
        model: the model given to the optimizer, or None.

    Raises:
        ValueError: for those of FSDP and tensor parallelism, for lists in several processes, and
            for what replicas do not share.
    """
    count = Replicas(model).count
    for parameter in parameters:
        if count > 1 and getattr(parameter, "_ddp_ignored", False):
            raise ValueError(
                "parameters: found one that DistributedDataParallel ignores, expected such as have "
                "the same gradient in every process: statistics of all would differ; give the "
                "others as params= and this one to another optimizer"
            )
        if hasattr(parameter, "device_mesh"):
            kind = "DTensor (fully_shard, tensor parallelism)"
        elif getattr(parameter, "_fsdp_flattened", False):
            kind = "parameter of FullyShardedDataParallel"
        else:
            continue
        raise ValueError(
            f"parameters: found a {kind}, expected whole tensors in every process: a rule reads "
            f"statistics of whole parameters; train with DistributedDataParallel"
        )
    if model is None and count > 1:
        raise ValueError(
            f"model: found a list of parameters in one of {count} processes, expected the model: "
            f"the list may be a part (ZeroRedundancyOptimizer), and a rule reads statistics of "
            f"all parameters; LearnedOptimizer(model, rule) works with DistributedDataParallel"
        )
