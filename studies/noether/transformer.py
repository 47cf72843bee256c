"""A small transformer of scale-invariant matrices, trained by SGD on a synthetic language.

Queries and keys are normalised for each head, what attention and MLP (LeakyReLU, no biases) add to
the stream is normalised and scaled by learned gains: the loss does not depend on the norms of W_Q
and W_K of a head, W_V, W_O, W_up, W_down. Normalisation is x / rms(x), or x / sqrt(rms^2 + eps).
A sentence is a random walk on a random graph of words whose second half repeats the first.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional
from tqdm import trange

from metaopt.base.streams import Stream, item_generator
from metaopt.base.tables import markdown_table
from studies.noether.claims import Claim, claim, interval

SEED = 5
WORDS, NEXT = 16, 3
WIDTH, HEADS, LAYERS, HIDDEN = 32, 2, 2, 64
DECAY = 0.002
EPS = 1e-5
SLOPE = 0.1
"""Of LeakyReLU below 0: with ReLU a word may have nothing to be normalised."""

Weights = dict[str, Tensor]


@dataclass(frozen=True)
class Size:
    """Of the measurement."""

    seeds: int  # side by side
    steps: int
    sentences: int  # of a batch
    length: int  # words of a sentence
    lr: float


FULL = Size(seeds=8, steps=600, sentences=8, length=16, lr=1.0)
SMOKE = Size(seeds=2, steps=6, sentences=4, length=8, lr=1.0)


def initial(seeds: int) -> Weights:
    """Each [seeds, heads or 1, out, in], Kaiming; gains and embeddings [seeds, ..]."""
    draws = item_generator(Stream.NOISE_STUDY, SEED, 0)

    def normal(*shape: int) -> Tensor:
        return torch.from_numpy(draws.standard_normal(shape)) / shape[-1] ** 0.5

    weights = {"words": normal(seeds, WORDS, WIDTH) * WIDTH**0.5}
    weights["last"] = normal(seeds, WORDS, WIDTH)
    for i in range(LAYERS):
        for name in ("Q", "K"):
            weights[f"{name}{i}"] = normal(seeds, HEADS, WIDTH // HEADS, WIDTH)
        weights[f"V{i}"] = normal(seeds, 1, WIDTH, WIDTH)
        weights[f"O{i}"] = normal(seeds, 1, WIDTH, WIDTH)
        weights[f"up{i}"] = normal(seeds, 1, HIDDEN, WIDTH)
        weights[f"down{i}"] = normal(seeds, 1, WIDTH, HIDDEN)
        for gain in ("attention gain", "MLP gain"):
            weights[f"{gain}{i}"] = torch.ones(seeds, 1, 1, WIDTH, dtype=torch.float64)
        weights[f"sharpness{i}"] = torch.ones(seeds, 1, HEADS, 1, 1, dtype=torch.float64)
    return weights


def invariant(name: str) -> bool:
    """Whether the loss depends on the direction of each block [out, in] alone."""
    return name.rstrip("0123456789") in ("Q", "K", "V", "O", "up", "down")


def _normal(x: Tensor, eps: float) -> Tensor:
    return x / (x.square().mean(-1, keepdim=True) + eps).sqrt()


def logits(weights: Weights, tokens: Tensor, eps: float) -> Tensor:
    """Of the next word: tokens [seeds, S, T] -> [seeds, S, T, words]."""
    seeds, sentences, length = tokens.shape
    chosen = torch.arange(seeds)[:, None, None]
    place = torch.arange(length, dtype=torch.float64)[:, None]
    rates = 0.5 ** torch.arange(WIDTH // 2, dtype=torch.float64) * 3.0
    waves = torch.cat([(place * rates).sin(), (place * rates).cos()], -1)
    x = weights["words"][chosen, tokens] + waves
    ahead = torch.ones(length, length, dtype=torch.bool).triu(1)
    shape = (seeds, sentences, length, HEADS, WIDTH // HEADS)
    for i in range(LAYERS):
        h = _normal(x, eps)
        q, k = (
            _normal(
                torch.einsum("bstd,bhed->bshte", h, weights[f"{name}{i}"]),
                eps,
            )
            for name in ("Q", "K")
        )
        v = (h @ weights[f"V{i}"].mT).view(shape).transpose(2, 3)
        scores = (q @ k.mT) * weights[f"sharpness{i}"] / (WIDTH // HEADS) ** 0.5
        mixed = scores.masked_fill(ahead, -torch.inf).softmax(-1) @ v
        mixed = mixed.transpose(2, 3).flatten(3) @ weights[f"O{i}"].mT
        x = x + weights[f"attention gain{i}"] * _normal(mixed, eps)
        h = functional.leaky_relu(_normal(x, eps) @ weights[f"up{i}"].mT, SLOPE)
        h = h @ weights[f"down{i}"].mT
        x = x + weights[f"MLP gain{i}"] * _normal(h, eps)
    return _normal(x, eps) @ weights["last"][:, None].mT


class Language:
    """Sentences of each seed's own graph."""

    def __init__(self, seeds: int) -> None:
        self.draws = item_generator(Stream.NOISE_STUDY, SEED, 1)
        self.graph = self.draws.integers(WORDS, size=(seeds, WORDS, NEXT))

    def sentences(self, count: int, length: int) -> Tensor:
        """[seeds, count, length + 1]."""
        seeds = len(self.graph)
        half = (length + 2) // 2
        words = [self.draws.integers(WORDS, size=(seeds, count))]
        for _ in range(half - 1):
            way = self.draws.integers(NEXT, size=(seeds, count))
            words.append(self.graph[np.arange(seeds)[:, None], words[-1], way])
        first = np.stack(words, -1)
        return torch.from_numpy(np.concatenate([first, first], -1)[..., : length + 1])


