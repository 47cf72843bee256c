"""Part d: weights before a normalisation, whose norm only noise moves.

    f(x) = <w, x> / |w|,  y = <v, x> + sigma n,  |v| = 1,  x ~ N(0, I_k),  l = (f - y)^2

<w, gradient> = 0, so that a step of SGD gives |w'|^2 = (1 - lr lambda)^2 |w|^2 + lr^2 |g|^2.
The gradient at |w| = 1 times 1 / |w| is the gradient, hence for small steps

    |w|^4 = |w0|^4 + 2 lr^2 steps E|g~|^2,            E|g~|^2 = 4 sigma^2 (k - 1) / S at w = v,
    |w|^4 -> lr E|g~|^2 / (2 lambda)                   with weight decay lambda.

Then the same of a small transformer, from its measured gradients.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
from tqdm import trange

from metaopt.base.streams import Stream, item_generator
from studies.noether import transformer
from studies.noether.claims import HALVINGS, Array, Claim, as_json, claim, to_zero
from studies.noether.folder import Folder

SEED = 4
INPUTS = 8
SIGMA = 0.5
STARTS = (0.5, 1.0, 2.0)
"""|w0|^2."""
BATCHES = (1, 8)


@dataclass(frozen=True)
class Size:
    """Of the part."""

    runs: int  # from each start
    growth: float  # of |w|^4 on the way, in units of 1
    relaxations: float  # of |w|^4 with weight decay
    lr: float  # the largest, for batches of one sample
    transformer: transformer.Size


FULL = Size(128, 16.0, 8.0, 0.02, transformer.FULL)
SMOKE = Size(8, 0.5, 0.3, 0.02, transformer.SMOKE)


@dataclass(frozen=True)
class Ran:
    """SGD of all runs."""

    fourth: Array  # |w|^4 at the end, [runs]
    average: Array  # of |w|^4 over the last half
    error: float  # of the exact recursion of |w|^2, relative, the largest


def noise(batch: int) -> float:
    """E|g~|^2 at w = v."""
    return 4 * SIGMA**2 * (INPUTS - 1) / batch


def sgd(squares: Array, lr: float, decay: float, batch: int, steps: int, index: int) -> Ran:
    """SGD from w = sqrt(squares) v, squares [runs]."""
    draws = item_generator(Stream.NOISE_STUDY, SEED, index)
    v = np.zeros(INPUTS)
    v[0] = 1
    w = np.sqrt(squares)[:, None] * v
    told, total, late = squares.copy(), np.zeros_like(squares), steps // 2
    for step in trange(steps, desc=f"scale, lr {lr:.3g}, S = {batch}", leave=False, mininterval=1):
        x = draws.standard_normal((len(w), batch, INPUTS))
        n = draws.standard_normal((len(w), batch))
        length = np.sqrt((w * w).sum(1, keepdims=True))
        unit = w / length
        r = (x @ (unit - v)[:, :, None])[..., 0] - SIGMA * n
        g = 2 * (r[..., None] * x).mean(1)
        g = (g - (g * unit).sum(1, keepdims=True) * unit) / length
        w = (1 - lr * decay) * w - lr * g
        told = (1 - lr * decay) ** 2 * told + lr**2 * (g * g).sum(1)
        if step >= late:
            total += (w * w).sum(1) ** 2
    square = (w * w).sum(1)
    error = float(np.abs(told / square - 1).max())
    return Ran(square**2, total / (steps - late), error)


def growth(size: Size, batch: int, index: int) -> list[Claim]:
    """Without weight decay: of all starts, |w|^4 - |w0|^4 over what is predicted."""
    squares = np.repeat(STARTS, size.runs)
    shares, errors, claims = [], [], []
    for k, share in enumerate(HALVINGS):
        lr = size.lr * share
        steps = round(size.growth / (2 * lr**2 * noise(batch)))
        ran = sgd(squares, lr, 0.0, batch, steps, index + k)
        shares.append((ran.fourth - squares**2) / (2 * lr**2 * steps * noise(batch)))
        errors.append(ran.error)
        what = f"growth of |w|^4 over its prediction, S = {batch}"
        claims.append(claim(f"{what}, lr {lr:g}", shares[-1], "~", 1.0))
    claims.append(claim(f"{what}, lr -> 0", to_zero(shares), "=", 1.0))
    for start, values in zip(STARTS, np.split(to_zero(shares), len(STARTS)), strict=True):
        claims.append(claim(f"the same from |w0|^2 = {start:g}", values, "~", 1.0))
    exact = np.array([max(errors)] * 2)
    claims.append(claim(f"|w|^2 against its exact recursion, S = {batch}", exact, "<", 1e-10))
    return claims


def balance(size: Size, batch: int, index: int) -> list[Claim]:
    """With the weight decay for which |w|^4 tends to 1, from all starts."""
    squares = np.repeat(STARTS, size.runs)
    found, claims = [], []
    for k, share in enumerate(HALVINGS):
        lr = size.lr * share
        decay = lr * noise(batch) / 2
        steps = round(2 * size.relaxations / (4 * lr * decay))
        found.append(sgd(squares, lr, decay, batch, steps, index + k).average)
        what = f"|w|^4 over lr E|g~|^2 / (2 lambda), S = {batch}"
        claims.append(claim(f"{what}, lr {lr:g}", found[-1], "~", 1.0))
    claims.append(claim(f"{what}, lr -> 0", to_zero(found), "=", 1.0))
    return claims


def descent(size: Size) -> Claim:
    """Gradient descent from |w0| = 1, as far from v as 0.5: its |w|^4 - 1 over SGD's."""
    v, w = np.eye(INPUTS)[0], np.eye(INPUTS)[0] + 0.5 * np.eye(INPUTS)[1]
    w, lr = w / np.linalg.norm(w), size.lr
    steps = round(size.growth / (2 * lr**2 * noise(1)))
    for _ in range(steps):
        length = float(np.linalg.norm(w))
        unit = w / length
        g = 2 * (unit - v)
        w = w - lr * (g - (g @ unit) * unit) / length
    grown = np.array([float(w @ w) ** 2 - 1] * 2) / size.growth
    return claim("growth of |w|^4 under gradient descent, over SGD's", grown, "<", 0.05)


def law(size: Size) -> dict[str, Any]:
    """All claims of the regression."""
    claims = [descent(size)]
    for i, batch in enumerate(BATCHES):
        # The same noise a step at the largest learning rate, whatever the batch.
        scaled = replace(size, lr=size.lr * min(batch, 4) ** 0.5)
        claims += growth(scaled, batch, 100 * i)
        claims += balance(scaled, batch, 100 * i + 50)
    return {"claims": as_json(claims)}


def part(size: Size, folder: Folder) -> dict[str, Any]:
    """The law, and the transformer."""
    found = folder.kept("law", partial(law, size))
    language = folder.kept("transformer", partial(transformer.measured, size.transformer))
    return {
        "claims": found["claims"] + as_json(transformer.claims(language)),
        "tables": transformer.tables(language),
        "transformer": {name: transformer.short(run) for name, run in language.items()},
    }
