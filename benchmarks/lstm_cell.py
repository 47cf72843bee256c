"""The package's LSTM cell against ``torch.nn.LSTMCell``, forward and backward, in one run.

    python -m benchmarks.lstm_cell

Rows are trajectories (flattened rules) or the weights of each of some trajectories, in blocks
(coordinate-wise ones). Printed: milliseconds a step within windows of 10, medians of 5 in turns,
and the ratio.
"""

from __future__ import annotations

import torch

from benchmarks.timing import Side, compare
from metaopt.rules.learned.affine import one_window
from metaopt.rules.learned.lstm import LSTM

WINDOW = 10
REPEATS = 5
SHAPES = (((64,), 800, 300), ((8, 800), 5, 20), ((8, 400), 9, 20), ((64, 800), 5, 20))


def seconds(shape: tuple[int, ...], inputs: int, hidden: int) -> dict[str, float]:
    """Of a step of torch's cell and of ours, one layer each; ``shape`` ends with rows."""
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

    sides = {"theirs": Side(theirs, WINDOW), "own": Side(own, WINDOW)}
    return compare(sides, torch.device("cpu"), REPEATS)


def main() -> None:
    """Print a line for each shape."""
    print("blocks   rows inputs hidden   nn.LSTMCell   metaopt   ratio   (ms a step)")
    for shape, inputs, hidden in SHAPES:
        found = seconds(shape, inputs, hidden)
        theirs, own = 1e3 * found["theirs"], 1e3 * found["own"]
        sizes = f"{shape[0] if len(shape) > 1 else 1:6d} {shape[-1]:6d} {inputs:6d} {hidden:6d}"
        print(f"{sizes} {theirs:13.3f} {own:9.3f} {theirs / own:7.2f}")


if __name__ == "__main__":
    main()
