"""What a run writes down of what models keep, and of whole models."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from flows import PLAIN, WITH_RELU, Forward, Odd, recorded, state, written
from torch import Tensor, nn

import metaopt
from metaopt.symmetry.discovery.flow import Flow
from metaopt.symmetry.discovery.running import example_of, run, runs
from metaopt.symmetry.discovery.watch import UntraceableError


def averaged(s: Any, x: Tensor) -> Tensor:
    h = s.a(x)
    s.ema.mul_(0.9).add_(h.detach().mean(0))
    return s.b(h)


PREPARED: dict[str, tuple[Callable[[Any], Any], Forward, str]] = {
    "list": (
        lambda s: setattr(s, "held", [s.a.weight]),
        lambda s, x: s.b(s.a(x)) * s.held[0].sum(),
        "linear(0 wa ba)1; linear(1 wb bb)2; sum(wa)3; mul(2 3)4 -> 4",
    ),
    "view in a list": (
        lambda s: setattr(s, "held", [s.a.weight.detach()[1:]]),
        lambda s, x: s.b(s.a(x)),
        f"read elsewhere(wa); {PLAIN}",
    ),
    "array": (
        lambda s: setattr(s, "held", s.a.weight.detach().numpy()),
        lambda s, x: s.b(s.a(x)),
        f"read elsewhere(wa); read elsewhere(wa); {PLAIN}",
    ),
    "table": (
        lambda s: setattr(s, "held", torch.ones(6)),
        lambda s, x: s.b(s.a(x) * s.held),
        "linear(0 wa ba)1; mul(1 constant)2; linear(2 wb bb)3 -> 3",
    ),
    "flag buffer": (
        lambda s: s.register_buffer("flag", torch.tensor(True)),
        lambda s, x: s.b(s.a(x)) if s.flag else x,
        f"__bool__(flag); {PLAIN}",
    ),
    "running mean": (
        lambda s: s.register_buffer("ema", torch.zeros(6)),
        averaged,
        "linear(0 wa ba)1; mul(ema)2; identity(1)3; mean(3)4; add(2 4)5; linear(1 wb bb)6 -> 6 5",
    ),
    "hook that stores": (
        lambda s: s.a.register_forward_hook(lambda m, i, o, kept=[]: kept.append(o)),
        lambda s, x: s.b(s.a(x)),
        f"{PLAIN} 1",
    ),
    "hook that changes": (
        lambda s: s.a.register_forward_hook(lambda m, i, o: o.relu()),
        lambda s, x: s.b(s.a(x)),
        WITH_RELU,
    ),
    "weight norm by hook": (
        lambda s: torch.nn.utils.weight_norm(s.a),
        lambda s, x: s.b(s.a(x)),
        "_weight_norm(a.weight_v a.weight_g)0; linear(1 0 ba)2; linear(2 wb bb)3 -> 3",
    ),
    "weight norm": (
        lambda s: torch.nn.utils.parametrizations.weight_norm(s.a),
        lambda s, x: s.b(s.a(x)),
        "_weight_norm(a.parametrizations.weight.original1 a.parametrizations.weight.original0)0; "
        "linear(1 0 ba)2; linear(2 wb bb)3 -> 3",
    ),
    "lookup that writes": (
        lambda s: setattr(s, "c", nn.Embedding(3, 4, max_norm=1)),
        lambda s, x: s.a(s.c(x.new_zeros(2).long()) @ s.c.weight.T @ s.c.weight),
        "new_zeros(0)1; cast(1)2; embedding(2 c.weight)3; overwritten(2 c.weight)4; T(4)5; "
        "matmul(3 5)6; matmul(6 4)7; linear(7 wa ba)8 -> 8 4",
    ),
    "shared": (
        lambda s: setattr(s, "c", s.a),
        lambda s, x: s.b(s.a(x) + s.c(x)),
        "linear(0 wa ba)1; linear(0 wa ba)2; add(1 2)3; linear(3 wb bb)4 -> 4",
    ),
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", PREPARED)
def test_what_models_keep(name: str) -> None:
    prepare, forward, expected = PREPARED[name]
    assert written(recorded(Odd(forward, prepare), True)) == expected


class Doubling(nn.Module):
    """A module with a rule of its own: one call."""

    def __init__(self) -> None:
        super().__init__()
        self.gain = nn.Parameter(torch.ones(6))

    def forward(self, x: Tensor, factor: int = 2) -> Tensor:
        return x * self.gain * factor


def test_a_module_with_a_rule_is_one_call() -> None:
    model = Odd(lambda s, x: s.b(s.c(s.a(x), factor=3)), lambda s: setattr(s, "c", Doubling()))
    flow = run(model, torch.randn(4, 4), True, {Doubling: None})
    call = flow.calls[1]
    assert [c.name for c in flow.calls] == ["linear", Doubling, "linear"]
    assert (call.module, call.said, call.of) == ("c", "Doubling 'c'", model.c)
    assert call.kwargs == {"factor": 3}
    assert call.inputs == flow.calls[0].outputs
    assert flow.calls[2].inputs[0] in call.outputs
    assert flow.parameters["c.gain"].shape == (6,)


def test_paths_shapes_and_names() -> None:
    model = nn.Sequential(nn.Linear(4, 6), nn.Sequential(nn.ReLU(), nn.Linear(6, 3)))
    flow = run(model, torch.randn(5, 4))
    assert [call.module for call in flow.calls] == ["0", "1.0", "1.1"]
    assert [call.said for call in flow.calls] == ["Linear '0'", "ReLU '1.0'", "Linear '1.1'"]
    assert [call.outputs[0].shape for call in flow.calls] == [(5, 6), (5, 6), (5, 3)]
    assert flow.calls[0].inputs[1] is flow.parameters["0.weight"]
    assert list(flow.parameters) == ["0.weight", "0.bias", "1.1.weight", "1.1.bias"]


def test_a_forward_that_raises_leaves_the_model_as_it_was() -> None:
    def forward(s: Any, x: Tensor) -> Tensor:
        s.count = 1
        s.a.bias.data.zero_()
        torch.rand(1)
        raise ValueError("never so")

    model, x = Odd(forward), torch.randn(4, 4)
    before = state(model)
    with pytest.raises(UntraceableError, match="it does not run on the example: never so"):
        run(model, x, True)
    assert state(model) == before


def test_numbers_are_needed_and_there_are_none() -> None:
    with torch.device("meta"):
        model = Odd(lambda s, x: s.b(s.a(x)) if s.a(x).sum() > 0 else x)
    with pytest.raises(UntraceableError, match="it does not run on the example"):
        run(model, torch.randn(4, 4))


def test_parameters_without_a_shape_and_outputs_without_tensors() -> None:
    with pytest.raises(UntraceableError, match="run it once before"):
        run(nn.LazyLinear(3), torch.randn(4, 4))
    with pytest.raises(UntraceableError, match="returns a generator without tensors"):
        run(Odd(lambda s, x: (y for y in [s.a(x)])), torch.randn(4, 4))


def test_iterators_cannot_go_back() -> None:
    steps = iter([1])
    model = Odd(lambda s, x: s.b(s.a(x)) * next(s.steps), lambda s: setattr(s, "steps", steps))
    with pytest.raises(UntraceableError, match="takes from an iterator"):
        run(model, torch.randn(4, 4))
    assert next(steps) == 1


def test_a_real_run_restores_numbers_and_buffers() -> None:
    def forward(s: Any, x: Tensor) -> Tensor:
        with torch.no_grad():
            s.a.weight.mul_(0.5)
        return s.norm(s.a(x)) * s.a(x).sum().item()

    model = Odd(forward, lambda s: setattr(s, "norm", nn.BatchNorm1d(6)))
    names = [call.name for call in recorded(model, True).calls]
    assert names == ["mul", "linear", "add", "batch_norm", "linear", "sum", "item", "mul"]


def test_models_on_meta_and_in_bfloat16() -> None:
    for device, dtype in (("meta", torch.float32), ("cpu", torch.bfloat16)):
        model = nn.Sequential(nn.Linear(4, 6), nn.LayerNorm(6), nn.Linear(6, 3)).to(device, dtype)
        flow = run(model, torch.randn(5, 4, dtype=dtype), False)
        assert [call.name for call in flow.calls] == ["linear", "layer_norm", "linear"]


def tiny(name: str) -> nn.Module:
    transformers = pytest.importorskip("transformers")
    sizes = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 4}
    sizes |= {"intermediate_size": 32, "vocab_size": 50, "max_position_embeddings": 64}
    if name == "bert":
        return transformers.BertModel(transformers.BertConfig(**sizes))
    return transformers.LlamaForCausalLM(transformers.LlamaConfig(**sizes, num_key_value_heads=2))


@pytest.mark.parametrize("name", ["bert", "llama"])
@pytest.mark.parametrize("training", [True, False])
def test_transformers(name: str, training: bool) -> None:
    model = tiny(name)
    before = state(model)
    flow = run(model, example_of(model), training)
    assert state(model) == before
    names = [call.name for call in flow.calls]
    assert "unseen" not in names
    assert "overwritten" not in names
    assert names.count("scaled_dot_product_attention") == 2
    assert set(flow.parameters) >= {path for path, _ in model.named_parameters()}


def test_a_cache_among_the_inputs_stays_as_it_is() -> None:
    model = tiny("llama").eval()
    with torch.no_grad():
        cache = model(torch.tensor([[5, 6, 7]]), use_cache=True).past_key_values
    keys = cache.layers[0].keys
    flow: Flow = run(model, {"input_ids": torch.tensor([[8]]), "past_key_values": cache}, False)
    assert cache.layers[0].keys is keys
    shapes = [[v.shape for v in call.inputs] for call in flow.calls if call.name == "cat"]
    assert [(1, 2, 3, 4), (1, 2, 1, 4)] in shapes
    assert all(call.name != "unseen" for call in flow.calls)


def test_runs_in_all_modes() -> None:
    model = nn.Sequential(nn.Linear(4, 6), nn.Dropout(0.5))
    assert [flow.training for flow in runs(model, torch.randn(3, 4))] == [True, False]
    model[1].eval()
    found = runs(model, torch.randn(3, 4))
    assert [flow.training for flow in found] == [True, False, None]
    assert [flow.calls[1].kwargs["training"] for flow in found] == [True, False, False]
    assert (model.training, model[1].training) == (True, False)


def test_other_models_bring_no_example() -> None:
    assert example_of(nn.Linear(2, 2)) is None


def test_a_model_with_adapters_brings_the_example_of_its_base_model() -> None:
    peft = pytest.importorskip("peft")
    model = peft.get_peft_model(tiny("llama"), peft.LoraConfig(r=3, target_modules=["q_proj"]))
    assert "input_ids" in example_of(model)
    found = metaopt.symmetries(model)
    assert {(str(s.group), s.size) for s in found} == {("general linear", 3)}


def test_a_model_that_does_not_run_on_its_own_example_asks_for_one() -> None:
    transformers = pytest.importorskip("transformers")
    sizes: dict[str, Any] = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = transformers.ViTConfig(**sizes, intermediate_size=8, image_size=8, patch_size=4)
    (skipped,) = metaopt.symmetries(transformers.ViTForImageClassification(config)).skipped
    assert "give an example of its inputs" in skipped.reason
