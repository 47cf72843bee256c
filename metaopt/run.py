"""A meta-training run in its folder: files, bar, TensorBoard, interruption and resumption.

The folder holds TensorBoard events, ``metrics.jsonl`` (one row an outer step, one a validation, one
a resumption), the resolved ``config.yaml``, ``state.pt`` to resume from, and the learned optimizer:
``optimizer.safetensors`` (best by validation) and ``last.safetensors``.
"""

from __future__ import annotations

import json
import math
import signal
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from metaopt.checkpoint import (
    CheckpointError,
    make_folder,
    read_state,
    write_atomically,
    write_state,
)
from metaopt.config import ConfigError, to_yaml
from metaopt.learned import load
from metaopt.meta_train import MetaTrainer, Window
from metaopt.report import RunWriter, validation_table
from metaopt.schema import TrainConfig
from metaopt.statistics import clean, geomean
from metaopt.unroll import TeleportTrace

STATE_FILE = "state.pt"
BEST_FILE = "optimizer.safetensors"
LAST_FILE = "last.safetensors"
CONFIG_FILE = "config.yaml"
METRICS_FILE = "metrics.jsonl"
SECONDS_BETWEEN_STATES = 5.0


class Run:
    """A meta-training run in a folder: files, bar, TensorBoard, resumption.

    Args:
        config: of the run.
        folder: where its files go.
        device: where it computes.
        began: ``time.perf_counter()`` when the process began.
    """

    def __init__(
        self, config: TrainConfig, folder: Path, device: torch.device, began: float
    ) -> None:
        self.folder = folder
        self.trainer = MetaTrainer(config, device)
        self._began = began
        self._earlier = 0.0
        self._saved = time.perf_counter()

    def execute(self, resume_run: bool) -> str:
        """Train to the end; returns the closing report.

        Raises:
            KeyboardInterrupt: after Ctrl-C, once the state is saved.
            UserError: where a state does not fit.
        """
        trainer, total = self.trainer, self.trainer.config.meta.outer_steps
        every = trainer.config.validation.every
        make_folder(self.folder)
        if not (resume_run and self._resume()):
            self._start_afresh()
        if trainer.finished:
            return self._closing()
        began_at = trainer.trajectories
        with (
            RunWriter(self.folder, purge_step=trainer.progress.outer_step + 1) as writer,
            (self.folder / METRICS_FILE).open("a", buffering=1, encoding="utf-8") as metrics,
            tqdm(total=total, initial=trainer.progress.outer_step, unit="step") as bar,
            _interruptions() as interrupted,
        ):
            shown: dict[str, str] = {}
            while not trainer.finished:
                window = trainer.outer_step()
                self._clock()
                rate = (trainer.trajectories - began_at) / (
                    trainer.progress.seconds - self._earlier
                )
                self._write(metrics, self._step_row(window))
                writer.outer_step(trainer.progress.outer_step, _scalars(window, trainer, rate))
                shown |= {"meta": f"{window.meta_loss:.4g}", "traj/s": f"{rate:.1f}"}
                if trainer.finished or trainer.progress.outer_step % every == 0:
                    row = self._validate(writer)
                    self._write(metrics, row)
                    shown["val"] = f"{row['val_loss_geomean'][-1]:.4g}"
                bar.set_postfix(shown, refresh=False)
                bar.update()
                # After the validation that belongs to this step, or a resumed run would miss it.
                due = time.perf_counter() - self._saved > SECONDS_BETWEEN_STATES
                if due or trainer.finished or interrupted():
                    self._save(metrics)
                if interrupted() and not trainer.finished:
                    raise KeyboardInterrupt
        return self._closing()

    def _start_afresh(self) -> None:
        # An earlier run's learned optimizer stays until the first validation replaces it.
        ours = (STATE_FILE, METRICS_FILE)
        for path in (*(self.folder / name for name in ours), *RunWriter.files(self.folder)):
            path.unlink(missing_ok=True)
        resolved = to_yaml(self.trainer.config).encode()
        write_atomically(self.folder / CONFIG_FILE, resolved)

    def _resume(self) -> bool:
        """Restore the state, and the metrics as they were then; False where there is no state."""
        path = self.folder / STATE_FILE
        if not path.is_file():
            print(f"--resume: no state in {self.folder}, starting afresh")
            return False
        state = read_state(path)
        try:
            _require_equal(state["config"], self.trainer.config.model_dump(mode="json"), path)
            self.trainer.restore(state)
        except (KeyError, TypeError, ValueError, RuntimeError) as error:
            if isinstance(error, ConfigError):
                raise
            raise CheckpointError(f"{path}: not a state of this run ({error!r:.80})") from None
        progress = self.trainer.progress
        self._earlier = progress.seconds
        if not self.trainer.finished:
            rows = [
                row
                for row in _read_rows(self.folder / METRICS_FILE)
                if row.get("outer_step", row.get("resumed_from", 0)) <= progress.outer_step
            ]
            rows.append({"resumed_from": progress.outer_step})
            content = "".join(json.dumps(row) + "\n" for row in rows)
            write_atomically(self.folder / METRICS_FILE, content.encode())
        return True

    def _clock(self) -> None:
        self.trainer.progress.seconds = self._earlier + time.perf_counter() - self._began

    def _validate(self, writer: RunWriter) -> dict[str, Any]:
        trainer, progress = self.trainer, self.trainer.progress
        began = time.perf_counter()
        losses, teleports = trainer.validate()
        cleaned = clean(losses.double().cpu().numpy())
        curve = [float(value) for value in geomean(cleaned)]
        validation = {"outer_step": progress.outer_step, "val_loss_geomean": curve}
        rule = trainer.learned_rule(validation)
        rule.save(self.folder / LAST_FILE)
        if (score := validation_score(curve)) < progress.best:
            rule.save(self.folder / BEST_FILE)
            progress.best = score
        writer.validation(progress.outer_step, curve, cleaned[-1], _teleport_arrays(teleports))
        progress.validation_seconds += time.perf_counter() - began
        self._clock()
        return {
            "outer_step": progress.outer_step,
            "seconds": progress.seconds,
            "val_loss_geomean": curve,
        }

    def _step_row(self, window: Window) -> dict[str, Any]:
        progress = self.trainer.progress
        return {
            "outer_step": progress.outer_step,
            "inner_steps": progress.inner_steps,
            "seconds": progress.seconds,
            "validation_seconds": progress.validation_seconds,
            "meta_loss": window.meta_loss if math.isfinite(window.meta_loss) else None,
            "skipped": progress.skipped,
            "world_size": 1,
            "local_trajectories": self.trainer.config.meta.batch,
        }

    @staticmethod
    def _write(metrics: Any, row: dict[str, Any]) -> None:
        metrics.write(json.dumps(row) + "\n")

    def _save(self, metrics: Any) -> None:
        # Metrics first: a state must never be ahead of them.
        metrics.flush()
        write_state(self.folder / STATE_FILE, self.trainer.state())
        self._saved = time.perf_counter()

    def _closing(self) -> str:
        rule = load(self.folder / BEST_FILE)
        count, progress = rule.config.validation.tasks, self.trainer.progress
        skipped = (
            f"{progress.skipped} of {progress.outer_step} outer steps were skipped: their "
            f"meta-gradient was not finite\n"
            if progress.skipped
            else ""
        )
        return skipped + (
            f"{validation_table(rule.validation['val_loss_geomean'])}\n"
            f"geometric mean over {count} validation tasks, at the best validation (outer step "
            f"{rule.validation['outer_step']})\n"
            f"{rule.name}: {self.folder / BEST_FILE}"
        )


