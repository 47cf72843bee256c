"""What a rule was told in meta-training beside the gradient, against what it is told here.

A rule that always knew the inputs of layers has no scale without them: its updates have a root mean
square of about 1 in each parameter, whatever the sizes of weights and gradient, and at lr 1 they
throw the weights away. One that always heard the loss does not see that it converges.
"""

from __future__ import annotations

import warnings
from collections.abc import Collection, Iterable, Sequence

from torch import Tensor

from metaopt.meta.config import TrainConfig
from metaopt.rules.base import Rule
from metaopt.tasks.base import Hidden, Observation

LARGEST_LR = 0.03
"""Up to here steps without a scale of their own are those of a small learning rate."""


class Told:
    """What a rule was always told in meta-training, and so relies on.

    Args:
        config: that it was meta-trained with.
    """

    def __init__(self, config: TrainConfig) -> None:
        hide = {"loss": config.meta.hide.loss, "inputs": config.meta.hide.inputs}
        self._does_without = {name for name, share in hide.items() if share > 0}
        # A family of a user's own shows the loss alone.
        self.inputs_shown = config.task.family == "leaky_relu_regression"
        self._warned = False

    def relied_on(self, rules: Collection[Rule], inputs_known: bool) -> Hidden:
        """What rules were always told, of what they read.

        Args:
            rules: that act.
            inputs_known: whether they are told the inputs of layers here.
        """
        found: set[str] = set()
        for rule in rules:
            reads = rule.reads
            if "inputs" in reads and not (inputs_known and self.inputs_shown):
                # They hear the loss as a share of what the last layer makes of its input.
                reads = reads - {"loss"}
            found |= reads if self.inputs_shown else reads - {"inputs"}
        return frozenset(found - self._does_without)

    def check(
        self, rules: Collection[Rule], observation: Observation, rates: Sequence[float | Tensor]
    ) -> None:
        """Refuse or warn where something is missing.

        Args:
            rules: that act.
            observation: what they are told.
            rates: lr of all groups.

        Raises:
            ValueError: where updates would have no scale of their own and lr is not small.
        """
        known = bool(observation.inputs)
        relied = self.relied_on(rules, known)
        # Rules that are nothing without the inputs say so themselves.
        nothing = any(rule.needs_inputs for rule in rules)
        if "inputs" in relied and not known and not nothing:
            lr = max(float(rate) for rate in rates)
            if lr > LARGEST_LR:
                raise ValueError(
                    f"lr: found {lr:g}, but this rule was meta-trained with the inputs of layers, "
                    f"which are not known here, and without them its steps are of size lr in each "
                    f"weight: set lr to about 1e-3, or take a rule that was meta-trained without "
                    f"(digits_update_tele)"
                )
        if "loss" in relied and observation.loss is None and not self._warned:
            self._warned = True
            warnings.warn(
                "this rule was meta-trained with the loss, which a plain step() does not know: "
                "call step(closure), or take a rule that was meta-trained without "
                "(digits_update_tele)",
                stacklevel=6,
            )


def reads_inputs(rules: Iterable[Rule]) -> bool:
    """Whether any of the rules reads the inputs of layers where they are known."""
    return any("inputs" in rule.reads for rule in rules)
