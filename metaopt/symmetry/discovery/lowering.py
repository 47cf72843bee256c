"""torch's own layers as the operations that they perform, where a trace shows whole modules.

``nn.Linear`` becomes a call of ``linear`` on its input, its weight and its bias: the calls that a
run of its ``forward`` makes, with the same names. Only the classes themselves are known here; a
subclass has code of its own.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

from torch import nn


class Writer(Protocol):
    """Writes the calls of one module.

    Attributes:
        module: the module.
        training: whether it is in training mode.
    """

    module: Any
    training: bool

    def call(self, name: str, *args: Any, **kwargs: Any) -> Any:
        """Write a call of an operation; returns what it returns."""

    def own(self, name: str) -> Any:
        """The variable of a parameter or buffer of the module; None if it has none."""

    def part(self, name: str, *args: Any, **kwargs: Any) -> Any:
        """Write the calls of a module inside of it; returns what that returns."""

    def apply(self, function: Callable[..., Any], *args: Any) -> Any:
        """Write a call of a function; returns what it returns."""


Lowered = Callable[..., Any]
"""(writer, arguments of ``forward``) -> what the module returns."""


def _function(name: str, *given: str, **fixed: Any) -> Lowered:
    """A module that calls one function with these attributes of its own.

    Args:
        name: the function.
        given: the attributes, in the order of the function's arguments; ``training`` is the mode.
        fixed: further keyword arguments.
    """

    def lowered(at: Writer, x: Any) -> Any:
        values = [at.training if one == "training" else getattr(at.module, one) for one in given]
        inplace = {"inplace": values.pop()} if given[-1:] == ("inplace",) else {}
        return at.call(name, x, *values, **fixed, **inplace)

    return lowered


def _pool(name: str, *given: str) -> Lowered:
    """Pooling, which may return the places of the maxima too."""

    def lowered(at: Writer, x: Any) -> Any:
        values = {key: getattr(at.module, key) for key in given}
        if not at.module.return_indices:
            return at.call(name, x, **values)
        return at.call(f"{name}_with_indices", x, **values)

    return lowered


def _linear(at: Writer, x: Any) -> Any:
    return at.call("linear", x, at.own("weight"), at.own("bias"))


def _convolution(name: str) -> Lowered:
    def lowered(at: Writer, x: Any) -> Any:
        module = at.module
        padding = module.padding
        if module.padding_mode != "zeros":
            x = at.call("pad", x, module._reversed_padding_repeated_twice, mode=module.padding_mode)
            padding = (0,) * len(module.kernel_size)
        weight, bias = at.own("weight"), at.own("bias")
        return at.call(
            name, x, weight, bias, module.stride, padding, module.dilation, module.groups
        )

    return lowered


def _transposed(name: str) -> Lowered:
    def lowered(at: Writer, x: Any, output_size: Any = None) -> Any:
        module = at.module
        more = (module.stride, module.padding, module.output_padding, module.groups)
        return at.call(name, x, at.own("weight"), at.own("bias"), *more, module.dilation)

    return lowered


def _batch_norm(at: Writer, x: Any) -> Any:
    mean, variance = at.own("running_mean"), at.own("running_var")
    on_batch = at.training or mean is None or variance is None
    if at.training and not at.module.track_running_stats:
        mean = variance = None
    more = {"training": on_batch, "momentum": at.module.momentum, "eps": at.module.eps}
    return at.call("batch_norm", x, mean, variance, at.own("weight"), at.own("bias"), **more)


def _instance_norm(at: Writer, x: Any) -> Any:
    module = at.module
    means = {"running_mean": at.own("running_mean"), "running_var": at.own("running_var")}
    affine = {"weight": at.own("weight"), "bias": at.own("bias")}
    on_input = at.training or not module.track_running_stats
    more = {"use_input_stats": on_input, "momentum": module.momentum, "eps": module.eps}
    return at.call("instance_norm", x, **means, **affine, **more)


def _layer_norm(at: Writer, x: Any) -> Any:
    affine = {"weight": at.own("weight"), "bias": at.own("bias")}
    return at.call("layer_norm", x, at.module.normalized_shape, **affine, eps=at.module.eps)


def _rms_norm(at: Writer, x: Any) -> Any:
    shape = at.module.normalized_shape
    return at.call("rms_norm", x, shape, weight=at.own("weight"), eps=at.module.eps)


def _group_norm(at: Writer, x: Any) -> Any:
    affine = {"weight": at.own("weight"), "bias": at.own("bias")}
    return at.call("group_norm", x, at.module.num_groups, **affine, eps=at.module.eps)


def _prelu(at: Writer, x: Any) -> Any:
    return at.call("prelu", x, at.own("weight"))


def _embedding(at: Writer, x: Any) -> Any:
    names = ("padding_idx", "max_norm", "norm_type", "scale_grad_by_freq", "sparse")
    more = {name: getattr(at.module, name) for name in names}
    return at.call("embedding", x, at.own("weight"), **more)


def _identity(at: Writer, x: Any) -> Any:
    return x


def _upsample(at: Writer, x: Any) -> Any:
    names = ("size", "scale_factor", "mode", "align_corners", "recompute_scale_factor")
    return at.call("interpolate", x, **{name: getattr(at.module, name) for name in names})


def _padding(mode: str) -> Lowered:
    def lowered(at: Writer, x: Any) -> Any:
        value = getattr(at.module, "value", None)
        return at.call("pad", x, at.module.padding, mode=mode, value=value)

    return lowered


LOWERED: dict[type[nn.Module], Lowered] = {
    nn.Linear: _linear,
    nn.Embedding: _embedding,
    nn.Identity: _identity,
    nn.LayerNorm: _layer_norm,
    nn.RMSNorm: _rms_norm,
    nn.GroupNorm: _group_norm,
    nn.PReLU: _prelu,
    nn.ReLU: _function("relu", "inplace"),
    nn.RReLU: _function("rrelu", "lower", "upper", "training", "inplace"),
    nn.LeakyReLU: _function("leaky_relu", "negative_slope", "inplace"),
    nn.ELU: _function("elu", "alpha", "inplace"),
    nn.CELU: _function("celu", "alpha", "inplace"),
    nn.SELU: _function("selu", "inplace"),
    nn.SiLU: _function("silu", "inplace"),
    nn.Mish: _function("mish", "inplace"),
    nn.Hardswish: _function("hardswish", "inplace"),
    nn.Hardsigmoid: _function("hardsigmoid", "inplace"),
    nn.Hardtanh: _function("hardtanh", "min_val", "max_val", "inplace"),
    nn.ReLU6: _function("hardtanh", "min_val", "max_val", "inplace"),
    nn.Threshold: _function("threshold", "threshold", "value", "inplace"),
    nn.Tanh: _function("tanh"),
    nn.Sigmoid: _function("sigmoid"),
    nn.LogSigmoid: _function("log_sigmoid"),
    nn.Softplus: _function("softplus", "beta", "threshold"),
    nn.Softsign: _function("softsign"),
    nn.Softshrink: _function("softshrink", "lambd"),
    nn.Hardshrink: _function("hardshrink", "lambd"),
    nn.Tanhshrink: _function("tanhshrink"),
    nn.GLU: _function("glu", "dim"),
    nn.Softmax: _function("softmax", "dim"),
    nn.Softmin: _function("softmin", "dim"),
    nn.LogSoftmax: _function("log_softmax", "dim"),
    nn.Softmax2d: _function("softmax", dim=-3),
    nn.GELU: lambda at, x: at.call("gelu", x, approximate=at.module.approximate),
    nn.AlphaDropout: _function("alpha_dropout", "p", "training"),
    nn.FeatureAlphaDropout: _function("feature_alpha_dropout", "p", "training"),
    nn.Flatten: _function("flatten", "start_dim", "end_dim"),
    nn.Unflatten: _function("unflatten", "dim", "unflattened_size"),
    nn.PixelShuffle: _function("pixel_shuffle", "upscale_factor"),
    nn.PixelUnshuffle: _function("pixel_unshuffle", "downscale_factor"),
    nn.ChannelShuffle: _function("channel_shuffle", "groups"),
    nn.LocalResponseNorm: _function("local_response_norm", "size", "alpha", "beta", "k"),
    nn.Fold: _function("fold", "output_size", "kernel_size", "dilation", "padding", "stride"),
    nn.Unfold: _function("unfold", "kernel_size", "dilation", "padding", "stride"),
    nn.AvgPool1d: _function(
        "avg_pool1d", "kernel_size", "stride", "padding", "ceil_mode", "count_include_pad"
    ),
    **dict.fromkeys((nn.Upsample, nn.UpsamplingNearest2d, nn.UpsamplingBilinear2d), _upsample),
    **dict.fromkeys((nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d), _batch_norm),
    **dict.fromkeys((nn.InstanceNorm1d, nn.InstanceNorm2d, nn.InstanceNorm3d), _instance_norm),
    **dict.fromkeys((nn.ZeroPad1d, nn.ZeroPad2d, nn.ZeroPad3d), _padding("constant")),
    **dict.fromkeys((nn.ConstantPad1d, nn.ConstantPad2d, nn.ConstantPad3d), _padding("constant")),
    **dict.fromkeys(
        (nn.ReflectionPad1d, nn.ReflectionPad2d, nn.ReflectionPad3d), _padding("reflect")
    ),
    **dict.fromkeys(
        (nn.ReplicationPad1d, nn.ReplicationPad2d, nn.ReplicationPad3d), _padding("replicate")
    ),
    **dict.fromkeys((nn.CircularPad1d, nn.CircularPad2d, nn.CircularPad3d), _padding("circular")),
}
"""torch's layers -> the operations that they perform.

