"""English text that every Python has: what its standard library says of itself.

The texts of ``pydoc_data.topics`` are not among them: ``studies.rivals`` judges rules by those.
"""

from __future__ import annotations

import inspect
import re
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from functools import cache
from importlib import import_module

import torch
from torch import Tensor

from metaopt.base.errors import UserError

MODULES = (
    "argparse",
    "ast",
    "base64",
    "bisect",
    "calendar",
    "cmd",
    "codecs",
    "collections",
    "configparser",
    "contextlib",
    "copy",
    "csv",
    "dataclasses",
    "datetime",
    "decimal",
    "difflib",
    "email",
    "enum",
    "filecmp",
    "fnmatch",
    "fractions",
    "functools",
    "graphlib",
    "heapq",
    "hmac",
    "html",
    "inspect",
    "itertools",
    "json",
    "linecache",
    "logging",
    "math",
    "numbers",
    "operator",
    "pickle",
    "pprint",
    "queue",
    "random",
    "re",
    "sched",
    "secrets",
    "shelve",
    "shlex",
    "shutil",
    "statistics",
    "string",
    "struct",
    "subprocess",
    "tempfile",
    "textwrap",
    "threading",
    "timeit",
    "tokenize",
    "traceback",
    "unittest",
    "urllib.parse",
    "uuid",
    "warnings",
    "weakref",
    "xml.etree.ElementTree",
    "zipfile",
)
UNKNOWN, MASK = 0, 1
"""The tokens of what is not in the vocabulary, and of what is hidden."""


@cache
def corpus() -> str:
    """The documentation strings of ``MODULES``, their public classes, methods and functions.

    They come in the order of their names, in lower case, with single spaces between words.

    Raises:
        UserError: under ``python -OO``, which drops most of them.
    """
    return documentation(MODULES)


def documentation(modules: Sequence[str]) -> str:
    """The documentation strings of modules, as those of ``corpus``.

    Args:
        modules: their names.

    Raises:
        UserError: under ``python -OO``, which drops most of them.
    """
    if sys.flags.optimize > 1:
        raise UserError("documentation strings: found python -OO, expected Python without it")
    found = " ".join(text for name in modules for text in _texts(name))
    return " ".join(found.lower().split())


def _texts(name: str) -> Iterator[str]:
    module = import_module(name)
    yield inspect.getdoc(module) or ""
    for key, part in sorted(vars(module).items()):
        # What is written in C says so by an underscore: _heapq.
        mine = getattr(part, "__module__", None) in (name, f"_{name}")
        if key.startswith("_") or not (callable(part) and mine):
            continue
        yield inspect.getdoc(part) or ""
        if inspect.isclass(part):
            for method, does in sorted(vars(part).items()):
                if not method.startswith("_") and callable(does):
                    yield inspect.getdoc(does) or ""


@cache
def tokens(unit: str, vocabulary: int) -> Tensor:
    """The corpus as numbers, int64 [L]: the most frequent units have one each, from 2 on.

    Args:
        unit: ``characters``, or ``words``: runs of letters, and single other characters.
        vocabulary: the number of all tokens, ``UNKNOWN`` and ``MASK`` among them.
    """
    text = corpus()
    found = list(text) if unit == "characters" else re.findall(r"[a-z]+|[^\sa-z]", text)
    # By name where the count is the same, so that no order of a dictionary matters.
    frequent = sorted(Counter(found).items(), key=lambda item: (-item[1], item[0]))
    known = {part: i + 2 for i, (part, _) in enumerate(frequent[: vocabulary - 2])}
    return torch.tensor([known.get(part, UNKNOWN) for part in found])
