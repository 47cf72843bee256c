"""Adapters of ``peft``: a pair for each LoRA, and a name where there is no plain product.

``METAOPT_ALL=1`` tries all of them; otherwise a part is tried, since each search takes seconds.
"""

from __future__ import annotations

import copy
import os
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import metaopt
from metaopt.symmetry.discovery.obstacles import variant
from metaopt.symmetry.groups import Group, Symmetries

peft = pytest.importorskip("peft")

LAYERS = ("query", "value")
RANK = 4
X = torch.randn(5, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


class Net(nn.Module):
    """Two layers that adapters are for, and others."""

    def __init__(self) -> None:
        super().__init__()
        self.query = nn.Linear(8, 12)
        self.norm = nn.LayerNorm(12)
        self.value = nn.Linear(12, 8)
        self.head = nn.Linear(8, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.tanh(self.value(torch.tanh(self.norm(self.query(x))))))


def adapted(config: Any, second: Any = None) -> Any:
    """A small network with adapters none of which is at its start of zeros, in training mode."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = peft.get_peft_model(Net().double(), config)
        if second is not None:
            model.add_adapter("second", second)
            model.base_model.set_adapter(["default", "second"])
        model.double().train()
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.requires_grad:
                    parameter.add_(0.3 * torch.randn_like(parameter))
    return model


def lora(**options: Any) -> Any:
    return peft.LoraConfig(**{"r": RANK, "target_modules": list(LAYERS)} | options)


def ends(found: Symmetries) -> dict[str, tuple[int, str]]:
    """The first factor of each pair -> its rank, and the second factor; GL(1) only scales."""
    pairs = [
        symmetry
        for symmetry in found
        if symmetry.group is (Group.LINEAR if symmetry.size > 1 else Group.SCALING)
    ]
    found_ends = {s.incoming[0].path: (s.size, s.outgoing[0].path) for s in pairs}
    assert len(found_ends) == len(pairs)
    return found_ends


def outputs(model: nn.Module) -> Tensor:
    """In training mode, with the same dropout each time."""
    with torch.random.fork_rng():
        torch.manual_seed(1)
        return model(X).detach()


def assert_exact(model: nn.Module, found: Symmetries) -> None:
    """All that was found is moved, and moves no output."""
    before, weights = outputs(model), copy.deepcopy(model.state_dict())
    metaopt.teleport(model, norm=0.5, seed=0, symmetries=found)
    assert any(not torch.equal(weights[name], W) for name, W in model.state_dict().items())
    torch.testing.assert_close(outputs(model), before, rtol=1e-9, atol=1e-9)


ALL = bool(os.environ.get("METAOPT_ALL"))
rarely = pytest.mark.skipif(not ALL, reason="METAOPT_ALL=1 tries it")
SLOW = pytest.mark.slow  # a search takes seconds, with all that peft and transformers define
AS_ON_EXAMPLE = "its forward does with other inputs what it did with the example"
MANY: dict[str, Any] = {
    "lora_dropout": 0.3,
    "use_rslora": True,
    "target_modules": "all-linear",
    "modules_to_save": ["norm"],
    "rank_pattern": {"value": 2},
    "alpha_pattern": {"query": 7},
}


@pytest.mark.parametrize(
    ("options", "layers"),
    [
        (MANY, (*LAYERS, "head")),
        pytest.param({}, LAYERS, marks=(SLOW, rarely)),
        pytest.param({"r": 1, "lora_alpha": 3}, LAYERS, marks=(SLOW, rarely)),
        pytest.param(
            {"target_modules": ["value"], "bias": "all"}, ("value",), marks=(SLOW, rarely)
        ),
        pytest.param({"modules_to_save": ["head"]}, LAYERS, marks=(SLOW, rarely)),
    ],
    ids=str,
)
def test_each_adapted_layer_has_one_pair(options: dict[str, Any], layers: tuple[str, ...]) -> None:
    model = adapted(lora(**options))
    found = metaopt.symmetries(model, X)
    path = "base_model.model.{}.lora_{}.default.weight"
    ranks = options.get("rank_pattern", {})
    wanted = {
        path.format(layer, "A"): (ranks.get(layer, options.get("r", RANK)), path.format(layer, "B"))
        for layer in layers
    }
    assert ends(found) == wanted
    assert {symmetry.assumes for symmetry in found} <= {"", AS_ON_EXAMPLE}
    assert_exact(model, found)


@SLOW
@rarely
def test_each_of_several_adapters_has_its_own_pairs() -> None:
    model = adapted(lora(), lora(r=3, target_modules=["value"]))
    found = metaopt.symmetries(model, X)
    sizes = {path.removeprefix("base_model.model."): n for path, (n, _) in ends(found).items()}
    assert sizes == {
        "query.lora_A.default.weight": 4,
        "value.lora_A.default.weight": 4,
        "value.lora_A.second.weight": 3,
    }
    assert_exact(model, found)


@SLOW
@rarely
def test_an_adapter_that_is_not_active_has_no_pair() -> None:
    model = adapted(lora(), lora(r=3))
    model.set_adapter("second")
    assert [size for size, _ in ends(metaopt.symmetries(model, X)).values()] == [3, 3]


OTHERS: dict[str, Callable[[], Any]] = {
    "DoRA": lambda: lora(use_dora=True),
    "VeRA": lambda: peft.VeraConfig(r=RANK, target_modules=["value"]),
    "LoKr": lambda: peft.LoKrConfig(r=RANK, target_modules=list(LAYERS)),
    "OFT": lambda: peft.OFTConfig(r=0, oft_block_size=4, target_modules=list(LAYERS)),
    "BOFT": lambda: peft.BOFTConfig(boft_block_size=4, target_modules=list(LAYERS)),
    "HRA": lambda: peft.HRAConfig(r=RANK, target_modules=list(LAYERS)),
    "FourierFT": lambda: peft.FourierFTConfig(n_frequency=9, target_modules=list(LAYERS)),
    "IA3": lambda: peft.IA3Config(target_modules=["query"], feedforward_modules=[]),
    "LoHa": lambda: peft.LoHaConfig(r=RANK, target_modules=list(LAYERS)),
    "AdaLora": lambda: peft.AdaLoraConfig(
        init_r=RANK, target_r=2, total_step=9, target_modules=list(LAYERS)
    ),
}
MOVED = ("LoHa", "AdaLora")
"""The kinds of which something is exact, though they are no plain product."""
FAST = ("LoKr",)


@pytest.mark.parametrize("kind", [*OTHERS][2:])
def test_kinds_are_known_by_the_name_that_peft_gives_them(kind: str) -> None:
    named = [name for module in adapted(OTHERS[kind]()).modules() if (name := variant(module))]
    assert set(named) == {kind}
    assert len(named) <= len(LAYERS)


def test_a_plain_lora_has_no_other_name() -> None:
    assert not any(map(variant, adapted(lora()).modules()))


@pytest.mark.parametrize(
    "kind", [pytest.param(kind, marks=() if kind in FAST else (SLOW, rarely)) for kind in OTHERS]
)
def test_what_is_no_plain_product_is_moved_exactly_or_left_alone_by_name(kind: str) -> None:
    model = adapted(OTHERS[kind]())
    found = metaopt.symmetries(model, X)
    moved = {slot.module for symmetry in found for slot in symmetry.slots}
    layers = [
        path
        for path, module in model.named_modules()
        if hasattr(module, "adapter_layer_names")
        and any(p.requires_grad for p in module.parameters())
    ]
    assert layers
    for layer in layers:
        assert any(f"{module}.".startswith(f"{layer}.") for module in moved) == (kind in MOVED)
        if kind not in MOVED:
            named = [
                one for one in found.skipped if one.module.startswith(layer) and kind in one.reason
            ]
            assert named, found.skipped
    if kind in MOVED:
        assert_exact(model, found)
    if kind == "AdaLora":
        # B diag(E) A: between the factors there is a diagonal, which only scalings pass.
        factors = [one for one in found if any("lora_A" in slot.path for slot in one.slots)]
        assert {symmetry.group for symmetry in factors} == {Group.SCALING}


@SLOW
def test_lo_ha_has_a_pair_for_each_of_its_products() -> None:
    hadamard = adapted(OTHERS["LoHa"]())
    pairs = ends(metaopt.symmetries(hadamard, X))
    assert len(pairs) == 2 * len(LAYERS)
