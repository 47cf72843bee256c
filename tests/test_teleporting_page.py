"""docs/guide/teleporting.md: its code runs, and prints what stands there, up to rounding."""

from __future__ import annotations

import re
from contextlib import redirect_stdout
from io import StringIO
from typing import Any

import pytest
import torch
from places import ROOT

PAGE = (ROOT / "docs" / "guide" / "teleporting.md").read_text(encoding="utf-8")
NUMBER = r"-?\d+\.?\d*(?:e[-+]\d+)?"
ROUNDING = 1e-9


def numbers(text: str) -> list[float]:
    return [float(found) for found in re.findall(NUMBER, text)]


def test_the_code_prints_what_the_page_shows() -> None:
    codes = re.findall(r"^```python\n(.*?)^```", PAGE, flags=re.M | re.S)
    shown = re.findall(r"^```text\n(.*?)^```", PAGE, flags=re.M | re.S)
    names: dict[str, Any] = {}
    before = torch.get_default_dtype()
    try:
        for code, text in zip(codes, shown, strict=True):
            printed = StringIO()
            with redirect_stdout(printed):
                exec(code, names)
            found = printed.getvalue()
            assert re.sub(NUMBER, "", text).split() == re.sub(NUMBER, "", found).split()
            for expected, number in zip(numbers(text), numbers(found), strict=True):
                if abs(expected) > ROUNDING:
                    assert number == pytest.approx(expected, rel=2e-2)
    finally:
        torch.set_default_dtype(before)
