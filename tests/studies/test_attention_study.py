"""The study of attention: its controls differ from the pair, and it is made of pieces."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from running import figures_in_small

from studies import attention
from studies.attention import LEARNED, PAIR, SMOKE, Piece, optimizer_of, tasks_of
from studies.lora.contenders import UNKNOWN, off


def test_the_command_in_small(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """All rows are there; the controls leave the pair at the second step at the latest."""
    options = attention.OPTIONS | {"width": 8, "heads": 2, "judged": 20}
    monkeypatch.setattr(attention, "OPTIONS", options)
    rows = figures_in_small(monkeypatch, tmp_path, attention.main, "--jobs", "1")["rows"]
    losses = {name: np.array(row["losses"]) for name, row in rows.items()}
    assert set(losses) == {*LEARNED, "AdamW, cosine told the column"}
    assert all(found.shape == (len(SMOKE.marks), SMOKE.tasks) for found in losses.values())
    for control in (off(PAIR), f"{PAIR}{UNKNOWN}"):
        assert not np.allclose(losses[control], losses[PAIR]), control


def test_who_knows_no_pairs_has_a_frame_along_them(monkeypatch: pytest.MonkeyPatch) -> None:
    options = attention.OPTIONS | {"width": 8, "heads": 2, "judged": 20}
    monkeypatch.setattr(attention, "OPTIONS", options)
    tasks = tasks_of(SMOKE)
    observation = tasks.at(0).observe(tasks.initial)
    knows, other = (
        optimizer_of(Piece(row, 1.0, 2)).initial_rule_states(observation)["update"]
        for row in (off(PAIR), f"{PAIR}{UNKNOWN}")
    )
    assert set(other) < set(knows)
