"""Loss, gradient, noise and curvature of a model at the weights that it has."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict

import numpy as np
import torch

from metaopt.landscape.products import GaussNewtonProducts, HessianProducts, Products
from metaopt.landscape.samples import Samples
from metaopt.landscape.spectrum import is_small, spectrum
from metaopt.symmetry.modules import tensor_at

MATRICES: dict[str, type[Products]] = {
    "gauss-newton": GaussNewtonProducts,
    "hessian": HessianProducts,
}


class Point:
    """What is measured of the mean loss, by all parameters that require gradients.

    Args:
        samples: model, loss and data.
        matrix: ``gauss-newton`` or ``hessian``.
        damping: lambda divided by the largest modulus of an eigenvalue of the matrix.
        generator: random numbers by what they are for, the same at each call.

    Raises:
        ValueError: if the matrix is unknown, the damping is not above 0, or no parameter requires a
            gradient.
    """

    def __init__(
        self,
        samples: Samples,
        matrix: str,
        damping: float,
        generator: Callable[[str], np.random.Generator],
    ) -> None:
        if matrix not in MATRICES:
            raise ValueError(f"matrix must be one of {', '.join(MATRICES)}, found {matrix!r}")
        if not 0 < damping < float("inf"):
            raise ValueError(f"damping must be finite and above 0, found {damping}")
        named = samples.model.named_parameters()
        self._paths = [path for path, parameter in named if parameter.requires_grad]
        if not self._paths:
            raise ValueError("no parameter of the model requires a gradient")
        self._samples, self._damping, self._generator = samples, damping, generator
        self._products = MATRICES[matrix](samples, self._paths)

    @property
    def is_exact(self) -> bool:
        """Whether the matrix is written out."""
        return is_small(self._products.size)

    def loss(self) -> float:
        """L, the mean over the samples."""
        total = 0.0
        with torch.no_grad():
            for inputs, targets in self._samples.batches():
                one = self._samples.loss(self._samples.outputs({}, inputs), targets)
                total += len(targets) / self._samples.count * float(one)
        return total

    def measured(self) -> dict[str, float]:
        """Quantities by their names in ``Orbit``.

        Raises:
            ValueError: if a sample has no gradient of its own.
        """
        noise = self.noise_trace()
        weights = (tensor_at(self._samples.model, path) for path in self._paths)
        gradient = self._products.gradient()
        found = spectrum(self._products, gradient, self._damping, self._generator)
        return {
            "loss": self.loss(),
            "squared_norm": sum(float(w.detach().double().square().sum()) for w in weights),
            "gradient_norm": float(gradient.norm()),
            "noise_trace": noise,
            **asdict(found),
        }

    def noise_trace(self) -> float:
        """tr Sigma, Sigma = 1/N sum_n (g_n - grad L)(g_n - grad L)^T."""
        mean = self._samples.mean_gradient(self._paths)
        total = 0.0
        for each in self._samples.per_sample(self._paths):
            for path, gradients in each.items():
                total += float((gradients.double() - mean[path].double()).square().sum())
        return total / self._samples.count
