"""Part b: y = x + n, f(x) = U W x, 30-40-30, loss |y - f|^2: where SGD sharpens, where it flattens.

Half the inputs have variance phi, the others 1; noise is isotropic, or its variances are 1 to 9.
Of both ends of the orbit there is a formula: where noise leads, and the flattest point,

    Tr H = 2 (Tr Sx |U|^2 + m Tr(W Sx W^T)).

They are one point where the noise is isotropic. Gradient descent keeps the charge, hence the
sharpness, of its start.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor
from tqdm import trange

from metaopt.base.streams import Stream, item_generator
from metaopt.base.tables import markdown_table
from metaopt.symmetry.geometric_mean import power
from studies.noether.claims import Array, Claim, as_json, claim, interval, to_zero
from studies.noether.closed_forms import Linear
from studies.noether.folder import Folder

SEED = 2
ENDS, HIDDEN = 30, 40
PHIS = (0.1, 0.3, 1.0, 2.0)
NOISES = {"isotropic": (1.0, 1.0), "1 to 9": (0.2, 1.8)}
STARTS = ("Kaiming", "Xavier", "flattest")
BATCH = 8
SHARES = (1.0, 0.7, 0.5)
"""Learning rates, as shares of the largest."""
STABLE = 0.3
"""Largest learning rate times the curvature that a batch may have at the equilibrium."""
RAMP = 2000
"""Steps over which the learning rate rises: Kaiming's start has several times that curvature."""
CHUNK = 16


@dataclass(frozen=True)
class Size:
    """Of the part."""

    runs: int  # of each start in each condition
    relaxations: tuple[float, float, float]  # before averages: of the first, of the others; of them
    descent: int  # steps of gradient descent


FULL = Size(2, (4.0, 4.0, 1.5), 10_000)
SMOKE = Size(2, (0.003, 0.003, 0.001), 20)


@dataclass(frozen=True)
class Conditions:
    """All phi with all noises, stacked along the first axis."""

    names: list[tuple[float, str]]
    x: Tensor  # variances of the inputs, [C, 30]
    e: Tensor  # of the noise, [C, 30]

    @property
    def linear(self) -> Linear:
        """With its closed forms."""
        eye = torch.eye(ENDS, dtype=torch.float64).expand(len(self.x), -1, -1)
        return Linear(eye, torch.diag_embed(self.x), torch.diag_embed(self.e))

    def rates(self) -> tuple[Tensor, float]:
        """Learning rates [C] at which all relax in one number of steps, and that number."""
        U, W = self.linear.equilibrium(ENDS)
        S = 4 * self.x.sum(1)[:, None, None] * U.mT @ self.linear.Se @ U
        back = power(W @ W.mT + U.mT @ U, -0.5)
        slowest = 2 * torch.linalg.eigvalsh(back @ S @ back)[:, 0] / BATCH
        inner = (W @ self.linear.Sx @ W.mT).diagonal(dim1=1, dim2=2).sum(1)
        largest = torch.linalg.matrix_norm(U, 2) ** 2
        sample = 2 * (self.x.sum(1) * largest + inner)
        mean = 2 * (largest * self.x.amax(1) + torch.linalg.matrix_norm(W, 2) ** 2)
        stable = STABLE / (sample / BATCH + mean)
        tau = float((1 / (slowest * stable**2)).max())
        return (1 / (slowest * tau)).sqrt(), tau


