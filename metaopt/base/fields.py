"""What all configurations are made of: the base class of their sections, and types of fields."""

from __future__ import annotations

from typing import Annotated, Any, Literal

import torch
from pydantic import BaseModel, ConfigDict, Field

Positive = Annotated[int, Field(ge=1)]
PositiveFloat = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Decay = Annotated[float, Field(ge=0, lt=1)]
# Shapes have a limit, so that a damaged file cannot ask for more memory than there is.
Size = Annotated[int, Field(ge=1, le=100_000)]
Seed = Annotated[int, Field(ge=0, lt=2**63)]
Text = Annotated[str, Field(min_length=1)]
# The name becomes a folder; file systems allow 255 bytes.
Name = Annotated[str, Field(pattern=r"^\w[\w.+-]*$", max_length=200)]


LONGEST_LABEL = 100


def require_label(label: str) -> None:
    """Raise ``ValueError`` if a label cannot be shown in a table; older files may hold any text."""
    if not (label.isprintable() and label == label.strip() and 0 < len(label) <= LONGEST_LABEL):
        raise ValueError(
            f"field label: found {label!r:.60}, expected 1 to {LONGEST_LABEL} printable characters "
            f"with no spaces around them"
        )


class Model(BaseModel):
    """A section of a configuration: unknown fields and values of a wrong type are errors."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, protected_namespaces=())


def described(default: Any, description: str) -> Any:
    """A field with a default and its meaning."""
    return Field(default, description=description)


def required(description: str) -> Any:
    """A field that must be given, with its meaning."""
    return Field(description=description)


DTYPES = {"float32": torch.float32, "float64": torch.float64}
DtypeName = Literal["float32", "float64"]


PrecisionName = Literal["full", "tf32", "bfloat16"]
