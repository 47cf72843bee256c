"""LoRA of ``peft`` under a learned optimizer: trained, saved, loaded, merged, resumed."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from models import saved
from torch import Tensor

import metaopt

peft = pytest.importorskip("peft")
transformers = pytest.importorskip("transformers")

pytestmark = pytest.mark.filterwarnings("ignore:.*:UserWarning")

RULE = "lora_update"
"""What trains; it averages."""
CONFIG = {
    "vocab_size": 40,
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 24,
    "max_position_embeddings": 8,
    "num_labels": 1,
}
WORDS = torch.randint(40, (12, 5), generator=torch.Generator().manual_seed(0))
TARGETS = (WORDS.sum(1) % 3 - 1).float()


def base() -> Any:
    """A small BERT with random weights, dropout of its own, and a head of one number."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return transformers.BertForSequenceClassification(transformers.BertConfig(**CONFIG))


def adapted() -> Any:
    config = peft.LoraConfig(
        task_type="SEQ_CLS",
        r=4,
        lora_alpha=8,
        lora_dropout=0.1,
        target_modules=["query", "value"],
    )
    with torch.random.fork_rng():
        torch.manual_seed(1)
        return peft.get_peft_model(base(), config)


def train(model: Any, optimizer: torch.optim.Optimizer, steps: int) -> list[float]:
    model.train()
    losses = []
    for _ in range(steps):
        optimizer.zero_grad()
        loss = model(input_ids=WORDS, labels=TARGETS).loss
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    return losses


def outputs(model: Any) -> Tensor:
    model.eval()
    with torch.no_grad():
        return model(input_ids=WORDS).logits


@pytest.fixture(scope="module")
def learner() -> tuple[Any, Any]:
    """A model that was trained, and its optimizer: finding the symmetries of one takes seconds."""
    model = adapted()
    optimizer = metaopt.LearnedOptimizer(model, RULE)
    with torch.random.fork_rng():
        torch.manual_seed(2)
        losses = train(model, optimizer, 40)
    assert sum(losses[-5:]) < 0.9 * sum(losses[:5])
    return model, optimizer


@pytest.fixture
def trained(learner: tuple[Any, Any]) -> Any:
    """The model with averaged weights, to be saved and merged."""
    model, optimizer = learner
    optimizer.eval()
    return model


def test_only_adapters_and_head_are_trained(trained: Any) -> None:
    before = dict(adapted().named_parameters())
    for name, parameter in trained.named_parameters():
        moved = not torch.equal(parameter, before[name])
        assert moved == ("lora_" in name or "modules_to_save" in name), name


def test_saved_adapters_are_loaded_by_peft(trained: Any, tmp_path: Path) -> None:
    trained.save_pretrained(tmp_path)
    assert torch.equal(outputs(peft.PeftModel.from_pretrained(base(), tmp_path)), outputs(trained))


def test_what_is_saved_is_not_what_trains(learner: tuple[Any, Any], trained: Any) -> None:
    averaged = outputs(trained)
    learner[1].train()
    assert not torch.allclose(outputs(trained), averaged, rtol=1e-3)


def test_merged_adapters_give_the_same_outputs(trained: Any) -> None:
    merged = copy.deepcopy(trained).merge_and_unload()
    assert not any("lora_" in name for name, _ in merged.named_parameters())
    torch.testing.assert_close(outputs(merged), outputs(trained), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("saves", ["train", "eval"])
def test_training_is_resumed_bit_for_bit(
    learner: tuple[Any, Any], tmp_path: Path, saves: str
) -> None:
    model, optimizer = learner
    getattr(optimizer, saves)()
    model.save_pretrained(tmp_path)
    state = saved(optimizer.state_dict())
    with torch.random.fork_rng():
        torch.manual_seed(3)
        draws = torch.get_rng_state()
        optimizer.train()
        train(model, optimizer, 3)
        again = peft.PeftModel.from_pretrained(base(), tmp_path, is_trainable=True)
        resumed = metaopt.LearnedOptimizer(again, RULE)
        resumed.load_state_dict(state)
        resumed.train()
        torch.set_rng_state(draws)
        train(again, resumed, 3)
    assert torch.equal(outputs(again), outputs(model))
