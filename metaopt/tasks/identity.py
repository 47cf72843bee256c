"""The identity of a task family: what its tasks and their losses are, not what it is called.

An identity is plain data that can be stored in a file and compared later, on any processor:

    code       digests of the user's definitions that the class depends on (``family_code``)
    numbers    for each tensor its shape, dtype and digest, and for floating point also

                   s = sum_i r_i x_i  and  ||x||,   r fixed and random, 0.36 <= |r_i| <= 1.96

               The tensors are those drawn for tasks, those that the family or its modules hold,
               and the loss and its gradient.
    machine    what rounding may depend on

On the same machine digests must agree, except for the loss and gradient. On another machine, and
for loss and gradient, rounding may differ: there s and ||x|| must agree within a tolerance
times ||x||.
"""

from __future__ import annotations

import hashlib
import math
import os
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from metaopt.base.streams import Stream, generator
from metaopt.tasks.base import TaskFamily, Tasks
from metaopt.tasks.family_code import Code, code_of
from metaopt.tasks.own_batch import LossFamily

Identity = dict[str, Any]
DRAWN, COMPUTED = 1e-5, 1e-4
"""Relative tolerances: for tensors that are drawn, and for computed ones, which round more."""
_BLOCK = 2**16
_COMPUTED = "its "
_MANY = 100
"""A list of more tensors than this is summarised as one tensor."""
_LOOKED_AT = 2
"""The number of tasks whose losses and gradients are computed."""


def identity(family: TaskFamily[Any], tasks: Tasks) -> Identity:
    """The identity of a family.

    Args:
        family: the family.
        tasks: some of its tasks, on the CPU as they were drawn.
    """
    code, batch, held = Code(), None, {}
    if isinstance(family, LossFamily):
        code, batch = code_of(type(family.own)), family.own.batch
        held = {f"self.{name}": value for name, value in vars(family.own).items()}
        held.pop("self.shared", None)  # the tasks have it
    tensors = dict(_arrays(held | code.variables))
    tensors |= {f"{name} of tasks": tensor for name, tensor in _arrays(vars(tasks))}
    few = tasks.select(slice(0, _LOOKED_AT)).to("cpu", torch.float32).at(0)
    seen = few.observe(few.initial)
    loss = few.seen_loss(few.initial)
    computed = {"loss": loss, "judged loss": few.judged(few.initial, loss)}
    computed |= {f"gradient [{i}]": G for i, G in enumerate(seen.grads)}
    tensors |= {f"{_COMPUTED}{name}": tensor for name, tensor in computed.items()}
    numbers = {name: _summary(tensor.detach()) for name, tensor in tensors.items()}
    return {"code": code.digests, "batch": batch, "numbers": numbers, "machine": _machine()}


def _machine() -> list[str]:
    """What the rounding of a computation may depend on."""
    try:
        about = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
    except OSError:
        about = ""
    model = next((line for line in about.splitlines() if line.startswith("model name")), "")
    threads = str(torch.get_num_threads())
    system = os.uname()
    kind = [system.sysname, system.machine, model, threads]
    return [*kind, str(torch.__version__), np.__version__]


def difference(saved: Identity, found: Identity) -> str | None:
    """What changed from one identity to another, in a few words; None if nothing did."""
    before, now = saved["code"], found["code"]
    if edited := sorted(name for name in before | now if before.get(name) != now.get(name)):
        return f"{_listed(edited)} changed since"
    if saved["batch"] != found["batch"]:
        return f"batch was {saved['batch']}, found {found['batch']}"
    old, new = saved["numbers"], found["numbers"]
    exact = saved["machine"] == found["machine"]
    if changed := [
        name for name in old | new if not _alike(name, old.get(name), new.get(name), exact)
    ]:
        return (
            f"the code is as it was, but {_listed(changed)} not: a file that is read, or a "
            f"library, changed since"
        )
    return None


def _listed(names: list[str]) -> str:
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return ", ".join(names[:3]) + more


def _arrays(named: Mapping[str, Any]) -> Iterator[tuple[str, Tensor]]:
    """The tensors and numerical arrays among some values, also within lists and dictionaries."""
    for name, value in named.items():
        if isinstance(value, Tensor):
            yield name, value
        elif isinstance(value, np.ndarray) and value.dtype.kind in "biuf":
            yield name, torch.from_numpy(np.ascontiguousarray(value))
        elif isinstance(value, list | tuple):
            if len(value) > _MANY and all(isinstance(part, Tensor) for part in value):
                value = [torch.cat([part.reshape(-1) for part in value])]
            yield from _arrays({f"{name}[{i}]": part for i, part in enumerate(value)})
        elif isinstance(value, dict):
            yield from _arrays({f"{name}[{key!r}]": part for key, part in value.items()})


def _summary(tensor: Tensor) -> dict[str, Any]:
    kind = {"shape": list(tensor.shape), "dtype": str(tensor.dtype)}
    flat = tensor.cpu().resolve_conj().contiguous().reshape(-1)
    digest = {"digest": _digest(flat.view(torch.uint8) if flat.numel() else flat)}
    if not tensor.is_floating_point():
        return kind | digest
    finite = torch.isfinite(flat)
    total = square = 0.0
    for i, block in enumerate(flat.where(finite, 0).split(_BLOCK)):
        x = block.double().numpy()
        total += float(_signs(1, i + 1)[i]) * float(x @ _signs(0, _BLOCK)[: len(x)])
        square += float(x @ x)
    odd = {} if bool(finite.all()) else {"not finite": _digest(finite)}
    return kind | {"sum": total, "norm": math.sqrt(square), "bits": digest["digest"]} | odd


def _digest(flat: Tensor) -> str:
    return hashlib.sha256(flat.contiguous().numpy().tobytes()).hexdigest()[:16]


@cache
def _signs(seed: int, count: int) -> NDArray[np.float64]:
    """Fixed random numbers of either sign; a larger ``count`` begins with the same numbers."""
    draws = generator(Stream.IDENTITY, seed).uniform(-1, 1, size=count)
    return np.sign(draws) * (0.6 + 0.8 * np.abs(draws))


def _alike(name: str, old: dict[str, Any] | None, new: dict[str, Any] | None, exact: bool) -> bool:
    if old is None or new is None:
        return old is new
    plain = (old.keys() | new.keys()) - {"sum", "norm", "bits"}
    if any(old.get(key) != new.get(key) for key in plain):
        return False
    if "norm" not in new or old["bits"] == new["bits"]:
        return True
    if exact and not name.startswith(_COMPUTED):
        return False
    within = (COMPUTED if name.startswith(_COMPUTED) else DRAWN) * max(old["norm"], new["norm"])
    return all(abs(old[key] - new[key]) <= within for key in ("sum", "norm"))
