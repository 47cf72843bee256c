"""Runs that are interrupted or killed end where the unbroken one does."""

from __future__ import annotations

import json
import signal
import subprocess
import time
from pathlib import Path

import pytest
from running import TINY, assert_one_line_mistake, command, rows, run_within, without_times

OPTIONS = ["train_meta.py", "--config", "coordinate_update_tele.yaml", "--out"]
LONGER = [*TINY, "meta.outer_steps=100", "validation.every=25"]


def start_and_wait_for(folder: Path, outer_step: int) -> subprocess.Popen[str]:
    process = subprocess.Popen(
        command(*OPTIONS, str(folder), overrides=LONGER),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        if process.poll() is not None:
            break
        if (folder / "metrics.jsonl").is_file() and len(_whole_rows(folder)) >= outer_step:
            return process
        time.sleep(0.01)
    raise AssertionError(f"never came to outer step {outer_step}: {process.communicate()}")


def _whole_rows(folder: Path) -> list[str]:
    return (folder / "metrics.jsonl").read_text().split("\n")[:-1]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the unbroken run."""
    folder = tmp_path_factory.mktemp("whole")
    done = run_within(*OPTIONS, str(folder), overrides=LONGER, cwd=folder.parent)
    assert done.returncode == 0, done.stderr
    return folder


@pytest.mark.slow
def test_interrupted_and_killed_runs_end_where_the_unbroken_one_does(
    whole: Path, tmp_path: Path
) -> None:
    broken = tmp_path / "broken"
    process = start_and_wait_for(broken, 20)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "Traceback" not in errors
    assert (broken / "state.pt").is_file()
    interrupted_at = rows(broken)[-1]["outer_step"]
    assert 20 <= interrupted_at < 100

    # A kill leaves files that run ahead of the state, and perhaps half a line.
    with (broken / "metrics.jsonl").open("a") as file:
        file.write(json.dumps(rows(broken)[-1] | {"outer_step": interrupted_at + 1}) + "\n")
        file.write('{"outer_step": 3')
    resumed = run_within(*OPTIONS, str(broken), "--resume", overrides=LONGER, cwd=tmp_path)
    assert resumed.returncode == 0, resumed.stderr
    assert {"resumed_from": interrupted_at} in rows(broken)
    assert without_times(broken) == without_times(whole)
    for name in ("optimizer.safetensors", "last.safetensors"):
        assert (broken / name).read_bytes() == (whole / name).read_bytes()
    seconds = [row["seconds"] for row in rows(broken) if "inner_steps" in row]
    assert seconds == sorted(seconds)

    again = run_within(*OPTIONS, str(broken), "--resume", overrides=LONGER, cwd=tmp_path)
    assert again.returncode == 0
    assert rows(broken)[-1].get("outer_step") == 100
    changed = run_within(
        *OPTIONS, str(broken), "--resume", overrides=[*LONGER, "seed=4"], cwd=tmp_path
    )
    assert_one_line_mistake(changed, "seed")


@pytest.mark.slow
def test_a_run_killed_outright_resumes_to_the_same_bits(whole: Path, tmp_path: Path) -> None:
    killed = tmp_path / "killed"
    process = start_and_wait_for(killed, 40)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert process.returncode == -signal.SIGKILL
    resumed = run_within(*OPTIONS, str(killed), "--resume", overrides=LONGER, cwd=tmp_path)
    assert resumed.returncode == 0, resumed.stderr
    assert without_times(killed) == without_times(whole)
    name = "optimizer.safetensors"
    assert (killed / name).read_bytes() == (whole / name).read_bytes()
