"""The noise of gradients as each symmetry sees it.

    Sigma = 1/N sum_n (g_n - g)(g_n - g)^T,   g_n the gradient of sample n, g their mean

    incoming   sum over incoming slots s of p (E[g_s g_s^T] - E[g_s] E[g_s]^T)
    outgoing   the same over outgoing slots

SGD of batch size S moves the charge C of a symmetry by lr^2 / S times incoming - outgoing a step,
besides what the mean gradient does: the noise equilibrium is where both halves are equal.

Reference: Ziyin et al., arXiv 2402.07193.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from metaopt.base.tables import markdown_table
from metaopt.landscape.data import Data
from metaopt.landscape.moments import Moments, require_per_sample
from metaopt.landscape.plain_layers import PerSample
from metaopt.landscape.samples import CHECKED, Loss, Samples
from metaopt.landscape.stacks import Stack
from metaopt.symmetry.conserved import QUADRATIC, halves, named, parameters_of
from metaopt.symmetry.discovery.find import symmetries as find_symmetries
from metaopt.symmetry.groups import Group, Symmetry


@dataclass(frozen=True)
class Seen:
    """Noise and mean gradient as one symmetry sees them.

    Each tensor is [k] for positive scaling, [k, k] for a general linear group, with a first axis
    for blocks if there are several (heads), and [blocks] for a scale and rotation; float64.

    Attributes:
        symmetry: the symmetry.
        incoming: the covariance of per-sample gradients, summed over incoming slots.
        outgoing: the same over outgoing slots.
        mean_incoming: g g^T of the mean gradient g, summed over incoming slots.
        mean_outgoing: the same over outgoing slots.
    """

    symmetry: Symmetry
    incoming: Tensor
    outgoing: Tensor
    mean_incoming: Tensor
    mean_outgoing: Tensor

    @property
    def traces(self) -> tuple[Tensor, Tensor]:
        """The traces of incoming and outgoing noise: of each unit [k], or of each head's matrix."""
        return _trace(self.symmetry, self.incoming), _trace(self.symmetry, self.outgoing)

    @property
    def mean_traces(self) -> tuple[Tensor, Tensor]:
        """The same of the mean gradient: squared norms."""
        return _trace(self.symmetry, self.mean_incoming), _trace(self.symmetry, self.mean_outgoing)


class Noise(dict[str, Seen]):
    """What each symmetry sees, by its name; it can be printed.

    Attributes:
        samples: N, over how many samples.
    """

    def __init__(self, seen: dict[str, Seen], samples: int) -> None:
        super().__init__(seen)
        self.samples = samples

    def rows(self) -> list[dict[str, Any]]:
        """One plain dictionary for each symmetry, e.g. for ``pandas.DataFrame``.

        Returns:
            Of each: ``symmetry`` (its name), ``group``, ``blocks``, ``size``, ``incoming`` and
            ``outgoing`` (total noise), ``mean_incoming`` and ``mean_outgoing`` (total squared norm
            of the mean gradient).
        """
        keys = ("incoming", "outgoing", "mean_incoming", "mean_outgoing")
        return [
            {
                "symmetry": name,
                "group": str(one.symmetry.group),
                "blocks": one.symmetry.blocks,
                "size": one.symmetry.size,
                **{
                    key: float(trace.sum())
                    for key, trace in zip(keys, one.traces + one.mean_traces, strict=True)
                },
            }
            for name, one in self.items()
        ]

    def __str__(self) -> str:
        header = ["symmetry", "group", "size", "noise in", "noise out", "mean in", "mean out"]
        cells = [
            [
                one["symmetry"],
                one["group"],
                f"{one['blocks']} x {one['size']}" if one["blocks"] > 1 else str(one["size"]),
                *(
                    f"{one[key]:.3g}"
                    for key in ("incoming", "outgoing", "mean_incoming", "mean_outgoing")
                ),
            ]
            for one in self.rows()
        ]
        return f"noise of {self.samples} samples\n{markdown_table(header, cells)}"

    __repr__ = __str__


