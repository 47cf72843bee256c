"""Pages whose code runs, and prints what stands there, up to rounding."""

from __future__ import annotations

import re
from contextlib import redirect_stdout
from io import StringIO
from typing import Any

import pytest
import torch
from places import ROOT

NUMBER = r"-?\d+\.?\d*(?:e[-+]\d+)?"


def require_printed(page: str, rounding: float) -> None:
    """The blocks of Python print what the blocks of text behind them show, and nothing else.

    Args:
        page: its name in docs/guide.
        rounding: numbers that are no larger are not compared.
    """
    content = (ROOT / "docs" / "guide" / page).read_text(encoding="utf-8")
    blocks = re.findall(r"^```(python|text)\n(.*?)^```", content, flags=re.M | re.S)
    assert {kind for kind, _ in blocks} == {"python", "text"}
    names: dict[str, Any] = {}
    printed, before = StringIO(), torch.get_default_dtype()
    try:
        for kind, block in blocks:
            if kind == "python":
                with redirect_stdout(printed):
                    exec(block, names)
            else:
                _require_equal(block, printed.getvalue(), rounding)
                printed = StringIO()
    finally:
        torch.set_default_dtype(before)
    assert printed.getvalue() == ""


def _require_equal(text: str, found: str, rounding: float) -> None:
    assert re.sub(NUMBER, "", text).split() == re.sub(NUMBER, "", found).split()
    for expected, number in zip(_numbers(text), _numbers(found), strict=True):
        if abs(expected) > rounding:
            assert number == pytest.approx(expected, rel=2e-2)


def _numbers(text: str) -> list[float]:
    return [float(found) for found in re.findall(NUMBER, text)]
