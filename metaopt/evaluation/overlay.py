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
from metaopt.evaluation.contenders import Contender, captions
from metaopt.meta.events import Array, _close, _writer
from metaopt.meta.run_files import EVENT_FILES

LONGEST_FOLDER, LONGEST_PART = 240, 200
"""Letters of a run's name, and bytes of a part of it."""

EPOCH = 1_700_000_000.0
"""Wall-clock time at which all overlaid curves begin."""


COMPARISON = {
    "optimizers on the same unseen tasks": {
        "log10 loss by inner step, 95 % interval": [
            "Margin",
            ["comparison/log10_loss", "interval/log10_low", "interval/log10_high"],
        ],
        "log10 loss by time (microseconds)": [
            "Multiline",
            [r"comparison/log10_loss_by_microsecond"],
        ],
    }
}
"""Layout of an evaluation. TensorBoard opens with the tags in the order of the alphabet: the group
``comparison`` comes before all others, those of meta-training too."""


def run_folders(names: Sequence[str]) -> list[str]:
    """A folder for each of some different names: like it, and different from the others.

    A ``/`` makes a folder within a folder, which TensorBoard shows as it was written. What else is
    no letter, digit or one of ``(),.@#+ -`` becomes ``_``, as dots at an end do; parts are cut to
    200 bytes, for file systems allow 255. Those that are alike then, or but for their case, are
    numbered.
    """
    found: list[str] = []
    taken: set[str] = set()
    for name in names:
        parts = unicodedata.normalize("NFC", name)[:LONGEST_FOLDER].split("/")
        like = "/".join(_cut(_safe(part)) for part in parts)
        numbered = itertools.chain([like], (f"{like} {number}" for number in itertools.count(2)))
        found.append(next(place for place in numbered if _key(place) not in taken))
        taken.add(_key(found[-1]))
    return found


def _safe(part: str) -> str:
    plain = re.sub(r"[^\w(),.@#+ -]", "_", part)
    return re.sub(r"^[. ]|[. ]$|^$", "_", plain)


def _cut(part: str) -> str:
    return part.encode()[:LONGEST_PART].decode(errors="ignore")


def _key(name: str) -> str:
    """A key that is equal for names that some file systems do not tell apart."""
    return unicodedata.normalize("NFKC", name).casefold()


def overlay_runs(
    folder: Path,
    curves: Mapping[str, Mapping[str, Array]],
    contenders: Sequence[Contender],
    figure: bytes,
) -> None:
    """One TensorBoard run for each optimizer, so that their curves lie over each other.

    A run is called as the optimizer, with where it comes from; a ``+`` before the name puts the
    user's own first, where TensorBoard gives out its colours.

    Args:
        folder: gets the layout and the figure, and a folder for each optimizer; events of an
            earlier evaluation go.
        curves: by name, ``geomean``, ``low``, ``high`` by inner step, and ``seconds``.
        contenders: the optimizers.
        figure: the convergence figure, a PNG.
    """
    # Slow to import, and nothing that training needs.
    from matplotlib.image import imread

    old = set(folder.rglob(EVENT_FILES))
    try:
        with writing(folder):
            _overlay(folder, curves, contenders, imread(io.BytesIO(figure), format="png"))
    except WriteError:
        # The earlier ones are whole.
        for new in set(folder.rglob(EVENT_FILES)) - old:
            with suppress(OSError):
                new.unlink()
        raise
    with writing(folder):
        for file in old:
            file.unlink()


def _overlay(
    folder: Path,
    curves: Mapping[str, Mapping[str, Array]],
    contenders: Sequence[Contender],
    pixels: Array,
) -> None:
    together = _writer(folder)
    together.add_custom_scalars(COMPARISON)
    together.add_image("convergence", pixels[..., :3], dataformats="HWC")
    _close(together)
    called = zip(captions(contenders), contenders, strict=True)
    names = [f"+ {caption}" if one.is_own else caption for caption, one in called]
    for place, contender in zip(run_folders(names), contenders, strict=True):
        writer, curve = _writer(folder / place), curves[contender.name]
        for step, loss in enumerate(curve["geomean"]):
            seconds = float(curve["seconds"][step])
            # log10, since TensorBoard's axes are linear until told otherwise.
            scalars = {
                "comparison/log10_loss": np.log10(loss),
                "interval/log10_low": np.log10(curve["low"][step]),
                "interval/log10_high": np.log10(curve["high"][step]),
                "loss/geomean": loss,
            }
            # All runs begin at one wall-clock time: TensorBoard's axis "relative" shows seconds.
            for tag, value in scalars.items():
                writer.add_scalar(tag, value, step, EPOCH + seconds)
            writer.add_scalar(
                "comparison/log10_loss_by_microsecond", np.log10(loss), round(1e6 * seconds)
            )
        _close(writer)
