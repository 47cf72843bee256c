"""Booth's and Rosenbrock's functions, f = u^2 + v^2, with the rotations of (u, v).

    Booth       u = x + 2y - 7,      v = 2x + y - 5
    Rosenbrock  u = 10 (x^2 - y),    v = x - 1

A rotation of (u, v) leaves f as it is. With J = d(u, v)/d(x, y) the gradient is 2 J^T (u, v), and
the velocity along the orbit J^-1 (-v, u).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]

GRID = 20_000
"""Angles among which the best is looked for, before it is refined."""


class Plane(ABC):
    """A function of points [2, ...] of the plane."""

    name: str
    start: tuple[float, float]
    window: tuple[float, float, float, float]  # of the figure: x from, to, y from, to

    @abstractmethod
    def uv(self, w: Array) -> Array:
        """(u, v), [2, ...]."""

    @abstractmethod
    def point(self, uv: Array) -> Array:
        """(x, y) at (u, v)."""

    @abstractmethod
    def jacobian(self, w: Array) -> Array:
        """J, [2, 2, ...]."""

    @abstractmethod
    def hessian(self, w: Array) -> Array:
        """[2, 2, ...]."""

    def loss(self, w: Array) -> Array:
        """f, [...]."""
        return (self.uv(w) ** 2).sum(0)

    def gradient(self, w: Array) -> Array:
        """[2, ...]."""
        return 2 * np.einsum("ai...,a...->i...", self.jacobian(w), self.uv(w))

    def squared(self, w: Array) -> Array:
        """|grad f|^2, [...]."""
        return (self.gradient(w) ** 2).sum(0)

    def velocity(self, w: Array) -> Array:
        """Of the rotation, [2, ...]."""
        u, v = self.uv(w)
        (a, b), (c, d) = self.jacobian(w)
        determinant = a * d - b * c
        return np.stack([-d * v - b * u, c * v + a * u]) / determinant

    def residual(self, w: Array) -> Array:
        """|<H g, X>| / (|H g| |X|), [...]; 0 where |g| is stationary on the orbit."""
        product = np.einsum("ij...,j...->i...", self.hessian(w), self.gradient(w))
        X = self.velocity(w)
        sizes = np.sqrt((product**2).sum(0) * (X**2).sum(0))
        return np.abs((product * X).sum(0)) / sizes

    def slope(self, w: Array) -> Array:
        """d |grad f|^2 / d angle = 2 g^T H X, [...]."""
        product = np.einsum("ij...,j...->i...", self.hessian(w), self.gradient(w))
        return 2 * (product * self.velocity(w)).sum(0)

    def turned(self, w: Array, angle: Any) -> Array:
        """The point of the orbit at an angle from w."""
        u, v = self.uv(w)
        c, s = np.cos(angle), np.sin(angle)
        return self.point(np.stack([c * u - s * v, s * u + c * v]))

    def extreme(self, w: Array, best: Callable[[Array], np.intp] = np.argmax) -> Array:
        """The point [2] of the orbit of w [2] with the largest gradient (``argmin``: smallest).

        By a grid over the angle, then by halving the interval in which the slope changes sign.
        """
        angles = np.arange(GRID) * (2 * np.pi / GRID)
        k = best(self.squared(self.turned(w[:, None], angles)))
        low, high = angles[k] - 2 * np.pi / GRID, angles[k] + 2 * np.pi / GRID
        sign = np.sign(self.slope(self.turned(w, low)))
        for _ in range(60):
            middle = (low + high) / 2
            if np.sign(self.slope(self.turned(w, middle))) == sign:
                low = middle
            else:
                high = middle
        return self.turned(w, (low + high) / 2)


class Booth(Plane):
    """Quadratic: H = 2 J^T J has the eigenvalues 18 and 2."""

    name = "Booth"
    start = (5.0, -5.0)
    window = (-9.0, 11.0, -7.0, 13.0)
    _J = np.array([[1.0, 2.0], [2.0, 1.0]])

    def uv(self, w: Array) -> Array:
        """(x + 2y - 7, 2x + y - 5)."""
        x, y = w
        return np.stack([x + 2 * y - 7, 2 * x + y - 5])

    def point(self, uv: Array) -> Array:
        """(-u/3 + 2v/3 + 1, 2u/3 - v/3 + 3)."""
        u, v = uv
        return np.stack([-u / 3 + 2 * v / 3 + 1, 2 * u / 3 - v / 3 + 3])

    def jacobian(self, w: Array) -> Array:
        """Constant."""
        return np.broadcast_to(self._J.reshape(2, 2, *[1] * (w.ndim - 1)), (2, *w.shape))

    def hessian(self, w: Array) -> Array:
        """Constant."""
        H = 2 * self._J.T @ self._J
        return np.broadcast_to(H.reshape(2, 2, *[1] * (w.ndim - 1)), (2, *w.shape))


class Rosenbrock(Plane):
    """A curved valley, 100 (x^2 - y)^2 + (x - 1)^2."""

    name = "Rosenbrock"
    start = (-1.0, -1.0)
    window = (-2.2, 2.2, -1.6, 3.4)

    def uv(self, w: Array) -> Array:
        """(10 (x^2 - y), x - 1)."""
        x, y = w
        return np.stack([10 * (x**2 - y), x - 1])

    def point(self, uv: Array) -> Array:
        """(v + 1, (v + 1)^2 - u / 10)."""
        u, v = uv
        return np.stack([v + 1, (v + 1) ** 2 - u / 10])

    def jacobian(self, w: Array) -> Array:
        """[[20 x, -10], [1, 0]]."""
        x = w[0]
        one = np.ones_like(x)
        return np.stack([np.stack([20 * x, -10 * one]), np.stack([one, 0 * one])])

    def hessian(self, w: Array) -> Array:
        """[[1200 x^2 - 400 y + 2, -400 x], [-400 x, 200]]."""
        x, y = w
        across = -400 * x
        first = np.stack([1200 * x**2 - 400 * y + 2, across])
        return np.stack([first, np.stack([across, 200 * np.ones_like(x)])])


PLANES: dict[str, Plane] = {one.name: one for one in (Booth(), Rosenbrock())}