def train(size: Size, decay: float, eps: float) -> dict[str, Any]:
    """SGD of all seeds: by block, |w|^2 and |gradient|^2 at each step."""
    weights, language = initial(size.seeds), Language(size.seeds)
    squares: dict[str, list[Tensor]] = {name: [] for name in weights if invariant(name)}
    slopes: dict[str, list[Tensor]] = {name: [] for name in squares}
    losses = []
    what = f"transformer, decay {decay:g}, eps {eps:g}"
    for _ in trange(size.steps, desc=what, leave=False, mininterval=1):
        text = language.sentences(size.sentences, size.length)
        leaves = {name: W.requires_grad_() for name, W in weights.items()}
        found = logits(leaves, text[..., :-1], eps)
        targets = text[..., 1:].flatten()
        each = functional.cross_entropy(found.flatten(0, 2), targets, reduction="none")
        loss = each.view(size.seeds, -1).mean(1)
        grads = torch.autograd.grad(loss.sum(), list(leaves.values()))
        losses.append(loss.detach())
        with torch.no_grad():
            for (name, W), G in zip(leaves.items(), grads, strict=True):
                if name in squares:
                    squares[name].append(W.square().sum((-2, -1)))
                    slopes[name].append(G.square().sum((-2, -1)))
                weights[name] = W.detach() - size.lr * (G + decay * W.detach())
    # One look at the end, after the last step.
    for name, values in squares.items():
        values.append(weights[name].square().sum((-2, -1)))
    return {
        "loss": torch.stack(losses).tolist(),
        "blocks": {
            name: _law(torch.stack(squares[name]), torch.stack(slopes[name]), size, decay)
            for name in squares
        },
    }


