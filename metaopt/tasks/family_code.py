"""Finds the user's code that a family's class depends on, definition by definition.

The walk starts at the class and its bases and follows every name in a definition: functions,
classes and variables of the same module and of the user's other modules. Comments, docstrings,
layout and definitions that are never named do not count. Names that exist only at run time
(``getattr``) are not seen.
"""

from __future__ import annotations

import ast
import copy
import hashlib
import importlib.util
import sys
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from importlib.abc import InspectLoader
from pathlib import Path
from types import ModuleType
from typing import Any

_IMPORTS = (ast.Import, ast.ImportFrom)
_DEFINITIONS = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)
_DOCUMENTED = (*_DEFINITIONS, ast.Module)
_INSTALLED = {"site-packages", "dist-packages"}


@dataclass
class _Source:
    """A module of the user's: the statements that bind each name, and other code run at import."""

    binding: dict[str, list[ast.stmt]] = field(default_factory=lambda: defaultdict(list))
    imported: dict[str, list[tuple[str, str]]] = field(default_factory=lambda: defaultdict(list))
    stars: list[str] = field(default_factory=list)
    running: list[ast.stmt] = field(default_factory=list)


@dataclass
class Code:
    """Digests of definitions by ``module.name``, and the values of those that are variables."""

    digests: dict[str, str] = field(default_factory=dict)
    variables: dict[str, Any] = field(default_factory=dict)


def code_of(family: type) -> Code:
    """The definitions that a class depends on; empty for classes of this package."""
    top = family.__module__.partition(".")[0]
    walk = _Walk(top)
    walk.pending = [(c.__module__, c.__qualname__.partition(".")[0]) for c in family.__mro__]
    while walk.pending:
        walk.visit(*walk.pending.pop())
    return walk.found


class _Walk:
    """Walks from name to name.

    Args:
        top: the top package of the class; all of its modules count as the user's.
    """

    def __init__(self, top: str) -> None:
        self.found = Code()
        self.pending: list[tuple[str, str]] = []
        self._top = top
        self._seen: set[tuple[str, str]] = set()
        self._sources: dict[str, _Source] = {}

    def visit(self, module: str, name: str) -> None:
        """Record the definition of a name in a module, and queue the names in it."""
        if (module, name) in self._seen or not _is_users(module, self._top):
            return
        self._seen.add((module, name))
        source = self._source(module)
        if name == "*":
            self.pending += [(module, each) for each in (*source.binding, *source.imported)]
        if statements := source.binding.get(name):
            self._take(statements, module, f"{module}.{name}")
            if not isinstance(statements[-1], _DEFINITIONS):
                value = getattr(sys.modules[module], name, None)
                self.found.variables[f"{module}.{name}"] = value
        elif name in source.imported:
            self._follow(module, name, ())
        else:
            self.pending += [(star, name) for star in source.stars]

    def _source(self, module: str) -> _Source:
        if module not in self._sources:
            self._sources[module] = _source(module)
            if running := self._sources[module].running:
                self._take(running, module, f"{module} (what it runs)")
        return self._sources[module]

    def _take(self, statements: list[ast.stmt], module: str, named: str) -> None:
        self.found.digests[named] = _digest(statements)
        for root, attributes in (found for one in statements for found in _chains(one)):
            if root in self._sources[module].imported:
                self._follow(module, root, attributes)
            if root not in self._sources[module].imported or root in self._sources[module].binding:
                self.pending.append((module, root))

    def _follow(self, module: str, root: str, attributes: tuple[str, ...]) -> None:
        """Queue what ``root.a.b`` refers to if ``root`` is imported."""
        origins = self._sources[module].imported[root]
        self.found.digests[f"{module}.{root}"] = _hash(repr(origins))
        for origin, name in origins:
            self.pending += _followed(f"{origin}.{name}" if name else origin, attributes)
            # Importing the module runs it, whatever is used of it.
            self.pending.append((origin, name))


