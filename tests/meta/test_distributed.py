"""Several processes: the same numbers as one, signals, kills, resumption on another number."""

from __future__ import annotations

import json
import os
import re
import runpy
import signal
import subprocess
import time
from collections import Counter
from functools import partial
from pathlib import Path
from typing import Any

import distributed_worker
import pytest
import torch
from distributed_worker import KINDS, WINDOWS, config_of, resumed, trace
from running import TINY, TINY_EVAL, TORCHRUN, command, finish, in_two_processes, rows, run_here
from safetensors.torch import load_file
from torch import Tensor

from metaopt.base.errors import UserError
from metaopt.base.process import World, join
from metaopt.meta.trainer import MetaTrainer

CONFIG = "coordinate_update_tele.yaml"
ON_CPU = ["--device", "cpu"]
"""Two processes take two GPUs, and a machine may have one."""
UNEVEN = [*TINY, "meta.batch=5", "validation.tasks=3", "dtype=float64"]
# Under sized generators another order of sums makes 1e-11 in 40 outer steps, 1e-5 to 1e-3 in 80.
STEADY = "rules.teleport.basis=directions"
LONG = [*UNEVEN, STEADY, "meta.outer_steps=80", "validation.every=40"]
only_linux = pytest.mark.skipif(not Path("/proc/self/environ").exists(), reason="reads /proc")


def in_two(given: list[str]) -> list[str]:
    """The command of a script, under torchrun with two processes."""
    return [given[0], *TORCHRUN, *given[1:]]


def relative(found: Tensor, wanted: Tensor) -> float:
    return float((found - wanted).norm() / wanted.norm())


# One process -------------------------------------------------------------------------------------


class _Rank(World):
    def __init__(self, rank: int, size: int) -> None:
        self.rank = rank
        self.size = size


@pytest.mark.parametrize(("total", "size"), [(5, 2), (4, 4), (7, 3), (1, 1), (64, 5)])
def test_shares_cover_the_batch_in_order(total: int, size: int) -> None:
    shares = [_Rank(rank, size).share(total, "meta.batch") for rank in range(size)]
    assert [i for share in shares for i in range(share.start, share.stop)] == list(range(total))
    lengths = [share.stop - share.start for share in shares]
    assert max(lengths) - min(lengths) <= 1


def test_more_processes_than_trajectories_are_a_mistake() -> None:
    with pytest.raises(UserError, match=r"meta\.batch: found 2, expected at least 3"):
        _Rank(0, 3).share(2, "meta.batch")


def test_one_process_initialises_nothing() -> None:
    assert type(join({})) is World
    assert type(join({"WORLD_SIZE": "1", "RANK": "0"})) is World
    assert not torch.distributed.is_initialized()
    with pytest.raises(UserError, match="MASTER_ADDR"):
        join({"WORLD_SIZE": "2", "RANK": "0"})


def test_one_process_leaves_everything_as_it_is() -> None:
    gradient, means, maxima = torch.ones(3), torch.tensor([2.0]), torch.tensor([4.0])
    found = World().mean_([gradient], means, maxima, [True, False], 1.0)
    assert found[0] is means
    assert found[1] is maxima
    assert found[2].tolist() == [1.0, 0.0]
    assert torch.equal(gradient, torch.ones(3))


# Two processes, in memory ------------------------------------------------------------------------


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """What ``distributed_worker`` found in each of two processes."""
    folder = tmp_path_factory.mktemp("two")
    in_two_processes(distributed_worker.main, [str(folder)], folder)
    return [torch.load(folder / f"{rank}.pt", weights_only=False) for rank in range(2)]


@pytest.fixture(scope="module")
def one() -> dict[str, dict[str, Any]]:
    return {kind: trace(MetaTrainer(config_of(kind), distributed_worker.CPU)) for kind in KINDS}


