"""A learned optimizer, with its configuration and figures; it is loaded and saved here."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from metaopt.base import checkpoint
from metaopt.base.checkpoint import Checkpoint, CheckpointError
from metaopt.base.config import ConfigError, check
from metaopt.base.fields import DTYPES
from metaopt.base.tables import printable
from metaopt.meta.build import meta_optimizer
from metaopt.meta.config import TrainConfig
from metaopt.optim import hub
from metaopt.optim.description import aligned, brief
from metaopt.optim.reach import Reach, reach_of
from metaopt.rules.composed import MetaOptimizer
from metaopt.rules.learned.unit import UNBOUNDED
from metaopt.teleport.base import Need


@dataclass(repr=False)
class LearnedRule:
    """A learned optimizer, and where it comes from.

    Attributes:
        optimizer: the meta-optimizer: rules and teleport engine.
        config: the configuration that it was meta-trained with.
        training: the seed, outer steps and trajectories of meta-training, its command and commit.
        validation: the validation curve, under ``outer_step`` and ``val_loss_geomean``, and, under
            ``test``, figures on unseen tasks by task family (``figures.Unseen``).
        licence: the SPDX identifier of the licence that it is shared under; empty if none was
            given.
        origin: where it was loaded from: ``shipped``, ``runs/NAME``, another path, or a hub id;
            empty if it was not loaded.
    """

    optimizer: MetaOptimizer
    config: TrainConfig
    training: dict[str, Any] = field(default_factory=dict)
    validation: dict[str, Any] = field(default_factory=dict)
    licence: str = ""
    origin: str = field(default="", compare=False)

    @property
    def name(self) -> str:
        """Its name in tables, such as ``LSTM(update,tele)``."""
        return self.config.label

    @property
    def reach(self) -> Reach:
        """The numbers of inner steps that it was meta-trained for and tested to."""
        return reach_of(self.config, self.training, self.name)

    def save(self, path: str | Path) -> None:
        """Write one safetensors file, atomically, in the dtype that the rule has now.

        Args:
            path: the file.

        Raises:
            UserError: if ``load`` could not read the file again, or it cannot be written; one line.
        """
        checkpoint.write(Path(path), self._content(str(path)))

    def save_pretrained(self, folder: str | Path) -> None:
        """Write a folder to share, in the layout of Hugging Face (``hub``).

        The files are ``config.json``, ``model.safetensors`` and a model card ``README.md``; other
        files in the folder stay. A program that loads the folder while it is written gets either
        the old rule or the new one.

        Args:
            folder: the folder; it is made if it does not exist.

        Raises:
            UserError: if the folder cannot be written, or if ``validation`` or ``licence`` is not
                valid; one line.
        """
        hub.write(Path(folder), self._content(str(folder)))

    def __repr__(self) -> str:
        tensors = dict(self.optimizer.named_parameters())
        of = (self.config, self.training, self.reach)
        return f"{printable(self.name)}\n{aligned(brief(*of, tensors, self.licence, self.origin))}"

    def _content(self, source: str) -> Checkpoint:
        """The checkpoint of the rule as it is now, also if it was cast since it was loaded."""
        tensors = dict(self.optimizer.state_dict())
        dtypes = {tensor.dtype for tensor in tensors.values() if tensor.is_floating_point()}
        names = [name for name, dtype in DTYPES.items() if {dtype} == dtypes]
        config = self.config.model_copy(update={"dtype": names[0] if names else self.config.dtype})
        _require_those_of(_on_meta(config), tensors, source)
        reach_of(config, self.training, source)
        written = config.model_dump(mode="json")
        return Checkpoint(tensors, written, self.training, self.validation, self.licence)


def load(path: str | Path, device: torch.device | str = "cpu") -> LearnedRule:
    """Read a learned optimizer; runs no code from the file.

    Args:
        path: one of the following, tried in this order: a file written by ``metaopt train`` or
            ``LearnedRule.save``; a run's folder, whose best optimizer is read; a folder written by
            ``LearnedRule.save_pretrained``; the name of a shipped optimizer, such as
            ``digits_update_tele``; or, as a string, the id ``owner/name`` on the Hugging Face hub.
        device: the device of its parameters.

    Raises:
        CheckpointError: if there is no such optimizer or its file is damaged; one line.
    """
    found, content = hub.read(path)
    rule = restore(found, content, device)
    rule.origin = hub.origin(path, found)
    return rule


def restore(path: Path, content: Checkpoint, device: torch.device | str = "cpu") -> LearnedRule:
    """Make the learned optimizer of a checkpoint; ``path`` is its name in error messages."""
    try:
        config = check(TrainConfig, content.config, f"{path}: metadata field config")
        optimizer = _on_meta(config)
    except ConfigError as error:
        message = str(error)
        prefix = "" if message.startswith(str(path)) else f"{path}: metadata field config: "
        raise CheckpointError(prefix + message) from None
    reach_of(config, content.training, str(path))
    _require_those_of(optimizer, content.tensors, str(path))
    # Copies are aligned in memory as fresh parameters are: BLAS then gives the very same bits.
    tensors = {name: tensor.clone() for name, tensor in content.tensors.items()}
    optimizer.load_state_dict(tensors, assign=True)
    optimizer.to(device)
    engine = optimizer.engine
    scales_units = engine is not None and engine.needs is Need.UNITS
    if content.metaopt_version in UNBOUNDED and scales_units:
        warnings.warn(
            f"{path}: metaopt {content.metaopt_version} wrote this rule, which scaled hidden units "
            f"without a bound; this version bounds what the same network says, so that figures "
            f"change: meta-train it again",
            stacklevel=3,
        )
    origin = hub.origin(path, path)
    about = (content.training, content.validation, content.licence)
    return LearnedRule(optimizer, config, *about, origin)


def _on_meta(config: TrainConfig) -> MetaOptimizer:
    """The optimizer on the meta device, where even absurd sizes in a file take no memory."""
    with torch.device("meta"):
        return meta_optimizer(config)


def _require_those_of(optimizer: MetaOptimizer, tensors: Mapping[str, Tensor], source: str) -> None:
    """Raise ``CheckpointError`` unless names, shapes and dtypes of the tensors fit."""
    expected = {name: (tuple(t.shape), t.dtype) for name, t in optimizer.state_dict().items()}
    found = {
        name: (tuple(t.shape), t.dtype) for name, t in tensors.items() if t.device.type != "meta"
    }
    for name in sorted(expected.keys() | found.keys()):
        if expected.get(name) != found.get(name):
            raise CheckpointError(
                f"{source}: tensor {name}: found {_describe(found.get(name))}, but its config asks "
                f"for {_describe(expected.get(name))}"
            )


def _describe(shape_and_dtype: tuple[tuple[int, ...], torch.dtype] | None) -> str:
    if shape_and_dtype is None:
        return "none"
    shape, dtype = shape_and_dtype
    return f"{list(shape)} of {str(dtype).removeprefix('torch.')}"
