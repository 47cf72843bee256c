"""The package's LSTM cell against ``torch.nn.LSTMCell``, forward and backward, in one run.

    python -m benchmarks.lstm_cell

Rows are trajectories (flattened rules) or weights (coordinate-wise ones). Printed: milliseconds a
step within windows of 10, medians of 5, and the ratio.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable

import torch

from metaopt.rules import LSTM

WINDOW = 10
SHAPES = ((64, 800, 300), (6400, 5, 20), (3200, 9, 20), (51200, 5, 20))


def milliseconds(run: Callable[[], None]) -> float:
    """A step of ``run``, which takes WINDOW of them."""
    run()
    measured = []
    for _ in range(5):
        began = time.perf_counter()
        run()
        measured.append(1e3 * (time.perf_counter() - began) / WINDOW)
    return statistics.median(measured)


def compare(rows: int, inputs: int, hidden: int) -> tuple[float, float]:
    """torch's cell and ours, one layer each."""
    cell = torch.nn.LSTMCell(inputs, hidden)
    ours = LSTM(inputs, hidden, seed=0, name="benchmark", layers=1)
    x = torch.randn(rows, inputs, generator=torch.Generator().manual_seed(0))
    columns = x.T.contiguous()

    def theirs() -> None:
        state = (x.new_zeros(rows, hidden), x.new_zeros(rows, hidden))
        for _ in range(WINDOW):
            state = cell(x, state)
        state[0].sum().backward()

    def own() -> None:
        state = ours.initial_state(rows)
        h = columns
        for _ in range(WINDOW):
            h, state = ours(columns, state)
        h.sum().backward()

    return milliseconds(theirs), milliseconds(own)


def main() -> None:
    """Print a line for each shape."""
    print("  rows inputs hidden   nn.LSTMCell   metaopt   ratio   (ms a step)")
    for rows, inputs, hidden in SHAPES:
        theirs, own = compare(rows, inputs, hidden)
        ratio = theirs / own
        print(f"{rows:6d} {inputs:6d} {hidden:6d} {theirs:13.3f} {own:9.3f} {ratio:7.2f}")


if __name__ == "__main__":
    main()
