"""Parameters of learned optimizers, and the control for capacity.

    python -m benchmarks.capacity coordinate_update_tele.yaml coordinate_update.yaml

prints what the networks of the first configuration have, and the hidden size with which those of
the second have as many. Sizes follow from the configurations, whatever the features are.
"""

from __future__ import annotations

import argparse

import torch

from metaopt.base.config import load
from metaopt.meta.build import meta_optimizer
from metaopt.meta.config import TrainConfig
from metaopt.rules.config import LEARNED


def parameters(config: TrainConfig) -> dict[str, int]:
    """Number of parameters of each network, by rule; nothing is allocated."""
    with torch.device("meta"):
        optimizer = meta_optimizer(config)
    return {
        name: sum(parameter.numel() for parameter in rule.parameters())
        for name, rule in optimizer.rules.items()
    }


def with_hidden(config: TrainConfig, hidden: int) -> TrainConfig:
    """The configuration with this hidden size in each of its networks."""
    rules = {
        name: rule.model_copy(update={"hidden": hidden}) if isinstance(rule, LEARNED) else rule
        for name, rule in config.rules.by_name().items()
    }
    return config.model_copy(update={"rules": config.rules.model_copy(update=rules)})


def matching_hidden(config: TrainConfig, count: int) -> int:
    """The hidden size with which the networks of ``config`` come nearest to ``count`` parameters.

    Raises:
        ValueError: where ``config`` has no network.
    """

    def found(hidden: int) -> int:
        return sum(parameters(with_hidden(config, hidden)).values())

    if found(1) == found(2):
        raise ValueError("no rule of this configuration has a hidden size")
    low, high = 1, 2
    while found(high) < count:
        low, high = high, 2 * high
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if found(middle) < count else (low, middle)
    return min((low, high), key=lambda hidden: abs(found(hidden) - count))


def main() -> None:
    """Print both counts."""
    parser = argparse.ArgumentParser(description="The control for capacity: equal parameters.")
    parser.add_argument("reference", help="configuration with as many parameters as are wanted")
    parser.add_argument("control", help="configuration that is to have as many")
    given = parser.parse_args()
    reference, control = (load(TrainConfig, name) for name in (given.reference, given.control))
    counts = parameters(reference)
    wanted = sum(counts.values())
    parts = ", ".join(f"{name} {count}" for name, count in counts.items())
    print(f"{reference.name}: {wanted} parameters ({parts})")
    hidden = matching_hidden(control, wanted)
    total = sum(parameters(with_hidden(control, hidden)).values())
    print(f"{control.name}: {total} with hidden {hidden} ({total / wanted - 1:+.2%})")


if __name__ == "__main__":
    main()
