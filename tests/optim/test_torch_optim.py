"""LearnedOptimizer as a torch.optim.Optimizer on models of other kinds."""

from __future__ import annotations

import copy
import warnings
from pathlib import Path

import pytest
import torch
from cases import learned_rule
from support import tiny_config
from torch import nn

import metaopt
from metaopt import LearnedRule
from metaopt.meta.build import meta_optimizer
from metaopt.rules.base import ShapeMismatchError, UnknownInputsError


def convolutional() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.ReLU(), nn.Flatten(), nn.Linear(8, 3)
    )


def chain(slope: float = 0.1) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Linear(5, 4, bias=False), nn.LeakyReLU(slope), nn.Linear(4, 3, bias=False)
    ).double()


def backward(model: nn.Module, x: torch.Tensor) -> torch.Tensor:
    model.zero_grad()
    loss = 0.5 * (model(x) - 1).square().sum()
    loss.backward()
    return loss.detach()


def weights(model: nn.Module) -> list[torch.Tensor]:
    return [p.detach().clone() for p in model.parameters()]


def test_a_model_that_is_no_chain_gets_updates_after_a_warning() -> None:
    model = convolutional()
    with pytest.warns(UserWarning, match="updates only, no teleports"):
        optimizer = metaopt.LearnedOptimizer(model, learned_rule("coordinate_lstm"), lr=0.01)
    x = torch.randn(6, 1, 4, 4, generator=torch.Generator().manual_seed(1))
    before = weights(model)
    backward(model, x)
    assert optimizer.step() is None
    moved = [not torch.equal(a, b) for a, b in zip(before, weights(model), strict=True)]
    assert all(moved)
    assert all(bool(W.isfinite().all()) for W in weights(model))


