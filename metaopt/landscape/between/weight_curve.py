"""Curves in the space of a model's weights, and what can be done with any of them."""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from metaopt.landscape.between.curve_evaluation import CurveReport, evaluated
from metaopt.landscape.between.plane import Plane, plane_of
from metaopt.landscape.between.refresh import refresh_batchnorm
from metaopt.landscape.data import Data
from metaopt.landscape.samples import Loss


class WeightCurve(ABC):
    """t in [0, 1] -> w(t), the parameters and buffers of one model.

    Args:
        template: a model of the structure. It is kept, not copied, and never changed.
        loss: (outputs, targets) -> a scalar, the mean over the samples; None: it is to be given
            where it is needed.
        weight_decay: wd of the penalty (wd/2) |w(t)|^2 that ``evaluate`` reports.
    """

    def __init__(self, template: nn.Module, loss: Loss | None, weight_decay: float) -> None:
        self.template = template
        self.loss = loss
        self.weight_decay = weight_decay

    @property
    def ends(self) -> int:
        """K, the number of ends: end k is at t = k / (K - 1)."""
        return 2

    @abstractmethod
    def weights(self, t: float) -> dict[str, Tensor]:
        """The parameters at t, by path.

        Raises:
            ValueError: if t is not from 0 to 1.
        """

    @abstractmethod
    def buffers(self, t: float) -> dict[str, Tensor]:
        """The buffers at t, by path; running statistics in them belong to no t but the ends."""

    def model(self, t: float, data: Data | None = None) -> nn.Module:
        """A new model with the weights at t, in evaluation mode.

        Args:
            t: from 0 to 1.
            data: those over which running statistics of batch normalisation are taken anew (see
                ``refresh_batchnorm``). None: the statistics are ``buffers(t)``, with which a model
                that is not at an end can be as bad as an untrained one.

        Raises:
            ValueError: if t is not from 0 to 1.
        """
        weights, buffers = self.weights(t), self.buffers(t)
        model = copy.deepcopy(self.template).eval()
        put(model, weights | buffers)
        for parameter in model.parameters():
            parameter.grad = None
        if data is not None:
            refresh_batchnorm(model, data)
        return model

    def evaluate(
        self,
        data: Data,
        points: int = 61,
        *,
        loss: Loss | None = None,
        statistics: Data | None = None,
    ) -> CurveReport:
        """Loss, error and penalty at equally spaced t, and the barriers between ends.

        The model is in evaluation mode. Where it has running statistics of batch normalisation they
        are taken anew at each t, at the ends too.

        Args:
            data: a pair (inputs, targets), or an iterable of such pairs (see ``metaopt.noise``).
            points: how many t, from 0 to 1; all ends must be among them.
            loss: the loss; None: that of the curve.
            statistics: the data over which running statistics are taken; None: ``data``. If
                ``data`` are test data, give the training data here.

        Raises:
            ValueError: if no loss is known, the points miss an end, or the data are empty.
        """
        found = self._loss(loss)
        statistics = data if statistics is None else statistics
        return evaluated(self, self.model(0.0), found, data, points, statistics)

    def plane(
        self,
        data: Data,
        size: int = 21,
        *,
        margin: float = 0.2,
        loss: Loss | None = None,
        statistics: Data | None = None,
        beside: Mapping[str, WeightCurve] | None = None,
    ) -> Plane:
        """Loss and error on the plane through w(0), w(1) and w(1/2), which can be drawn.

            w = w(0) + x u + y v,   u along w(1) - w(0),   v orthogonal to u,   |u| = |v| = 1

        With one bend that is the plane of the curve; of a curve through three ends it is the
        plane of the three models.

        Args:
            data: as of ``evaluate``.
            size: points on each side of the grid.
            margin: how far the grid goes beyond what is drawn, as a share of its width and height.
            loss: as of ``evaluate``.
            statistics: as of ``evaluate``.
            beside: other curves of the same model to be drawn, by their names. What lies outside
                the plane is projected on it.

        Raises:
            ValueError: if no loss is known, the three points lie on a line, or a curve beside is of
                another model.
        """
        curves: dict[str, WeightCurve] = {"curve": self, **(beside or {})}
        statistics = data if statistics is None else statistics
        return plane_of(
            curves, self.model(0.0), self._loss(loss), data, statistics, size=size, margin=margin
        )

    def _loss(self, loss: Loss | None) -> Loss:
        loss = self.loss if loss is None else loss
        if loss is None:
            raise ValueError(
                "the curve knows no loss: give loss=, e.g. nn.functional.cross_entropy"
            )
        return loss


@torch.no_grad()
def put(model: nn.Module, values: Mapping[str, Tensor]) -> None:
    """Copy values into the parameters and buffers of a model, by path."""
    named: dict[str, Any] = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    for path, value in values.items():
        named[path].copy_(value)
