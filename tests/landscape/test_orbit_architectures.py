"""Orbits of convolutions, transformers and adapters: the loss stays, and so does the model."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from support import signed
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaForCausalLM

from metaopt.landscape.data import Data
from metaopt.landscape.orbit import orbit
from metaopt.landscape.samples import Loss
from metaopt.symmetry.discovery.find import symmetries
from metaopt.symmetry.groups import Group

CROSS = nn.functional.cross_entropy
T = [-0.5, 0.0, 0.5]
Case = tuple[nn.Module, Loss, Data]


def convolutions() -> Case:
    model = nn.Sequential(
        nn.Conv2d(1, 4, 3),
        nn.BatchNorm2d(4),
        nn.ReLU(),
        nn.Conv2d(4, 4, 3, groups=2),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(4, 3),
    )
    return model.double().eval(), CROSS, (signed(5, 1, 6, 6, seed=0), torch.arange(5) % 3)


def encoder() -> Case:
    layer = nn.TransformerEncoderLayer(6, 2, 8, dropout=0.0, batch_first=True)
    model = nn.Sequential(layer, nn.Flatten(), nn.Linear(18, 3)).double().eval()
    return model, CROSS, (signed(4, 3, 6, seed=1), torch.arange(4) % 3)


def next_token(found: Any, targets: Tensor) -> Tensor:
    return CROSS(found.logits.flatten(0, 1), targets.flatten())


def llama() -> Case:
    config = LlamaConfig(
        vocab_size=11,
        hidden_size=8,
        intermediate_size=8,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=1,
        max_position_embeddings=8,
        tie_word_embeddings=False,
    )
    tokens = torch.arange(12).reshape(3, 4) % 11
    model = LlamaForCausalLM(config).eval()
    return model, next_token, ({"input_ids": tokens}, tokens.roll(-1, 1))


def adapters() -> Case:
    model, loss, data = llama()
    lora = get_peft_model(model, LoraConfig(r=2, target_modules=["v_proj"], lora_dropout=0.0))
    for path, parameter in lora.named_parameters():
        if "lora_B" in path:
            nn.init.normal_(parameter, std=0.3)
    return lora.eval(), loss, data


CASES = {
    convolutions: {Group.SCALING},
    encoder: {Group.LINEAR, Group.SCALING, Group.TRANSLATION},
    llama: {Group.SCALING, Group.ROTARY, Group.ORTHOGONAL},
    adapters: {Group.LINEAR},
}


@pytest.mark.parametrize(
    "make",
    [pytest.param(make, marks=[pytest.mark.slow] * (make in (llama, adapters))) for make in CASES],
    ids=lambda make: make.__name__,
)
def test_the_loss_stays_and_so_does_the_model(make: Any) -> None:
    torch.manual_seed(0)
    model, loss, data = make()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    chosen = {one.group: one for one in symmetries(model)}
    assert chosen.keys() >= CASES[make]
    for group in CASES[make]:
        found = orbit(model, chosen[group], loss, data, T)
        # The transformers of transformers are in float32.
        assert found.loss_change < (1e-6 if make in (llama, adapters) else 1e-12)
        assert bool(found.noise_trace.isfinite().all())
        assert bool((found.trace > 0).all())
        assert bool((found.cosine > 0).all())
        if group is not Group.TRANSLATION:
            continue
        torch.testing.assert_close(found.trace, found.trace[:1].expand(3), rtol=1e-6, atol=0)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_single_precision_is_moved_and_measured_to_its_rounding() -> None:
    torch.manual_seed(0)
    model, loss, (inputs, targets) = convolutions()
    wide = orbit(model, "3 -> 7", loss, (inputs, targets), T)
    narrow = orbit(model.float(), "3 -> 7", loss, (inputs.float(), targets), T)
    for name in ("loss", "squared_norm", "gradient_norm", "noise_trace", "trace", "eigenvalue"):
        torch.testing.assert_close(getattr(narrow, name), getattr(wide, name), rtol=1e-4, atol=0)
