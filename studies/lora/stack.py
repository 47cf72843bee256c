"""Many adaptations side by side: each rate of an optimizer and each seed is a member."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from studies.lora.task import SLOPE, Task


class Stack(nn.Module):
    """The networks of ``tasks``, each ``copies`` times: member c * len(tasks) + s is of task s.

    Args:
        tasks: of one setting.
        copies: of each.
        dtype: of weights and computations.

    Attributes:
        A: [M, rank, in] of each layer.
        B: [M, out, rank] of each layer.
    """

    def __init__(
        self, tasks: Sequence[Task], copies: int, dtype: torch.dtype = torch.float32
    ) -> None:
        super().__init__()
        self.scale = tasks[0].setting.scale
        layers = range(len(tasks[0].frozen))

        def stacked(tensors: list[Tensor]) -> Tensor:
            return torch.stack(tensors * copies).to(dtype)

        # Transposed and laid down once: each step multiplies by them.
        self.W = [stacked([task.frozen[i][0].mT.contiguous() for task in tasks]) for i in layers]
        self.b = [stacked([task.frozen[i][1][None] for task in tasks]) for i in layers]
        self.A = nn.ParameterList([stacked([t.factors[i][0] for t in tasks]) for i in layers])
        self.B = nn.ParameterList([stacked([t.factors[i][1] for t in tasks]) for i in layers])

    @property
    def pairs(self) -> list[tuple[Tensor, Tensor]]:
        """(A, B) of each layer."""
        return list(zip(self.A, self.B, strict=True))

    def forward(self, x: Tensor) -> Tensor:
        """Logits [M, N, classes] for images [M, N, n]."""
        for i, (W, b, (A, B)) in enumerate(zip(self.W, self.b, self.pairs, strict=True)):
            if i:
                x = functional.leaky_relu(x, SLOPE)
            x = torch.baddbmm(torch.baddbmm(b, x, W), x @ A.mT, B.mT, alpha=self.scale)
        return x
