"""Why a tensor must not be moved, whatever feeds it: sharing, freezing, or a kind not supported."""

from __future__ import annotations

import re
import sys

from torch import nn

from metaopt.symmetry.discovery.memory import PLAIN, named_tensors, shared_memory


def unmoved(model: nn.Module) -> dict[str, str]:
    """For each tensor of a model that must not be moved, the reason.

    Args:
        model: the model.
    """
    shared = shared_memory(model)
    found: dict[str, str] = {}
    for path, tensor in named_tensors(model):
        if isinstance(tensor, nn.Parameter) and not tensor.requires_grad:
            found[path] = f"'{path}' is frozen"
        elif type(tensor) not in PLAIN or not tensor.is_floating_point():
            found[path] = f"'{path}' is no ordinary tensor of real numbers"
        elif path in shared and _apart(model, path, shared[path]):
            found[path] = f"'{path}' shares its memory with '{shared[path]}'"
    return found | _of_adapters(model)


ADAPTERS = {
    "lora_magnitude_vector": (
        ("lora_A", "lora_B", "lora_magnitude_vector"),
        "DoRA divides by the norm of the sum of its product and a frozen weight",
    ),
    "vera_lambda_b": (
        ("vera_lambda_b", "vera_lambda_d"),
        "VeRA scales factors that are frozen and shared",
    ),
}
"""A part of adapters of ``peft`` by which a kind is known -> its parts, and why they stay."""


def _of_adapters(model: nn.Module) -> dict[str, str]:
    """The tensors of adapters of kinds that are not supported."""
    found: dict[str, str] = {}
    for path, module in model.named_modules():
        for mark, (parts, reason) in ADAPTERS.items():
            if not list(getattr(getattr(module, mark, None), "parameters", list)()):
                continue
            for name, _ in module.named_parameters():
                if name.partition(".")[0] in parts:
                    found[f"{path}.{name}" if path else name] = f"'{path}': {reason}"
    return found


def variant(module: nn.Module) -> str:
    """Which kind of adapters of ``peft`` a layer has, if no plain product; empty for all others.

    What is exact for such a layer is found as anywhere else; this is a name for where nothing is.

    Args:
        module: any module of a model.
    """
    if any(list(getattr(getattr(module, mark, None), "parameters", list)()) for mark in ADAPTERS):
        return ""
    variants = getattr(module, "lora_variant", None)
    if isinstance(variants, dict) and variants:
        name = type(next(iter(variants.values()))).__name__
        return re.sub(r"(Linear|Embedding|Conv\dd)?Variant$", "", name)
    for kind in type(module).__mro__:
        parts = kind.__module__.split(".")
        if parts[:2] == ["peft", "tuners"] and len(parts) > 3 and parts[2] != "lora":
            return _spelled(parts[2]) if hasattr(module, "adapter_layer_names") else ""
    return ""


def _spelled(package: str) -> str:
    """A kind of adapters as ``peft`` spells it: its package ``lokr`` has a ``LoKrConfig``."""
    configs = (name.removesuffix("Config") for name in dir(sys.modules[f"peft.tuners.{package}"]))
    same = package.replace("_", "")
    return next((name for name in configs if name.lower() == same), package)


def _apart(model: nn.Module, path: str, other: str) -> bool:
    """Whether two paths name different tensors; one tensor of two names is one parameter."""
    tensors = dict(named_tensors(model))
    return tensors[path] is not tensors[other]
