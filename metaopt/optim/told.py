"""Checks that a rule gets what it could rely on in meta-training: the loss, the layers' inputs.

A rule that always knew the inputs of layers makes updates of no useful size without them: their
root mean square is about 1 in each parameter, whatever the sizes of weights and gradient, and at
lr 1 they destroy the weights. A rule that always knew the loss cannot tell without it that it
converges.
"""

from __future__ import annotations

import warnings
from collections.abc import Collection, Iterable, Sequence

from torch import Tensor

from metaopt.base.shipped import DEFAULT
from metaopt.meta.config import TrainConfig
from metaopt.rules.base import Rule
from metaopt.tasks.base import Hidden, Observation

LARGEST_LR = 0.03
"""Up to here steps without a scale of their own are those of a small learning rate."""


class Told:
    """What a rule was always given in meta-training, and so relies on.

    Args:
        config: the configuration that it was meta-trained with.
    """

    def __init__(self, config: TrainConfig) -> None:
        hide = {"loss": config.meta.hide.loss, "inputs": config.meta.hide.inputs}
        self._does_without = {name for name, share in hide.items() if share > 0}
        # Tasks of a user's own family show the loss, and never the inputs of layers.
        self.inputs_shown = config.task.family == "leaky_relu_regression"
        self._warned = False

    def relied_on(self, rules: Collection[Rule], inputs_known: bool) -> Hidden:
        """The fields that the rules read and were always given in meta-training.

        Args:
            rules: the rules in use.
            inputs_known: whether the inputs of layers are known here.
        """
        found: set[str] = set()
        for rule in rules:
            reads = rule.reads
            if "inputs" in reads and not (inputs_known and self.inputs_shown):
                # They know the loss only relative to the outputs of the last layer.
                reads = reads - {"loss"}
            found |= reads if self.inputs_shown else reads - {"inputs"}
        return frozenset(found - self._does_without)

    def check(
        self, rules: Collection[Rule], observation: Observation, rates: Sequence[float | Tensor]
    ) -> None:
        """Refuse or warn if the rules lack something that they rely on.

        Args:
            rules: the rules in use.
            observation: the observation that they are given.
            rates: the lr of all groups.

        Raises:
            ValueError: if updates would be of no useful size and lr is not small.
        """
        known = bool(observation.inputs)
        relied = self.relied_on(rules, known)
        # Rules that cannot work without the inputs raise an error themselves.
        nothing = any(rule.needs_inputs for rule in rules)
        if "inputs" in relied and not known and not nothing:
            lr = max(float(rate) for rate in rates)
            if lr > LARGEST_LR:
                raise ValueError(
                    f"lr: found {lr:g}, but this rule was meta-trained with the inputs of layers, "
                    f"which are not known here, and without them its steps are of size lr in each "
                    f"weight: set lr to about 1e-3, or take a rule that was meta-trained without "
                    f"({DEFAULT})"
                )
        if "loss" in relied and observation.loss is None and not self._warned:
            self._warned = True
            warnings.warn(
                f"this rule was meta-trained with the loss, which a plain step() does not know: "
                f"call step(closure), or take a rule that was meta-trained without ({DEFAULT})",
                stacklevel=6,
            )


def reads(field: str, rules: Iterable[Rule]) -> bool:
    """Whether any of the rules reads a field of observations that may be hidden, if it is known."""
    return any(field in rule.reads for rule in rules)