def _law(squares: Tensor, slopes: Tensor, size: Size, decay: float) -> dict[str, Any]:
    """Measured and predicted |w|^4 of a block: squares [steps + 1, seeds, heads], slopes [steps].

    Returns:
        Each [seeds] (means over heads): the growth of |w|^4 (with decay, |w|^4) over its law from
        the gradients of all steps, and of the first quarter alone; the relative error of the exact
        recursion; |w|^4 over its balance with decay; the effective learning rate at the start and
        at the end. And marks, steps at which lr / |w|^2 (rates) is told.
    """
    lr, steps = size.lr, len(slopes)
    unit = slopes * squares[:-1]
    exact = squares[0]
    for slope in slopes:
        exact = (1 - lr * decay) ** 2 * exact + lr**2 * slope
    kept = (1 - lr * decay) ** 4
    law = squares[0] ** 2
    for slope in unit:
        law = kept * law + 2 * lr**2 * slope
    grown, quarter = squares[-1] ** 2 - squares[0] ** 2, max(1, steps // 4)
    found = {
        "law": squares[-1] ** 2 / law if decay else grown / (law - squares[0] ** 2),
        "law of a quarter": grown / (2 * lr**2 * unit[:quarter].mean(0) * steps),
        "error": (exact / squares[-1] - 1).abs(),
        "rate before": lr / squares[0],
        "rate after": lr / squares[-1],
    }
    if decay:
        late = steps - quarter
        balance = lr * unit[late:].mean(0) / (2 * decay)
        found["balance"] = squares[late:].square().mean(0) / balance
    told: dict[str, Any] = {key: value.mean(-1).tolist() for key, value in found.items()}
    marks = np.unique(np.linspace(0, steps, 41).astype(int))
    told["marks"] = marks.tolist()
    told["rates"] = (lr / squares[marks]).mean((1, 2)).tolist()
    return told


def measured(size: Size) -> dict[str, Any]:
    """Without decay and with it, without eps, and with it."""
    return {
        "plain": train(size, 0.0, 0.0),
        "decay": train(size, DECAY, 0.0),
        "eps": train(size, 0.0, EPS),
    }


def short(run: dict[str, Any]) -> dict[str, Any]:
    """Mean losses, and effective learning rates, at a few steps."""
    loss = np.array(run["loss"]).mean(1)
    marks = next(iter(run["blocks"].values()))["marks"]
    return {
        "marks": marks,
        "loss": [float(loss[min(mark, len(loss) - 1)]) for mark in marks],
        "rates": {name: block["rates"] for name, block in run["blocks"].items()},
    }


def _mean(run: dict[str, Any], key: str) -> np.ndarray:
    """Over blocks: [seeds]."""
    return np.mean([block[key] for block in run["blocks"].values()], axis=0)


def _worst(run: dict[str, Any]) -> np.ndarray:
    return np.max([block["error"] for block in run["blocks"].values()], axis=0)


def claims(found: dict[str, Any]) -> list[Claim]:
    """What the law says of the transformer, means over its matrices."""
    plain, decay, eps = found["plain"], found["decay"], found["eps"]
    slower = _mean(plain, "rate after") / _mean(plain, "rate before")
    name = "transformer: "
    return [
        claim(f"{name}|w|^2 against its exact recursion, no eps", _worst(plain), "<", 1e-10),
        claim(f"{name}the same with eps {EPS:g}", _worst(eps), "~", 0.0),
        # lr^4 |g|^4 a step is left out of the law.
        claim(f"{name}growth of |w|^4 over 2 lr^2 sum |g~|^2", _mean(plain, "law"), "=", 1.0, 0.01),
        claim(
            f"{name}growth of |w|^4 over the law with E|g~|^2 of the first quarter",
            _mean(plain, "law of a quarter"),
            "~",
            1.0,
        ),
        claim(f"{name}lr / |w|^2 at the end over its start, no decay", slower, "<", 1.0),
        claim(
            f"{name}|w|^4 over the law with decay {DECAY:g}, from all gradients",
            _mean(decay, "law"),
            "=",
            1.0,
            0.01,
        ),
        claim(
            f"{name}|w|^4 over lr E|g~|^2 / (2 lambda) of the last quarter, decay {DECAY:g}",
            _mean(decay, "balance"),
            "~",
            1.0,
        ),
    ]


def tables(found: dict[str, Any]) -> list[str]:
    """The effective learning rate of each matrix."""
    rows = []
    for name in found["plain"]["blocks"]:
        cells = [name]
        for run in (found["plain"], found["decay"]):
            block = run["blocks"][name]
            for key in ("rate before", "rate after"):
                mean, low, high = interval(np.array(block[key]))
                cells.append(f"{mean:.4f} ({low:.4f} to {high:.4f})")
        plain = np.array(found["plain"]["blocks"][name]["law"])
        cells.append("{:.4f} ({:.4f} to {:.4f})".format(*interval(plain)))
        cells.append(
            "{:.3f} ({:.3f} to {:.3f})".format(
                *interval(np.array(found["decay"]["blocks"][name]["balance"]))
            )
        )
        rows.append(cells)
    header = ["matrix", "lr / |w|^2 at the start", "at the end"]
    header += ["with decay, at the start", "at the end", "growth over law", "|w|^4 over balance"]
    return [markdown_table(header, rows)]