def conditions() -> Conditions:
    """Every phi with every noise."""
    names, x, e = [], [], []
    for noise, variances in NOISES.items():
        for phi in PHIS:
            names.append((phi, noise))
            x.append(torch.tensor([phi, 1.0]).double().repeat_interleave(ENDS // 2))
            e.append(torch.tensor(variances).double().repeat(ENDS // 2))
    return Conditions(names, torch.stack(x), torch.stack(e))


def start(kind: str, of: Conditions, runs: int, index: int) -> tuple[Tensor, Tensor]:
    """U [C * runs, 30, 40] and W [C * runs, 40, 30]."""
    draws = item_generator(Stream.NOISE_STUDY, SEED, index)
    count = len(of.names) * runs
    U = torch.from_numpy(draws.standard_normal((count, ENDS, HIDDEN)))
    W = torch.from_numpy(draws.standard_normal((count, HIDDEN, ENDS)))
    if kind == "Kaiming":
        return U * (2 / HIDDEN) ** 0.5, W * (2 / ENDS) ** 0.5
    if kind == "Xavier":
        return U * (2 / (ENDS + HIDDEN)) ** 0.5, W * (2 / (ENDS + HIDDEN)) ** 0.5
    flat = [M.repeat_interleave(runs, 0) for M in of.linear.flattest(ENDS)]
    U, W = 0.01 * U, 0.01 * W
    U[:, :, :ENDS] += flat[0]
    W[:, :ENDS] += flat[1]
    return U, W


def _step(U: Tensor, W: Tensor, x: Tensor, n: Tensor, lr: Tensor) -> tuple[Tensor, Tensor]:
    """SGD on |x + n - U W x|^2: x, n [B, S, 30], lr [B, 1, 1]."""
    h = x @ W.mT
    r = h @ U.mT - x - n
    scale = (2 / x.shape[1]) * lr
    return U - scale * (r.mT @ h), W - scale * ((r @ U).mT @ x)


def _descend(U: Tensor, W: Tensor, x: Tensor, lr: Tensor) -> tuple[Tensor, Tensor]:
    """Gradient descent on the expected loss: x [B, 1, 30] variances of the inputs."""
    E = (U @ W - torch.eye(ENDS, dtype=U.dtype)) * x
    return U - 2 * lr * E @ W.mT, W - 2 * lr * U.mT @ E


class Runs:
    """All starts in all conditions."""

    def __init__(self, size: Size) -> None:
        self.of = conditions()
        both = [start(kind, self.of, size.runs, i) for i, kind in enumerate(STARTS)]
        # Noise and spread of runs are far above the rounding of float32.
        self.U, self.W = (torch.cat(list(parts)).float() for parts in zip(*both, strict=True))
        self.x, self.e = (
            v.float().repeat_interleave(size.runs, 0).repeat(len(STARTS), 1)
            for v in (self.of.x, self.of.e)
        )
        lr, self.tau = self.of.rates()
        self.lr = lr.float().repeat_interleave(size.runs).repeat(len(STARTS))[:, None, None]
        self.draws = item_generator(Stream.NOISE_STUDY, SEED, 100)
        self.size = size

    def sharpness(self) -> Tensor:
        """Tr H of all runs: [starts * C * runs]."""
        U, W = self.U.square().sum((1, 2)), (self.W.square() * self.x[:, None]).sum((1, 2))
        return 2 * (self.x.sum(1) * U + ENDS * W)

    def samples(self, steps: int) -> Iterator[tuple[Tensor, Tensor]]:
        """x and n of each step."""
        scales = torch.stack([self.x, self.e]).sqrt()[:, :, None]
        for first in range(0, steps, CHUNK):
            shape = (min(CHUNK, steps - first), 2, len(self.x), BATCH, ENDS)
            yield from torch.from_numpy(self.draws.standard_normal(shape, np.float32)) * scales

    def advance(self, share: float, steps: int, ramp: int = 0) -> Tensor:
        """SGD; the mean of Tr H over the steps."""
        total = torch.zeros(len(self.x), dtype=torch.float64)
        bar = trange(steps, desc=f"30-40-30, lr x {share:g}", leave=False, mininterval=1)
        for step, (x, n) in zip(bar, self.samples(steps), strict=True):
            lr = self.lr * (share * min(1.0, (step + 1) / ramp) if ramp else share)
            self.U, self.W = _step(self.U, self.W, x, n, lr)
            total += self.sharpness()
        return total / steps

    def descent(self) -> Tensor:
        """Tr H where gradient descent ends."""
        U, W = self.U, self.W
        for step in range(self.size.descent):
            lr = 4 * self.lr * min(1.0, (step + 1) / RAMP)
            self.U, self.W = _descend(self.U, self.W, self.x[:, None], lr)
        found = self.sharpness()
        self.U, self.W = U, W
        return found


def measured(size: Size) -> dict[str, Any]:
    """Tr H of all runs, [starts, C, runs], of SGD at each learning rate and of gradient descent."""
    runs = Runs(size)
    shape = (len(STARTS), len(runs.of.names), size.runs)
    linear = runs.of.linear
    found: dict[str, Any] = {
        "conditions": runs.of.names,
        "lr": runs.of.rates()[0].tolist(),
        "equilibrium": linear.sharpness(*linear.equilibrium(ENDS)).tolist(),
        "flattest": linear.sharpness(*linear.flattest(ENDS)).tolist(),
        "descent": runs.descent().view(shape).tolist(),
    }
    by_share = []
    first, burn, average = size.relaxations
    for i, share in enumerate(SHARES):
        unit = runs.tau / share**2
        runs.advance(share, round((burn if i else first) * unit), 0 if i else RAMP)
        by_share.append(np.asarray(runs.advance(share, round(average * unit)).view(shape)))
    found["sgd"] = [values.tolist() for values in by_share]
    found["limit"] = to_zero(by_share, SHARES).tolist()
    return found


def _claims(found: dict[str, Any]) -> list[Claim]:
    limit, still = np.array(found["limit"]), np.array(found["descent"])
    claims = []
    for c, (phi, noise) in enumerate(found["conditions"]):
        where = f"phi {phi:g}, noise {noise}"
        equilibrium, flattest = found["equilibrium"][c], found["flattest"][c]
        ends: Array = limit[:, c].flatten()
        what = f"{where}: Tr H of SGD over the equilibrium's"
        claims.append(claim(what, ends / equilibrium, "=", 1))
        if equilibrium > 1.01 * flattest:
            claims.append(claim(f"{where}: over the flattest point's", ends / flattest, ">", 1))
        for s, kind in enumerate(STARTS):
            expected = equilibrium / still[s, c].mean()
            if abs(expected - 1) > 0.01:
                word, relation = ("sharper", ">") if expected > 1 else ("flatter", "<")
                what = f"{where}, {kind} start: SGD ends {word} than gradient descent, ratio"
                smallest = np.array(found["sgd"])[-1, s, c] / still[s, c]
                claims.append(claim(what, smallest, relation, 1.0))
    return claims


def _table(found: dict[str, Any]) -> str:
    rows = []
    limit, still = np.array(found["limit"]), np.array(found["descent"])
    for c, (phi, noise) in enumerate(found["conditions"]):
        mean, low, high = interval(limit[:, c].flatten())
        cells = [f"{phi:g}", noise]
        cells += [f"{still[s, c].mean():.0f}" for s in range(len(STARTS))]
        cells += [f"{np.array(found['sgd'])[i][:, c].mean():.0f}" for i in range(len(SHARES))]
        cells += [f"{mean:.0f} ({low:.0f} to {high:.0f})"]
        cells += [f"{found['equilibrium'][c]:.0f}", f"{found['flattest'][c]:.0f}"]
        rows.append(cells)
    header = ["phi", "noise", *(f"GD from {kind}" for kind in STARTS)]
    header += [f"SGD at {share:g} lr" for share in SHARES]
    return markdown_table([*header, "SGD, lr -> 0", "equilibrium", "flattest"], rows)


def part(size: Size, folder: Folder) -> dict[str, Any]:
    """All of it."""
    found = folder.kept("part", partial(measured, size))
    return {"claims": as_json(_claims(found)), "tables": [_table(found)], **found}
