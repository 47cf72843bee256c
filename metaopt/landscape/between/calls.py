"""Calls of a model: its arguments, its device, its modes."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from metaopt.landscape.data import arguments_of, tensors_of, with_tensors


def device_of(model: nn.Module) -> torch.device:
    """Where a model's first parameter lies; the CPU if it has none."""
    return next((p.device for p in model.parameters()), torch.device("cpu"))


def on_device(inputs: Any, device: torch.device) -> Any:
    """The same inputs with their tensors on a device."""
    return with_tensors(inputs, (x.to(device, non_blocking=True) for x in tensors_of(inputs)))


def called(model: nn.Module, inputs: Any) -> Any:
    """The outputs of a model whose inputs are a tensor, a tuple, or a mapping of keywords."""
    arguments, keywords = arguments_of(inputs)
    return model(*arguments, **keywords)


def scalar(loss: Tensor) -> Tensor:
    """A loss as a tensor without axes.

    Raises:
        ValueError: if it is not one number, as a loss of each sample.
    """
    if loss.numel() != 1:
        raise ValueError(
            f"loss must return a scalar, the mean over the samples, found shape {list(loss.shape)}"
        )
    return loss.reshape(())


@contextmanager
def modes_kept(model: nn.Module) -> Iterator[None]:
    """After it, all modules are in training or evaluation mode as they were before."""
    modes = [(module, module.training) for module in model.modules()]
    try:
        yield
    finally:
        for module, mode in modes:
            module.training = mode


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """A model in evaluation mode, and then in the modes that its modules were in."""
    with modes_kept(model):
        model.eval()
        yield
