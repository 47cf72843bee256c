"""How operations are called that the flow of a model is written in."""

from __future__ import annotations

from typing import Any

from torch._ops import OpOverload, OpOverloadPacket

UNSEEN = "unseen"
"""Code that a run does not show made a tensor from the arguments."""
READ_ELSEWHERE = "read elsewhere"
"""Code that a run may not show reads the arguments."""
OVERWRITTEN = "overwritten"
"""A tensor (the first argument) of which a part was overwritten through others."""
MODULE = "module"
"""A module of which nothing is known; the arguments end with the tensors that it holds."""

TO_INTEGERS = frozenset({"int", "long", "short", "char", "byte", "bool"})
"""Operations that cut numbers off."""
CASTS = TO_INTEGERS | {
    "to", "type", "type_as", "float", "double", "half", "bfloat16", "cfloat", "cdouble", "chalf",
    "_to_copy",
}  # fmt: skip
"""Operations that may change the dtype: ``identity`` between floating dtypes, else ``cast``."""
REAL = frozenset({
    "linear", "matmul", "einsum", "addmm", "baddbmm", "embedding", "scaled_dot_product_attention",
    "conv1d", "conv2d", "conv3d", "conv_transpose1d", "conv_transpose2d", "conv_transpose3d",
    "add", "sub", "mul", "div", "neg", "pow", "square", "sqrt", "rsqrt", "reciprocal", "lerp",
    "sum", "mean", "var", "std", "norm", "vector_norm", "normalize", "layer_norm", "rms_norm",
    "batch_norm", "group_norm", "instance_norm", "softmax", "log_softmax", "relu", "leaky_relu",
    "prelu", "elu", "gelu", "silu", "sigmoid", "softplus", "tanh", "sin", "cos", "exp", "log",
    "identity", "dropout", "reshape", "flatten", "unflatten", "permute", "transpose", "movedim",
    "unsqueeze", "squeeze", "expand", "getitem", "select", "narrow", "cat", "stack",
})  # fmt: skip
"""Operations that return real numbers if one of their tensors has real numbers."""
READS = frozenset({
    "item", "tolist", "__bool__", "__int__", "__float__", "__index__", "__complex__", "is_nonzero",
    "equal", "allclose", "__contains__", "__format__", "__repr__",
})  # fmt: skip
"""Operations that tell the numbers of a tensor to the code."""
ALIASES = {"lift_fresh": "identity", "_threshold": "threshold"}
"""Names that functions of torch have for torch's own reasons -> the names they are called by."""
KNOWN_HOMES = ("torch", "_operator", "operator", "builtins", "math")


def function_name(function: Any) -> str:
    """The name of a function, method, property or operator, before ``canonical``.

    A function of another home than torch and Python keeps the name of its module, ``mine.relu``,
    so that it is not taken for torch's.

    Args:
        function: what is called.
    """
    if isinstance(function, OpOverload):
        return str(function._schema.name).removeprefix("aten::")
    if isinstance(function, OpOverloadPacket):
        return str(function._qualified_op_name).removeprefix("aten::")
    name = str(getattr(function, "__name__", type(function).__name__))
    owner = getattr(function, "__self__", None)
    if name == "__get__":
        return str(getattr(owner, "__name__", name))
    if name in ("__set__", "__delete__"):
        return f"set {getattr(owner, '__name__', name)}"
    home = getattr(function, "__module__", None)
    if isinstance(home, str) and home.partition(".")[0] not in KNOWN_HOMES:
        return f"{home}.{getattr(function, '__qualname__', name)}"
    return ALIASES.get(name, name)
