"""``refresh_batchnorm(model, data)``: running statistics of the weights that a model has.

    mean <- mean + b / (n + b) (mean of the batch - mean),   the variance likewise

n samples came before a batch of b samples.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase

from metaopt.landscape.data import Data, pairs_of, tensors_of, with_tensors
from metaopt.symmetry.discovery.find import plain


def with_statistics(model: nn.Module) -> list[_NormBase]:
    """The normalisations of a model that keep running statistics."""
    return [
        module
        for module in model.modules()
        if isinstance(module, _NormBase) and module.running_mean is not None
    ]


@torch.no_grad()
def refresh_batchnorm(model: nn.Module, data: Data) -> None:
    """Set the running statistics of batch normalisation to those of the data, in place.

        mean <- mean + b / (n + b) (mean of the batch - mean),   the variance likewise

    Statistics are forgotten first. Then the data go through the model once, each batch normalised
    by its own statistics, and all else as in evaluation (no dropout). The result is the mean of
    the batches' means and (unbiased) variances, weighted by their numbers of samples; with one
    batch it is the mean and variance of the data. Modes, momenta and all other buffers are then as
    they were. Weights that are interpolated need this: no running statistics belong to them, since
    those of the ends were gathered with other weights.

    Args:
        model: any module, on any device; one without running statistics stays as it is, and does
            not see the data.
        data: a pair (inputs, targets), or an iterable of such pairs (see ``metaopt.noise``). The
            targets are not used. Batches should be as large as those of training.

    Raises:
        ValueError: if the data are none of these, or hold no samples.

    References:
        Garipov et al., arXiv 1802.10026, and their code; Jordan et al., arXiv 2211.08403.
    """
    model = plain(model)
    layers = with_statistics(model)
    if not layers:
        return
    device = next((p.device for p in model.parameters()), torch.device("cpu"))
    seen = 0
    with _gathering(model, layers):
        for inputs, targets in pairs_of(data):
            if len(targets) == 0:
                continue
            seen += len(targets)
            for layer in layers:
                layer.momentum = len(targets) / seen
            called(model, with_tensors(inputs, (x.to(device) for x in tensors_of(inputs))))
    if seen == 0:
        raise ValueError("data hold no samples")


def called(model: nn.Module, inputs: Any) -> Any:
    """The outputs of a model whose inputs are a tensor, a tuple, or a mapping of keywords."""
    if isinstance(inputs, Mapping):
        return model(**inputs)
    return model(*inputs) if isinstance(inputs, tuple | list) else model(inputs)


@contextmanager
def _gathering(model: nn.Module, layers: list[_NormBase]) -> Iterator[None]:
    """Layers that gather statistics within a model that does not train."""
    modes = {module: module.training for module in model.modules()}
    momenta = [layer.momentum for layer in layers]
    others = _buffers_of_others(model, layers)
    kept = [(buffer, buffer.clone()) for buffer in others]
    try:
        model.eval()
        for layer in layers:
            layer.reset_running_stats()
            layer.training = True
        yield
    finally:
        for module, training in modes.items():
            module.training = training
        for layer, momentum in zip(layers, momenta, strict=True):
            layer.momentum = momentum
        for buffer, value in kept:
            buffer.copy_(value)


def _buffers_of_others(model: nn.Module, layers: list[_NormBase]) -> list[Tensor]:
    own = {id(buffer) for layer in layers for buffer in layer.buffers(recurse=False)}
    return [buffer for buffer in model.buffers() if id(buffer) not in own]