Modules that are not here, such as recurrent ones, stay calls of which nothing is known.
"""

for _n in (1, 2, 3):
    LOWERED |= {
        getattr(nn, f"Conv{_n}d"): _convolution(f"conv{_n}d"),
        getattr(nn, f"ConvTranspose{_n}d"): _transposed(f"conv_transpose{_n}d"),
        getattr(nn, f"MaxPool{_n}d"): _pool(
            f"max_pool{_n}d", "kernel_size", "stride", "padding", "dilation", "ceil_mode"
        ),
        getattr(nn, f"AdaptiveMaxPool{_n}d"): _pool(f"adaptive_max_pool{_n}d", "output_size"),
        getattr(nn, f"AdaptiveAvgPool{_n}d"): _function(f"adaptive_avg_pool{_n}d", "output_size"),
        getattr(nn, f"LPPool{_n}d"): _function(
            f"lp_pool{_n}d", "norm_type", "kernel_size", "stride", "ceil_mode"
        ),
    }
for _n, _name in ((2, "avg_pool2d"), (3, "avg_pool3d")):
    LOWERED[getattr(nn, f"AvgPool{_n}d")] = _function(
        _name,
        *("kernel_size", "stride", "padding", "ceil_mode", "count_include_pad", "divisor_override"),
    )
for _kind, _name in (
    (nn.Dropout, "dropout"),
    (nn.Dropout1d, "dropout1d"),
    (nn.Dropout2d, "dropout2d"),
    (nn.Dropout3d, "dropout3d"),
):
    LOWERED[_kind] = lambda at, x, name=_name: at.call(
        name, x, p=at.module.p, training=at.training, inplace=at.module.inplace
    )
