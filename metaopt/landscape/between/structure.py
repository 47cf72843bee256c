"""Whether models are of one structure: the same modules, parameters and buffers by path."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from torch import Tensor, nn

Named = Iterable[tuple[str, Tensor]]


def require_equal_structure(models: Sequence[nn.Module]) -> None:
    """Raise ``ValueError`` if a model has other parameters, buffers or modules than the first.

    Shared tensors count once, so that models of which one ties weights differ. The message names
    the first parameter that differs.

    Args:
        models: at least one.
    """
    first = models[0]
    for number, model in enumerate(models[1:], 1):
        where = (f"model {number}", "model 0")
        require_equal(first.named_parameters(), model.named_parameters(), "parameter", where)
        require_equal(first.named_buffers(), model.named_buffers(), "buffer", where)
        kinds = {path: type(module) for path, module in first.named_modules()}
        for path, module in model.named_modules():
            if path in kinds and kinds[path] is not type(module):
                raise ValueError(
                    f"module {path!r} is a {type(module).__name__} in model {number} and a "
                    f"{kinds[path].__name__} in model 0: models must have one structure"
                )


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
