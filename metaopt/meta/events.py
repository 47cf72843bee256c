"""What TensorBoard shows: meta-training runs, and optimizers of an evaluation side by side.

Its tab *Custom scalars* answers questions in one place (``TRAINING``, ``COMPARISON``); *HParams*
puts runs beside each other by their configurations; *Images* has the convergence figure.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tensorboard.summary.writer.event_file_writer import _AsyncWriterThread
from torch.utils.tensorboard import SummaryWriter
from torch.utils.tensorboard.summary import hparams

from metaopt.base.files import writing
from metaopt.base.tables import table_steps
from metaopt.meta.run_files import EVENT_FILES

Array = NDArray[np.float64]

LAST_LOSS = "final/validation_loss"
"""Tag of the loss in the table of runs: in the order of the alphabet the first of all metrics."""

TRAINING = {
    "meta-training": {
        "does it learn? (meta-loss)": ["Multiline", [r"train/meta_loss"]],
        "how good is it? (log10 validation loss at inner steps)": [
            "Multiline",
            [r"validation/log10_loss_at"],
        ],
        "is it stable? (meta-gradient norms)": ["Multiline", [r"grad_norm/"]],
        "were outer steps skipped?": ["Multiline", [r"train/skipped"]],
        "outer learning rates": ["Multiline", [r"outer_lr/"]],
        "how fast is it? (trajectories a second)": [
            "Multiline",
            [r"train/trajectories_per_second"],
        ],
        "how far do teleports go? (norm of generators)": ["Multiline", [r"teleport/norm_mean"]],
        "are they exact? (largest drift)": ["Multiline", [r"teleport/drift_max"]],
        "how many are refused? (share)": ["Multiline", [r"teleport/refused_share"]],
        "does the loss live off drift? (signed log total)": [
            "Multiline",
            [r"teleport/drift_log_total_mean"],
        ],
    }
}
"""Layout of a meta-training run: questions, and tags by patterns that fit from their beginning."""


class RunWriter:
    """TensorBoard events of a meta-training run.

    Args:
        folder: the folder of the run.
        purge_step: events from this outer step on, of a part that was killed, are hidden.
        config: what the run is configured with, nested, for the table of runs.
    """

    def __init__(self, folder: Path, purge_step: int, config: Mapping[str, Any]) -> None:
        self._folder = folder
        with writing(folder):
            self._writer = _writer(folder, purge_step=purge_step, flush_secs=10)
        self._writer.add_custom_scalars(TRAINING)
        self._config = flat(config)
        self._last: tuple[int, float] | None = None

    @staticmethod
    def files(folder: Path) -> list[Path]:
        """The event files of a run."""
        return sorted(folder.glob(EVENT_FILES))

    def outer_step(self, step: int, scalars: Mapping[str, float]) -> None:
        """Scalars of one outer step."""
        with writing(self._folder):
            for name, value in scalars.items():
                self._writer.add_scalar(name, value, step)

    def flush(self) -> None:
        """All events so far are in the file from now on."""
        with writing(self._folder):
            self._writer.flush()

    def validation(
        self, step: int, curve: Sequence[float], final: Array, teleports: Mapping[str, Array]
    ) -> None:
        """The validation curve at a few inner steps, and histograms.

        Args:
            step: outer step.
            curve: geometric-mean loss by inner step.
            final: losses of all tasks at the last inner step.
            teleports: arrays [steps, tasks] by name, to be seen as histograms.
        """
        self._last = step, curve[-1]
        with writing(self._folder):
            self._validation(step, curve, final, teleports)

    def _validation(
        self, step: int, curve: Sequence[float], final: Array, teleports: Mapping[str, Array]
    ) -> None:
        for inner in table_steps(len(curve) - 1):
            self._writer.add_scalar(f"validation/loss_at_{inner:04d}", curve[inner], step)
            if inner > 0:
                # Beside the loss before the first step nothing else would be seen.
                tag = f"validation/log10_loss_at_{inner:04d}"
                self._writer.add_scalar(tag, np.log10(curve[inner]), step)
        arrays = {"log10_final_loss": np.log10(final)}
        arrays |= {f"teleport_{name}": values for name, values in teleports.items()}
        for name, values in arrays.items():
            finite = values[np.isfinite(values)]
            if finite.size:
                self._writer.add_histogram(f"validation/{name}", finite, step)

    def close(self) -> None:
        """Write what is left, and the run's row in the table of runs."""
        with writing(self._folder):
            if self._last is not None:
                step, loss = self._last
                self._writer.add_scalar(LAST_LOSS, loss, step)
                # Without the first of the three, the list of columns: of several runs TensorBoard
                # takes that of one, and where there is none it finds them all, those that differ
                # first.
                _, *row = hparams(self._config, {LAST_LOSS: loss})
                for summary in row:
                    self._writer._get_file_writer().add_summary(summary)
            _close(self._writer)


def _writer(folder: Path, **options: Any) -> SummaryWriter:
    """A writer whose thread says nothing of its own: what it met is raised at the next event."""
    if threading.excepthook is not _unless_writing:
        _before.append(threading.excepthook)
        threading.excepthook = _unless_writing
    return SummaryWriter(str(folder), **options)


_before: list[Callable[[threading.ExceptHookArgs], Any]] = []


def _unless_writing(found: threading.ExceptHookArgs) -> None:
    if not isinstance(found.thread, _AsyncWriterThread):
        _before[-1](found)


def _close(writer: SummaryWriter) -> None:
    # Closing alone would not raise what the thread met.
    writer.flush()
    writer.close()


def flat(config: Mapping[str, Any]) -> dict[str, bool | str | float | int]:
    """Nested fields by their dotted names; what is not set, or is a list, as text."""
    found: dict[str, bool | str | float | int] = {}
    for name, value in config.items():
        if isinstance(value, Mapping):
            found |= {f"{name}.{key}": inner for key, inner in flat(value).items()}
        else:
            found[name] = value if isinstance(value, bool | str | float | int) else str(value)
    return found
