"""IDX files made here, and scikit-learn's digits."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from idx_files import CODES, idx, write_mnist
from support import FEW

from metaopt.base.errors import UserError
from metaopt.tasks.datasets import digits, mnist, read_idx


@FEW
@given(
    shape=st.lists(st.integers(0, 3), min_size=1, max_size=4),
    kind=st.sampled_from(list(CODES)),
)
def test_arrays_come_back(
    tmp_path_factory: pytest.TempPathFactory, shape: list[int], kind: str
) -> None:
    path = tmp_path_factory.mktemp("idx") / "array"
    array = (np.arange(np.prod(shape)) - 3).astype(kind).reshape(shape)
    path.write_bytes(idx(array))
    np.testing.assert_array_equal(read_idx(path), array)


@pytest.mark.parametrize("gzipped", [True, False])
def test_mnist_is_pixels_between_0_and_1_and_labels(tmp_path: Path, gzipped: bool) -> None:
    pixels = write_mnist(tmp_path, "t10k", 7, gzipped)
    found = mnist(tmp_path, "test")
    assert found.X.dtype == torch.float32
    np.testing.assert_allclose(found.X.numpy() * 255, pixels.reshape(7, 12), atol=1e-4)
    assert found.y.tolist() == list(range(7))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"PNG..", "expected an IDX file, found one that begins with b'PNG.'"),
        (idx(np.zeros((2, 2, 2), np.uint8))[:-1], "expected 8 bytes .* found 7"),
        (idx(np.zeros((2, 2, 2), np.uint8)) + b"x", "expected 8 bytes .* found 9"),
        (b"\0\0\x08\x03\0\0\0\x02", "expected 2 bytes of numbers .2., found"),
    ],
)
def test_damaged_files_end_in_a_line(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "file"
    path.write_bytes(content)
    with pytest.raises(UserError, match=message):
        read_idx(path)


def test_missing_files_and_other_shapes_end_in_a_line(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"train-images-idx3-ubyte: .* found neither"):
        mnist(tmp_path, "train")
    write_mnist(tmp_path, "train", 5, gzipped=False)
    (tmp_path / "train-labels-idx1-ubyte").write_bytes(idx(np.zeros(4, np.uint8)))
    with pytest.raises(UserError, match=r"found \[5, 4, 3\] and \[4\]"):
        mnist(tmp_path, "train")
    (tmp_path / "bad.gz").write_bytes(b"nothing zipped")
    with pytest.raises(UserError, match="cannot be read as an IDX file"):
        read_idx(tmp_path / "bad.gz")


def test_digits_are_8_by_8_in_ten_classes() -> None:
    found = digits()
    assert found.X.shape == (1797, 64)
    assert (float(found.X.min()), float(found.X.max())) == (0.0, 1.0)
    assert found.y.unique().tolist() == list(range(10))