@pytest.mark.slow
def test_means_are_weighed_maxima_are_maxima_and_votes_are_counted(
    two: list[dict[str, Any]],
) -> None:
    for rank in two:
        found = rank["means"]
        assert found["means"] == [1.75, 8.0]
        assert found["maxima"] == [-1.0, 6.0]
        assert found["votes"] == [1.0, 2.0, 0.0]
        assert torch.equal(found["gradients"][0], torch.full((2, 1), 1.75))
        assert found["gradients"][1].tolist() == [0.0, float("inf")]
        assert rank["gathered"] == [0, 1]
    assert [rank["collected"] for rank in two] == [[0, 1], []]


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_two_processes_have_the_meta_gradients_of_one(
    kind: str, one: dict[str, dict[str, Any]], two: list[dict[str, Any]]
) -> None:
    wanted = one[kind]
    for rank in two:
        found = rank[kind]
        for i in range(WINDOWS):
            assert relative(found["gradients"][i], wanted["gradients"][i]) < 1e-10
            assert found["meta_loss"][i] == pytest.approx(wanted["meta_loss"][i], rel=1e-12)
            for numbers in ("teleports", "grad_norms"):
                # A drift is a difference of nearly equal outputs: rounding is all that it is.
                assert found[numbers][i] == pytest.approx(wanted[numbers][i], rel=1e-9, abs=1e-12)
        assert relative(found["gradients"][0], wanted["gradients"][0]) < 1e-12
        assert relative(found["phi"], wanted["phi"]) < 1e-10
        torch.testing.assert_close(found["validation"], wanted["validation"], rtol=1e-9, atol=0)


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_all_processes_hold_the_same_bits(kind: str, two: list[dict[str, Any]]) -> None:
    first, second = (rank[kind] for rank in two)
    for name in ("phi", "validation", "resumed", "resumed from one process"):
        assert torch.equal(first[name], second[name])
    assert first["teleports"] == second["teleports"]
    for mine, other in zip(first["gradients"], second["gradients"], strict=True):
        assert torch.equal(mine, other)


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_a_state_goes_on_where_it_was_on_any_number_of_processes(
    kind: str, one: dict[str, dict[str, Any]], two: list[dict[str, Any]]
) -> None:
    found = two[0][kind]
    assert torch.equal(found["resumed"], found["phi"])
    assert relative(found["resumed from one process"], one[kind]["phi"]) < 1e-10
    state = found["state"]
    assert state["inner"]["step"] == 4
    assert [part["count"] for part in state["inner"]["parts"]] == [3, 2]
    assert relative(resumed(config_of(kind), World(), state), one[kind]["phi"]) < 1e-10
    assert torch.equal(resumed(config_of(kind), World(), one[kind]["state"]), one[kind]["phi"])
    assert two[1][kind]["state"]["inner"]["parts"] == []


@pytest.mark.slow
def test_what_is_not_finite_in_one_process_is_skipped_by_all(two: list[dict[str, Any]]) -> None:
    for rank in two:
        found = rank["poisoned"]
        assert found["skipped"]
        assert found["counted"] == 1
        assert found["kept"]
        assert found["votes"] == [False, True, True]


# Two processes, as a user runs them --------------------------------------------------------------


