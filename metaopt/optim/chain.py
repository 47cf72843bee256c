"""Models that are a chain, and the data behind their gradient.

A chain is an alternation of bias-free ``nn.Linear`` layers and one kind of ``nn.LeakyReLU``, with
no other parameters: the network whose orbits the teleport engine knows.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor, nn

from metaopt.base.network import LeakyReLU, pseudo_inverse
from metaopt.optim.passes import Pass, Recorder


@dataclass(frozen=True)
class ModelData:
    """All the data that a model is trained on: a ``TeleportData`` with B = 1.

    Attributes:
        X: the input of the first layer, [1, n, N].
        s: the activation.
    """

    X: Tensor
    s: LeakyReLU

    @cached_property
    def X_pinv(self) -> Tensor:
        """X^+, [1, N, n]."""
        return pseudo_inverse(self.X)

    def has_same_rows(self, X: Tensor) -> bool:
        """Whether other inputs are these, in whatever order: the action is exact on the same."""
        if torch.equal(X, self.X):
            return True
        return torch.equal(torch.unique(X[0], dim=1), torch.unique(self.X[0], dim=1))

    @property
    def target_norm(self) -> Tensor:
        """The targets are not known to an optimizer: 0."""
        return self.X.new_zeros(1)


class Chain:
    """The layers of a model as a chain, and the inputs that they saw.

    Args:
        layers: the ``nn.Linear`` modules in order.
        s: the activation between them.
    """

    def __init__(self, layers: list[nn.Linear], s: LeakyReLU) -> None:
        self.layers = layers
        self.s = s
        self._recorder: Recorder | None = None

    @staticmethod
    def of(model: nn.Module) -> Chain | str:
        """The chain that a model is, or why it is none."""
        leaves = [module for module in model.modules() if not any(module.children())]
        linear = [leaf for leaf in leaves[0::2] if isinstance(leaf, nn.Linear)]
        between = [leaf for leaf in leaves[1::2] if isinstance(leaf, nn.LeakyReLU)]
        if len(linear) < 2 or len(linear) + len(between) != len(leaves):
            return "the model is no alternation of nn.Linear and nn.LeakyReLU"
        if any(layer.bias is not None for layer in linear):
            return "its layers have biases"
        if any(not layer.weight.requires_grad for layer in linear):
            return "some of its weights are frozen"
        if sum(1 for _ in model.parameters()) != len(linear):
            return "it has parameters beside its layers, or layers that share theirs"
        dtypes = {layer.weight.dtype for layer in linear}
        if not dtypes <= {torch.float32, torch.float64}:
            return "its weights are too coarse to carry out an exact action"
        slopes = {leaf.negative_slope for leaf in between}
        if len(slopes) != 1:
            return f"its activations have different slopes {sorted(slopes)}"
        return Chain(linear, LeakyReLU(slopes.pop()))

    def watch(self, keep_graph: bool) -> None:
        """From now on, and as long as this object lives, see what the layers see.

        Args:
            keep_graph: with its graph, for second-order meta-gradients.
        """
        self._recorder = Recorder(self.layers, self.s, keep_graph)

    def is_in_order(self) -> bool:
        """Whether all passes that the gradient comes from went from layer to layer."""
        return all(one.is_whole(len(self.layers)) for one in self._passes())

    def _passes(self) -> list[Pass]:
        return [] if self._recorder is None else self._recorder.step()

    def layer_inputs(self) -> tuple[Tensor, ...]:
        """A_0 .. A_{L-1} behind the gradient, each [1, n_l, N] in the dtype of the weights.

        Of all passes that it comes from, side by side; none where no pass was seen. (Under autocast
        layers are fed in half precision.)

        Raises:
            ValueError: where a pass went through the layers in another order.
        """
        passes = self._passes()
        if not self.is_in_order():
            raise ValueError(
                "the layers of this model do not feed each other in order; teleporting would "
                "change what it computes"
            )
        dtype = self.layers[0].weight.dtype
        return tuple(
            torch.cat([x.reshape(-1, x.shape[-1]) for x in seen]).mT[None].to(dtype)
            for seen in zip(*(one.inputs for one in passes), strict=True)
        )
