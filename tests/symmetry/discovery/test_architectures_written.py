"""Models written out in torch: what is found, held to every bar."""

from __future__ import annotations

from architectures import table
from architectures.held import Bars
from architectures.table import WRITTEN


class TestWritten(Bars):
    architectures = WRITTEN


def test_the_page_has_the_table() -> None:
    assert table.written() == table.markdown(), "PYTHONPATH=.:tests python -m architectures.table"
