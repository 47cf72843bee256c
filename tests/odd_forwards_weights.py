"""Weights that are read by other ways than their layer's, beside their layer, or written to."""

from __future__ import annotations

import copy
import weakref
from types import SimpleNamespace
from typing import Any

import torch
from odd_forwards import (
    Attention,
    Convolved,
    Embedded,
    Gated,
    Lora,
    Mlp,
    Plain,
    Residual,
    odd,
)
from torch import Tensor, nn

GLOBAL: weakref.WeakKeyDictionary[nn.Module, Tensor] = weakref.WeakKeyDictionary()


def first_layer(s: Any) -> Any:
    return next(m for m in s.modules() if isinstance(m, nn.Linear | nn.Conv2d | nn.Embedding))


def number(w: Tensor) -> Tensor:
    """Something of a weight that every group changes."""
    return 1 + (w.flatten() * torch.arange(w.numel(), dtype=w.dtype)).sum() / 100


def in_list(s: Any) -> None:
    s.kept = [first_layer(s).weight]


@odd(Mlp, Gated, Attention, Embedded, Lora, prepare=in_list)
def of_a_list(s: Any, h: Tensor) -> Tensor:
    return h * number(s.kept[0])


def in_dict(s: Any) -> None:
    s.kept = {"deep": ({"w": first_layer(s).weight.detach()},)}


@odd(Mlp, Residual, Convolved, prepare=in_dict)
def of_a_dict(s: Any, h: Tensor) -> Tensor:
    return h * number(s.kept["deep"][0]["w"])


def in_closure(s: Any) -> None:
    w = first_layer(s).weight
    s.scale = lambda h: h * number(w)


@odd(Mlp, Gated, prepare=in_closure)
def of_a_closure(s: Any, h: Tensor) -> Tensor:
    return s.scale(h)


def in_default(s: Any) -> None:
    weight = first_layer(s).weight

    def scale(h: Tensor, w: Tensor = weight) -> Tensor:
        return h * number(w)

    s.scale = scale


@odd(Mlp, Attention, prepare=in_default)
def of_a_default(s: Any, h: Tensor) -> Tensor:
    return s.scale(h)


def in_global(s: Any) -> None:
    GLOBAL[s] = first_layer(s).weight.data


@odd(Mlp, Plain, prepare=in_global)
def of_a_global(s: Any, h: Tensor) -> Tensor:
    return h * number(GLOBAL[s])


def in_namespace(s: Any) -> None:
    s.kept = SimpleNamespace(w=first_layer(s).weight[1:])


@odd(Mlp, Plain, prepare=in_namespace)
def of_a_view(s: Any, h: Tensor) -> Tensor:
    return h * number(s.kept.w)


def in_buffer(s: Any) -> None:
    s.register_buffer("view", first_layer(s).weight.detach().view(-1)[:5], persistent=False)


@odd(Mlp, Residual, prepare=in_buffer)
def of_a_buffer(s: Any, h: Tensor) -> Tensor:
    return h * number(s.view)


def in_numpy(s: Any) -> None:
    s.array = first_layer(s).weight.detach().numpy()


@odd(Mlp, Gated, prepare=in_numpy)
def of_an_array(s: Any, h: Tensor) -> Tensor:
    return h * float(s.array[0].sum())


def in_reference(s: Any) -> None:
    s.reference = weakref.ref(first_layer(s).weight)


@odd(Mlp, Plain, prepare=in_reference)
def of_a_reference(s: Any, h: Tensor) -> Tensor:
    return h * number(s.reference())


def in_method(s: Any) -> None:
    s.scale = first_layer(s).weight.mul


@odd(Mlp, Plain, prepare=in_method)
def of_a_method(s: Any, h: Tensor) -> Tensor:
    return h * number(s.scale(2.0))


def in_module_list(s: Any) -> None:
    s.plain_list = [first_layer(s)]


@odd(Mlp, Residual, prepare=in_module_list)
def of_a_module_in_a_list(s: Any, h: Tensor) -> Tensor:
    return h + s.plain_list[0].bias


def in_copy(s: Any) -> None:
    s.frozen_copy = [copy.deepcopy(first_layer(s))]


@odd(Mlp, Plain, prepare=in_copy)
def of_a_copy(s: Any, h: Tensor) -> Tensor:
    return h + s.frozen_copy[0].bias


def in_storage(s: Any) -> None:
    s.memory = first_layer(s).weight.untyped_storage()


@odd(Mlp, prepare=in_storage)
def of_storage(s: Any, h: Tensor) -> Tensor:
    w = torch.empty(0, dtype=torch.float64).set_(s.memory)
    return h * w.sum()


@odd(Mlp, Gated)
def by_name(s: Any, h: Tensor) -> Tensor:
    return h * number(next(iter(s.state_dict().values())))


@odd(Mlp, Plain)
def by_item(s: Any, h: Tensor) -> Tensor:
    return h if first_layer(s).weight[0, 0].item() > 0.1 else 2 * h


@odd(Mlp, Residual)
def by_vector(s: Any, h: Tensor) -> Tensor:
    return h * nn.utils.parameters_to_vector(s.parameters()).std()


@odd(Mlp, Plain)
def by_vars(s: Any, h: Tensor) -> Tensor:
    return h * number(s._modules["fc1"]._parameters["weight"])


@odd(Mlp, Plain)
def pointer(s: Any, h: Tensor) -> Tensor:
    return h * (1 if s.fc1.weight.data_ptr() else 2)
