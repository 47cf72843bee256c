"""The tensors of a module, parameters and buffers, by path."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn


def tensors_of_model(model: nn.Module) -> dict[str, Tensor]:
    """All parameters and buffers by path, each once, detached and not copied."""
    named = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    return {path: tensor.detach() for path, tensor in named.items()}


@torch.no_grad()
def set_tensors(model: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    """Write parameters and buffers in place.

    Raises:
        ValueError: if the model has no tensor at a path, or one of another shape.
    """
    own = tensors_of_model(model)
    require_fitting(own, tensors)
    for path, tensor in tensors.items():
        own[path].copy_(tensor)


def require_fitting(own: Mapping[str, Tensor], tensors: Mapping[str, Tensor]) -> None:
    """Raise ``ValueError`` if a path is none of a model's own, or a shape is another.

    Args:
        own: the model's tensors by path.
        tensors: those that are to take their places.
    """
    for path, tensor in tensors.items():
        if path not in own:
            raise ValueError(f"the model has no parameter or buffer {path!r}")
        if own[path].shape != tensor.shape:
            raise ValueError(
                f"{path!r} has shape {list(own[path].shape)} in the model, found "
                f"{list(tensor.shape)}"
            )
