"""Part e: one jump to the noise equilibrium instead of a warm-up.

From Kaiming's start SGD runs at a grid of constant learning rates, with a warm-up (linear over the
first fifth), and after one jump to the noise equilibrium, as ``metaopt.balance(by="noise")`` makes
it; all side by side. Asked are the largest learning rate up to which a run ends below half its
first loss, and the loss after all steps at the best one; of a factorisation of rank 1,

    y = v1 v2^T x + n,   f(x) = u w^T x,   20-1-20,   Tr H = 2 (Tr Sx |u|^2 + m w^T Sx w),

and of a ReLU classifier of digits, for which Tr H is the trace of the Gauss-Newton matrix.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor
from tqdm import trange

from metaopt.base.streams import Stream, item_generator
from metaopt.base.tables import markdown_table
from metaopt.tasks.datasets import digits
from studies.noether import mlp
from studies.noether.claims import Array, Claim, as_json, claim, interval
from studies.noether.folder import Folder

SEED = 7
METHODS = ("no warm-up", "warm-up", "balance", "balance, warm-up")
WARMED = ("warm-up", "balance, warm-up")
WARM = 0.2
"""Share of the steps over which the learning rate rises."""
ENDS, SIGNAL = 20, 2.0


@dataclass(frozen=True)
class Size:
    """Of the part."""

    runs: int  # of the factorisation, at each learning rate
    seeds: int  # of the classifier
    steps: int
    rates: int  # of each grid


FULL = Size(runs=64, seeds=10, steps=300, rates=35)
SMOKE = Size(runs=4, seeds=2, steps=10, rates=4)
RANGES = {"factorisation": (0.4, 0.001), "classifier": (8.0, 0.03)}
"""Of learning rates."""


def grid(name: str, rates: int) -> Tensor:
    """Learning rates, falling in equal ratios."""
    largest, smallest = RANGES[name]
    return largest * (smallest / largest) ** torch.linspace(0, 1, rates, dtype=torch.float64)


def schedule(step: int, steps: int, shape: tuple[int, int]) -> Tensor:
    """The factor on the learning rate: [methods, rates, runs], flat."""
    warm = min(1.0, (step + 1) / (WARM * steps))
    factors = torch.tensor([warm if name in WARMED else 1.0 for name in METHODS])
    return factors.repeat_interleave(shape[0] * shape[1])[:, None, None]


def factor_start(runs: int) -> tuple[Tensor, Tensor]:
    """u [runs, 20, 1], w [runs, 1, 20]: Kaiming's, variance 2 over what a unit reads."""
    draws = item_generator(Stream.NOISE_STUDY, SEED, 0)
    u = torch.from_numpy(draws.standard_normal((runs, ENDS, 1))) * 2**0.5
    w = torch.from_numpy(draws.standard_normal((runs, 1, ENDS))) * (2 / ENDS) ** 0.5
    return u, w


def target() -> Tensor:
    """v1 v2^T, of norm ``SIGNAL``."""
    ends = item_generator(Stream.NOISE_STUDY, SEED, 1).standard_normal((2, ENDS))
    a, b = (torch.from_numpy(v / np.linalg.norm(v)) for v in ends)
    return SIGNAL * a[:, None] * b


def factor_balanced(u: Tensor, w: Tensor, samples: int = 4096) -> tuple[Tensor, Tensor]:
    """The noise equilibrium of the orbit, e^{4t} = Tr Cov g_w / Tr Cov g_u, from samples."""
    draws = item_generator(Stream.NOISE_STUDY, SEED, 2)
    x, n = torch.from_numpy(draws.standard_normal((2, samples, ENDS)))
    h = x @ w.mT
    r = h @ u.mT - x @ target().mT - n
    back = r @ u
    incoming = (back.square() * x.square().sum(-1, keepdim=True)).mean((1, 2))
    incoming = incoming - (back.mT @ x / samples).square().sum((1, 2))
    outgoing = (h.square() * r.square().sum(-1, keepdim=True)).mean((1, 2))
    outgoing = outgoing - (r.mT @ h / samples).square().sum((1, 2))
    scale = (incoming / outgoing).pow(0.25)[:, None, None]
    return u / scale, w * scale


def factorisation(size: Size, batch: int = 8) -> dict[str, Any]:
    """Excess loss after all steps and Tr H on the way: [methods, rates, runs]."""
    lrs, shape = grid("factorisation", size.rates), (size.rates, size.runs)
    start = factor_start(size.runs)
    jumped = factor_balanced(*start)
    begins = [jumped if name.startswith("balance") else start for name in METHODS]
    u, w = (torch.cat([begin[i].repeat(size.rates, 1, 1) for begin in begins]) for i in (0, 1))
    lr = lrs.repeat_interleave(size.runs).repeat(len(METHODS))[:, None, None]
    V = target()
    draws = item_generator(Stream.NOISE_STUDY, SEED, 3)

    def excess() -> Tensor:
        return (u @ w - V).square().sum((1, 2))

    def sharpness() -> Tensor:
        return 2 * ENDS * (u.square().sum((1, 2)) + w.square().sum((1, 2)))

    told, before = [sharpness()], excess()
    for step in trange(size.steps, desc="factorisation", leave=False, mininterval=1):
        # The same samples for all methods and learning rates.
        x, n = torch.from_numpy(draws.standard_normal((2, size.runs, batch, ENDS))).repeat(
            1, len(METHODS) * size.rates, 1, 1
        )
        h = x @ w.mT
        r = h @ u.mT - x @ V.mT - n
        scale = 2 / batch * lr * schedule(step, size.steps, shape)
        u, w = u - scale * (r.mT @ h), w - scale * ((r @ u).mT @ x)
        told.append(sharpness())
    return _told(excess(), before, told, lrs, size.runs)