def start_and_wait_for(given: list[str], folder: Path, row: int) -> subprocess.Popen[str]:
    """A run under torchrun, once its metrics have a row of outer step ``row``."""
    process = subprocess.Popen(
        given, cwd=folder.parent, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    deadline = time.monotonic() + 90
    while time.monotonic() < deadline and process.poll() is None:
        if (folder / "metrics.jsonl").is_file():
            whole = (folder / "metrics.jsonl").read_text().split("\n")[:-1]
            if whole and json.loads(whole[-1]).get("outer_step", 0) >= row:
                return process
        time.sleep(0.02)
    process.kill()
    raise AssertionError(f"never came to outer step {row}: {process.communicate()}")


def process_of_rank(parent: int, rank: int) -> int:
    for pid in map(int, filter(str.isdigit, os.listdir("/proc"))):
        try:
            status = Path(f"/proc/{pid}/status").read_text()
            environment = Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
        except OSError:
            continue
        if f"\nPPid:\t{parent}\n" in status and f"RANK={rank}".encode() in environment:
            return pid
    raise AssertionError(f"no process of rank {rank}")


def our_lines(errors: str) -> list[str]:
    """stderr without the bar and without what torchrun has to say at length."""
    ours = re.split(r"^Traceback|^E\d{4} ", errors, flags=re.MULTILINE)[0]
    # A bar ends in "]" and starts its line anew.
    lines = re.split(r"[\r\n]", ours)
    torchruns = re.compile(r"^[WI]\d{4} |^\*+$|OMP_NUM_THREADS|it/s|\|.*\[|^\s*$")
    return [line for line in lines if not torchruns.search(line)]


@only_linux
@pytest.mark.slow
def test_a_run_outlives_signals_kills_and_changes_of_the_number_of_processes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "broken"
    given = ["--config", CONFIG, *ON_CPU, "--out", str(folder)]
    train = command("train_meta.py", *given, overrides=LONG)
    onward = [*train, "--resume"]

    terminated = start_and_wait_for(in_two(train), folder, 10)
    terminated.send_signal(signal.SIGTERM)
    _, errors = terminated.communicate(timeout=60)
    assert our_lines(errors) == [f"terminated; --resume goes on from {folder}"]
    stopped_at = rows(folder)[-1]["outer_step"]
    assert 10 <= stopped_at < 50

    killed = start_and_wait_for(in_two(onward), folder, stopped_at + 10)
    os.kill(process_of_rank(killed.pid, 1), signal.SIGKILL)
    _, errors = killed.communicate(timeout=60)
    assert errors.count("a process of the run was lost") == 1, errors
    (line,) = (line for line in re.split(r"[\r\n]", errors) if "run was lost" in line)
    assert str(folder / "state.pt") in line
    assert "--resume" in line
    assert re.search(r"rank +: 0 .*\n +exitcode +: 1 ", errors)
    assert {"resumed_from": stopped_at} in rows(folder)
    assert not list(folder.glob(".*"))

    assert run_here("train_meta.py", onward[2:], tmp_path, monkeypatch) == 0
    found = rows(folder)
    steps = [row for row in found if "inner_steps" in row]
    assert [row["outer_step"] for row in steps] == list(range(1, 81))
    validations = [row["outer_step"] for row in found if "val_loss_geomean" in row]
    assert validations == [40, 80]
    assert sum("resumed_from" in row for row in found) == 2
    assert Counter((row["world_size"], row["local_trajectories"]) for row in steps).keys() == {
        (2, 3),
        (1, 5),
    }
    seconds = [row["seconds"] for row in steps]
    assert seconds == sorted(seconds)

    whole = tmp_path / "whole"
    again = [*train[2:], "--out", str(whole)]
    assert run_here("train_meta.py", again, tmp_path, monkeypatch) == 0
    for name in ("optimizer.safetensors", "last.safetensors"):
        ours, wanted = load_file(folder / name), load_file(whole / name)
        for key, tensor in wanted.items():
            torch.testing.assert_close(ours[key], tensor, rtol=1e-6, atol=1e-9)
    assert [row["meta_loss"] for row in steps] == pytest.approx(
        [row["meta_loss"] for row in rows(whole) if "inner_steps" in row], rel=1e-6
    )


def without_seconds(value: Any) -> Any:
    """Results without what a clock measured."""
    if isinstance(value, dict):
        return {k: without_seconds(v) for k, v in value.items() if k != "seconds_per_step"}
    return [without_seconds(item) for item in value] if isinstance(value, list) else value


def assert_close(found: Any, wanted: Any) -> None:
    """Equal but for the rounding of numbers, however deep."""
    if isinstance(wanted, dict):
        assert found.keys() == wanted.keys()
        for key in wanted:
            assert_close(found[key], wanted[key])
    elif isinstance(wanted, list):
        for mine, other in zip(found, wanted, strict=True):
            assert_close(mine, other)
    elif isinstance(wanted, float):
        assert found == pytest.approx(wanted, rel=1e-6, abs=1e-9)
    else:
        assert found == wanted


@pytest.mark.slow
def test_evaluation_by_two_processes_is_that_by_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "trained"
    brief = [*UNEVEN, "meta.outer_steps=2"]
    given = ["--config", CONFIG, *ON_CPU, "--out", str(path)]
    train = command("train_meta.py", *given, overrides=brief)
    assert run_here("train_meta.py", train[2:], tmp_path, monkeypatch) == 0
    evaluate = command(
        "eval_meta.py",
        *ON_CPU,
        "--checkpoints",
        str(path / "optimizer.safetensors"),
        overrides=[*TINY_EVAL, "tasks=7", "tuning.tasks=3", "dtype=float64"],
    )
    # Folders of their own: the cache of tuned baselines is in them.
    folders = [tmp_path / "one", tmp_path / "two"]
    for folder in folders:
        folder.mkdir()
    assert run_here("eval_meta.py", evaluate[2:], folders[0], monkeypatch) == 0
    script = partial(runpy.run_path, evaluate[1], run_name="__main__")
    assert in_two_processes(script, evaluate[2:], folders[1]).count("results: ") == 1
    results = [folder / "runs" / "eval" / "results.json" for folder in folders]
    found = [json.loads(result.read_text()) for result in results]
    assert_close(without_seconds(found[1]), without_seconds(found[0]))
    assert len(found[0]["optimizers"]) == 4
    for entry in found[1]["optimizers"].values():
        assert entry["seconds_per_step"] > 0


@pytest.mark.slow
def test_a_mistake_under_torchrun_is_one_line(tmp_path: Path) -> None:
    brief = [*TINY, "meta.batch=1"]
    train = command("train_meta.py", "--config", CONFIG, *ON_CPU, overrides=brief)
    done = finish(in_two(train), tmp_path)
    (line,) = our_lines(done.stderr)
    assert "meta.batch: found 1, expected at least 2" in line
    codes = set(re.findall(r"exitcode +: (\S+)", done.stderr))
    # torchrun stops a process that is still importing when the other one has ended.
    assert "2" in codes
    assert codes <= {"2", "-15"}
    assert not list(tmp_path.iterdir())