def validation_score(curve: Sequence[float]) -> float:
    """Mean of log loss over the inner steps after the first: good early and late; less is better.

    Args:
        curve: geometric-mean validation loss by inner step, index 0 before the first.
    """
    return sum(math.log(loss) for loss in curve[1:]) / (len(curve) - 1)


def _scalars(window: Window, trainer: MetaTrainer, rate: float) -> dict[str, float]:
    """What TensorBoard shows of an outer step."""
    scalars = {
        "train/meta_loss": window.meta_loss,
        "train/skipped": trainer.progress.skipped,
        "train/trajectories_per_second": rate,
    }
    scalars |= {f"grad_norm/{name}": norm for name, norm in window.grad_norms.items()}
    for name, group in zip(trainer.networks, trainer.adam.param_groups, strict=True):
        scalars[f"outer_lr/{name}"] = group["lr"]
    return scalars | {f"teleport/{name}": value for name, value in window.teleports.items()}


def _teleport_arrays(teleports: TeleportTrace | None) -> dict[str, Any]:
    if teleports is None:
        return {}
    return {"norm": teleports.norm.cpu().numpy(), "drift": teleports.drift.cpu().numpy()}


def _read_rows(path: Path) -> Iterator[dict[str, Any]]:
    """The whole rows of a metrics file; a kill may have cut the last one."""
    if not path.is_file():
        return
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            yield json.loads(line)
        except json.JSONDecodeError:
            return


def _require_equal(saved: Any, given: Any, path: Path, field_name: str = "") -> None:
    if isinstance(saved, dict) and isinstance(given, dict):
        for key in sorted(saved.keys() | given.keys()):
            inner = f"{field_name}.{key}" if field_name else key
            _require_equal(saved.get(key), given.get(key), path, inner)
    elif saved != given:
        raise ConfigError(
            f"{path}: field {field_name}: the run was started with {saved!r}, found {given!r}; "
            f"give it as it was, or start afresh without --resume"
        )


@contextmanager
def _interruptions() -> Iterator[Any]:
    """Turns the first Ctrl-C into a flag, so that it never cuts an outer step in two."""
    received: list[int] = []

    def note(number: int, frame: object) -> None:
        received.append(number)
        if len(received) > 1:
            raise KeyboardInterrupt

    before = signal.signal(signal.SIGINT, note)
    try:
        yield lambda: bool(received)
    finally:
        signal.signal(signal.SIGINT, before)
