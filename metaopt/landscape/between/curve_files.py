"""Files of curves: one safetensors file with all control points, written whole or not at all."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import safetensors
import safetensors.torch
from torch import Tensor, nn

from metaopt.base.errors import one_line
from metaopt.base.files import write_atomically
from metaopt.landscape.between.control_points import ControlPoints, Part
from metaopt.landscape.between.layout import Layout
from metaopt.landscape.between.structure import require_equal

FORMAT = "metaopt curve"
FORMAT_VERSION = "1"


@dataclass(frozen=True, eq=False)
class CurveContent:
    """What a file holds (see ``Curve``)."""

    points: ControlPoints
    layout: Layout
    end_buffers: list[dict[str, Tensor]]
    weight_decay: float


def write_curve(
    path: Path,
    points: ControlPoints,
    layout: Layout,
    end_buffers: Sequence[Mapping[str, Tensor]],
    weight_decay: float,
) -> None:
    """Write a curve.

    Args:
        path: the file.
        points: the control points.
        layout: how they make the curve.
        end_buffers: the buffers of each end, by path.
        weight_decay: of the penalty.

    Raises:
        WriteError: if it cannot be written; the old file is then unchanged.
    """
    tensors = {f"constant/{name}": value for name, value in points.constants.items()}
    for part in points.parts:
        for row, vector in enumerate(part.points):
            for name, value in zip(part.paths, part.views(vector), strict=True):
                tensors[f"point {row}/{name}"] = value
    for end, buffers in enumerate(end_buffers):
        tensors |= {f"buffer {end}/{name}": value for name, value in buffers.items()}
    about = {
        "layout": asdict(layout),
        "weight_decay": weight_decay,
        "order": points.order,
        "trained": [name for part in points.parts if part.is_trained for name in part.paths],
    }
    metadata = {
        "format": FORMAT,
        "format_version": FORMAT_VERSION,
        "curve": json.dumps(about),
    }
    # Each tensor whole and alone: safetensors refuses those that share memory.
    content = {name: value.detach().cpu().clone().contiguous() for name, value in tensors.items()}
    write_atomically(path, safetensors.torch.save(content, metadata))


def read_curve(path: Path, template: nn.Module) -> CurveContent:
    """Read a curve of a model's structure, onto its devices.

    Args:
        path: the file.
        template: the model.

    Raises:
        ValueError: if the file is missing, damaged, no curve, or of another model.
    """
    if not path.is_file():
        raise ValueError(f"{path}: no such file")
    try:
        with safetensors.safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except safetensors.SafetensorError as error:
        raise ValueError(
            f"{path}: not a whole safetensors file ({one_line(str(error), 200)}); save the curve "
            f"again"
        ) from None
    if (metadata.get("format"), metadata.get("format_version")) != (FORMAT, FORMAT_VERSION):
        raise ValueError(
            f"{path}: expected a file that Curve.save wrote (format {FORMAT!r} {FORMAT_VERSION}), "
            f"found {metadata.get('format')!r} {metadata.get('format_version')}"
        )
    try:
        about = json.loads(metadata["curve"])
        layout = Layout(**about["layout"])
        return _content(path, template, tensors, about, layout)
    except (KeyError, TypeError, json.JSONDecodeError) as error:
        raise ValueError(f"{path}: damaged, it lacks {error}; save the curve again") from None


def _content(
    path: Path, template: nn.Module, tensors: dict[str, Tensor], about: dict, layout: Layout
) -> CurveContent:
    def group(prefix: str) -> dict[str, Tensor]:
        start = f"{prefix}/"
        return {n.removeprefix(start): v for n, v in tensors.items() if n.startswith(start)}

    rows = [group(f"point {row}") for row in range(layout.count)]
    constants = group("constant")
    parameters = dict(template.named_parameters())
    held = {name: (constants.get(name), rows[0].get(name)) for name in about["order"]}
    where = ("the model", str(path))
    kinds = {
        # Points of less than 32 bits are kept in float32: the model says what they were.
        name: _like(constant if row is None else row, parameters.get(name))
        for name, (constant, row) in held.items()
    }
    require_equal(kinds.items(), parameters.items(), "parameter", where)
    end_buffers = [group(f"buffer {end}") for end in range(layout.ends)]
    own = dict(template.named_buffers())
    for buffers in end_buffers:
        require_equal(buffers.items(), own.items(), "buffer", where)
    trained = set(about["trained"])
    parts: dict[tuple, list[str]] = {}
    for name in rows[0]:
        like = parameters[name]
        parts.setdefault((like.dtype, like.device, name in trained), []).append(name)
    return CurveContent(
        ControlPoints(
            [
                Part.of(names, [[row[name] for name in names] for row in rows], *key)
                for key, names in parts.items()
            ],
            {name: value.to(parameters[name].device) for name, value in constants.items()},
            about["order"],
        ),
        layout,
        [{n: one[n].to(like.device) for n, like in own.items()} for one in end_buffers],
        about["weight_decay"],
    )


def _like(found: Tensor | None, parameter: Tensor | None) -> Tensor:
    if found is None:
        raise KeyError("a parameter")
    if parameter is not None and parameter.dtype.itemsize < found.dtype.itemsize == 4:
        return found.to(parameter.dtype)
    return found
