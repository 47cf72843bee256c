"""Images with labels: MNIST from files that the user has, and scikit-learn's digits.

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
    """Images with labels.

    Attributes:
        X: the images, float32 [N, n], pixels between 0 and 1.
        y: the labels, int64 [N], classes from 0.
    """

    X: Tensor
    y: Tensor


def read_idx(path: Path) -> NDArray[np.generic]:
    """The array in an IDX file, which is gzipped if its name ends in ``.gz``.

    The file holds two zero bytes, a byte for the type and one for the number of axes; then the
    lengths of the axes as big-endian 32-bit integers; then the numbers, big-endian, the last axis
    fastest.

    Args:
        path: the file.

    Raises:
        UserError: if the file is missing, or is not a complete IDX file.
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
    """MNIST, or another data set in files of the same names and format.

    Args:
        folder: the folder with ``train-images-idx3-ubyte``, ``train-labels-idx1-ubyte`` and the
            same of ``t10k``, each gzipped (``.gz``) or not.
        split: ``train`` or ``test``.

    Raises:
        UserError: if a file is missing or damaged, or has another shape.
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
    """The 1,797 digits of 8 by 8 pixels that come with scikit-learn.

    Raises:
        UserError: if scikit-learn is not installed.
    """
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
