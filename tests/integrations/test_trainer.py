"""Hugging Face's Trainer with a learned optimizer, on a random language model of a few thousand."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import pytest
import torch
from averaging import ScheduleFree
from extras import D, needed
from models import hand_made
from torch import Tensor, nn

import metaopt

transformers = needed("transformers")
needed("accelerate")

TOKENS = 17
pytestmark = pytest.mark.slow


class Text(torch.utils.data.Dataset):
    """Sentences that go round a circle of tokens."""

    def __len__(self) -> int:
        return 32

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        tokens = (torch.arange(8) * (1 + index % 3) + index) % TOKENS
        return {"input_ids": tokens, "labels": tokens}


def model() -> nn.Module:
    torch.manual_seed(0)
    config = transformers.GPT2Config(
        vocab_size=TOKENS, n_positions=8, n_embd=16, n_layer=2, n_head=2, bos_token_id=0,
        eos_token_id=0, attn_pdrop=0.0, embd_pdrop=0.0, resid_pdrop=0.0,
    )  # fmt: skip
    return transformers.GPT2LMHeadModel(config)


def arguments(folder: Path, **options: Any) -> Any:
    settings = {
        "max_steps": 24,
        "per_device_train_batch_size": 4,
        "gradient_accumulation_steps": 2,
        "save_steps": 12,
        "logging_steps": 1,
        "use_cpu": True,
        "report_to": "none",
        "disable_tqdm": True,
        "seed": 3,
    }
    return transformers.TrainingArguments(str(folder), **settings | options)


def scheduler(optimizer: torch.optim.Optimizer) -> torch.optim.lr_scheduler.LRScheduler:
    return torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.5, total_iters=24)


def trainer(folder: Path, net: nn.Module, **options: Any) -> Any:
    optimizer = metaopt.LearnedOptimizer(net, D)
    return transformers.Trainer(
        net,
        arguments(folder, **options),
        train_dataset=Text(),
        optimizers=(optimizer, scheduler(optimizer)),
    )


def loss(net: nn.Module) -> float:
    """On all of the data."""
    data = Text()
    rows = [data[index] for index in range(len(data))]
    batch = {key: torch.stack([row[key] for row in rows]) for key in rows[0]}
    with torch.no_grad():
        return float(net(**batch).loss)


def test_training_goes_on_from_a_checkpoint_bit_for_bit(tmp_path: Path) -> None:
    whole = trainer(tmp_path / "whole", model())
    whole.train()
    assert loss(whole.model) < 0.9 * loss(model())
    resumed = trainer(tmp_path / "resumed", model())
    resumed.train(resume_from_checkpoint=str(tmp_path / "whole" / "checkpoint-12"))
    assert resumed.state.global_step == 24
    for a, b in zip(whole.model.parameters(), resumed.model.parameters(), strict=True):
        assert torch.equal(a, b)


def test_bfloat16_and_clipping(tmp_path: Path) -> None:
    trained = trainer(tmp_path, model(), bf16=True, max_grad_norm=0.5)
    trained.train()
    assert loss(trained.model) < 0.9 * loss(model())


@pytest.mark.parametrize("whole", [True, False], ids=["model", "groups"])
def test_the_trainer_makes_the_optimizer(tmp_path: Path, whole: bool) -> None:
    net = model()
    options = {"rule": D} | ({"model": net} if whole else {})
    trained = transformers.Trainer(
        net,
        arguments(tmp_path, lr_scheduler_type="constant"),
        train_dataset=Text(),
        optimizer_cls_and_kwargs=(metaopt.LearnedOptimizer, options),
    )
    trained.train()
    inner = trained.optimizer.optimizer
    assert isinstance(inner, metaopt.LearnedOptimizer)
    optimized = itertools.chain.from_iterable(group["params"] for group in inner.param_groups)
    assert {id(p) for p in optimized} == {id(p) for p in net.parameters()}
    assert loss(trained.model) < 0.9 * loss(model())


def test_a_rule_that_averages_is_evaluated_at_its_average(tmp_path: Path) -> None:
    """The Trainer calls ``eval()`` and ``train()``, and training is what it is without."""

    def trained(folder: str, **options: Any) -> Any:
        net = model()
        optimizer = metaopt.LearnedOptimizer(net, hand_made(ScheduleFree(0.1)))
        made = transformers.Trainer(
            net,
            arguments(tmp_path / folder, **options),
            train_dataset=Text(),
            eval_dataset=Text(),
            optimizers=(optimizer, scheduler(optimizer)),
        )
        made.train()
        return made

    plain = trained("plain")
    judged = trained("judged", eval_strategy="steps", eval_steps=12)
    for each in (plain, judged):
        each.optimizer.train()
    for a, b in zip(plain.model.parameters(), judged.model.parameters(), strict=True):
        assert torch.equal(a, b)
    at_y = loss(plain.model)
    plain.optimizer.eval()
    told = [row["eval_loss"] for row in judged.state.log_history if "eval_loss" in row][-1]
    # Divided by all 8 tokens of a sentence, of which the first is no target.
    assert told == pytest.approx(7 / 8 * loss(plain.model), rel=1e-4)
    assert told != pytest.approx(7 / 8 * at_y, rel=1e-2)
