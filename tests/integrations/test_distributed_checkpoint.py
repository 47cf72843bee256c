"""torch.distributed.checkpoint with a learned optimizer."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
from extras import PRETRAINED, batches, equal, loss, net
from torch import nn
from torch.distributed.checkpoint.state_dict import (
    get_optimizer_state_dict,
    set_optimizer_state_dict,
)
from torch.distributed.checkpoint.state_dict_loader import load
from torch.distributed.checkpoint.state_dict_saver import save

import metaopt

pytestmark = pytest.mark.filterwarnings("ignore:torch.distributed is disabled")


def train(model: nn.Module, optimizer: metaopt.LearnedOptimizer) -> None:
    for x, y in batches():
        optimizer.zero_grad()
        loss(model, x, y).backward()
        optimizer.step()


@pytest.mark.parametrize("rule", ["digits_update_tele", "coordinate_update"])
@pytest.mark.parametrize("by", ["methods", "functions"])
def test_a_checkpoint_is_loaded_in_place_and_goes_on_bit_for_bit(
    rule: str, by: str, tmp_path: Path
) -> None:
    path = PRETRAINED / f"{rule}.safetensors"

    def state(model: nn.Module, optimizer: metaopt.LearnedOptimizer) -> dict[str, Any]:
        if by == "methods":
            return optimizer.state_dict()
        return get_optimizer_state_dict(model, optimizer)

    model = net()
    optimizer = metaopt.LearnedOptimizer(model, path, lr=1e-2)
    train(model, optimizer)
    parts = {"model": model.state_dict(), "optimizer": state(model, optimizer)}
    save(parts, checkpoint_id=tmp_path)
    half = copy.deepcopy(model)
    train(model, optimizer)

    resumed = net()
    other = metaopt.LearnedOptimizer(resumed, path)
    parts = {"model": resumed.state_dict(), "optimizer": state(resumed, other)}
    load(parts, checkpoint_id=tmp_path)
    resumed.load_state_dict(parts["model"])
    assert equal(resumed, half)
    if by == "methods":
        other.load_state_dict(parts["optimizer"])
    else:
        set_optimizer_state_dict(resumed, other, parts["optimizer"])
    train(resumed, other)
    assert equal(resumed, model)
