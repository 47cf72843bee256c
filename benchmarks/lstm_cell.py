"""The package's LSTM cell against ``torch.nn.LSTMCell``, forward and backward, in one run.

    python -m benchmarks.lstm_cell

Rows are trajectories (flattened rules) or the weights of each of some trajectories, in blocks
(coordinate-wise ones). Printed: milliseconds a
step within windows of 10, medians of 5, and the ratio.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable

import torch

from metaopt.rules.learned.affine import one_window
from metaopt.rules.learned.lstm import LSTM

WINDOW = 10
SHAPES = (((64,), 800, 300), ((8, 800), 5, 20), ((8, 400), 9, 20), ((64, 800), 5, 20))


def milliseconds(run: Callable[[], None]) -> float:
    """A step of ``run``, which takes WINDOW of them."""
    run()
    measured = []
    for _ in range(5):
        began = time.perf_counter()
        run()
        measured.append(1e3 * (time.perf_counter() - began) / WINDOW)
    return statistics.median(measured)


def compare(shape: tuple[int, ...], inputs: int, hidden: int) -> tuple[float, float]:
    """torch's cell and ours, one layer each; ``shape`` is (rows,) or (blocks, rows)."""
    *blocks, rows = shape
    cell = torch.nn.LSTMCell(inputs, hidden)
    ours = LSTM(inputs, hidden, seed=0, name="benchmark", layers=1)
    generator = torch.Generator().manual_seed(0)
    columns = torch.randn(*blocks, inputs, rows, generator=generator)
    x = columns.movedim(-2, -1).reshape(-1, inputs)

    def theirs() -> None:
        state = (x.new_zeros(len(x), hidden), x.new_zeros(len(x), hidden))
        for _ in range(WINDOW):
            state = cell(x, state)
        state[0].sum().backward()

    def own() -> None:
        state = ours.initial_state(*shape)
        h = columns
        with one_window():
            for _ in range(WINDOW):
                h, state = ours(columns, state)
        h.sum().backward()

    return milliseconds(theirs), milliseconds(own)


def main() -> None:
    """Print a line for each shape."""
    print("blocks   rows inputs hidden   nn.LSTMCell   metaopt   ratio   (ms a step)")
    for shape, inputs, hidden in SHAPES:
        theirs, own = compare(shape, inputs, hidden)
        ratio = theirs / own
        sizes = f"{shape[0] if len(shape) > 1 else 1:6d} {shape[-1]:6d} {inputs:6d} {hidden:6d}"
        print(f"{sizes} {theirs:13.3f} {own:9.3f} {ratio:7.2f}")


if __name__ == "__main__":
    main()
