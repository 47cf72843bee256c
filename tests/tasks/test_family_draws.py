"""Tasks depend on the generator that they are given, and on nothing else."""

from __future__ import annotations

import random
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from families import Line
from torch import Tensor

import metaopt
from metaopt.base.errors import UserError
from metaopt.base.global_generators import seeded
from metaopt.tasks import own
from metaopt.tasks.own_batch import LossFamily


class Torchs(Line):
    def noise(self, generator: np.random.Generator) -> Any:
        return torch.randn(4)


class Numpys(Line):
    def noise(self, generator: np.random.Generator) -> Any:
        return np.random.rand(4)


class Pythons(Line):
    def noise(self, generator: np.random.Generator) -> Any:
        return random.random()


class Systems(Line):
    def noise(self, generator: np.random.Generator) -> Any:
        return np.random.default_rng().standard_normal(4)


class Kept(Line):
    def __init__(self) -> None:
        self.own = np.random.default_rng(0)

    def noise(self, generator: np.random.Generator) -> Any:
        return self.own.standard_normal(4)


class Clocks(Line):
    def noise(self, generator: np.random.Generator) -> Any:
        # In float32 an hour of seconds hides a millisecond: the last digits alone are taken.
        return time.perf_counter_ns() % 1_000_003


class Weights(Line):
    def sample(self, generator: np.random.Generator) -> metaopt.Task:
        return metaopt.Task({"w": torch.rand(1)}, super().sample(generator).data)


class Counting(Line):
    calls = 0

    def sample(self, generator: np.random.Generator) -> metaopt.Task:
        self.calls += 1
        x, y = super().sample(generator).data
        return metaopt.Task({"w": torch.zeros(1)}, (x, y), (x,) * (1 + self.calls // 3))


@pytest.mark.parametrize(
    ("own", "words"),
    [
        (Torchs(), ["data[1]", "torch's"]),
        (Numpys(), ["data[1]", "numpy's (numpy.random)"]),
        (Pythons(), ["data[1]", "Python's (random)"]),
        (Weights(), ["weights[0]", "torch's"]),
        (Systems(), ["data[1]"]),
        (Kept(), ["data[1]"]),
        (Clocks(), ["data[1]"]),
        (Counting(), ["test"]),
    ],
    ids=lambda value: type(value).__name__,
)
def test_what_else_they_draw_from_is_refused(own: Line, words: list[str]) -> None:
    with pytest.raises(UserError) as caught:
        LossFamily(own, f"mine:{type(own).__name__}").check()
    message = str(caught.value)
    assert "\n" not in message
    for word in (f"mine:{type(own).__name__}", *words):
        assert word in message
    assert ("global generators" in message) == (len(words) > 1)


class Seeding(Line):
    """A global generator that the given one seeds is no other source."""

    def noise(self, generator: np.random.Generator) -> Any:
        torch.manual_seed(int(generator.integers(2**31)))
        return torch.randn(4)


def states() -> list[str]:
    """Of the global generators."""
    numpy = dict(np.random.get_state(legacy=False))["state"]
    return [repr(random.getstate()), repr(numpy), repr(torch.get_rng_state().tolist())]


@pytest.mark.parametrize("own", [Line(), Seeding()], ids=lambda own: type(own).__name__)
def test_what_hangs_on_the_generator_alone_passes(own: Line) -> None:
    before = states()
    LossFamily(own, "mine").check()
    assert before == states()


class Dropping(Line):
    def loss(self, weights: dict[str, Tensor], data: tuple[Tensor, ...], *_: Tensor) -> Tensor:
        return super().loss(weights, data) * (1 + np.random.rand())


def test_a_loss_that_draws_is_refused() -> None:
    with pytest.raises(UserError, match=r"Dropping: loss: found .* no random numbers"):
        LossFamily(Dropping(), "mine:Dropping").check()


MODULE = """
import numpy as np, random, torch
from families import Line

TABLE = np.random.rand(4) + random.random()

class Mine(Line):
    def __init__(self):
        self.offset = torch.randn(4) + torch.from_numpy(np.random.rand(4) + TABLE)

    def noise(self, generator):
        return self.offset
"""


def test_what_a_class_is_made_of_is_the_same_in_every_process(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "made_of.py").write_text(MODULE)
    monkeypatch.syspath_prepend(str(tmp_path))
    offsets = []
    for seed in (3, 4):
        with seeded(seed):
            offsets.append(vars(own.make("made_of:Mine", {}))["offset"])
        monkeypatch.delitem(sys.modules, "made_of")
    assert torch.equal(*offsets)
