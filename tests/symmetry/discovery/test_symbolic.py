"""What symbolic traces show, and that it is what runs show."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from flows import PLAIN, Odd, written
from torch import Tensor, nn
from torch.nn import functional
from zoo import ZOO

from metaopt.symmetry.discovery.flow import Call, Flow, Unknown
from metaopt.symmetry.discovery.lowering_attention import ALL_LOWERED
from metaopt.symmetry.discovery.names import function_name
from metaopt.symmetry.discovery.running import run
from metaopt.symmetry.discovery.symbolic import flows
from metaopt.symmetry.discovery.watch import UntraceableError


class Given(nn.Module):
    """Two layers and code around them, in a ``forward`` that fx can trace."""

    def __init__(self, code: Callable[[Any, Tensor], Any], **parts: Any) -> None:
        super().__init__()
        self.a = nn.Linear(4, 6)
        self.b = nn.Linear(6, 3)
        self.code = code
        for name, part in parts.items():
            setattr(self, name, part)

    def forward(self, x: Tensor) -> Any:
        return self.code(self, x)


def compared(flow: Flow) -> list[Any]:
    """The calls as both sources must show them.

    A run leaves out what does nothing, and counts the batches that BatchNorm has seen. Traces leave
    out how attention orders axes.
    """
    counts = [call for call in flow.calls if _counts(call)]
    calls = [call for call in flow.calls if call.name != "identity" and call not in counts]
    # torch's attention puts sequences first, which coordinates do not notice.
    calls = [call for call in calls if call.name != "transpose"]
    return [(c.name, c.module, c.said, tuple(v.path for v in c.inputs if v.path)) for c in calls]


def _counts(call: Call) -> bool:
    return any("num_batches_tracked" in variable.path for variable in call.inputs)


def check_both(model: nn.Module, *inputs: Tensor) -> None:
    """Symbolic traces and runs must show the same."""
    for flow in flows(model):
        assert compared(flow) == compared(run(model, inputs, flow.training))


UNKNOWN = {"opaque", "opaque module", "recurrent", "penalty"}
"""Models that traces do not show, or show as calls of unknown modules."""


@pytest.mark.parametrize("name", [name for name in ZOO if name not in UNKNOWN])
def test_runs_show_what_traces_show(name: str) -> None:
    check_both(ZOO[name].model(), ZOO[name].inputs())


VECTORS: list[nn.Module] = [
    *(nn.ReLU(), nn.LeakyReLU(), nn.RReLU(), nn.ELU(), nn.CELU(), nn.SELU(), nn.SiLU(), nn.Mish()),
    *(nn.GELU("tanh"), nn.Hardswish(), nn.Hardsigmoid(), nn.Hardtanh(), nn.ReLU6(), nn.Tanh()),
    *(nn.Sigmoid(), nn.LogSigmoid(), nn.Softplus(), nn.Softsign(), nn.Softshrink(), nn.Identity()),
    *(nn.Hardshrink(), nn.Tanhshrink(), nn.Threshold(0.1, 0), nn.GLU(), nn.Softmax(-1)),
    *(nn.Softmin(-1), nn.LogSoftmax(-1), nn.Dropout(0.2), nn.AlphaDropout(), nn.PReLU()),
    *(nn.Unflatten(-1, (2, 3)), nn.FeatureAlphaDropout(), nn.LayerNorm(6), nn.RMSNorm(6)),
    *(nn.BatchNorm1d(6), nn.ReLU(True)),
]  # fmt: skip
IMAGES: list[nn.Module] = [
    *(nn.Conv2d(6, 4, 3), nn.Conv2d(6, 6, 3, groups=3, padding=1, padding_mode="circular")),
    *(nn.ConvTranspose2d(6, 4, 3), nn.BatchNorm2d(6), nn.BatchNorm2d(6, affine=False)),
    *(nn.BatchNorm2d(6, track_running_stats=False), nn.InstanceNorm2d(6), nn.GroupNorm(3, 6)),
    *(nn.InstanceNorm2d(6, affine=True, track_running_stats=True), nn.LocalResponseNorm(2)),
    *(nn.MaxPool2d(2), nn.AvgPool2d(2), nn.LPPool2d(2, 2), nn.AdaptiveAvgPool2d(1)),
    *(nn.AdaptiveMaxPool2d(2), nn.Dropout2d(), nn.Flatten(), nn.PixelShuffle(1), nn.Unfold(2)),
    *(nn.PixelUnshuffle(2), nn.ChannelShuffle(2), nn.Upsample(scale_factor=2), nn.Softmax2d()),
    *(nn.ZeroPad2d(1), nn.ConstantPad2d(1, 2.0), nn.ReflectionPad2d(1), nn.ReplicationPad2d(1)),
    nn.CircularPad2d(1),
]
SERIES: list[nn.Module] = [
    *(nn.Conv1d(6, 4, 3, padding="same"), nn.ConvTranspose1d(6, 4, 3), nn.MaxPool1d(2)),
    *(nn.AvgPool1d(2), nn.AdaptiveAvgPool1d(1), nn.AdaptiveMaxPool1d(1), nn.InstanceNorm1d(6)),
    *(nn.BatchNorm1d(6), nn.Dropout1d(), nn.ConstantPad1d(1, 0.0), nn.Upsample(scale_factor=2)),
]
VOLUMES: list[nn.Module] = [
    *(nn.Conv3d(6, 4, 2), nn.ConvTranspose3d(6, 4, 2), nn.BatchNorm3d(6), nn.MaxPool3d(2)),
    *(nn.AvgPool3d(2), nn.AdaptiveAvgPool3d(1), nn.AdaptiveMaxPool3d(1), nn.Dropout3d()),
]
SHAPES = (
    (VECTORS, (5, 6)),
    (IMAGES, (2, 6, 4, 4)),
    (SERIES, (2, 6, 8)),
    (VOLUMES, (2, 6, 4, 4, 4)),
)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", range(len(SHAPES)))
def test_lowered_layers_are_what_their_forward_does(kind: int) -> None:
    modules, shape = SHAPES[kind]
    for module in modules:
        assert type(module) in ALL_LOWERED
        check_both(nn.Sequential(module), torch.rand(shape))


def test_embeddings_attention_and_transformers() -> None:
    check_both(nn.Sequential(nn.Embedding(5, 6)), torch.arange(5))
    x = torch.randn(2, 3, 6)
    for first in (True, False):
        layer = nn.TransformerEncoderLayer(6, 2, 8, activation="gelu", norm_first=first)
        check_both(nn.Sequential(nn.TransformerEncoder(layer, 2, nn.LayerNorm(6))), x)
        check_both(nn.Transformer(6, 2, 1, 1, 8, batch_first=first), x, x)
    check_both(nn.TransformerDecoderLayer(6, 2, 8, activation=nn.GELU(), batch_first=True), x, x)
    attention = nn.MultiheadAttention(6, 2, kdim=5, vdim=4, add_bias_kv=True, batch_first=True)
    check_both(attention, x, torch.randn(2, 3, 5), torch.randn(2, 3, 4))


def test_an_exchanged_part_of_a_transformer_layer() -> None:
    class Mine(nn.Linear):
        pass

    layer = nn.TransformerEncoderLayer(6, 2, 8)
    layer.linear2 = Mine(8, 6)
    calls = flows(layer)[0].calls
    unknown = [call for call in calls if call.name == "module"]
    assert [call.said for call in unknown] == ["Mine 'linear2'"]
    assert [v.path for v in unknown[0].inputs[1:]] == ["linear2.weight", "linear2.bias"]


def line(code: Callable[[Any, Tensor], Any], **parts: Any) -> str:
    """The flow of code, in training mode, in one line."""
    return written(flows(Given(code, **parts))[0])


def test_functions_methods_and_numbers() -> None:
    assert line(lambda s, x: s.b(s.a(x))) == PLAIN
    assert line(lambda s, x: s.b(s.a(x).view(x.size(0), -1) / 2)) == (
        "linear(0 wa ba)1; reshape(1)2; div(2)3; linear(3 wb bb)4 -> 4"
    )
    call = flows(Given(lambda s, x: s.a(x).reshape(x.shape[0] * 2, s.a.weight.shape[0])))[0].calls[
        1
    ]
    assert isinstance(call.args[1], Unknown)
    assert call.args[2] == 6
    assert line(lambda s, x: s.b(torch.cat(s.a(x).chunk(2, -1), -1))) == (
        "linear(0 wa ba)1; chunk(1)2 3; cat(2 3)4; linear(4 wb bb)5 -> 5"
    )
    assert line(lambda s, x: (lambda parts: parts[1] * parts[0])(s.a(x).split(3, -1))) == (
        "linear(0 wa ba)1; split(1)2 3; mul(3 2)4 -> 4"
    )
    assert line(lambda s, x: s.b(1 - s.a(x).max(0)[0])) == (
        "linear(0 wa ba)1; max(1)2 3; sub(2)4; linear(4 wb bb)5 -> 5"
    )
    assert line(lambda s, x: s.a.weight.T.to(s.a.weight.dtype) * x.float()) == (
        "T(wa)0; identity(0)1; identity(2)3; mul(1 3)4 -> 4"
    )


def test_writes_in_place() -> None:
    def view(s: Any, x: Tensor) -> Tensor:
        h = s.a(x)
        part = h[:, :3]
        part.mul_(3)
        return s.b(h)

    def alias(s: Any, x: Tensor) -> Tensor:
        h = s.a(x)
        functional.relu(h, inplace=True)
        return s.b(h)

    def added(s: Any, x: Tensor) -> Tensor:
        h = s.a(x)
        kept = h
        h += 1
        return s.b(h) + s.b(kept)

    assert line(added) == (
        "linear(0 wa ba)1; add(1)2; linear(2 wb bb)3; linear(2 wb bb)4; add(3 4)5 -> 5"
    )
    assert line(view) == (
        "linear(0 wa ba)1; getitem(1)2; mul(2)3; overwritten(1 3)4; linear(4 wb bb)5 -> 5"
    )
    assert line(alias) == "linear(0 wa ba)1; relu(1)2; linear(2 wb bb)3 -> 3"
    module = nn.Sequential(nn.Linear(4, 6), nn.ReLU(inplace=True), nn.Linear(6, 3))
    assert [call.name for call in flows(module)[0].calls] == ["linear", "relu", "linear"]


def test_what_is_not_known() -> None:
    class Mine(nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x) if x.sum() > 0 else x

    flow = flows(Given(lambda s, x: s.b(s.c(s.a(x))), c=Mine(6, 6)))[0]
    call = flow.calls[1]
    assert (call.name, call.said, call.module) == ("module", "Mine 'c'", "c")
    assert [v.path for v in call.inputs[1:]] == ["c.weight", "c.bias"]
    assert "recurrent" in ZOO
    lstm = flows(ZOO["recurrent"].model())[0].calls[1]
    assert (lstm.name, lstm.said) == ("module", "LSTM 'lstm'")
    hooked = Given(lambda s, x: s.b(s.a(x)))
    hooked.a.register_forward_hook(lambda module, given, output: output * 2)
    assert flows(hooked)[0].calls[0].name == "module"


def test_a_module_with_a_rule_is_one_call() -> None:
    class Doubling(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x * 2

    model = Given(lambda s, x: s.b(s.c(s.a(x))), c=Doubling())
    call = flows(model, {Doubling: None})[0].calls[1]
    assert (call.name, call.of, call.said) == (Doubling, model.c, "Doubling 'c'")
    assert [c.name for c in flows(model)[0].calls] == ["linear", "mul", "linear"]


def test_functions_of_others_keep_the_names_of_their_modules() -> None:
    def mine(x: Any) -> Any:
        return x

    assert function_name(mine).startswith("test_symbolic.")
    assert function_name(functional.relu) == "relu"
    assert function_name(torch.ops.aten.relu.default) == "relu"


def test_modes_and_untraceable_models() -> None:
    model = nn.Sequential(nn.Linear(4, 6), nn.Dropout(0.2), nn.BatchNorm1d(6))
    modes = [
        (f.training, f.calls[1].kwargs["training"], f.calls[2].kwargs["training"])
        for f in flows(model)
    ]
    assert modes == [(True, True, True), (False, False, False)]
    model[1].eval()
    assert [f.calls[1].kwargs["training"] for f in flows(model)] == [True, False, False]
    with pytest.raises(UntraceableError):
        flows(Odd(lambda s, x: s.b(s.a(x)) if x.sum() > 0 else x))
