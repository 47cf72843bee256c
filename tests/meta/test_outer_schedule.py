"""The schedule of the outer learning rates, and that a run follows it."""

from __future__ import annotations

import pytest
import torch
from support import UPDATE, tiny_config

from metaopt.meta.schedule import schedule
from metaopt.meta.trainer import MetaTrainer


def test_the_cosine_goes_from_one_to_its_end() -> None:
    meta = tiny_config(outer_steps=100, final_lr=0.1).meta
    factors = [schedule(meta, i) for i in range(1, 102)]
    assert factors[0] == 1.0
    assert factors[50] == pytest.approx(0.55)
    assert factors[100] == pytest.approx(0.1)
    assert factors == sorted(factors, reverse=True)


@pytest.mark.parametrize("shape", ["constant", "cosine"])
def test_warm_up_rises_linearly_and_then_leaves_the_shape(shape: str) -> None:
    plain = tiny_config(outer_steps=50, schedule=shape).meta
    warm = tiny_config(outer_steps=50, schedule=shape, warm_up=10).meta
    shares = [schedule(warm, i) / schedule(plain, i) for i in range(1, 51)]
    assert shares[:10] == pytest.approx([i / 10 for i in range(1, 11)])
    assert shares[9:] == [1.0] * 41


def test_the_outer_steps_are_taken_at_these_rates() -> None:
    config = tiny_config(warm_up=3, outer_steps=4)
    trainer = MetaTrainer(config, torch.device("cpu"))
    for i in range(1, 5):
        trainer.outer_step()
        wanted = UPDATE["outer_lr"] * schedule(config.meta, i)
        assert trainer.adam.param_groups[0]["lr"] == wanted
