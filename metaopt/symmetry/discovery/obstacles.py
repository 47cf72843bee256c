"""Why a tensor must not be moved, whatever feeds it: sharing, freezing, or a kind not supported."""

from __future__ import annotations

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


def _apart(model: nn.Module, path: str, other: str) -> bool:
    """Whether two paths name different tensors; one tensor of two names is one parameter."""
    tensors = dict(named_tensors(model))
    return tensors[path] is not tensors[other]
