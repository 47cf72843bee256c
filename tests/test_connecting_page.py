"""docs/guide/connecting.md: its code runs, and prints what stands there, up to rounding."""

from __future__ import annotations

import re
from contextlib import redirect_stdout
from io import StringIO
from typing import Any

import pytest
import torch
from places import ROOT

PAGE = (ROOT / "docs" / "guide" / "connecting.md").read_text(encoding="utf-8")
NUMBER = r"-?\d+\.?\d*(?:e[-+]\d+)?"
ROUNDING = 1e-9


def numbers(text: str) -> list[float]:
    return [float(found) for found in re.findall(NUMBER, text)]


def test_the_code_prints_what_the_page_shows() -> None:
    codes = re.findall(r"^```python\n(.*?)^```", PAGE, flags=re.M | re.S)
    (text,) = re.findall(r"^```text\n(.*?)^```", PAGE, flags=re.M | re.S)
    printed, before = StringIO(), torch.get_default_dtype()
    names: dict[str, Any] = {}
    try:
        with redirect_stdout(printed):
            for code in codes:
                exec(code, names)
    finally:
        torch.set_default_dtype(before)
    found = printed.getvalue()
    assert re.sub(NUMBER, "", text).split() == re.sub(NUMBER, "", found).split()
    for expected, number in zip(numbers(text), numbers(found), strict=True):
        if abs(expected) > ROUNDING:
            assert number == pytest.approx(expected, rel=2e-2)
