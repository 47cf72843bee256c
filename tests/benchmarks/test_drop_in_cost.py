"""The benchmark of a drop-in step counts what is there."""

from __future__ import annotations

import torch

from benchmarks.drop_in import LR, SMALL, SMOKE, rows, table
from benchmarks.drop_in_rivals import ADAMW, makers


def test_bytes_of_state_are_those_of_the_networks() -> None:
    found = {(row.model, row.optimizer): row for row in rows(SMOKE, torch.device("cpu"))}
    rivals = makers(LR)
    assert {name for model, name in found if model == SMALL} >= {ADAMW, "Adam", *rivals}
    for (model, name), row in found.items():
        assert row.mean > 0
        if name in (ADAMW, "Adam"):
            tensors = {"chain": 2, SMALL: 6}.get(model, 4)
            # Two means, and a count of steps for each tensor.
            assert row.state_bytes == 8 * row.parameters + 4 * tensors
            continue
        if model == SMALL or name in rivals:
            assert (row.state_bytes > 0) == (name in rivals)
            continue
        inputs, hidden = SMOKE.inputs, SMOKE.hidden
        biases = 0 if model == "chain" else inputs + hidden
        assert row.parameters == 2 * inputs * hidden + biases
        assert row.seconds > 0
        tensors = 2 if biases == 0 else 4
        # Two cells of 20 in float32, h and c of each, for each entry.
        of_entry = 2 * 2 * 20 * 4
        tensors_of_layers = 2 * 2 * 20 * 4 + 3 * 4
        if name.startswith("layer"):
            # Three means, one of squares; a row of cells and three numbers for each tensor.
            wanted = 16 * row.parameters + tensors_of_layers * tensors
            if name.endswith("tele)"):
                # A row of cells and two running means for each unit, and a count.
                wanted += (2 * 2 * 20 + 2) * 4 * hidden + 4
            assert row.state_bytes == wanted
        elif name.endswith(("(update)", "alone")):
            # And the sum of squares, for each tensor.
            assert row.state_bytes == of_entry * row.parameters + 4 * tensors
        elif name.endswith("tele)"):
            assert row.state_bytes == of_entry * (row.parameters + hidden**2) + 4 * tensors
        else:
            assert row.state_bytes == 0
    lines = table([*found.values()]).splitlines()
    assert len(lines) == len(found) + 6
    teleports = [line for line in lines if line.startswith("A teleport of ")]
    assert len(teleports) == 2
