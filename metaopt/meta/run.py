"""A meta-training run in its folder: from the start or a saved state to the end, or to a stop.

The folder holds TensorBoard events, ``metrics.jsonl`` (one row an outer step, one a validation, one
a resumption), the resolved ``config.yaml``, ``state.pt`` to resume from, and the learned optimizer:
``optimizer.safetensors`` (best by validation) and ``last.safetensors``.

With N processes all of them run this, and the first one alone writes. When to save and when to stop
is voted on in every outer step, so that all processes do it after the same one.
"""

from __future__ import annotations

import fcntl
import json
import os
import signal
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from metaopt.base import checkpoint
from metaopt.base.checkpoint import CheckpointError, read_state, write_state
from metaopt.base.config import ConfigError, to_yaml
from metaopt.base.errors import ProcessLostError, StoppedError, UserError, WriteError, shown
from metaopt.base.fields import require_label
from metaopt.base.files import make_folder, write_atomically
from metaopt.base.process import World
from metaopt.base.signals import CAUGHT, Signals
from metaopt.base.tables import validation_table
from metaopt.meta import compiling
from metaopt.meta.config import MetaConfig, TrainConfig
from metaopt.meta.pace import Pace
from metaopt.meta.records import FirstRecords, Records
from metaopt.meta.resuming import LARGEST_COUNT, require_plain, require_within
from metaopt.meta.run_files import BEST_FILE, CONFIG_FILE, METRICS_FILE, STATE_FILE, set_aside
from metaopt.meta.schedule import schedule
from metaopt.meta.torch_profile import NoProfile, Profile
from metaopt.meta.trainer import MetaTrainer
from metaopt.rules.learned.precision import note
from metaopt.rules.own import import_own
from metaopt.tasks.identity import Identity, difference

OF_0_2 = "products"
"""A field that configurations had up to version 0.2 alone."""
SECONDS_BETWEEN_STATES = 5.0


