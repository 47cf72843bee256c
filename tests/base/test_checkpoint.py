"""Files: the state of a run, what is never run, and what is never half written."""

from __future__ import annotations

import io
import os
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from saved_rules import learned

from metaopt.base import checkpoint, files
from metaopt.base.checkpoint import CheckpointError
from metaopt.optim.learned import load


def _message(path: Path) -> str:
    """What loading a broken file says; one line that names the file."""
    with pytest.raises(CheckpointError) as caught:
        load(path)
    message = str(caught.value)
    assert str(path) in message
    assert "\n" not in message
    return message


# Nothing in a file is run.


class _Malice:
    """Makes a folder when it is unpickled."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __reduce__(self) -> tuple[Callable[[str], None], tuple[str]]:
        return os.mkdir, (str(self.folder),)


def _malicious(folder: Path, kind: str) -> bytes:
    if kind == "pickle":
        return pickle.dumps({"config": _Malice(folder)}, protocol=2)
    buffer = io.BytesIO()
    zipped = kind == "torch.save"
    torch.save({"config": _Malice(folder)}, buffer, _use_new_zipfile_serialization=zipped)
    return buffer.getvalue()


@pytest.mark.parametrize("kind", ["pickle", "torch.save", "old torch.save"])
def test_pickles_are_not_run(kind: str, tmp_path: Path) -> None:
    trap = tmp_path / "trap"
    content = _malicious(trap, kind)
    path = tmp_path / "file"
    path.write_bytes(content)
    _message(path)
    with pytest.raises(CheckpointError, match="not a resume state"):
        checkpoint.read_state(path)
    assert not trap.exists()
    # The trap is one: unpickled, it springs.
    if kind == "pickle":
        pickle.loads(content)
        assert trap.exists()


# The state of a run.


def _state() -> dict[str, Any]:
    optimizer = learned().optimizer
    return {
        "phi": dict(optimizer.state_dict()),
        "inner": {"step": 3, "weights": (torch.ones(2, 3), torch.zeros(1))},
        "progress": {"seconds": 0.1, "best": float("inf")},
    }


def test_states_are_kept_to_the_bit(tmp_path: Path) -> None:
    state = _state()
    checkpoint.write_state(tmp_path / "state.pt", state)
    found = checkpoint.read_state(tmp_path / "state.pt")
    assert found["progress"] == state["progress"]
    assert found["inner"]["step"] == 3
    assert isinstance(found["inner"]["weights"], tuple)
    for mine, theirs in zip(found["inner"]["weights"], state["inner"]["weights"], strict=True):
        assert torch.equal(mine, theirs)
    assert found["phi"].keys() == state["phi"].keys()
    assert all(torch.equal(found["phi"][name], state["phi"][name]) for name in state["phi"])


@pytest.mark.parametrize(
    "damage",
    [
        lambda whole: b"",
        lambda whole: whole[: len(whole) // 2],
        lambda whole: whole[:-40],
        lambda whole: b"hello",
        lambda whole: b"PK\x03\x04",
        # Pickles that stop short raise IndexError and others, not UnpicklingError.
        lambda whole: b".",
        lambda whole: b"\x80\x02.",
        lambda whole: b"\x80\x02]q\x00.",
    ],
    ids=["empty", "half", "tail cut", "text", "zip head", "stop", "nothing", "a list"],
)
def test_broken_states_are_told_in_one_line(
    damage: Callable[[bytes], bytes], tmp_path: Path
) -> None:
    path = tmp_path / "state.pt"
    checkpoint.write_state(path, _state())
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(CheckpointError) as caught:
        checkpoint.read_state(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_missing_state_is_told(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="not a resume state"):
        checkpoint.read_state(tmp_path / "none.pt")


# Never half written.


@pytest.mark.parametrize("call", ["replace", "fsync", "fdopen"])
@pytest.mark.parametrize("error", [OSError("disk full"), KeyboardInterrupt()])
def test_a_failed_write_leaves_the_old_file(
    call: str, error: BaseException, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "rule.safetensors"
    files.write_atomically(path, b"old")

    def fail(*arguments: object, **options: object) -> None:
        raise error

    with monkeypatch.context() as patch:
        patch.setattr(os, call, fail)
        with pytest.raises(type(error)):
            files.write_atomically(path, b"new")
    assert path.read_bytes() == b"old"
    assert [entry.name for entry in tmp_path.iterdir()] == ["rule.safetensors"]
    files.write_atomically(path, b"new")
    assert path.read_bytes() == b"new"


def test_a_failed_save_leaves_the_old_rule(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "rule.safetensors"
    learned().save(path)
    before = path.read_bytes()

    def fail(*arguments: object) -> None:
        raise OSError("disk full")

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", fail)
        with pytest.raises(OSError, match="disk full"):
            learned("flattened pair").save(path)
    assert path.read_bytes() == before
    assert len(list(tmp_path.iterdir())) == 1


def test_writes_make_folders_and_files_that_others_may_read(tmp_path: Path) -> None:
    path = tmp_path / "a" / "b" / "file"
    umask = os.umask(0o022)
    try:
        files.write_atomically(path, b"x")
    finally:
        os.umask(umask)
    assert path.stat().st_mode & 0o777 == 0o644
