"""Names of globals, read from the bytecode as ``dis`` reads it; which objects lead to tensors."""

from __future__ import annotations

import dis
from importlib.util import find_spec
from pathlib import Path
from types import CodeType
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from metaopt.symmetry.discovery.reachable import (
    _global_names,
    _with_nested,
    leading_nowhere,
    reachable,
)

BESIDE: dict[str, Any] = {"tensors": [torch.ones(1)], "numbers": [1, 2]}
CIRCLE: list[object] = []
CIRCLE.append([CIRCLE])

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


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Linear(2, 2)
        self.plain = {"circle": CIRCLE, "text": ["a", ("b",)]}

    def forward(self, x: Tensor) -> Tensor:
        shifted: Tensor = self.a(x) + BESIDE["tensors"][0]
        return shifted

    def numbers(self) -> list[object]:
        return [*CIRCLE, self.plain]


def test_what_leads_nowhere_reaches_no_tensor_and_all_else_does() -> None:
    found = reachable([Net()])
    nowhere = leading_nowhere(found)
    assert id(CIRCLE) in nowhere
    assert id(BESIDE) not in nowhere
    assert id(Net.numbers) in nowhere
    assert 10 < len(nowhere) < len(found)
    for thing in found:
        has_tensors = any(isinstance(behind, Tensor) for behind in reachable([thing]))
        assert has_tensors == (id(thing) not in nowhere)


def by_dis(code: CodeType) -> tuple[str, ...]:
    each = dis.get_instructions(code)
    return tuple(dict.fromkeys(i.argval for i in each if i.opname.endswith(("GLOBAL", "_NAME"))))
