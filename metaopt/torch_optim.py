"""The learned optimizer as ``torch.optim.Optimizer``, and differentiable in ``higher``.

    opt = LearnedOptimizer(model, "optimizer.safetensors")     an ordinary training loop
    with higher.innerloop_ctx(model, opt) as (fmodel, diffopt):
        diffopt.step(loss(fmodel))                             an unroll with meta-gradients

Both run ``MetaOptimizer.step`` on the weights of the model with a batch axis of 1, the same code as
the batched unroll. What rules want to see beyond gradients comes from the model: the inputs of its
layers from forward hooks, where it is a *chain* (bias-free ``nn.Linear`` layers with one kind of
``nn.LeakyReLU`` between them), and the loss, meant as 1/2 ||f(w) - Y||^2, from the closure or from
``diffopt.step``. Rules work without either (a plain ``step()`` knows no loss), on coarser scales.

Teleports need a chain, and data on which the action is exact. Otherwise the update rule acts alone,
after a warning.
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import higher
import torch
from torch import Tensor, nn

from metaopt.learned import LearnedRule, load
from metaopt.network import LeakyReLU, Weights, pseudo_inverse
from metaopt.optimizers import MetaOptimizer
from metaopt.rules import State
from metaopt.symmetry import InexactActionError
from metaopt.tasks import Observation


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
    """

    layers: list[nn.Linear]
    s: LeakyReLU
    keep_graph: bool
    inputs: list[Tensor | None] = field(default_factory=list)

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
        slopes = {leaf.negative_slope for leaf in between}
        if len(slopes) != 1:
            return f"its activations have different slopes {sorted(slopes)}"
        chain = Chain(linear, LeakyReLU(slopes.pop()), keep_graph, [None] * len(linear))
        for position, layer in enumerate(linear):
            layer.register_forward_pre_hook(partial(chain.record, position))
        return chain

    def record(self, position: int, module: nn.Module, arguments: tuple[Any, ...]) -> None:
        """A forward hook: keep the input of the layer at ``position``."""
        # A pass without gradients is a measurement, not the one that the step belongs to.
        if torch.is_grad_enabled():
            self.inputs[position] = arguments[0] if self.keep_graph else arguments[0].detach()

    def layer_inputs(self) -> tuple[Tensor, ...]:
        """A_0 .. A_{L-1}, each [1, n_l, N]; none before a whole forward pass."""
        seen = [x for x in self.inputs if x is not None]
        if len(seen) < len(self.layers):
            return ()
        return tuple(x.reshape(-1, x.shape[-1]).mT[None] for x in seen)

    def is_fed_in_order(self) -> bool:
        """Whether each layer saw what the one before made; a model may call them otherwise."""
        seen = self.layer_inputs()
        for A, layer, after in zip(seen, self.layers, seen[1:], strict=False):
            expected = self.s(layer.weight @ A)
            if expected.shape != after.shape or not torch.allclose(expected, after, rtol=1e-3):
                return False
        return True


class _Stepper:
    """One inner step on the parameters of a model, plain or differentiable.

    Args:
        optimizer: the meta-optimizer.
        model: whose structure decides whether teleports are possible.
        parameters: the trainable ones, in order.
        differentiable: whether meta-gradients are wanted.
    """

    def __init__(
        self,
        optimizer: MetaOptimizer,
        model: nn.Module,
        parameters: Sequence[Tensor],
        differentiable: bool,
    ) -> None:
        if optimizer.gradients_per_step != 1:
            raise ValueError(
                f"this rule takes {optimizer.gradients_per_step:g} gradients a step, at weights of "
                f"its own choice (teleporter.order: around), and a torch.optim.Optimizer is given "
                f"one: use a rule with teleporter.order: after"
            )
        self.optimizer = optimizer
        self.chain: Chain | None = None
        found = Chain.of(model, keep_graph=differentiable)
        if isinstance(found, Chain):
            self.chain = found
        elif optimizer.engine is not None:
            self.optimizer = self._update_only(optimizer, found)
        self._data: ModelData | None = None
        dtypes = {parameter.dtype for parameter in parameters}
        if not dtypes <= {torch.float32, torch.float64}:
            raise ValueError(f"parameters must be float32 or float64, found {dtypes}")
        self.initial_state = self.optimizer.initial_rule_states(
            Observation(_as_matrices(parameters), _as_matrices(parameters), (), None)
        )

    @staticmethod
    def _update_only(optimizer: MetaOptimizer, why: str) -> MetaOptimizer:
        if "update" not in optimizer.rules:
            raise ValueError(f"this rule proposes steps from generator features, but {why}")
        warnings.warn(f"updates only, no teleports: {why}", stacklevel=4)
        return MetaOptimizer({"update": optimizer.rules["update"]}, None)

    def step(
        self,
        parameters: Sequence[Tensor],
        grads: Sequence[Tensor],
        loss: Tensor | None,
        state: State,
        differentiate_features: bool,
    ) -> tuple[list[Tensor], State]:
        """New parameters and state.

        Args:
            parameters: in the order of the constructor.
            grads: of the same shapes.
            loss: scalar, or None.
            state: of the rules.
            differentiate_features: second order.
        """
        weights = _as_matrices(parameters)
        observation = Observation(
            weights=weights,
            grads=_as_matrices(grads),
            inputs=() if self.chain is None else self._layer_inputs(self.chain),
            loss=None if loss is None else loss.reshape(1),
        )
        if not differentiate_features:
            observation = observation.detach()
        data: Any = None if self.optimizer.engine is None else self._data
        taken = self.optimizer.step(weights, observation, state, data)
        new = [W.reshape(p.shape) for W, p in zip(taken.weights, parameters, strict=True)]
        return new, taken.state

    def _layer_inputs(self, chain: Chain) -> tuple[Tensor, ...]:
        """Those of the last forward pass; what they are good for is checked when they change."""
        inputs = chain.layer_inputs()
        engine = self.optimizer.engine
        if not inputs:
            if engine is not None:
                raise RuntimeError("teleporting needs a forward pass of the model before step()")
            return ()
        X = inputs[0].detach()
        if self._data is not None and torch.equal(X, self._data.X):
            return inputs
        if not chain.is_fed_in_order():
            if engine is not None:
                raise ValueError(
                    "the layers of this model do not feed each other in order; teleporting would "
                    "change what it computes"
                )
            return ()
        self._data = ModelData(X, chain.s)
        if engine is not None:
            try:
                engine.check(self._data, _as_matrices([layer.weight for layer in chain.layers]))
            except InexactActionError as error:
                self.optimizer = self._update_only(self.optimizer, str(error))
        return inputs


