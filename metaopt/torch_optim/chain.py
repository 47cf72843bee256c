"""Models that are a chain, and the data behind their last forward pass.

A chain is an alternation of bias-free ``nn.Linear`` layers and one kind of ``nn.LeakyReLU``, with
no other parameters: the network whose orbits the teleport engine knows.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property, partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from metaopt.network import LeakyReLU, pseudo_inverse


@dataclass(frozen=True)
class ModelData:
    """The data behind the last forward pass of a model: a ``TeleportData`` with B = 1.

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

    @property
    def target_norm(self) -> Tensor:
        """The targets are not known to an optimizer: 0."""
        return self.X.new_zeros(1)


@dataclass
class Chain:
    """The layers of a model as a chain, and the inputs that they saw last.

    Attributes:
        layers: the ``nn.Linear`` modules in order.
        s: the activation between them.
        keep_graph: record inputs with their graph, for second-order meta-gradients.
        inputs: of each layer at the last forward pass with gradients, each [N, n_l].
        hooks: those that record them.
    """

    layers: list[nn.Linear]
    s: LeakyReLU
    keep_graph: bool
    inputs: list[Tensor | None]
    hooks: list[RemovableHandle] = field(default_factory=list)

    @staticmethod
    def of(model: nn.Module, keep_graph: bool) -> Chain | str:
        """The chain that a model is, with hooks on its layers, or why it is none."""
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
        chain = Chain(linear, LeakyReLU(slopes.pop()), keep_graph, [None] * len(linear))
        chain.hooks += [
            layer.register_forward_pre_hook(partial(chain.record, position))
            for position, layer in enumerate(linear)
        ]
        return chain

    def record(self, position: int, module: nn.Module, arguments: tuple[Any, ...]) -> None:
        """A forward hook: keep the input of the layer at ``position``."""
        # A pass without gradients is a measurement, not the one that the step belongs to.
        if torch.is_grad_enabled():
            self.inputs[position] = arguments[0] if self.keep_graph else arguments[0].detach()

    def release(self) -> None:
        """Take the hooks off the model."""
        for hook in self.hooks:
            hook.remove()

    def layer_inputs(self) -> tuple[Tensor, ...]:
        """A_0 .. A_{L-1}, each [1, n_l, N] in the dtype of the weights; none before a whole pass.

        Under autocast layers are fed in half precision.
        """
        seen = [x for x in self.inputs if x is not None]
        if len(seen) < len(self.layers):
            return ()
        dtype = self.layers[0].weight.dtype
        return tuple(x.reshape(-1, x.shape[-1]).mT[None].to(dtype) for x in seen)

    def is_fed_in_order(self) -> bool:
        """Whether each layer saw what the one before made; a model may call them otherwise."""
        seen = self.layer_inputs()
        for position, (A, layer) in enumerate(zip(seen[:-1], self.layers, strict=False)):
            expected, after = self.s(layer.weight @ A), seen[position + 1]
            recorded = self.inputs[position + 1]
            assert recorded is not None
            # As near as the products of this precision come to each other.
            tolerance = max(1e-3, 8 * torch.finfo(recorded.dtype).eps)
            if expected.shape != after.shape:
                return False
            if not bool((expected - after).norm() <= tolerance * after.norm()):
                return False
        return True
