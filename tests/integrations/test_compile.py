"""A model that ``torch.compile`` compiled; with the extra alone, since that takes its time."""

from __future__ import annotations

import shutil
from functools import partial
from typing import Any

import pytest
import torch
from extras import D, batches, loss, needed, net
from torch import Tensor

import metaopt

needed("transformers")


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="there is no compiler")
@pytest.mark.filterwarnings("error:updates only:UserWarning")
@pytest.mark.parametrize("given", ["model", "compiled"])
def test_a_compiled_model_trains_like_the_model(given: str) -> None:
    models = [net(), net()]
    compiled: Any = torch.compile(models[1])
    for called, model in ((models[0], models[0]), (compiled, models[1])):
        optimizer = metaopt.LearnedOptimizer(model if given == "model" else called, D)

        def closure(batch: int, called: Any = called) -> Tensor:
            value = loss(called, *batches()[batch])
            value.backward()
            return value

        for batch in range(8):
            optimizer.zero_grad()
            optimizer.step(partial(closure, batch))
    for a, b in zip(models[0].parameters(), models[1].parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-4)
