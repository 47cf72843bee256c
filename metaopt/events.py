"""What TensorBoard shows: meta-training runs, and optimizers of an evaluation side by side.

Its tab *Custom scalars* answers questions in one place (``TRAINING``, ``COMPARISON``); *HParams*
puts runs beside each other by their configurations; *Images* has the convergence figure.
"""

from __future__ import annotations

import io
import itertools
import re
import threading
import unicodedata
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tensorboard.summary.writer.event_file_writer import _AsyncWriterThread
from torch.utils.tensorboard import SummaryWriter
from torch.utils.tensorboard.summary import hparams

from metaopt.checkpoint import writing
from metaopt.errors import WriteError
from metaopt.tables import table_steps

Array = NDArray[np.float64]

LAST_LOSS = "final/validation_loss"
"""Tag of the loss in the table of runs: in the order of the alphabet the first of all metrics."""

EVENT_FILES = "events.out.tfevents.*"
LONGEST_FOLDER, LONGEST_PART = 240, 60

EPOCH = 1_700_000_000.0
"""Wall-clock time at which all overlaid curves begin."""

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

COMPARISON = {
    "optimizers on the same unseen tasks": {
        "log10 loss by inner step, 95 % interval": [
            "Margin",
            ["loss/log10_geomean", "loss/log10_low", "loss/log10_high"],
        ],
        "log10 loss by time (microseconds)": ["Multiline", [r"loss_by_microsecond/log10_geomean"]],
    }
}
"""Layout of an evaluation."""


class RunWriter:
    """TensorBoard events of a meta-training run.

    Args:
        folder: of the run.
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


def run_folders(names: Sequence[str]) -> list[str]:
    """A folder for each of some different names: like it, and different from the others.

    A ``/`` makes a folder within a folder, which TensorBoard shows as it was written. What else is
    no letter, digit or one of ``(),.@#+ -`` becomes ``_``, as dots at an end do; parts are cut to
    60 letters, for file systems allow 255 bytes. Those that are alike then, or but for their case,
    are numbered.
    """
    found: list[str] = []
    taken: set[str] = set()
    for name in names:
        parts = unicodedata.normalize("NFC", name)[:LONGEST_FOLDER].split("/")
        like = "/".join(_safe(part)[:LONGEST_PART] for part in parts)
        numbered = itertools.chain([like], (f"{like} {number}" for number in itertools.count(2)))
        found.append(next(place for place in numbered if _key(place) not in taken))
        taken.add(_key(found[-1]))
    return found


def _safe(part: str) -> str:
    plain = re.sub(r"[^\w(),.@#+ -]", "_", part)
    return re.sub(r"^[. ]|[. ]$|^$", "_", plain)


def _key(name: str) -> str:
    """Alike for names that some file system takes for one."""
    return unicodedata.normalize("NFKC", name).casefold()


def overlay_runs(folder: Path, curves: Mapping[str, Mapping[str, Array]], figure: bytes) -> None:
    """One TensorBoard run for each optimizer, so that their curves lie over each other.

    Args:
        folder: gets the layout and the figure, and a folder for each optimizer; events of an
            earlier evaluation go.
        curves: for each optimizer ``geomean``, ``low``, ``high`` by inner step, and ``seconds``.
        figure: the convergence figure, a PNG.
    """
    # Slow to import, and nothing that training needs.
    from matplotlib.image import imread

    old = set(folder.rglob(EVENT_FILES))
    try:
        with writing(folder):
            _overlay(folder, curves, imread(io.BytesIO(figure), format="png"))
    except WriteError:
        # The earlier ones are whole.
        for new in set(folder.rglob(EVENT_FILES)) - old:
            with suppress(OSError):
                new.unlink()
        raise
    with writing(folder):
        for file in old:
            file.unlink()


def _overlay(folder: Path, curves: Mapping[str, Mapping[str, Array]], pixels: Array) -> None:
    together = _writer(folder)
    together.add_custom_scalars(COMPARISON)
    together.add_image("convergence", pixels[..., :3], dataformats="HWC")
    _close(together)
    for place, curve in zip(run_folders([*curves]), curves.values(), strict=True):
        writer = _writer(folder / place)
        for step, loss in enumerate(curve["geomean"]):
            seconds = float(curve["seconds"][step])
            # log10, since TensorBoard's axes are linear until told otherwise.
            scalars = {
                "loss/geomean": loss,
                "loss/log10_geomean": np.log10(loss),
                "loss/log10_low": np.log10(curve["low"][step]),
                "loss/log10_high": np.log10(curve["high"][step]),
            }
            # All runs begin at one wall-clock time: TensorBoard's axis "relative" shows seconds.
            for tag, value in scalars.items():
                writer.add_scalar(tag, value, step, EPOCH + seconds)
            writer.add_scalar(
                "loss_by_microsecond/log10_geomean", np.log10(loss), round(1e6 * seconds)
            )
        _close(writer)