def _is_users(module: str, top: str) -> bool:
    root = module.partition(".")[0]
    file = getattr(sys.modules.get(module), "__file__", None)
    if file is None or root in ("metaopt", *sys.stdlib_module_names):
        return False
    return root == top or not _INSTALLED & {*Path(file).parts}


def _source(module: str) -> _Source:
    found, loaded = _Source(), sys.modules[module]
    tree = ast.parse(_text(loaded))
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                bound = alias.asname or alias.name.partition(".")[0]
                found.imported[bound].append((alias.name if alias.asname else bound, ""))
        elif isinstance(node, ast.ImportFrom):
            origin = _absolute(node, loaded)
            for alias in node.names:
                if alias.name == "*":
                    found.stars.append(origin)
                else:
                    found.imported[alias.asname or alias.name].append((origin, alias.name))
    for statement in tree.body:
        names = _bound(statement)
        for name in names:
            found.binding[name].append(statement)
        if not names and not isinstance(statement, _IMPORTS) and not _is_idle(statement):
            found.running.append(statement)
    return found


def _text(module: ModuleType) -> str:
    loader = getattr(module.__spec__, "loader", None)
    return loader.get_source(module.__name__) or "" if isinstance(loader, InspectLoader) else ""


def _absolute(node: ast.ImportFrom, module: ModuleType) -> str:
    relative = "." * node.level + (node.module or "")
    return importlib.util.resolve_name(relative, module.__package__) if node.level else relative


def _bound(statement: ast.stmt) -> list[str]:
    """The names that a statement at the top of a module binds."""
    if isinstance(statement, _DEFINITIONS):
        return [statement.name]
    targets: list[ast.expr] = []
    if isinstance(statement, ast.Assign):
        targets = statement.targets
    elif isinstance(statement, ast.AnnAssign | ast.AugAssign):
        targets = [statement.target]
    nodes = [node for target in targets for node in ast.walk(target)]
    if any(isinstance(node, ast.Attribute | ast.Subscript) for node in nodes):
        return []
    return [node.id for node in nodes if isinstance(node, ast.Name)]


def _is_idle(statement: ast.stmt) -> bool:
    """Whether a statement is a docstring, or runs only if the module is the main program."""
    if isinstance(statement, ast.Expr):
        return isinstance(statement.value, ast.Constant)
    return isinstance(statement, ast.If) and "__main__" in ast.unparse(statement.test)


def _followed(module: str, attributes: tuple[str, ...]) -> Iterator[tuple[str, str]]:
    """What ``module.a.b`` refers to, if ``module`` is a module; a, b may be modules too."""
    while attributes and f"{module}.{attributes[0]}" in sys.modules:
        module, attributes = f"{module}.{attributes[0]}", attributes[1:]
    if module in sys.modules:
        # If the module itself is passed on, any name in it may be used.
        yield module, attributes[0] if attributes else "*"


def _chains(statement: ast.AST) -> Iterator[tuple[str, tuple[str, ...]]]:
    """All names in a statement, with their attributes: (a, (b, c)) for ``a.b.c``."""
    inner: set[int] = set()
    for node in ast.walk(statement):
        if id(node) in inner:
            continue
        attributes: list[str] = []
        while isinstance(node, ast.Attribute):
            attributes.append(node.attr)
            node = node.value
            inner.add(id(node))
        if isinstance(node, ast.Name):
            yield node.id, tuple(reversed(attributes))


def _digest(statements: list[ast.stmt]) -> str:
    """The digest of statements without comments, docstrings and layout."""
    return _hash("\n".join(ast.unparse(_undocumented(statement)) for statement in statements))


def _undocumented(statement: ast.stmt) -> ast.stmt:
    bare = copy.deepcopy(statement)
    for node in ast.walk(bare):
        if isinstance(node, _DOCUMENTED) and ast.get_docstring(node, clean=False) is not None:
            node.body = node.body[1:] or [ast.Pass()]
    return bare


def _hash(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:16]
