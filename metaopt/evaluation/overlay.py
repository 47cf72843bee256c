"""Optimizers of an evaluation in TensorBoard: each a run, so that curves lie over each other."""

from __future__ import annotations

import io
import itertools
import re
import unicodedata
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path

import numpy as np

from metaopt.base.errors import WriteError
from metaopt.base.files import writing
from metaopt.meta.events import Array, _close, _writer
from metaopt.meta.run_files import EVENT_FILES

LONGEST_FOLDER, LONGEST_PART = 240, 60


EPOCH = 1_700_000_000.0
"""Wall-clock time at which all overlaid curves begin."""


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