def _as_matrices(parameters: Sequence[Tensor]) -> Weights:
    """Each parameter as [1, out, rest]."""
    return tuple(p.reshape(1, p.shape[0] if p.dim() else 1, -1) for p in parameters)


def _matching(optimizer: MetaOptimizer, parameter: Tensor) -> MetaOptimizer:
    """The meta-optimizer itself where device and dtype are those of a parameter, else a copy."""
    own = next(optimizer.parameters())
    if (own.device, own.dtype) == (parameter.device, parameter.dtype):
        return optimizer
    return copy.deepcopy(optimizer).to(parameter.device, parameter.dtype)


class LearnedOptimizer(torch.optim.Optimizer):
    """w <- g . (w + f) on the parameters of a model, with a learned rule.

    Args:
        model: all of its parameters that require gradients are optimised.
        rule: a checkpoint's path, or a ``LearnedRule``.

    Raises:
        CheckpointError: where the path holds no checkpoint.
        ShapeMismatchError: where a flattened rule was made for other shapes.
        ValueError: where the rule cannot work without teleports and the model allows none, where it
            takes more than one gradient a step, or where parameters are neither float32 nor
            float64.
    """

    def __init__(self, model: nn.Module, rule: str | Path | LearnedRule) -> None:
        parameters = [p for p in model.parameters() if p.requires_grad]
        super().__init__(parameters, {})
        self.model = model
        self.rule = rule if isinstance(rule, LearnedRule) else load(rule)
        self.meta_optimizer = _matching(self.rule.optimizer, parameters[0])
        self._stepper = _Stepper(self.meta_optimizer, model, parameters, differentiable=False)
        # As torch's L-BFGS does: what belongs to all parameters together is kept with the first.
        self.state[parameters[0]].update(self._stepper.initial_state)

    def step(self, closure: Callable[[], Any] | None = None) -> Any:  # type: ignore[override]
        """One inner step.

        Args:
            closure: evaluates the model, calls ``backward`` and returns the loss.

        Returns:
            The closure's loss, or None.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        parameters = self.param_groups[0]["params"]
        # A parameter that had no part in the loss has gradient 0, and stays a row of the state.
        grads = [torch.zeros_like(p) if p.grad is None else p.grad for p in parameters]
        value = None if loss is None else torch.as_tensor(loss).to(parameters[0])
        with torch.no_grad():
            new, state = self._stepper.step(
                parameters, grads, value, self.state[parameters[0]], differentiate_features=False
            )
            for parameter, W in zip(parameters, new, strict=True):
                if parameter.grad is not None:
                    parameter.copy_(W)
            self.state[parameters[0]].update(state)
        return loss


class DifferentiableLearnedOptimizer(higher.optim.DifferentiableOptimizer):
    """The same step with its graph kept, for ``higher.innerloop_ctx``.

    Meta-gradients flow to ``LearnedOptimizer.meta_optimizer`` (the rule's own, where model and rule
    have one dtype and device); the order (first or second) is that of the rule's configuration.
    """

    def __init__(self, other: LearnedOptimizer, *arguments: Any, **options: Any) -> None:
        super().__init__(other, *arguments, **options)
        self._rule = other.rule
        self._loss: Tensor | None = None
        # Forward hooks belong to the functional copy of the model, which makes its own.
        self._stepper = _Stepper(
            other.meta_optimizer,
            self._fmodel,
            other.param_groups[0]["params"],
            differentiable=True,
        )

    def step(self, loss: Tensor, *arguments: Any, **options: Any) -> Any:
        """One inner step from the loss of the functional model."""
        self._loss = loss
        return super().step(loss, *arguments, **options)

    def _update(self, grouped_grads: Sequence[Sequence[Tensor]], **options: Any) -> None:
        parameters = self.param_groups[0]["params"]
        grads = [
            torch.zeros_like(p) if G is None else G
            for p, G in zip(parameters, grouped_grads[0], strict=True)
        ]
        new, self.state[0][0] = self._stepper.step(
            parameters,
            grads,
            self._loss,
            self.state[0][0],
            differentiate_features=self._rule.config.meta.order == 2,
        )
        self.param_groups[0]["params"] = new


higher.register_optim(LearnedOptimizer, DifferentiableLearnedOptimizer)