def classifier(size: Size, batch: int = 32, images: int = 1024) -> dict[str, Any]:
    """Training loss after all steps and the trace on the way: [methods, rates, seeds]."""
    lrs, shape = grid("classifier", (size.rates + 1) // 2), ((size.rates + 1) // 2, size.seeds)
    data = digits()
    X, y = data.X[:images], data.y[:images]
    start = mlp.kaiming((64, 32, 32, 10), size.seeds, 1)
    every = X.expand(size.seeds, -1, -1), y.expand(size.seeds, -1)
    jumped = mlp.move(start, mlp.equilibrium(mlp.noise(start, *every)))
    begins = [jumped if name.startswith("balance") else start for name in METHODS]
    layers = [
        torch.cat([begin[i].repeat(len(lrs), 1, 1) for begin in begins]) for i in range(len(start))
    ]
    lr = lrs.repeat_interleave(size.seeds).repeat(len(METHODS))[:, None, None].float()
    draws = item_generator(Stream.NOISE_STUDY, SEED, 4)
    copies = len(METHODS) * len(lrs)
    few = X[:128].expand(len(lr), -1, -1)

    def whole() -> Tensor:
        return torch.stack(
            [
                mlp.loss(mlp.forward([W[i : i + 1] for W in layers], X[None])[1], y[None])[0]
                for i in range(len(lr))
            ]
        )

    told, before = [mlp.curvature(layers, few)], whole()
    for step in trange(size.steps, desc="classifier", leave=False, mininterval=1):
        rows = torch.from_numpy(draws.integers(images, size=(size.seeds, batch))).repeat(copies, 1)
        slopes, _ = mlp.gradients(layers, X[rows], y[rows])
        scale = lr * schedule(step, size.steps, shape).float()
        layers = [W - scale * G for W, G in zip(layers, slopes, strict=True)]
        if (step + 1) % max(1, size.steps // 10) == 0:
            told.append(mlp.curvature(layers, few))
    return _told(whole(), before, told, lrs, size.seeds)


def _told(
    loss: Tensor, before: Tensor, sharpness: list[Tensor], lrs: Tensor, runs: int
) -> dict[str, Any]:
    shape = (len(METHODS), len(lrs), runs)
    after = loss.nan_to_num(torch.inf).view(shape)
    stable = (after < before.view(shape) / 2).flip(1)
    # From the smallest learning rate up, as far as all are stable.
    count = stable.int().cumprod(1).sum(1)
    every = max(1, (len(sharpness) - 1) // 10)
    traces = torch.stack(sharpness[::every]).view(-1, *shape)
    largest = torch.where(count > 0, lrs.flip(0)[(count - 1).clamp_min(0)], torch.nan)
    best = [int(after[m].mean(1).argmin()) for m in range(len(METHODS))]
    return {
        "lr": lrs.tolist(),
        "loss": torch.stack([after[m, best[m]] for m in range(len(METHODS))]).tolist(),
        "best": [float(lrs[i]) for i in best],
        "largest": largest.tolist(),
        "sharpness": torch.stack(
            [traces[:, m, best[m]].mean(1) for m in range(len(METHODS))]
        ).tolist(),
    }


def _claims(name: str, found: dict[str, Any]) -> list[Claim]:
    largest, loss = np.array(found["largest"]), np.array(found["loss"])
    claims = []
    for other in METHODS[:2]:
        i = METHODS.index(other)
        lrs: Array = np.log2(largest[2] / largest[i])
        what = f"{name}, balance over {other}: log2 of"
        claims.append(claim(f"{what} the largest stable lr", lrs, ">", 0))
        losses: Array = np.log2(loss[2] / loss[i])
        claims.append(claim(f"{what} the loss", losses, "<", 0))
    return claims


def _rows(name: str, found: dict[str, Any]) -> list[list[str]]:
    rows = []
    for i, method in enumerate(METHODS):
        lr, loss = (
            "{:.3g} ({:.3g} to {:.3g})".format(*interval(np.array(found[key][i])))
            for key in ("largest", "loss")
        )
        trace = found["sharpness"][i]
        looks = [f"{trace[k]:.3g}" for k in (0, 1, 2, len(trace) // 2, -1)]
        rows.append([f"{name}, {method}", lr, f"{found['best'][i]:.3g}", loss, *looks])
    return rows


PROBLEMS: dict[str, Callable[[Size], dict[str, Any]]] = {
    "factorisation": factorisation,
    "classifier": classifier,
}


def part(size: Size, folder: Folder) -> dict[str, Any]:
    """Both."""
    found = {name: folder.kept(name, partial(run, size)) for name, run in PROBLEMS.items()}
    claims = [one for name, runs in found.items() for one in _claims(name, runs)]
    rows = [row for name, runs in found.items() for row in _rows(name, runs)]
    header = ["", "largest stable lr", "best lr", "loss there"]
    header += ["Tr H at the start", "after 10 %", "20 %", "50 %", "at the end"]
    return {"claims": as_json(claims), "tables": [markdown_table(header, rows)], **found}