class Run:
    """A meta-training run in a folder.

    Args:
        config: the configuration of the run.
        folder: the folder of its files.
        device: the device that this process computes on.
        began: ``time.perf_counter()`` when the process began.
        world: the processes of the run.
        made_by: command and commit, for the learned optimizer (``provenance.made_by``).

    Raises:
        UserError: where the configuration cannot be run.
    """

    def __init__(
        self,
        config: TrainConfig,
        folder: Path,
        device: torch.device,
        began: float,
        world: World,
        made_by: Mapping[str, str] | None = None,
    ) -> None:
        try:
            require_label(config.label)
        except ValueError as error:
            raise ConfigError(str(error)) from None
        import_own(config.rules.by_name().values())
        self.folder = folder
        self.world = world
        self.trainer = MetaTrainer(config, device, world)
        of_precision = note(config.precision, self.trainer.dtype, device)
        for line in (of_precision, compiling.note(config, device)):
            if line is not None:
                world.say(line)
        self._began = began
        self._made_by = made_by or {}
        self._earlier = 0.0
        self._saved = time.perf_counter()

    def execute(self, resume_run: bool, profiled: int | None = None) -> str:
        """Train to the end; returns the closing report.

        Args:
            resume_run: go on from the saved state, if there is one.
            profiled: outer steps to trace.

        Raises:
            StoppedError: after Ctrl-C or SIGTERM, once the state is saved.
            ProcessLostError: where another process of the run is gone.
            WriteError: where a disk is full, or the folder read-only now.
            UserError: where a state does not fit.
        """
        self.world.on_first(lambda: make_folder(self.folder))
        state_file = self.folder / STATE_FILE
        lock = self.world.on_first(lambda: os.open(self.folder, os.O_RDONLY))
        try:
            self.world.on_first(lambda: _require_alone(lock, self.folder))
            if not (resume_run and self._resume()):
                self._start_afresh()
            if not self.trainer.finished:
                with self._records() as records, self._profile(profiled) as profile:
                    self._train(records, profile)
            return self.world.on_first(self._closing)
        except (ProcessLostError, WriteError) as error:
            saved = f"saved state: {state_file}; --resume goes on from it"
            kept = saved if state_file.is_file() else "no state was saved yet"
            if isinstance(error, WriteError):
                reason = f"{error.strerror}; {kept}"
                raise WriteError(error.errno, reason, error.filename) from error
            raise ProcessLostError(f"{error}; {kept}") from error
        finally:
            if self.world.first:
                os.close(lock)

    def _train(self, records: Records, profile: NoProfile) -> None:
        trainer, progress = self.trainer, self.trainer.progress
        meta, every = trainer.config.meta, trainer.config.validation.every
        pace = Pace(meta.outer_steps, every)
        with Signals() as signals:
            lap, trajectories = time.perf_counter(), trainer.trajectories
            while not trainer.finished:
                window = trainer.outer_step(lambda: [self._state_is_due(), *signals.received()])
                progress.seconds = self._clock()
                now = time.perf_counter()
                pace.outer_step(trainer.trajectories - trajectories, now - lap)
                lap, trajectories = now, trainer.trajectories
                records.outer_step(window, pace)
                if trainer.finished or progress.outer_step % every == 0:
                    found = trainer.validate()
                    records.validation(found)
                    trainer.validated(found)
                    lap = time.perf_counter()
                    pace.validation(lap - now)
                    progress.validation_seconds += lap - now
                    progress.seconds = self._clock()
                profile.step()
                # After the validation that belongs to this step, or a resumed run would miss it.
                due, *received = window.votes
                if due or any(received) or trainer.finished:
                    records.flush()
                    self._save()
                if any(received) and not trainer.finished:
                    number = CAUGHT[received.index(True)]
                    name = "interrupted" if number == signal.SIGINT else "terminated"
                    raise StoppedError(number, f"{name}; --resume goes on from {self.folder}")

    def _state_is_due(self) -> bool:
        """The first process's clock decides for all."""
        return self.world.first and time.perf_counter() - self._saved > SECONDS_BETWEEN_STATES

    def _records(self) -> Records:
        if self.world.first:
            return FirstRecords(self.folder, self.trainer, self._clock, self._made_by)
        return Records()

    def _profile(self, steps: int | None) -> NoProfile:
        if self.world.first and steps is not None:
            outer_step = self.trainer.progress.outer_step
            return Profile(steps, self.folder / "profile", self.trainer.device, outer_step)
        return NoProfile()

    def _start_afresh(self) -> None:
        self.world.on_first(self._clear)
        # Whatever happens from now on, there is something to resume.
        self._save()

    def _clear(self) -> None:
        """A folder without a run: what an earlier one left goes into a folder of its own."""
        if (kept := set_aside(self.folder)) is not None:
            self.world.say(f"{self.folder}: the run that was there is kept in {kept}")
        self._write_config()

    def _write_config(self) -> None:
        resolved = to_yaml(self.trainer.config).encode()
        write_atomically(self.folder / CONFIG_FILE, resolved)

    def _resume(self) -> bool:
        """Restore the state, and the metrics as they were then; False where there is no state."""
        path = self.folder / STATE_FILE
        state = self.world.on_first(lambda: read_state(path) if path.is_file() else None)
        if state is None:
            self.world.say(f"--resume: no state in {self.folder}, starting afresh")
            return False
        config = self.trainer.config
        began_with = state.get("config")
        if isinstance(began_with, Mapping) and OF_0_2 in began_with:
            raise UserError(
                f"{path}: metaopt 0.2 began this run, whose state this version cannot take: start "
                f"afresh without --resume, or go on with metaopt 0.2"
            )
        try:
            for place in ("config", "progress", "families"):
                require_plain(state.get(place), place)
            done, before = state["progress"]["outer_step"], state["config"]["meta"]["outer_steps"]
            require_within(before, LARGEST_COUNT, "config.meta.outer_steps")
            require_within(done, before, "progress.outer_step")
            if not before:
                raise ValueError("config.meta.outer_steps: found 0, expected at least 1")
            further = config.meta.outer_steps if config.meta.outer_steps > done else before
            meta = state["config"]["meta"] | {"outer_steps": further}
            saved = state["config"] | {"meta": meta}
            _require_equal(saved, config.model_dump(mode="json"), path, done)
            self.world.on_first(lambda: self._require_same_families(state.get("families"), path))
            self.trainer.restore(state)
        except UserError:
            raise
        except (AttributeError, LookupError, TypeError, ValueError) as error:
            raise CheckpointError(f"{path}: not a state of this run ({error!r:.200})") from None
        self._earlier = self.trainer.progress.seconds
        if config.meta.outer_steps != before:
            self.world.say(_other_length(before, config.meta, done))
            self.world.on_first(self._write_config)
        if not self.trainer.finished:
            self.world.on_first(self._rewind_metrics)
        return True

    def _require_same_families(self, saved: dict[str, Identity] | None, path: Path) -> None:
        """Raise ``ConfigError`` where tasks are not what they were when the state was saved."""
        name = self.trainer.config.task.family
        if saved is None:
            if self.trainer.config.task.is_own:
                self.world.say(f"{path}: too old to tell whether {name} is as it was then")
            return
        for place, found in self.trainer.families.items():
            if (changed := difference(saved[place], found)) is not None:
                raise ConfigError(
                    f"{path}: field {place}: {name} is not what it was when the run was saved: "
                    f"{changed}; put that back, or start afresh without --resume"
                )

    def _rewind_metrics(self) -> None:
        """Take out what came after the state, and note the resumption."""
        path, outer_step = self.folder / METRICS_FILE, self.trainer.progress.outer_step
        whole, damaged = _read_rows(path)
        if damaged:
            self.world.say(f"{path}: {damaged} lines are damaged and left out")
        rows = [row for step, row in whole if step <= outer_step]
        rows.append({"resumed_from": outer_step})
        write_atomically(path, "".join(json.dumps(row) + "\n" for row in rows).encode())

    def _clock(self) -> float:
        return self._earlier + time.perf_counter() - self._began

    def _save(self) -> None:
        state = self.trainer.state()
        if self.world.first:
            write_state(self.folder / STATE_FILE, state)
        self._saved = time.perf_counter()

    def _closing(self) -> str:
        best = checkpoint.read(self.folder / BEST_FILE).validation
        config, progress = self.trainer.config, self.trainer.progress
        skipped = (
            f"{progress.skipped} of {progress.outer_step} outer steps were skipped: their "
            f"meta-gradient was not finite\n"
            if progress.skipped
            else ""
        )
        return skipped + (
            f"{validation_table(best['val_loss_geomean'])}\n"
            f"geometric mean over {config.validation.tasks} validation tasks, at the best "
            f"validation (outer step {best['outer_step']})\n"
            f"{config.label}: {self.folder / BEST_FILE}"
        )