def one_step(model: nn.Module, kind: str, forget: bool = False) -> list[torch.Tensor]:
    """Weights after a step of an update rule; ``forget`` the pass that its gradient is of."""
    x = torch.randn(4, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    optimizer = metaopt.LearnedOptimizer(model, learned_rule(kind))
    backward(model, x)
    if forget:
        grads = [p.grad for p in model.parameters()]
        model.zero_grad()
        model(x)
        for p, grad in zip(model.parameters(), grads, strict=True):
            p.grad = grad
    optimizer.step()
    return weights(model)


@pytest.mark.parametrize("kind", ["coordinate_directions_update", "lstm_directions_update"])
def test_update_rules_see_the_inputs_of_a_chain_and_do_without_elsewhere(kind: str) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        seen, unseen = one_step(chain(), kind), one_step(chain(), kind, forget=True)
        again = one_step(chain(), kind)
    assert all(torch.equal(a, b) for a, b in zip(seen, again, strict=True))
    assert not any(torch.equal(a, b) for a, b in zip(seen, unseen, strict=True))
    assert all(bool(W.isfinite().all()) for W in (*seen, *unseen))


def test_update_rules_go_on_where_layers_are_called_in_another_order() -> None:
    class Backward(nn.Sequential):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            for layer in reversed(self):
                x = layer(x)
            return x

    def square() -> list[nn.Module]:
        torch.manual_seed(0)
        return [
            nn.Linear(5, 5, bias=False),
            nn.LeakyReLU(0.1),
            nn.Linear(5, 5, bias=False),
        ]

    kind = "coordinate_directions_update"
    found = one_step(Backward(*square()).double(), kind)
    unseen = one_step(Backward(*square()).double(), kind, forget=True)
    assert all(torch.equal(a, b) for a, b in zip(found, unseen, strict=True))


def test_a_model_with_parameters_of_its_own_is_no_chain() -> None:
    class Scaled(nn.Sequential):
        def __init__(self) -> None:
            super().__init__(*chain())
            self.scale = nn.Parameter(torch.ones((), dtype=torch.float64))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.scale * super().forward(x)

    with pytest.warns(UserWarning, match="parameters beside its layers"):
        metaopt.LearnedOptimizer(Scaled(), learned_rule("coordinate_lstm"))
    found = one_step(Scaled(), "coordinate_directions_update")
    assert all(bool(W.isfinite().all()) for W in found)


def test_the_inputs_of_layers_outlive_their_teleports() -> None:
    """Where the action is not exact updates are those of the update rule alone, on all it sees."""
    x = torch.randn(9, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    pair, alone = (
        learned_rule("coordinate_directions"),
        learned_rule("coordinate_directions_update"),
    )
    alone.optimizer.rules["update"].load_state_dict(pair.optimizer.rules["update"].state_dict())
    results = []
    for rule in (pair, alone):
        model = chain()
        optimizer = metaopt.LearnedOptimizer(model, rule, full_batch=True)
        for step in range(3):
            backward(model, x)
            if rule is pair and step == 0:
                with pytest.warns(UserWarning, match="9 samples and 5 inputs"):
                    optimizer.step()
            else:
                optimizer.step()
        results.append(weights(model))
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


def test_frozen_and_unused_parameters_stay() -> None:
    model = convolutional()
    model[0].weight.requires_grad_(False)
    optimizer = metaopt.LearnedOptimizer(model, learned_rule("coordinate_lstm_update"))
    before = weights(model)
    model[4](torch.ones(2, 8)).sum().backward()
    optimizer.step()
    moved = [not torch.equal(a, b) for a, b in zip(before, weights(model), strict=True)]
    assert moved == [False, False, False, False, True, True]


def test_state_dict_goes_on_bit_for_bit() -> None:
    x = torch.randn(4, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    rule = learned_rule("coordinate_lstm")
    model = chain()
    optimizer = metaopt.LearnedOptimizer(model, rule, full_batch=True)
    for _ in range(3):
        backward(model, x)
        optimizer.step()
    other = chain()
    other.load_state_dict(model.state_dict())
    resumed = metaopt.LearnedOptimizer(other, rule, full_batch=True)
    resumed.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    for _ in range(3):
        for network, own in ((model, optimizer), (other, resumed)):
            backward(network, x)
            own.step()
    assert all(torch.equal(a, b) for a, b in zip(weights(model), weights(other), strict=True))


def test_teleports_keep_what_a_chain_computes() -> None:
    x = torch.randn(4, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    rule = learned_rule("coordinate_lstm")
    with torch.no_grad():
        for parameter in rule.optimizer.rules["update"].parameters():
            parameter.zero_()
    model = chain()
    optimizer = metaopt.LearnedOptimizer(model, rule, full_batch=True)
    before, outputs = weights(model), model(x).detach()
    backward(model, x)
    optimizer.step()
    torch.testing.assert_close(model(x), outputs, rtol=1e-9, atol=1e-9)
    assert all(
        float((a - b).norm()) > 1e-3 * float(a.norm())
        for a, b in zip(before, weights(model), strict=True)
    )


def test_too_many_samples_turn_teleports_off_with_a_warning() -> None:
    model = chain()
    optimizer = metaopt.LearnedOptimizer(model, learned_rule("coordinate_lstm"), full_batch=True)
    x = torch.randn(9, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    backward(model, x)
    with pytest.warns(UserWarning, match="9 samples and 5 inputs"):
        optimizer.step()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        backward(model, x)
        optimizer.step()
    assert all(bool(W.isfinite().all()) for W in weights(model))


def test_measuring_on_other_data_does_not_change_the_step() -> None:
    x = torch.randn(4, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    results = []
    for measure in (False, True):
        model = chain()
        rule = learned_rule("coordinate_lstm")
        optimizer = metaopt.LearnedOptimizer(model, rule, full_batch=True)
        backward(model, x)
        if measure:
            with torch.no_grad():
                model(torch.zeros(3, 5, dtype=torch.float64))
        optimizer.step()
        results.append(weights(model))
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


def test_layers_called_in_another_order_are_an_error() -> None:
    class Twisted(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first = nn.Linear(4, 4, bias=False)
            self.between = nn.LeakyReLU(0.1)
            self.second = nn.Linear(4, 4, bias=False)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.first(self.between(self.second(x))) + x

    model = Twisted().double()
    optimizer = metaopt.LearnedOptimizer(model, learned_rule("coordinate_lstm"), full_batch=True)
    before = weights(model)
    x = torch.randn(3, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    backward(model, x)
    with pytest.raises(ValueError, match="do not feed each other in order"):
        optimizer.step()
    assert all(torch.equal(a, b) for a, b in zip(before, weights(model), strict=True))
    with pytest.raises(ValueError, match="do not feed each other in order"):
        optimizer.step()


def test_a_rule_that_reads_layer_inputs_wants_a_forward_pass() -> None:
    config = tiny_config({"update": {"kind": "informed_lstm", "outer_lr": 1e-3}}, dtype="float64")
    model = chain()
    optimizer = metaopt.LearnedOptimizer(model, LearnedRule(meta_optimizer(config), config))
    before = weights(model)
    for p in model.parameters():
        p.grad = torch.ones_like(p)
    with pytest.raises(UnknownInputsError, match=r"not known here.*general_update does without"):
        optimizer.step()
    assert all(torch.equal(a, b) for a, b in zip(before, weights(model), strict=True))
    backward(model, torch.ones(4, 5, dtype=torch.float64))
    optimizer.step()
    assert all(not torch.equal(a, b) for a, b in zip(before, weights(model), strict=True))


def test_a_shared_rule_keeps_its_dtype() -> None:
    rule = learned_rule("coordinate_lstm_update")
    metaopt.LearnedOptimizer(convolutional(), rule)
    assert {p.dtype for p in rule.optimizer.parameters()} == {torch.float64}
    assert metaopt.LearnedOptimizer(convolutional().double(), rule).meta_optimizer is rule.optimizer


def test_flattened_rules_want_their_shapes() -> None:
    metaopt.LearnedOptimizer(chain(), learned_rule("lstm"))
    with pytest.raises(ShapeMismatchError, match=r"made for layers.*general_update"):
        metaopt.LearnedOptimizer(convolutional(), learned_rule("lstm_update"))


def test_a_path_serves_as_well_as_a_rule_and_models_stay_copyable(tmp_path: Path) -> None:
    rule = learned_rule("coordinate_lstm")
    rule.save(tmp_path / "rule.safetensors")
    x = torch.randn(4, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    results = []
    for source in (rule, tmp_path / "rule.safetensors", str(tmp_path / "rule.safetensors")):
        model = chain()
        optimizer = metaopt.LearnedOptimizer(model, source, full_batch=True)
        backward(model, x)
        optimizer.step()
        results.append(weights(copy.deepcopy(model)))
    assert all(torch.equal(a, b) for a, b in zip(results[0], results[1], strict=True))
    assert all(torch.equal(a, b) for a, b in zip(results[0], results[2], strict=True))
