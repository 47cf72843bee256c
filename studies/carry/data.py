"""Data of the study: digits, other images, and text of modules that meta-training never read."""

from __future__ import annotations

import hashlib
import platform
from collections.abc import Callable
from functools import cache
from pathlib import Path

import torch
from torch.nn import functional

from metaopt.base.streams import Stream, item_generator
from metaopt.tasks.datasets import Labelled
from metaopt.tasks.images import digits_apart
from metaopt.tasks.various_corpus import documentation
from studies.images import data_sets
from studies.rivals.data import Parts, Rows

MODULES = (
    "abc",
    "array",
    "asyncio.base_events",
    "asyncio.events",
    "asyncio.locks",
    "asyncio.streams",
    "asyncio.tasks",
    "asyncio.transports",
    "bdb",
    "builtins",
    "bz2",
    "code",
    "compileall",
    "ctypes",
    "doctest",
    "fileinput",
    "ftplib",
    "getopt",
    "gzip",
    "hashlib",
    "http.client",
    "http.cookiejar",
    "http.server",
    "imaplib",
    "importlib.abc",
    "importlib.metadata",
    "io",
    "ipaddress",
    "locale",
    "mimetypes",
    "multiprocessing.managers",
    "optparse",
    "os",
    "pathlib",
    "pdb",
    "pickletools",
    "pkgutil",
    "platform",
    "profile",
    "pydoc",
    "selectors",
    "site",
    "smtplib",
    "socket",
    "socketserver",
    "ssl",
    "tarfile",
    "time",
    "urllib.request",
    "wsgiref.handlers",
    "wsgiref.simple_server",
    "xmlrpc.client",
    "xmlrpc.server",
    "zlib",
)
"""Of Python; meta-training has read none of their texts."""
APART = 5
"""Every fifth of them is not trained on, and judges."""
BYTES = 256
CONTEXT = 64
"""Bytes of a window."""
PIXELS = 16
"""Of a side of the larger network's images."""
SEED = 19


def _parts(train: Labelled, test: Labelled, judged: int) -> Parts:
    """Nothing is chosen by other rows than those that are shown: there are none for validation."""
    X, y = test.X[:judged], test.y[:judged]
    return Parts(Rows(train.X, train.y), Rows(X[:0], y[:0]), Rows(X, y))


@cache
def digits(judged: int) -> Parts:
    """scikit-learn's digits; a third that no meta-training has read judges."""
    return _parts(*digits_apart(), judged)


@cache
def other_images(name: str, fashion: Path, judged: int) -> Parts:
    """MNIST, or Fashion-MNIST, of which there is a sample of 5,000."""
    found = data_sets(fashion, smoke=False)[0][name]
    return _parts(found.train, found.test, judged)


@cache
def resized(images: Callable[[], Parts]) -> Parts:
    """Of 16 by 16 pixels, [N, 1, 16, 16]."""
    parts = images()

    def one(rows: Rows) -> Rows:
        side = round(rows.x.shape[1] ** 0.5)
        x = rows.x.view(-1, 1, side, side)
        size = (PIXELS, PIXELS)
        return Rows(functional.interpolate(x, size, mode="bilinear", antialias=True), rows.y)

    # Nothing is to be resized of no rows.
    return Parts(one(parts.train), parts.validation, one(parts.test))


@cache
def _texts() -> tuple[str, str]:
    """What is trained on, and what judges: of other modules."""
    apart = MODULES[::APART]
    return documentation([name for name in MODULES if name not in apart]), documentation(apart)


@cache
def text(judged: int) -> Parts:
    """Windows of 64 bytes, and at each place the byte that follows."""

    def windows(text: str) -> Rows:
        found = torch.frombuffer(bytearray(text.encode()), dtype=torch.uint8).long()
        count = (len(found) - 1) // CONTEXT
        cut = found[: count * CONTEXT], found[1 : count * CONTEXT + 1]
        return Rows(*(part.view(count, CONTEXT) for part in cut))

    train, apart = map(windows, _texts())
    order = item_generator(Stream.SPLIT, SEED, 0).permutation(len(apart.x))[: judged // 4]
    return Parts(train, Rows(apart.x[:0], apart.y[:0]), Rows(apart.x[order], apart.y[order]))


def about_text() -> str:
    """What was read, so that another text is told apart."""
    train, apart = _texts()
    digest = hashlib.sha256((train + apart).encode()).hexdigest()[:12]
    return (
        f"Text: documentation strings of Python {platform.python_version()}, {len(train):,} "
        f"characters to train on, {len(apart):,} of other modules, SHA-256 {digest}."
    )
