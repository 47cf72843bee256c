"""Scripts as a user runs them, in tiny sizes, and what they leave behind."""

from __future__ import annotations

import importlib.util
import io
import json
import subprocess
import sys
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any

import pytest
from places import ROOT

from metaopt.base import cli

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


def finish(given: list[str], folder: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        given, cwd=folder, capture_output=True, text=True, check=False, timeout=120
    )


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
