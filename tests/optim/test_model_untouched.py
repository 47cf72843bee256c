"""A model that is optimised carries nothing of its optimizer, before and after."""

from __future__ import annotations

import copy
import gc
import io
import warnings
import weakref
from typing import Any

import models
import pytest
import torch
from cases import learned_rule
from models import Problem, equal, take_steps
from torch import nn
from torch.func import functional_call, grad, vmap
from torch.nn.modules import module as every_module

import metaopt

pytestmark = pytest.mark.filterwarnings(
    "ignore:.*global hooks:UserWarning", "ignore::FutureWarning"
)


def trained() -> tuple[Problem, metaopt.LearnedOptimizer]:
    here = models.chain()
    rule = learned_rule("coordinate_directions")
    optimizer = metaopt.LearnedOptimizer(here.model, rule, full_batch=True)
    take_steps(here, optimizer, 1)
    return here, optimizer


def written(model: nn.Module) -> bytes:
    file = io.BytesIO()
    torch.save(model, file)
    return file.getvalue()


def test_a_model_is_written_as_without_an_optimizer() -> None:
    here, optimizer = trained()
    other = models.chain().model
    other.load_state_dict(here.model.state_dict())
    found = written(here.model)
    assert len(found) == len(written(other))
    assert b"metaopt" not in found
    assert optimizer.state_dict()["teleports_off"] is None


@pytest.mark.parametrize("alive", [True, False])
def test_nothing_is_on_a_model_and_all_transforms_take_it(alive: bool) -> None:
    here, optimizer = trained()
    if not alive:
        del optimizer
        gc.collect()
    model, x = here.model, here.x
    for module in model.modules():
        hooks = {name: value for name, value in vars(module).items() if "hooks" in name}
        assert not any(hooks.values())
    outputs = model(x)
    assert torch.equal(torch.jit.script(model)(x), outputs)
    assert torch.equal(torch.jit.trace(model, x)(x), outputs)
    assert torch.equal(copy.deepcopy(model)(x), outputs)

    def of_one(weights: dict[str, torch.Tensor], row: torch.Tensor) -> torch.Tensor:
        return functional_call(model, weights, (row,)).sum()

    weights = {name: p.detach() for name, p in model.named_parameters()}
    each: Any = vmap(grad(of_one), (None, 0))(weights, x)
    model.zero_grad()
    outputs.sum().backward()
    for name, p in model.named_parameters():
        torch.testing.assert_close(each[name].sum(0), p.grad)


def test_an_optimizer_takes_its_hook_and_the_batch_along() -> None:
    gc.collect()
    before = len(every_module._global_forward_hooks)
    here, optimizer = trained()
    chain = optimizer._stepper.chain
    assert chain is not None
    batch = weakref.ref(chain.layer_inputs()[0])
    kept = weakref.ref(chain)
    assert len(every_module._global_forward_hooks) == before + 1
    twin = copy.deepcopy(optimizer)
    del chain, twin, optimizer
    gc.collect()
    assert len(every_module._global_forward_hooks) == before
    assert kept() is None
    assert batch() is None
    here.model(here.x)


def test_rules_that_read_no_inputs_need_no_hook() -> None:
    before = len(every_module._global_forward_hooks)
    optimizer = metaopt.LearnedOptimizer(models.chain().model, learned_rule("layer_units"))
    assert len(every_module._global_forward_hooks) == before
    assert optimizer.state_dict()["teleports_off"] is None


@pytest.mark.parametrize("how", ["model", "in place", "function"])
def test_compiled_in_any_way_a_chain_takes_the_same_steps(how: str) -> None:
    plain, _ = trained()
    here = models.chain()
    if how == "in place":
        here.model.compile(backend="aot_eager")
    rule = learned_rule("coordinate_directions")
    optimizer = metaopt.LearnedOptimizer(here.model, rule, full_batch=True)
    run: Any = here.model
    if how == "function":
        run = torch.compile(here.model.forward, backend="aot_eager")
    elif how != "in place":
        run = torch.compile(here.model, backend="aot_eager")
    nn.functional.cross_entropy(run(here.x), here.labels).backward()
    optimizer.step()
    assert equal(plain.weights(), here.weights())


def test_other_models_compile_as_before() -> None:
    _, optimizer = trained()
    other = models.perceptron()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = torch.compile(other.model, backend="eager", fullgraph=True)(other.x)
    assert torch.equal(found, other.model(other.x))
    assert optimizer.state_dict()["teleports_off"] is None