def _read_rows(path: Path) -> tuple[list[tuple[int, dict[str, Any]]], int]:
    """The rows of a metrics file with their outer steps, and how many lines are none.

    A kill may have cut the last line, which does not count.
    """
    lines = path.read_bytes().split(b"\n") if path.is_file() else [b""]
    rows = [_row(line) for line in lines]
    return [row for row in rows if row is not None], rows[:-1].count(None)


def _row(line: bytes) -> tuple[int, dict[str, Any]] | None:
    try:
        row = json.loads(line)
    except (ValueError, RecursionError):
        return None
    step = row.get("outer_step", row.get("resumed_from")) if isinstance(row, dict) else None
    return (step, row) if isinstance(step, int) else None


def _other_length(before: int, meta: MetaConfig, done: int) -> str:
    old = schedule(meta.model_copy(update={"outer_steps": before}), done) if done else 1.0
    return (
        f"--resume: {meta.outer_steps} outer steps, where the run was started with {before}: from "
        f"here on all that hangs on their number is as in a run of {meta.outer_steps}; outer "
        f"learning rates are {schedule(meta, done + 1):.3g} of the largest, and were {old:.3g}"
    )


def _require_alone(lock: int, folder: Path) -> None:
    """Raise ``UserError`` where another process trains in the folder; its end frees it."""
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise UserError(
            f"{folder}: another process is training in this folder; wait, or choose another with "
            f"--out"
        ) from None
    except OSError:
        # A file system without locks: as before there were any.
        return


def _require_equal(saved: Any, given: Any, path: Path, done: int, field_name: str = "") -> None:
    if isinstance(saved, dict) and isinstance(given, dict):
        for key in sorted(saved.keys() | given.keys(), key=str):
            inner = f"{field_name}.{key}" if field_name else key
            _require_equal(saved.get(key), given.get(key), path, done, inner)
    elif repr(saved) != repr(given) and saved != given:
        also = f", more than the {done} already taken" if field_name == "meta.outer_steps" else ""
        raise ConfigError(
            f"{path}: field {field_name}: the run was started with {shown(saved)}, found "
            f"{shown(given)}; give it as it was{also}, or start afresh without --resume"
        )