def noise(
    model: nn.Module,
    loss: Loss,
    data: Data,
    symmetries: Iterable[Symmetry] | None = None,
    example: Any = None,
) -> Noise:
    """E[g_s g_s^T] - E[g_s] E[g_s]^T over the incoming and over the outgoing slots of symmetries.

    Gradients of plain layers (linear, convolution) come from hooks, those of all other parameters
    from ``torch.func``. The model stays as it is. Sums are taken in float64.

    Args:
        model: any module in which a sample has a gradient of its own.
        loss: (outputs, targets) -> a scalar, the mean over the samples.
        data: a pair (inputs, targets), or an iterable of such pairs that can be run through more
            than once (see ``Samples``).
        symmetries: those to look through; None: ``metaopt.symmetries(model, example)``. Only those
            that have a quadratic charge are returned.
        example: inputs of the model to find symmetries with; None: the first samples.

    Returns:
        By the symmetry's name, as in ``metaopt.charges``: what it sees.

    Raises:
        ValueError: if there are fewer than 2 samples, a sample has no gradient of its own (batch
            normalisation or dropout in training), or a symmetry does not hold for each sample.
    """
    samples = Samples(model, loss, data)
    chosen = quadratic(samples, symmetries, example)
    return seen_noise(samples, chosen)


def quadratic(
    samples: Samples, symmetries: Iterable[Symmetry] | None, example: Any = None
) -> dict[str, Symmetry]:
    """The symmetries that have quadratic charges, by name; arguments as of ``noise``."""
    if symmetries is None:
        if example is None:
            example, _ = next(samples.parts(CHECKED))
        symmetries = find_symmetries(samples.model, example)
    return {name: one for name, one in named(symmetries).items() if one.group in QUADRATIC}


def seen_noise(samples: Samples, symmetries: dict[str, Symmetry]) -> Noise:
    """What symmetries see of the noise, by name; errors as of ``noise``."""
    _require_two(samples)
    weights = parameters_of(samples.model, symmetries.values())
    paths = list(weights)
    if not paths:
        return Noise({}, samples.count)
    source = PerSample(samples, paths)
    wide = {path: weight.detach().double() for path, weight in weights.items()}
    for symmetry in symmetries.values():
        require_per_sample(symmetry, wide, source.few)
    moments = Moments(symmetries)
    for each in source.parts():
        for path, gradients in each.items():
            moments.add(path, gradients)
    mean = {path: total / samples.count for path, total in moments.total.items()}
    result = {}
    for name, symmetry in symmetries.items():
        of_mean = halves(symmetry, mean, mean)
        second = (half / samples.count for half in moments.halves(name))
        covariances = [two - one for two, one in zip(second, of_mean, strict=True)]
        shown = (without_block(symmetry, half) for half in (*covariances, *of_mean))
        result[name] = Seen(symmetry, *shown)
    return Noise(result, samples.count)


def gradient_stack(samples: Samples, symmetries: Iterable[Symmetry]) -> dict[str, Tensor]:
    """grad L as a stack {path: [1, *shape]}, float64, of all parameters that symmetries move.

    Args:
        samples: model, loss and data.
        symmetries: symmetries of the model.

    Raises:
        ValueError: if a sample has no gradient of its own, or gradients are not finite.
    """
    paths = list(parameters_of(samples.model, symmetries))
    if paths:
        samples.can_vectorise(paths)
    return {path: g.double()[None] for path, g in samples.mean_gradient(paths).items()}


def noise_stack(samples: Samples, symmetries: Iterable[Symmetry]) -> dict[str, Tensor]:
    """(g_n - grad L) / sqrt(N) as a stack {path: [rows, *shape]}, float64.

    It has the moments of all samples in few rows (see ``Stack``), and its sum of squares is the
    trace of the covariance of per-sample gradients, Sigma = 1/N sum (g_n - g)(g_n - g)^T.

    Args:
        samples: model, loss and data.
        symmetries: symmetries of the model.

    Raises:
        ValueError: if there are fewer than 2 samples, or a sample has no gradient of its own.
    """
    _require_two(samples)
    symmetries = list(symmetries)
    paths = list(parameters_of(samples.model, symmetries))
    weights = samples.values(paths)
    stacks = {path: Stack(path, w, symmetries, samples.count) for path, w in weights.items()}
    for each in PerSample(samples, paths).parts() if paths else ():
        for path, gradients in each.items():
            stacks[path].add(gradients)
    return {path: stack.centred() / samples.count**0.5 for path, stack in stacks.items()}


def without_block(symmetry: Symmetry, half: Tensor) -> Tensor:
    """The half of a form, with one block's axis left out, as ``form`` leaves it out."""
    return half[0] if symmetry.blocks == 1 and half.dim() > 1 else half


def _trace(symmetry: Symmetry, half: Tensor) -> Tensor:
    if symmetry.group is Group.LINEAR:
        return half.diagonal(dim1=-2, dim2=-1).sum(-1)
    return half


def _require_two(samples: Samples) -> None:
    if samples.count < 2:
        raise ValueError(f"noise needs at least 2 samples, found {samples.count}")
