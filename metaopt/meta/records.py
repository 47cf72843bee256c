"""What a run writes and shows while it runs: metrics, checkpoints, TensorBoard, the bar."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from contextlib import nullcontext, suppress
from pathlib import Path
from typing import Any

from tqdm import tqdm

from metaopt.base import checkpoint
from metaopt.base.files import writing
from metaopt.meta.events import RunWriter
from metaopt.meta.pace import Pace
from metaopt.meta.run_files import BEST_FILE, LAST_FILE, METRICS_FILE
from metaopt.meta.trainer import MetaTrainer, Window
from metaopt.meta.validation import Validation
from metaopt.teleport.base import TeleportTrace

_BAR = "{l_bar}{bar}| {n_fmt}/{total_fmt} [{elapsed}{postfix}]"


class Records:
    """The records of a process that is not the first: it keeps none."""

    def outer_step(self, window: Window, pace: Pace) -> None:
        """An outer step was taken."""

    def validation(self, found: Validation) -> None:
        """A validation was made."""

    def flush(self) -> None:
        """Write to disk everything that has been recorded so far."""

    def __enter__(self) -> Records:
        return self

    def __exit__(self, kind: type[BaseException] | None, *error: object) -> None:
        pass


class FirstRecords(Records):
    """The records of the first process, or the only one, in the folder of the run.

    Args:
        folder: the folder of the run.
        trainer: the trainer whose progress is recorded.
        clock: the wall-clock time of the run so far, in seconds.
        made_by: the command and commit, written into checkpoints (``provenance``).
    """

    def __init__(
        self,
        folder: Path,
        trainer: MetaTrainer,
        clock: Callable[[], float],
        made_by: Mapping[str, str],
    ) -> None:
        progress = trainer.progress
        self._folder = folder
        self._trainer = trainer
        self._clock = clock
        self._made_by = made_by
        self._writer = RunWriter(
            folder,
            purge_step=progress.outer_step + 1,
            config=trainer.config.model_dump(mode="json"),
        )
        with writing(folder / METRICS_FILE):
            self._metrics = (folder / METRICS_FILE).open("a", buffering=1, encoding="utf-8")
        self._bar = tqdm(
            total=trainer.config.meta.outer_steps,
            initial=progress.outer_step,
            bar_format=_BAR,
        )
        self._shown: dict[str, str] = {}

    def outer_step(self, window: Window, pace: Pace) -> None:
        """An outer step was taken."""
        outer_step = self._trainer.progress.outer_step
        rate, left = pace.trajectories_per_second, pace.seconds_left(outer_step)
        self._row(self._step_row(window))
        scalars = _scalars(window, self._trainer)
        scalars |= {"train/trajectories_per_second": rate, "train/seconds_left": left}
        self._writer.outer_step(outer_step, scalars)
        self._shown |= {
            "left": tqdm.format_interval(left),
            "traj/s": f"{rate:.1f}",
            "meta": f"{window.meta_loss:.4g}",
        }
        self._bar.set_postfix(self._shown, refresh=False)
        self._bar.update()

    def validation(self, found: Validation) -> None:
        """A validation was made: the learned optimizer is written, as the best too if it is."""
        content = self._trainer.checkpoint(found.row())
        content.training.update(self._made_by)
        checkpoint.write(self._folder / LAST_FILE, content)
        if found.is_best:
            checkpoint.write(self._folder / BEST_FILE, content)
        arrays = _teleport_arrays(found.teleports)
        self._writer.validation(found.outer_step, found.curve, found.cleaned[-1], arrays)
        self._row({**found.row(), "seconds": self._clock()})
        self._shown["val"] = f"{found.curve[-1]:.4g}"
        self._bar.set_postfix(self._shown)

    def flush(self) -> None:
        """Write to disk everything that has been recorded so far."""
        with writing(self._folder / METRICS_FILE):
            self._metrics.flush()
        self._writer.flush()

    def __exit__(self, kind: type[BaseException] | None, *error: object) -> None:
        self._bar.close()
        # The error that ended the run is reported, and not a later one that follows from it here.
        with suppress(OSError) if kind is not None else nullcontext():
            with writing(self._folder / METRICS_FILE):
                self._metrics.close()
            self._writer.close()

    def _row(self, row: dict[str, Any]) -> None:
        with writing(self._folder / METRICS_FILE):
            self._metrics.write(json.dumps(row) + "\n")

    def _step_row(self, window: Window) -> dict[str, Any]:
        progress = self._trainer.progress
        return {
            "outer_step": progress.outer_step,
            "inner_steps": progress.inner_steps,
            "seconds": progress.seconds,
            "validation_seconds": progress.validation_seconds,
            "meta_loss": window.meta_loss if math.isfinite(window.meta_loss) else None,
            "skipped": progress.skipped,
            "world_size": self._trainer.world.size,
            "local_trajectories": self._trainer.local_trajectories,
        }


def _scalars(window: Window, trainer: MetaTrainer) -> dict[str, float]:
    """What TensorBoard shows of an outer step."""
    scalars = {"train/meta_loss": window.meta_loss, "train/skipped": trainer.progress.skipped}
    scalars |= {f"grad_norm/{name}": norm for name, norm in window.grad_norms.items()}
    for name, group in zip(trainer.networks, trainer.adam.param_groups, strict=True):
        scalars[f"outer_lr/{name}"] = group["lr"]
    return scalars | {f"teleport/{name}": value for name, value in window.teleports.items()}


def _teleport_arrays(teleports: TeleportTrace | None) -> dict[str, Any]:
    if teleports is None:
        return {}
    return {"norm": teleports.norm.cpu().numpy(), "drift": teleports.drift.cpu().numpy()}
