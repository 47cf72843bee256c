"""docs/guide/orbit.md: its code runs, and prints what stands there, up to rounding."""

from __future__ import annotations

import re
from contextlib import redirect_stdout
from io import StringIO

import pytest
import torch
from places import ROOT

PAGE = (ROOT / "docs" / "guide" / "orbit.md").read_text(encoding="utf-8")
NUMBER = r"-?\d+\.?\d*(?:e[-+]\d+)?"
ROUNDING = 1e-12


def numbers(text: str) -> list[float]:
    return [float(found) for found in re.findall(NUMBER, text)]


def test_the_code_prints_what_the_page_shows() -> None:
    (code,) = re.findall(r"^```python\n(.*?)^```", PAGE, flags=re.M | re.S)
    (shown,) = re.findall(r"^```text\n(.*?)^```", PAGE, flags=re.M | re.S)
    printed, before = StringIO(), torch.get_default_dtype()
    try:
        with redirect_stdout(printed):
            exec(code, {})
    finally:
        torch.set_default_dtype(before)
    assert re.sub(NUMBER, "", shown).split() == re.sub(NUMBER, "", printed.getvalue()).split()
    for expected, found in zip(numbers(shown), numbers(printed.getvalue()), strict=True):
        if abs(expected) > ROUNDING:
            assert found == pytest.approx(expected, rel=2e-2)
