"""Images with labels: MNIST from the files that a user has, digits from scikit-learn.

References:
    LeCun, Cortes and Burges, The MNIST database of handwritten digits (the IDX format).
"""

from __future__ import annotations

import gzip
import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from metaopt.base.errors import UserError

_DTYPES = {0x08: ">u1", 0x09: ">i1", 0x0B: ">i2", 0x0C: ">i4", 0x0D: ">f4", 0x0E: ">f8"}
_MNIST = {"train": "train", "test": "t10k"}


@dataclass(frozen=True)
class Labelled:
    """Labelled images.

    Attributes:
        X: float32 [N, n], pixels between 0 and 1.
        y: int64 [N], classes from 0.
    """

    X: Tensor
    y: Tensor


def read_idx(path: Path) -> NDArray[np.generic]:
    """The array of an IDX file, gzipped where its name ends in ``.gz``.

    Two zero bytes, one for the type, one for the number of axes; their lengths as big-endian 32-bit
    integers; the numbers, big-endian, the last axis fastest.

    Raises:
        UserError: where the file is missing, or is no whole IDX file.
    """
    try:
        content = path.read_bytes()
        if path.suffix == ".gz":
            content = gzip.decompress(content)
    except (OSError, EOFError, gzip.BadGzipFile) as error:
        raise UserError(f"{path}: cannot be read as an IDX file: {error}") from None
    if len(content) < 4 or content[:2] != b"\0\0" or content[2] not in _DTYPES:
        raise UserError(f"{path}: expected an IDX file, found one that begins with {content[:4]!r}")
    dtype, axes = np.dtype(_DTYPES[content[2]]), content[3]
    header = 4 + 4 * axes
    shape = tuple(np.frombuffer(content[4:header], ">u4").tolist())
    found, wanted = len(content) - header, dtype.itemsize * math.prod(shape)
    if len(shape) < axes or found != wanted:
        raise UserError(f"{path}: expected {wanted} bytes of numbers {list(shape)}, found {found}")
    return np.frombuffer(content, dtype, offset=header).reshape(shape)


def mnist(folder: Path, split: str) -> Labelled:
    """MNIST, or what comes in its files, from a folder.

    Args:
        folder: with ``train-images-idx3-ubyte``, ``train-labels-idx1-ubyte`` and the same of
            ``t10k``, gzipped (``.gz``) or not.
        split: ``train`` or ``test``.

    Raises:
        UserError: where a file is missing, damaged, or of other shapes.
    """
    images, labels = (
        read_idx(_existing(folder / f"{_MNIST[split]}-{what}-ubyte"))
        for what in ("images-idx3", "labels-idx1")
    )
    if images.ndim != 3 or labels.shape != images.shape[:1]:
        raise UserError(
            f"{folder}: expected images [N, rows, columns] and N labels, found "
            f"{list(images.shape)} and {list(labels.shape)}"
        )
    X = torch.from_numpy(images.reshape(len(images), -1).astype(np.float32) / 255)
    return Labelled(X, torch.from_numpy(labels.astype(np.int64)))


def _existing(path: Path) -> Path:
    gzipped = path.with_name(f"{path.name}.gz")
    for candidate in (path, gzipped):
        if candidate.is_file():
            return candidate
    raise UserError(f"{path}: expected this file, or {gzipped.name}, found neither")


def digits() -> Labelled:
    """1,797 digits of 8 by 8 pixels that scikit-learn ships; raises ``UserError`` without it."""
    try:
        from sklearn.datasets import load_digits
    except ImportError:
        raise UserError(
            "digits need scikit-learn: pip install 'metaopt-symmetry[digits]'"
        ) from None
    data = load_digits()
    return Labelled(
        torch.from_numpy(data.data.astype(np.float32) / 16), torch.from_numpy(data.target)
    )
