"""Scripts as a user runs them, in tiny sizes, and what they leave behind."""

from __future__ import annotations

import importlib.util
import io
import json
import multiprocessing
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any

import pytest
import torch
from places import ROOT
from torch._C._distributed_c10d import TCPStore  # torch.distributed has it without a type

from metaopt.base import cli
from metaopt.base.process import World

TINY = [
    "task.width=4",
    "task.inputs=4",
    "task.outputs=4",
    "task.samples=4",
    "meta.batch=4",
    "meta.outer_steps=6",
    "meta.steps=8",
    "meta.unroll=3",
    "validation.every=2",
    "validation.tasks=4",
]


TINY_EVAL = [
    "tasks=8",
    "steps=22",
    "tuning.tasks=4",
    "bootstrap=50",
    "task.width=4",
    "task.inputs=4",
    "task.outputs=4",
    "task.samples=4",
    "tuning.grids={GD: {lr: [1e-3, 1e-2]}, Adam: {lr: [0.1], beta1: [0.9], beta2: [0.9]}, "
    "L-BFGS: {history: [5]}}",
    "baselines=[GD,Adam@20,L-BFGS]",
]


TORCHRUN = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]


def command(script: str, *arguments: str, overrides: list[str] | None = None) -> list[str]:
    sets = [part for override in overrides or [] for part in ("--set", override)]
    return [sys.executable, str(ROOT / script), *arguments, *sets]


def run(*arguments: Any, cwd: Path, **options: Any) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command(*arguments, **options), cwd=cwd, capture_output=True, text=True, check=False
    )


def run_here(
    script: str, arguments: list[str], folder: Path, monkeypatch: pytest.MonkeyPatch
) -> object:
    """The exit status of a script, run in this process to save the start of another one."""
    specification = importlib.util.spec_from_file_location("script", ROOT / script)
    assert specification is not None
    assert specification.loader is not None
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    monkeypatch.chdir(folder)
    monkeypatch.setattr(sys, "argv", [script, *arguments])
    with pytest.raises(SystemExit) as ended:
        cli.run(module.main)
    return ended.value.code


def run_within(
    script: str, *arguments: str, cwd: Path, overrides: list[str] | None = None
) -> subprocess.CompletedProcess[str]:
    """As ``run``, but in this process."""
    given = command(script, *arguments, overrides=overrides)
    out, errors = io.StringIO(), io.StringIO()
    with pytest.MonkeyPatch.context() as patch, redirect_stdout(out), redirect_stderr(errors):
        status = run_here(script, given[2:], cwd, patch)
    assert isinstance(status, int)
    return subprocess.CompletedProcess(given, status, out.getvalue(), errors.getvalue())


DRIVER = """
import json, sys
from pathlib import Path
from metaopt.__main__ import run
for given in json.loads(sys.argv[1]):
    sys.argv = ["metaopt", *given]
    try:
        run()
    except SystemExit as ended:
        if ended.code:
            raise
    # A user's own modules are imported anew, as by a process of its own.
    for name, module in list(sys.modules.items()):
        if Path(getattr(module, "__file__", None) or "/x").resolve().parent == Path.cwd():
            del sys.modules[name]
"""


def run_commands(commands: list[list[str]], program: str, folder: Path, **environment: str) -> str:
    """What ``metaopt`` prints for commands one after another, and then a program, in one process.

    One, to import torch once.
    """
    done = subprocess.run(
        [sys.executable, "-c", f"{DRIVER}\n{program}", json.dumps(commands)],
        cwd=folder,
        env=os.environ | environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def finish(given: list[str], folder: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        given, cwd=folder, capture_output=True, text=True, check=False, timeout=120
    )


_FORKED = multiprocessing.get_context("forkserver")
_FORKED.set_forkserver_preload(["metaopt", "metaopt.meta.run", "metaopt.evaluation.evaluate"])


def in_two_processes(main: Callable[[], object], given: list[str], folder: Path) -> str:
    """What a program prints, run by two processes that are told of each other as by torchrun.

    They are forked from a process that has imported the package, which saves seconds each; that
    torchrun itself starts ours is a truth of ``test_distributed``.

    Args:
        main: the program, which can be pickled.
        given: its arguments.
        folder: where it runs.
    """
    store = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    told = {"WORLD_SIZE": 2, "LOCAL_WORLD_SIZE": 2, "MASTER_PORT": store.port}
    same = {name: str(value) for name, value in told.items()} | {
        "MASTER_ADDR": "127.0.0.1",
        "TORCHELASTIC_USE_AGENT_STORE": "True",
        "TORCHELASTIC_RESTART_COUNT": "0",
    }
    with tempfile.TemporaryDirectory() as logs:
        log = Path(logs) / "log"
        started = []
        for rank in ("0", "1"):
            own = same | {"RANK": rank, "LOCAL_RANK": rank}
            process = _FORKED.Process(target=_one_of_two, args=(main, given, folder, own, log))
            process.start()
            started.append(process)
        for process in started:
            process.join(120)
            process.kill()
            process.join()
        said = log.read_text(encoding="utf-8")
    assert [process.exitcode for process in started] == [0, 0], said
    return said


def _one_of_two(
    main: Callable[[], object],
    given: list[str],
    folder: Path,
    environment: dict[str, str],
    log: Path,
) -> None:
    with log.open("ab") as file:
        for descriptor in (1, 2):
            os.dup2(file.fileno(), descriptor)
    os.environ.update(environment)
    os.chdir(folder)
    torch.set_num_threads(1)
    sys.argv = ["", *given]
    main()


def rows(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def without_times(folder: Path) -> list[dict[str, Any]]:
    timed = {"seconds", "validation_seconds"}
    return [
        {key: value for key, value in row.items() if key not in timed}
        for row in rows(folder)
        if "resumed_from" not in row
    ]


def assert_one_line(errors: str, *words: str) -> None:
    lines = [line for line in errors.splitlines() if line.strip()]
    assert len(lines) == 1, errors
    assert "Traceback" not in errors
    for word in words:
        assert word in lines[0]


def assert_one_line_mistake(done: subprocess.CompletedProcess[str], *words: str) -> None:
    assert done.returncode == 2, done.stderr
    assert_one_line(done.stderr, *words)


def figures_in_small(
    monkeypatch: pytest.MonkeyPatch, folder: Path, main: Callable[[World], None], *arguments: str
) -> Any:
    """What a study finds with ``--smoke``, read from its ``--json``; threads stay as they were.

    Args:
        monkeypatch: for the command line.
        folder: where runs and figures go.
        main: of the study.
        arguments: further ones.
    """
    figures = folder / "found.json"
    given = ["--smoke", "--out", str(folder / "runs"), "--json", str(figures), *arguments]
    monkeypatch.setattr("sys.argv", [main.__module__, *given])
    threads = torch.get_num_threads()
    try:
        main(World())
    finally:
        torch.set_num_threads(threads)
    return json.loads(figures.read_text(encoding="utf-8"))
