"""One run: a user's loop, judged on held-out words on its way."""

from __future__ import annotations

import time
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from metaopt.base.streams import Stream, item_generator
from studies.minilm.contenders import named
from studies.minilm.network import Make
from studies.minilm.words import Words

BATCH = 32
JUDGED_AT_ONCE = 256


@dataclass(frozen=True)
class Run:
    """What is run, and from what draws."""

    contender: str  # its name
    rate: float
    horizon: int  # steps; what a schedule is told
    stream: Stream  # VALIDATION for tuning, TEST for what is shown
    seed: int
    version: str = ""  # of a learned rule: its parameters

    @property
    def key(self) -> str:
        """A name for files."""
        name = "".join(c if c.isalnum() else "_" for c in self.contender)
        draws = f"{self.stream.name.lower()}_{self.seed}"
        return "_".join(filter(None, [name, self.version, f"{self.rate:g}_{self.horizon}", draws]))


@dataclass(frozen=True)
class Judging:
    """When, and on how much."""

    marks: tuple[int, ...]  # steps after which a run is judged, up to its horizon
    words: int  # of the held-out part, at most


@dataclass(frozen=True)
class Curve:
    """What a run found."""

    losses: dict[int, float]  # after each of the steps at which it was judged
    seconds_per_step: float  # batch, forward, backward and step; the mean over the run


def loss(model: nn.Module, words: Words, rows: Tensor) -> Tensor:
    """mean over the rows of (network(word) - valence)^2."""
    given = {"input_ids": words.inputs[rows], "attention_mask": words.mask[rows]}
    return functional.mse_loss(model(**given).logits[:, 0], words.valence[rows])


@torch.no_grad()
def judged(model: nn.Module, words: Words, rows: Tensor) -> float:
    """The loss on all rows, without dropout."""
    model.eval()
    parts = rows.split(JUDGED_AT_ONCE)
    total = sum(float(loss(model, words, part)) * len(part) for part in parts)
    model.train()
    return total / len(rows)


def train(run: Run, make: Make, words: Words, judging: Judging) -> Curve:
    """Train, and judge on the validation words if the run's stream is that of validation.

    Args:
        run: what is run.
        make: the network at the start.
        words: all words.
        judging: when, and on how much of the held-out part.
    """
    held_out = words.validation if run.stream is Stream.VALIDATION else words.test
    held_out = held_out[: judging.words]
    draws = item_generator(run.stream, run.seed, 0)
    model = make(int(draws.integers(2**31)))
    trainer = named(run.contender).make(model, run.rate, run.horizon)
    losses: dict[int, float] = {}
    seconds = 0.0
    with torch.random.fork_rng(devices=()):
        torch.manual_seed(int(draws.integers(2**31)))  # of dropout
        model.train()
        for step in range(1, run.horizon + 1):
            began = time.perf_counter()
            rows = words.train[torch.from_numpy(draws.integers(len(words.train), size=BATCH))]
            trainer.zero_grad()
            loss(model, words, rows).backward()
            trainer.step()
            seconds += time.perf_counter() - began
            if step in judging.marks:
                trainer.judged(True)
                losses[step] = judged(model, words, held_out)
                trainer.judged(False)
    found = {step: value if np.isfinite(value) else float("inf") for step, value in losses.items()}
    return Curve(found, seconds / run.horizon)
