"""Small files in the format of MNIST."""

from __future__ import annotations

import gzip
import struct
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

CODES = {"u1": 0x08, "i1": 0x09, "i2": 0x0B, "i4": 0x0C, "f4": 0x0D, "f8": 0x0E}


def idx(array: NDArray[np.generic]) -> bytes:
    """An array as the content of an IDX file."""
    code = CODES[array.dtype.str[1:]]
    header = struct.pack(">BBBB", 0, 0, code, array.ndim) + struct.pack(
        f">{array.ndim}I", *array.shape
    )
    return header + array.astype(array.dtype.newbyteorder(">")).tobytes()


def write_mnist(folder: Path, prefix: str, count: int, gzipped: bool) -> NDArray[np.uint8]:
    pixels = np.arange(count * 12, dtype=np.uint8).reshape(count, 4, 3)
    files = {"images-idx3": pixels, "labels-idx1": np.arange(count, dtype=np.uint8) % 10}
    for what, array in files.items():
        content = idx(array)
        name = f"{prefix}-{what}-ubyte{'.gz' if gzipped else ''}"
        (folder / name).write_bytes(gzip.compress(content) if gzipped else content)
    return pixels
