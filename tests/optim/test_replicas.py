"""Learned optimizers in several processes: replicas stay equal bit for bit, or it is refused."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import replicas_worker
import torch
from cases import learned_rule
from replicas_worker import D, mlp, train, weights
from running import in_two_processes
from torch import nn
from torch.nn.parallel import DistributedDataParallel

import metaopt

EQUAL = ["wrapper", "model", "no closure", "before", "bfloat16", "chain", "early", "uneven"]
PARTS = {
    "fully_shard": "DTensor",
    "tensor parallel": "DTensor",
    "FSDP": "FullyShardedDataParallel",
    "FSDP, original": "FullyShardedDataParallel",
}
PARTS |= {f"{kind}, later": named for kind, named in PARTS.items()}
PARTS |= {"list": "DTensor", "ZeRO": "ZeroRedundancyOptimizer", "ignored": "ignores"}


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """What ``replicas_worker`` found in each of two processes."""
    folder = tmp_path_factory.mktemp("replicas")
    in_two_processes(replicas_worker.main, [str(folder)], folder)
    return [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in range(2)]


@pytest.mark.slow
@pytest.mark.parametrize("kind", EQUAL)
def test_replicas_stay_equal_bit_for_bit(kind: str, two: list[dict[str, Any]]) -> None:
    first, second = (rank[kind] for rank in two)
    assert torch.isfinite(first["weights"]).all()
    assert torch.equal(first["weights"], second["weights"])


@pytest.mark.slow
def test_with_the_mean_of_the_losses_two_processes_are_one(two: list[dict[str, Any]]) -> None:
    whole = mlp(0)
    train(whole, metaopt.LearnedOptimizer(whole, D), closure=True, one=True)
    torch.testing.assert_close(two[0]["wrapper"]["weights"], weights(whole), rtol=1e-9, atol=1e-12)
    deaf = two[0]["model"]["weights"]
    assert not torch.allclose(deaf, weights(whole), rtol=1e-4)
    # Without a loss there is nothing to be told apart.
    silent = mlp(0)
    train(silent, metaopt.LearnedOptimizer(silent, D), closure=False, one=True)
    torch.testing.assert_close(deaf, weights(silent), rtol=1e-9, atol=1e-12)
    assert torch.equal(deaf, two[0]["no closure"]["weights"])


@pytest.mark.slow
def test_what_cannot_be_shared_is_said_once_in_one_line(two: list[dict[str, Any]]) -> None:
    for rank in two:
        assert rank["wrapper"]["warned"] == rank["no closure"]["warned"] == []
        for kind in ("model", "before"):
            (line,) = rank[kind]["warned"]
            assert "the loss is not heard: each of 2 processes" in line
            assert "DistributedDataParallel" in line
        assert [line for line in rank["chain"]["warned"] if "teleports" in line] == [
            "updates only, no teleports: each of 2 processes sees data of its own"
        ]
        assert rank["early"]["warned"].count(rank["chain"]["warned"][0]) == 1


@pytest.mark.slow
def test_a_process_may_train_alone(two: list[dict[str, Any]]) -> None:
    (line,) = two[0]["alone"]["warned"]
    assert "the loss is not heard" in line
    assert torch.isfinite(two[0]["alone"]["weights"]).all()
    assert "alone" not in two[1]


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "named"), PARTS.items())
def test_parts_of_parameters_are_refused(kind: str, named: str, two: list[dict[str, Any]]) -> None:
    for rank in two:
        line = rank["parts"][kind]
        assert named in line
        assert "DistributedDataParallel" in line
        assert "\n" not in line
        assert rank["parts"]["the others"] == "none"


# One process -------------------------------------------------------------------------------------


@pytest.fixture
def group(tmp_path: Path) -> Any:
    """torch.distributed with a single process."""
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{tmp_path / 'store'}", rank=0, world_size=1
    )
    yield
    torch.distributed.destroy_process_group()


@pytest.mark.usefixtures("group")
@pytest.mark.filterwarnings("error:updates only:UserWarning")
@pytest.mark.parametrize("wrap", [DistributedDataParallel, nn.DataParallel])
def test_in_one_process_a_wrapper_changes_nothing(wrap: Callable[[nn.Module], nn.Module]) -> None:
    if wrap is nn.DataParallel and torch.cuda.is_available():
        pytest.skip("beside a GPU, DataParallel takes no model that is on the CPU")
    found: list[torch.Tensor] = []
    for model in (mlp(0), mlp(0)):
        given = wrap(model) if found else model
        train(given, metaopt.LearnedOptimizer(given, D), closure=True, one=True)
        found.append(weights(model))
    assert torch.equal(*found)


@pytest.mark.usefixtures("group")
def test_symmetries_of_a_wrapper_are_those_of_the_model() -> None:
    model = mlp(0)
    wrapped: Any = torch.compile(DistributedDataParallel(model), backend="eager")
    assert str(metaopt.symmetries(wrapped)) == str(metaopt.symmetries(model))
    x = torch.randn(4, 5, dtype=torch.float64)
    before, outputs = weights(model), model(x)
    metaopt.teleport(DistributedDataParallel(model))
    assert not torch.equal(weights(model), before)
    torch.testing.assert_close(model(x), outputs)


@pytest.mark.usefixtures("group")
def test_a_list_of_parameters_is_whole_in_one_process() -> None:
    model = mlp(0)
    rule = learned_rule("layer")
    train(model, metaopt.LearnedOptimizer(model.parameters(), rule), closure=True, one=True)
