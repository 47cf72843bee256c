"""The section ``task`` of configurations."""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    Field,
    SerializerFunctionWrapHandler,
    model_serializer,
    model_validator,
)

from metaopt.base.fields import Model as _Model
from metaopt.base.fields import Size
from metaopt.base.fields import described as _field

Distribution = Literal["uniform", "gaussian"]
REGRESSION = "leaky_relu_regression"
ONLY_THE_LOSS = "of a family of your own only the loss is known, which is enough for"
CLASS_PATH = r"^[^\W\d]\w*(\.[^\W\d]\w*)*:[^\W\d]\w*$"
"""The pattern of the path of a user's class: package.module:ClassName."""
_OWN = re.compile(CLASS_PATH)


MOVED = {"metaopt.image_tasks:Images": "metaopt.tasks.images:Images"}
"""Class paths that older checkpoints and configurations have, and where the classes are now."""


def _is_family(name: str) -> str:
    if name != REGRESSION and not _OWN.fullmatch(name):
        raise ValueError(
            f"found {name!r:.60}, expected {REGRESSION}, or a class of yours as "
            f"package.module:ClassName"
        )
    return MOVED.get(name, name)


class TaskConfig(_Model):
    """The task family, with the shapes and distributions of its tasks."""

    family: Annotated[str, AfterValidator(_is_family)] = _field(
        REGRESSION,
        f"{REGRESSION}, described by the fields below; or a class of yours, package.module:Class",
    )
    options: dict[str, bool | int | float | str | None] | None = _field(
        None, "keyword arguments that your class is made with"
    )
    more: list[dict[str, bool | int | float | str | None]] | None = _field(
        None,
        "further sets of keyword arguments: meta-training takes its meta-batches from `options` "
        "and from each of these in turn; validation is on `options` alone",
    )
    layers: Annotated[int, Field(ge=2, le=100)] = _field(
        2, "number of weight matrices of the network"
    )
    width: Size = _field(20, "number of hidden units in each hidden layer (k)")
    inputs: Size = _field(20, "number of inputs of the network: rows of the data X (n)")
    outputs: Size = _field(20, "number of outputs of the network: rows of the targets Y (m)")
    samples: Size = _field(20, "number of data points: columns of X and Y (N)")
    slope: Annotated[float, Field(gt=0, le=1)] = _field(
        0.1, "slope of LeakyReLU for negative numbers; 1 makes the network linear"
    )
    weights: Distribution = _field(
        "uniform",
        "how initial weights are drawn: uniform on [0, 1), or normal with variance 1 / inputs",
    )
    data: Distribution = _field(
        "uniform", "how the data X and Y are drawn: uniform on [0, 1), or standard normal"
    )

    @model_serializer(mode="wrap")
    def _without_empty_options(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Leave out empty options, so that caches and states older than they are still fit."""
        written: dict[str, Any] = handler(self)
        empty = {name for name in ("options", "more") if written.get(name) is None}
        return {name: value for name, value in written.items() if name not in empty}

    @property
    def is_own(self) -> bool:
        """Whether the family is a class of the user's."""
        return self.family != REGRESSION

    @model_validator(mode="after")
    def _of_one_kind(self) -> TaskConfig:
        if not self.is_own:
            if self.options is not None or self.more is not None:
                raise ValueError(f"options are for a class of yours, found family: {REGRESSION}")
            return self
        for name, info in type(self).model_fields.items():
            if name not in ("family", "options", "more") and getattr(self, name) != info.default:
                raise ValueError(
                    f"{name} is a field of {REGRESSION}; what {self.family} takes goes in options: "
                    f"options: {{{name}: {getattr(self, name)}}}"
                )
        return self
