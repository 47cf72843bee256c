"""The command of the study in tiny sizes: interrupted, finished, given again, shipped."""

from __future__ import annotations

import io
import re
import runpy
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import redirect_stdout
from importlib import import_module
from pathlib import Path

import pytest
from places import ROOT

import metaopt
from metaopt.base import cli, config
from metaopt.base.process import World
from studies import pool
from studies.study.__main__ import STUDY, main, ship
from studies.study.config import StudyConfig, smoked
from studies.study.page import ablations, page
from studies.study.plan import Study
from studies.study.result import StudyResult

in_processes = pool.run
SMOKE = ["--smoke", "--device", "cpu", "--out"]


def status_of(main: Callable[[World], None], *arguments: str) -> object:
    """The exit status of a command, run in this process."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["command", *arguments])
        with pytest.raises(SystemExit) as ended:
            cli.run(main)
    return ended.value.code


def in_turn(jobs: Sequence[pool.Job], side_by_side: int, what: str) -> None:
    """Jobs one after the other in this process, to save the start of one for each.

    But for one evaluation: trainings in processes of their own are in the part that is interrupted.
    """
    apart = jobs[:1] if what == "evaluation" else []
    in_processes(apart, side_by_side, what)
    for job in jobs[len(apart) :]:
        script, *arguments = job.command[1:]
        if script == "-m":
            main = import_module(arguments.pop(0)).main
        else:
            main = runpy.run_path(script)["main"]
        assert status_of(main, *arguments) == 0
        print(job.result())


def smoke(out: Path) -> str:
    """Run the smoke, or what is left of it, in this process; what it says."""
    said = io.StringIO()
    with pytest.MonkeyPatch.context() as patch, redirect_stdout(said):
        patch.setattr(pool, "run", in_turn)
        assert status_of(main, *SMOKE, str(out)) == 0
    return said.getvalue()


def written(out: Path) -> dict[Path, int]:
    """When the files of trainings and evaluations were last written."""
    files = [*out.glob("training/*/metrics.jsonl"), *out.glob("evaluations/*.npz")]
    return {file: file.stat().st_mtime_ns for file in files}


@pytest.fixture(scope="module")
def smoked_study(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """The folder of a smoke that was interrupted once, and what its second part said."""
    out = tmp_path_factory.mktemp("study")
    first = subprocess.Popen(
        [sys.executable, "-m", "studies.study", *SMOKE, str(out)],
        cwd=ROOT,
        stderr=subprocess.PIPE,
        text=True,
    )
    while not list(out.glob("training/*/state.pt")) and first.poll() is None:
        time.sleep(0.1)
    first.send_signal(signal.SIGINT)
    _, errors = first.communicate(timeout=120)
    assert first.returncode == 130, errors
    assert errors.strip().splitlines()[-1].startswith("interrupted")
    return out, smoke(out)


def found_by(out: Path, stem: str) -> StudyResult:
    return StudyResult.model_validate_json((out / f"{stem}.json").read_bytes())


@pytest.mark.slow
def test_the_smoke_writes_everything(smoked_study: tuple[Path, str]) -> None:
    out, said = smoked_study
    found = found_by(out, "study")
    assert list(found.families) == ["default", "signed", "narrow"]
    for family, about in found.families.items():
        assert {"GD", "Adam@10"} <= set(about.contenders)
        if family != "narrow":
            entry = about.contenders["coordinate_update_tele"]
            assert [run.seed for run in entry.runs] == [0, 1]
            assert set(entry.over_seeds.at) == {1, 10, 20}
    assert found.families["narrow"].least_mean > 0
    assert found.as_planned
    for row in found.rows.values():
        assert row.seconds > 0
        best = min(row.search, key=lambda run: float(run["score"]))
        assert row.chosen == {"factor": best["factor"], "free": 0.1}
    assert (out / "study.md").read_text() == page(found) + "\n"
    levers = found_by(out, "ablations")
    assert (out / "ablations.md").read_text() == ablations(levers) + "\n"
    assert {pair.b for pair in levers.families["ablations"].pairs} == {"coordinate_update_tele"}
    assert (out / "study.png").stat().st_size > 10_000
    assert len(re.findall(r"on narrow: median loss", said)) == 2


@pytest.mark.slow
def test_a_finished_study_does_nothing_again(smoked_study: tuple[Path, str]) -> None:
    out, _ = smoked_study
    before = written(out)
    said = smoke(out)
    assert written(out) == before
    assert "median loss" not in said
    assert "validation loss" not in said


@pytest.mark.slow
def test_shipped_checkpoints_carry_their_figures(
    smoked_study: tuple[Path, str], tmp_path: Path
) -> None:
    out, _ = smoked_study
    found = found_by(out, "study")
    settings = config.check(StudyConfig, smoked(config.load(StudyConfig, "study.yaml")), "smoke")
    files = ship(Study(settings, out, "cpu"), found, tmp_path)
    assert [file.stem for file in files] == ["coordinate_update_tele"]
    rule = metaopt.load(files[0])
    assert rule.config.seed == settings.seeds[0]
    assert rule.training["commit"] == found.commit
    assert "--config coordinate_update_tele.yaml" in rule.training["command"]
    run = found.families["default"].contenders["coordinate_update_tele"].runs[0]
    shown = rule.validation["test"]["default"]["loss_geomean_above_least"]
    assert {step: at["geomean"] for step, at in shown.items()} == {
        str(step): at.geomean for step, at in run.at.items()
    }


def test_the_page_of_the_study_is_made_of_the_figures_beside_it() -> None:
    found = found_by(STUDY.path.parent, STUDY.stem)
    assert f"<!-- {STUDY.name} -->\n{page(found)}\n<!-- end of {STUDY.name} -->" in (
        STUDY.path.read_text()
    )
    assert len(STUDY.path.read_bytes()) < 30_000
