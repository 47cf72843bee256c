"""Whether models are of one structure: the same modules, parameters and buffers by path."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from torch import Tensor, nn
from torch.nn.modules.dropout import _DropoutNd
from torch.nn.utils.parametrize import type_before_parametrizations

from metaopt.symmetry.discovery.find import plain

Named = Iterable[tuple[str, Tensor]]


def require_equal_structure(models: Sequence[nn.Module]) -> None:
    """Raise ``ValueError`` if a model has other parameters, buffers or modules than the first.

    Shared tensors count once, so that models of which one ties weights differ. The message names
    the first that differs. Of settings without tensors those count that a module prints.

    Args:
        models: the models.
    """
    for number, model in enumerate(models[1:], 1):
        first = models[0]
        where = (f"model {number}", "model 0")
        require_equal(first.named_parameters(), model.named_parameters(), "parameter", where)
        require_equal(first.named_buffers(), model.named_buffers(), "buffer", where)
        known = dict(first.named_modules())
        for path, module in model.named_modules():
            if path in known and _described(module) != _described(known[path]):
                raise ValueError(
                    f"module {path!r} is a {_described(module)} in model {number} and a "
                    f"{_described(known[path])} in model 0: models must have one structure"
                )


def _described(module: nn.Module) -> str:
    """Its class, and the settings that it prints (slopes, strides); not how much it drops out."""
    # Each parametrised module has a class of its own.
    name = type_before_parametrizations(module).__name__
    settings = "" if isinstance(module, _DropoutNd) else module.extra_repr()
    return f"{name}({settings})" if settings else name


def plain_models(models: Sequence[nn.Module]) -> list[nn.Module]:
    """The modules inside wrappers, which have one structure.

    Raises:
        ValueError: if one is no module, or another structure than the first's is found.
    """
    if isinstance(models, nn.Module):
        raise ValueError(f"models must be a list of modules, found one {type(models).__name__}")
    for number, model in enumerate(models):
        if not isinstance(model, nn.Module):
            raise ValueError(
                f"models must be modules, with their weights in them: model {number} is a "
                f"{type(model).__name__}"
            )
    found = [plain(model) for model in models]
    require_equal_structure(found)
    return found


def require_equal(wanted: Named, found: Named, what: str, where: tuple[str, str]) -> None:
    """Raise ``ValueError`` at the first tensor that is missing or has another shape or dtype.

    Args:
        wanted: tensors by path.
        found: tensors by path.
        what: what they are, for the message.
        where: where those found and those wanted are, for the message.
    """
    left = dict(found)
    for path, tensor in wanted:
        if path not in left:
            raise ValueError(
                f"{where[0]} has no {what} {path!r}, which {where[1]} has: models must have one "
                f"structure"
            )
        other = left.pop(path)
        if (other.shape, other.dtype) != (tensor.shape, tensor.dtype):
            raise ValueError(
                f"{what} {path!r} is {_kind(other)} in {where[0]} and {_kind(tensor)} in "
                f"{where[1]}: models must have one structure"
            )
    for path in left:
        raise ValueError(
            f"{where[0]} has a {what} {path!r}, which {where[1]} lacks: models must have one "
            f"structure"
        )


def _kind(tensor: Tensor) -> str:
    return f"{str(tensor.dtype).removeprefix('torch.')} {list(tensor.shape)}"
