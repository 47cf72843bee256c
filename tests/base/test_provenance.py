"""Command and commit of a learned optimizer: they say what made it, and nothing of the machine."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from metaopt.base.provenance import made_by, without_folders

GIT = ["git", "-c", "user.name=me", "-c", "user.email=me@example.org"]


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("lstm_update.yaml", "lstm_update.yaml"),
        ("mine/a.yaml", "mine/a.yaml"),
        ("../a.yaml", "../a.yaml"),
        ("/home/me/configs/a.yaml", "a.yaml"),
        ("~/a.yaml", "a.yaml"),
        ("task.options={path: /data/mnist, width: 3}", "task.options={path: mnist, width: 3}"),
        ("task.options={path: '/data/of me/x.npy'}", "task.options={path: 'of me/x.npy'}"),
        ("label=a/b", "label=a/b"),
        ("meta.steps=1e3", "meta.steps=1e3"),
    ],
)
def test_folders_of_absolute_paths_are_left_out(text: str, wanted: str) -> None:
    assert without_folders(text) == wanted


def test_the_command_can_be_given_to_a_shell() -> None:
    found = made_by(["metaopt", "train"], "/x/a.yaml", ["task={width: 3}", "seed=1"])
    assert found["command"] == "metaopt train --config a.yaml --set 'task={width: 3}' --set seed=1"


def test_the_commit_is_that_of_the_working_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def git(*arguments: str) -> str:
        done = subprocess.run([*GIT, *arguments], check=True, capture_output=True, text=True)
        return done.stdout.strip()

    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    assert "commit" not in made_by([], "a.yaml", [])
    git("init", "--quiet")
    assert "commit" not in made_by([], "a.yaml", [])
    (tmp_path / "a").write_text("a")
    git("add", "a")
    git("commit", "--quiet", "--message", "a")
    git("tag", "--annotate", "v1", "--message", "v1")
    head = git("rev-parse", "HEAD")
    assert made_by([], "a.yaml", [])["commit"] == head
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs" / "x").write_text("untracked")
    assert made_by([], "a.yaml", [])["commit"] == head
    (tmp_path / "a").write_text("b")
    assert made_by([], "a.yaml", [])["commit"] == f"{head}-dirty"


def test_without_git_there_is_no_commit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    assert made_by([], "a.yaml", []) == {"command": "--config a.yaml"}
