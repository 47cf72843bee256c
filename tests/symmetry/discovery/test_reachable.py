"""Names of globals, read from the bytecode as ``dis`` reads it."""

from __future__ import annotations

import dis
from importlib.util import find_spec
from pathlib import Path
from types import CodeType

import pytest

from metaopt.symmetry.discovery.reachable import _global_names, _with_nested

LINES = "; ".join(f"a{i} = b{i} + c.a{i}; del b{i}" for i in range(300))
"""More names than one byte counts, and each of them as an attribute too."""
GLOBALS = f"def f():\n global {', '.join(f'a{i}, b{i}' for i in range(300))}\n {LINES}"


def code_of(module: str) -> CodeType:
    found = find_spec(module)
    assert found is not None
    assert found.origin is not None
    return compile(Path(found.origin).read_text(encoding="utf-8"), found.origin, "exec")


@pytest.mark.parametrize("source", [LINES, GLOBALS])
def test_many_names(source: str) -> None:
    parts = [*_with_nested(compile(source, "many", "exec"))]
    assert max(len(_global_names(part)) for part in parts) > 256
    assert all(by_dis(part) == _global_names(part) for part in parts)


@pytest.mark.parametrize(
    "module", ["argparse", "typing", "asyncio.tasks", "torch.nn.modules.module"]
)
def test_names_of_real_code(module: str) -> None:
    parts = [*_with_nested(code_of(module))]
    assert len(parts) > 50
    assert all(by_dis(part) == _global_names(part) for part in parts)


def by_dis(code: CodeType) -> tuple[str, ...]:
    each = dis.get_instructions(code)
    return tuple(dict.fromkeys(i.argval for i in each if i.opname.endswith(("GLOBAL", "_NAME"))))
