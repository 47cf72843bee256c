"""Run by ``test_replicas`` in two processes: replicas with learned optimizers.

Alone: python -m torch.distributed.run --nproc-per-node 2 tests/replicas_worker.py FOLDER
"""

from __future__ import annotations

import sys
import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from cases import learned_rule
from places import PRETRAINED
from torch import Tensor, distributed, nn
from torch.distributed import device_mesh, fsdp, tensor
from torch.distributed.algorithms.join import Join
from torch.distributed.optim import ZeroRedundancyOptimizer
from torch.nn.parallel import DistributedDataParallel

import metaopt

D = PRETRAINED / "digits_update_tele.safetensors"
STEPS = 8
ROWS = 4
"""Of each process."""
Make = Callable[[nn.Module, nn.Module], metaopt.LearnedOptimizer]


def mlp(seed: int) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(5, 8), nn.ReLU(), nn.Linear(8, 3)).double()


def chain(seed: int) -> nn.Module:
    torch.manual_seed(seed)
    layers = [nn.Linear(9, 6, bias=False), nn.LeakyReLU(0.1), nn.Linear(6, 3, bias=False)]
    return nn.Sequential(*layers).double()


def rows(inputs: int) -> tuple[Tensor, Tensor]:
    """The data of both processes."""
    generator = torch.Generator().manual_seed(5)
    x = torch.randn(2 * ROWS, inputs, generator=generator, dtype=torch.float64)
    # The loss of the second process is some hundred times that of the first.
    y = torch.randn(2 * ROWS, 3, generator=generator, dtype=torch.float64)
    return x, torch.cat([y[:ROWS], 30 * y[ROWS:]])


def evaluate(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    model.zero_grad()
    loss = (model(x.to(next(model.parameters()))) - y).square().mean()
    loss.backward()
    return loss


def train(model: nn.Module, optimizer: metaopt.LearnedOptimizer, closure: bool, one: bool) -> None:
    """Steps on this process's rows, or on all."""
    x, y = rows(next(model.parameters()).shape[1])
    if not one:
        own = slice(ROWS * distributed.get_rank(), ROWS * (distributed.get_rank() + 1))
        x, y = x[own], y[own]
    for _ in range(STEPS):
        if closure:
            optimizer.step(lambda: evaluate(model, x, y))
        else:
            evaluate(model, x, y)
            optimizer.step()


def said(caught: list[warnings.WarningMessage]) -> list[str]:
    """What is off, as it was warned of."""
    lines = [str(warning.message) for warning in caught]
    return [line for line in lines if "no teleports" in line or "loss is not heard" in line]


def weights(model: nn.Module) -> Tensor:
    return torch.cat([p.detach().flatten().double() for p in model.parameters()])


def replicas(
    model: nn.Module, make: Make, closure: bool, made_before: bool = False
) -> dict[str, Any]:
    """Weights after training, and what was warned of.

    Args:
        model: another one in each process.
        make: the optimizer, from the wrapper and from the model.
        closure: whether steps are given one.
        made_before: the optimizer is older than the replicas.
    """
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        optimizer = make(model, model) if made_before else None
        shared = DistributedDataParallel(model)
        train(shared, optimizer or make(shared, model), closure, one=False)
    return {"weights": weights(model), "warned": said(caught)}


def given_wrapper(rule: Any, lr: float = 1.0) -> Make:
    return lambda shared, model: metaopt.LearnedOptimizer(shared, rule, lr=lr)


def given_model(rule: Any) -> Make:
    return lambda shared, model: metaopt.LearnedOptimizer(model, rule)


def refusal(make: Callable[[], object]) -> str:
    try:
        make()
    except ValueError as error:
        return str(error)
    return "none"


def uneven() -> dict[str, Any]:
    """The second process has more batches than the first."""
    rank = distributed.get_rank()
    model = mlp(rank)
    shared = DistributedDataParallel(model)
    optimizer = metaopt.LearnedOptimizer(shared, D)
    x, y = rows(5)
    with warnings.catch_warnings(), Join([shared]):
        warnings.simplefilter("ignore")
        for i in range(3 + 2 * rank):
            batch = x[i : i + 2], y[i : i + 2]
            optimizer.step(partial(evaluate, shared, *batch))
    return {"weights": weights(model)}


def parts() -> dict[str, str]:
    """Optimizers of parameters that no process has the whole of, by then or soon."""
    mesh = device_mesh.init_device_mesh("cpu", (2,))
    whole = partial(fsdp.FullyShardedDataParallel, device_id=torch.device("cpu"))
    cuts: dict[str, Callable[[nn.Module], Any]] = {
        "fully_shard": partial(fsdp.fully_shard, mesh=mesh),
        "tensor parallel": partial(tensor.distribute_module, device_mesh=mesh),
        "FSDP": whole,
        "FSDP, original": partial(whole, use_orig_params=True),
    }
    found = {}
    for kind, cut in cuts.items():
        found[kind] = refusal(partial(metaopt.LearnedOptimizer, cut(mlp(0)), D))
        model = mlp(0)
        optimizer = metaopt.LearnedOptimizer(model, D)
        cut(model)
        found[f"{kind}, later"] = refusal(optimizer.step)
    parallel, model = cuts["tensor parallel"](mlp(0)), mlp(0)
    found["list"] = refusal(lambda: metaopt.LearnedOptimizer([*parallel.parameters()], D))
    own = mlp(0)
    DistributedDataParallel._set_params_and_buffers_to_ignore_for_model(own, ["2.bias"])
    found["ignored"] = refusal(lambda: metaopt.LearnedOptimizer(own, D))
    shared = [parameter for name, parameter in own.named_parameters() if name != "2.bias"]
    found["the others"] = refusal(lambda: metaopt.LearnedOptimizer(own, D, params=shared).step())
    found["ZeRO"] = refusal(
        lambda: ZeroRedundancyOptimizer(model.parameters(), metaopt.LearnedOptimizer, rule=D)
    )
    return found


def main() -> None:
    """Everything, in one process of two."""
    # Older than the processes' knowledge of each other.
    alone = mlp(3)
    early = chain(0)
    coordinate = learned_rule("coordinate_lstm")
    early_optimizer = metaopt.LearnedOptimizer(early, coordinate, lr=0.01, full_batch=True)
    distributed.init_process_group("gloo")
    rank = distributed.get_rank()
    found: dict[str, Any] = {
        "wrapper": replicas(mlp(rank), given_wrapper(D), closure=True),
        "model": replicas(mlp(rank), given_model(D), closure=True),
        "no closure": replicas(mlp(rank), given_model(D), closure=False),
        "before": replicas(mlp(rank), given_model(D), closure=True, made_before=True),
        "bfloat16": replicas(mlp(rank).bfloat16(), given_wrapper(D), closure=True),
        "chain": replicas(chain(rank), given_wrapper(coordinate, lr=0.01), closure=True),
        "early": replicas(early, lambda shared, model: early_optimizer, closure=True),
        "uneven": uneven(),
        "parts": parts(),
    }
    if rank == 0:
        # The others take no step.
        with warnings.catch_warnings(record=True) as caught:
            train(alone, metaopt.LearnedOptimizer(alone, D), closure=True, one=True)
        found["alone"] = {"weights": weights(alone), "warned": said(caught)}
    torch.save(found, Path(sys.argv[1]) / f"{rank}.pt")
    distributed.destroy_process_group()


if __name__ == "__main__":
    main()
