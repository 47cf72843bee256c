"""The symmetries of a model of the user's own: ``metaopt show MODEL.py:build``.

Unlike a checkpoint, MODEL.py is code, and it is run: show files that you would run yourself.
"""

from __future__ import annotations

import sys
import traceback
from collections.abc import Callable
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from typing import Any

from torch import nn

from metaopt.base.errors import UserError, shown
from metaopt.symmetry.discovery.find import symmetries


def names_a_function(source: str) -> bool:
    """Whether ``source`` has the form FILE.py:FUNCTION."""
    return source.rpartition(":")[0].endswith(".py")


def report(source: str) -> str:
    """The model's class and size, and its symmetries, permutations too.

    Args:
        source: FILE.py:FUNCTION. The function is called without arguments and returns a model, or
            a model and an example of its inputs, as of ``metaopt.symmetries``.

    Raises:
        UserError: if there is no such function, it fails, or it returns something else.
    """
    model, example = _built(source)
    count = sum(parameter.numel() for parameter in model.parameters())
    found = _called(source, lambda: symmetries(model, example, permutations=True))
    return f"{source}: {type(model).__name__}, {count:,} parameters\n\n{found}"


def _built(source: str) -> tuple[nn.Module, Any]:
    name, _, function = source.rpartition(":")
    file = Path(name)
    if not file.is_file():
        raise UserError(f"{source}: there is no file {name}")
    spec = spec_from_file_location(file.stem, file)
    if spec is None or spec.loader is None:
        raise UserError(f"{source}: {name} is no Python file")
    module = module_from_spec(spec)
    # What it imports from beside itself is found, as if it were run as a script.
    sys.path.insert(0, str(file.resolve().parent))
    sys.modules.setdefault(file.stem, module)
    loader = spec.loader
    _called(source, lambda: loader.exec_module(module))
    build = getattr(module, function, None)
    if not callable(build):
        raise UserError(
            f"{source}: {name} has no function {function!r}, expected one without arguments that "
            f"returns a model, or a model and an example of its inputs"
        )
    built = _called(source, build)
    model, example = built if isinstance(built, tuple) and len(built) == 2 else (built, None)
    if not isinstance(model, nn.Module):
        raise UserError(
            f"{source}: {function} returns {shown(built)}, expected a torch.nn.Module, or a "
            f"module and an example of its inputs"
        )
    return model, example


def _called(source: str, function: Callable[[], Any]) -> Any:
    """What a function returns; where the user's code fails, that in one line."""
    try:
        return function()
    except (Exception, SystemExit) as error:
        file = Path(source.rpartition(":")[0]).resolve()
        own = [
            frame.lineno
            for frame in traceback.extract_tb(error.__traceback__)
            if Path(frame.filename).resolve() == file
        ]
        place = f"line {own[-1]}, " if own else ""
        raise UserError(f"{source}: {place}{type(error).__name__}: {error}") from error
