"""Part c: when one teleport is enough.

    residual = |<H g, X>| / (|H g| |X|),   X the velocity along the orbit

is 0 where |g| is stationary on the orbit. After a teleport to the orbit's largest gradient it is 0,
and one teleport is enough if gradient flow keeps it there (proposition 3.4): Booth's function does,
as every quadratic does, because the flow stays on an eigenvector; Rosenbrock's does not. What a
second teleport would gain is max_g |g|^2 / |g|^2. With a teleport
at every moment the flow is at f after the time integral of df / max_g |g|^2.

A network has no largest gradient on its orbit, but a smallest one (``metaopt.balance``): there the
residual is 0 too, and training moves it away.

Reference: Zhao, Gower, Walters and Yu, arXiv 2305.13404, section 3.3.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn.functional import mse_loss

from metaopt import balance, criticality
from metaopt.base.streams import Stream, item_generator
from metaopt.base.tables import markdown_table
from studies.noether.claims import Array, Claim, as_json
from studies.noether.folder import Folder
from studies.theory.planes import PLANES, Plane
from studies.theory.told import exact

SEED = 3
MARKS = 40
"""Points of a flow that are kept."""


@dataclass(frozen=True)
class Size:
    """Of the part."""

    depth: float  # the flow ends where f is exp(-depth) of its start
    tolerance: float  # of the flow, relative
    training: int  # steps of gradient descent on the network
    points: int  # of the way on which a teleport is sought at each


FULL = Size(16.0, 1e-11, 300, 400)
SMOKE = Size(2.0, 1e-6, 20, 40)


def flow(plane: Plane, w: Array, size: Size) -> dict[str, Any]:
    """Gradient flow from w: the residual, the gain of a teleport, and the time.

    Returns:
        At ``MARKS`` points, evenly in log f: tau = log(f_0 / f), residual, gain = max_g |g|^2 /
        |g|^2, the points; and the time that the flow takes.
    """
    # Radau's method, as valleys are stiff.
    from scipy.integrate import solve_ivp

    first = float(np.log(plane.loss(w)))

    def fallen(_: float, at: Array) -> float:
        return float(first - np.log(plane.loss(at)) - size.depth)

    fallen.terminal = True  # type: ignore[attr-defined]
    found = solve_ivp(
        lambda _, at: -plane.gradient(at),
        (0.0, 1e6),
        w,
        method="Radau",
        jac=lambda _, at: -plane.hessian(at),
        events=fallen,
        dense_output=True,
        rtol=size.tolerance,
        atol=1e-14,
    )
    time = float(found.t_events[0][0])
    marks: dict[str, list[Any]] = {"tau": [], "residual": [], "gain": [], "points": []}
    for tau in np.linspace(0, size.depth, MARKS, endpoint=False):
        low, high = 0.0, time
        for _ in range(100 if tau else 0):
            middle = (low + high) / 2
            if first - float(np.log(plane.loss(found.sol(middle)))) < tau:
                low = middle
            else:
                high = middle
        there = found.sol(low)
        marks["tau"].append(float(tau))
        marks["residual"].append(float(plane.residual(there)))
        gain = plane.squared(plane.extreme(there)) / plane.squared(there)
        marks["gain"].append(float(gain))
        marks["points"].append(there.tolist())
    return {**marks, "time": time}


def always(plane: Plane, w: Array, size: Size) -> float:
    """The time of a flow that is teleported at every moment."""
    taus = (np.arange(size.points) + 0.5) * (size.depth / size.points)
    start = plane.uv(w)
    times = []
    for tau in taus:
        there = plane.point(start * np.exp(-tau / 2))
        steepest = plane.extreme(there)
        times.append(float(plane.loss(steepest) / plane.squared(steepest)))
    return float(np.sum(times)) * size.depth / size.points


def network(size: Size) -> dict[str, Any]:
    """A small network after ``balance`` by gradient: the residual along gradient descent."""
    draws = item_generator(Stream.THEORY_STUDY, SEED, 0)

    def normal(*shape: int) -> torch.Tensor:
        return torch.from_numpy(draws.standard_normal(shape))

    model = nn.Sequential(nn.Linear(6, 8), nn.LeakyReLU(0.1), nn.Linear(8, 3)).double()
    for parameter in model.parameters():
        parameter.data.copy_(0.5 * normal(*parameter.shape))
    data = normal(64, 6), normal(64, 3)
    before = criticality(model, mse_loss, data).residual
    balance(model, "gradient", loss=mse_loss, data=data)
    found = [criticality(model, mse_loss, data).residual]
    optimizer = torch.optim.SGD(model.parameters(), lr=0.02)
    for step in range(size.training):
        optimizer.zero_grad()
        mse_loss(model(data[0]), data[1]).backward()
        optimizer.step()
        if len(found) < 10 or step == size.training - 1:
            found.append(criticality(model, mse_loss, data).residual)
    return {"before": before, "along": found}


def part(size: Size, folder: Folder) -> dict[str, Any]:
    """All of it, a piece for each function and one for the network."""
    pieces = {
        name: folder.kept(name, partial(measured, size, plane)) for name, plane in PLANES.items()
    }
    net = folder.kept("network", partial(network, size))
    booth, rosenbrock = (pieces[name]["one"] for name in PLANES)
    worst, gain = max(rosenbrock["residual"]), max(rosenbrock["gain"])
    claims: list[Claim] = [
        exact("Booth: residual along the flow, the largest", max(booth["residual"]), "<", 1e-6),
        exact("Booth: gain of a second teleport, the largest", max(booth["gain"]), "=", 1, 1e-9),
        exact("Rosenbrock: residual at the teleport", rosenbrock["residual"][0], "<", 1e-6),
        exact("Rosenbrock: residual along the flow, the largest", worst, ">", 0.1),
        exact("Rosenbrock: gain of a second teleport, the largest", gain, ">", 2),
        exact("network, balanced by gradient: residual", net["along"][0], "<", 1e-10),
        exact("the same after training", net["along"][-1], ">", 1e-3),
    ]
    rows = []
    for name, piece in pieces.items():
        never, once, every = piece["never"]["time"], piece["one"]["time"], piece["always"]
        rows.append([name, f"{never:.4g}", f"{once:.4g}", f"{every:.4g}", f"{once / every:.4g}"])
    heads = ["function", "no teleport", "one, at the start", "at every moment", "one / every"]
    return {
        "claims": as_json(claims),
        "tables": [
            f"Time of gradient flow until f is exp(-{size.depth:g}) of its start.\n\n"
            + markdown_table(heads, rows)
        ],
        "pieces": pieces,
        "network": net,
    }


def measured(size: Size, plane: Plane) -> dict[str, Any]:
    """Of one function."""
    start = np.array(plane.start)
    return {
        "never": flow(plane, start, size),
        "one": flow(plane, plane.extreme(start), size),
        "always": always(plane, start, size),
    }
