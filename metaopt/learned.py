"""A learned optimizer as a thing to keep: meta-optimizer, configuration and figures."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from metaopt import build, checkpoint
from metaopt.checkpoint import Checkpoint, CheckpointError
from metaopt.config import ConfigError, check
from metaopt.optimizers import MetaOptimizer
from metaopt.schema import TrainConfig


@dataclass
class LearnedRule:
    """A learned optimizer with where it comes from.

    Attributes:
        optimizer: the meta-optimizer, rules and teleport engine.
        config: the configuration that it was meta-trained with.
        training: seeds, outer step and trajectories of meta-training.
        validation: the validation curve, ``{"outer_step", "val_loss_geomean"}``.
    """

    optimizer: MetaOptimizer
    config: TrainConfig
    training: dict[str, Any] = field(default_factory=dict)
    validation: dict[str, Any] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """As it stands in tables, e.g. ``LSTM(update,tele)``."""
        return self.config.label

    def save(self, path: str | Path) -> None:
        """Write one safetensors file, atomically."""
        tensors = dict(self.optimizer.state_dict())
        config = self.config.model_dump(mode="json")
        content = Checkpoint(tensors, config, self.training, self.validation)
        checkpoint.write(Path(path), content)


def load(path: str | Path, device: torch.device | str = "cpu") -> LearnedRule:
    """Read a learned optimizer; runs no code from the file.

    Args:
        path: a file written by ``train_meta.py`` or ``LearnedRule.save``.
        device: where its parameters go.

    Raises:
        CheckpointError: one line that says what is wrong with the file.
    """
    content = checkpoint.read(path)
    try:
        config = check(TrainConfig, content.config, f"{path}: metadata field config")
        # On the meta device shapes cost nothing, whatever sizes the file claims.
        with torch.device("meta"):
            optimizer = build.meta_optimizer(config)
    except ConfigError as error:
        message = str(error)
        prefix = "" if message.startswith(str(path)) else f"{path}: metadata field config: "
        raise CheckpointError(prefix + message) from None
    expected = {name: (tuple(t.shape), t.dtype) for name, t in optimizer.state_dict().items()}
    found = {name: (tuple(t.shape), t.dtype) for name, t in content.tensors.items()}
    for name in sorted(expected.keys() | found.keys()):
        if expected.get(name) != found.get(name):
            raise CheckpointError(
                f"{path}: tensor {name}: found {_describe(found.get(name))}, but its config asks "
                f"for {_describe(expected.get(name))}"
            )
    # Copies are aligned in memory as fresh parameters are: BLAS then gives the very same bits.
    tensors = {name: tensor.clone() for name, tensor in content.tensors.items()}
    optimizer.load_state_dict(tensors, assign=True)
    optimizer.to(device)
    return LearnedRule(optimizer, config, content.training, content.validation)


def _describe(shape_and_dtype: tuple[tuple[int, ...], torch.dtype] | None) -> str:
    if shape_and_dtype is None:
        return "none"
    shape, dtype = shape_and_dtype
    return f"{list(shape)} of {str(dtype).removeprefix('torch.')}"
