"""Where float64 is worth it in the action through the data: drift of random teleports.

    python -m benchmarks.drift [--tasks 1024] [--norm 0.5] [--repeats 20]

On uniform 20 by 20 tasks cond(X) is 1e2 to 1e5, and every variant below is exact in exact
arithmetic. Each task is teleported ``repeats`` times in a row by random generators of the given
norm in float32.
Printed: drift of a single teleport (median and largest over tasks and repeats) and time a teleport,
for X^+ computed in float32 or float64, with and without the refinement of W_in, and for the whole
action in float64.
"""

from __future__ import annotations

import argparse
import time
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from metaopt.base.network import LeakyReLU, Weights, forward
from metaopt.base.streams import Stream
from metaopt.symmetry.actions import LayerPair, ThroughData
from metaopt.symmetry.maps import Exponential, GroupElement
from metaopt.tasks.config import TaskConfig
from metaopt.tasks.regression import RegressionFamily, TaskBatch
from metaopt.teleport.guard import drift


class Unrefined(ThroughData):
    """D = C A^+ and no more."""

    def act(self, element: GroupElement, pair: LayerPair) -> LayerPair:
        """g . pair."""
        assert pair.inputs is not None
        assert pair.inputs_pinv is not None
        Z = pair.W_in @ pair.inputs
        C = pair.s.inverse(element.g @ pair.s(Z)) - Z
        return replace(
            pair, W_in=pair.W_in + C @ pair.inputs_pinv, W_out=pair.W_out @ element.g_inv
        )


@dataclass(frozen=True)
class Variant:
    """How the action is computed.

    Attributes:
        name: as printed.
        action: refined or not.
        pinv: dtype in which X^+ is computed.
        dtype: of the action; weights are float32 all the same.
    """

    name: str
    action: ThroughData
    pinv: torch.dtype
    dtype: torch.dtype = torch.float32


VARIANTS = (
    Variant("X^+ in float32", Unrefined(), torch.float32),
    Variant("X^+ in float64", Unrefined(), torch.float64),
    Variant("X^+ in float32, refined", ThroughData(), torch.float32),
    Variant("X^+ in float64, refined (metaopt)", ThroughData(), torch.float64),
    Variant("all in float64", Unrefined(), torch.float64, torch.float64),
)


def teleports(
    tasks: TaskBatch, variant: Variant, norm: float, repeats: int
) -> tuple[Tensor, float]:
    """Drift of each teleport, [repeats, B], and seconds of one."""
    generator = torch.Generator().manual_seed(0)
    X_pinv = torch.linalg.pinv(tasks.X.to(variant.pinv)).to(variant.dtype)
    X = tasks.X.to(variant.dtype)
    exponential = Exponential(max_norm=norm)
    weights: Weights = tasks.initial
    drifts, seconds = [], 0.0
    for _ in range(repeats):
        T = torch.randn(tasks.size, *(2 * [weights[0].shape[1]]), generator=generator)
        T = (norm * T / torch.linalg.matrix_norm(T, keepdim=True)).to(variant.dtype)
        began = time.perf_counter()
        W1, W2 = (W.to(variant.dtype) for W in weights)
        pair = LayerPair(W1, W2, tasks.s, inputs=X, inputs_pinv=X_pinv)
        moved = variant.action.act(exponential(T), pair)
        new = (moved.W_in.float(), moved.W_out.float())
        seconds += time.perf_counter() - began
        drifts.append(drift(outputs(weights, tasks), outputs(new, tasks), norm_of(tasks.Y)))
        weights = new
    return torch.stack(drifts), seconds / repeats


def outputs(weights: Weights, tasks: TaskBatch) -> Tensor:
    """f(W) of float32 weights, computed in float64 so that only the teleport is seen."""
    return forward([W.double() for W in weights], tasks.X.double(), LeakyReLU(0.1)).outputs


def norm_of(Y: Tensor) -> Tensor:
    """||Y||_F in float64."""
    return torch.linalg.matrix_norm(Y.double())


def main() -> None:
    """Print a line for each variant."""
    parser = argparse.ArgumentParser(description="Drift of random teleports by precision.")
    parser.add_argument("--tasks", type=int, default=1024)
    parser.add_argument("--norm", type=float, default=0.5)
    parser.add_argument("--repeats", type=int, default=20)
    arguments = parser.parse_args()
    tasks = RegressionFamily(TaskConfig()).sample(Stream.VALIDATION, 0, 0, arguments.tasks)
    print(f"{arguments.tasks} tasks, {arguments.repeats} teleports of norm {arguments.norm}")
    print(f"{'variant':36s} median drift   largest   ms a teleport")
    for variant in VARIANTS:
        drifts, seconds = teleports(tasks, variant, arguments.norm, arguments.repeats)
        print(
            f"{variant.name:36s} {float(drifts.median()):12.1e} {float(drifts.max()):9.1e} "
            f"{1e3 * seconds:15.2f}"
        )


if __name__ == "__main__":
    main()
