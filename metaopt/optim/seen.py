"""What a rule was meta-trained with, in rows of a name and a text.

The configuration says whether rules knew the loss and the inputs of layers (``meta.hide``, the task
family), and, of the regression family, the sizes. The field ``training.trained_on`` says what
layers, sizes and batches there were. Older files lack it, until ``record`` measures it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field

from metaopt.base import checkpoint
from metaopt.base.config import check
from metaopt.base.streams import Stream
from metaopt.base.tables import printable
from metaopt.meta.build import training_tasks
from metaopt.meta.config import TrainConfig
from metaopt.optim.reach import PAGE, reach_of
from metaopt.tasks.build import task_family
from metaopt.tasks.config import TaskConfig
from metaopt.tasks.trained_on import TRAINED_ON, trained_on
from metaopt.tasks.variations import InTurn

NOT_RECORDED = "not recorded"
Count = Annotated[int, Field(ge=1)]
Pair = Annotated[list[Count], Field(min_length=2, max_length=2)]


class TrainedOn(BaseModel):
    """Networks of meta-training, as ``tasks.trained_on`` measures them.

    Attributes:
        kinds: of layers.
        parameters: the fewest and most entries of a network.
        matrices: [out, rest] of the smallest and of the largest, or None.
        batches: sizes of mini-batches; None stands for all data.
    """

    model_config = ConfigDict(extra="ignore", strict=True, frozen=True)

    kinds: list[str]
    parameters: Pair
    matrices: Annotated[list[Pair], Field(min_length=2, max_length=2)] | None
    batches: Annotated[list[Count | None], Field(min_length=1)]


def seen(config: TrainConfig, training: Mapping[str, Any], source: str) -> list[tuple[str, str]]:
    """What a rule was meta-trained with.

    Args:
        config: the configuration that it was meta-trained with.
        training: the field ``training`` of the checkpoint.
        source: names it in errors.

    Raises:
        ConfigError: where the file says what cannot be; one line.
    """
    found = _measured(config.task, training, source)
    sizes = NOT_RECORDED if found is None else f"{_between(found.parameters)} parameters"
    if found is not None and found.matrices is not None:
        small, large = (" x ".join(f"{side:,}" for side in one) for one in found.matrices)
        sizes += f", matrices from {small} to {large}" if small != large else f", matrices {small}"
    return [
        ("loss", _of_loss(config.meta.hide.loss)),
        ("inputs of layers", _of_inputs(config)),
        ("layers", NOT_RECORDED if found is None else printable(", ".join(found.kinds))),
        ("networks", sizes),
        ("batches", NOT_RECORDED if found is None else _of_batches(found.batches)),
        ("horizon", f"{reach_of(config, training, source)}; what comes after: {PAGE}"),
    ]


def record(path: Path) -> None:
    """Write into a checkpoint of an older version what it was meta-trained on; all else stays.

    Its task families are made, and tasks of each are drawn: for your own files, since this runs the
    code that their configuration names.

    Raises:
        UserError: where the file is no checkpoint, or a family cannot be made; one line.
    """
    content = checkpoint.read(path)
    config = check(TrainConfig, content.config, f"{path}: metadata field config")
    tasks = training_tasks(task_family(config.task), config)
    families = tasks.families if isinstance(tasks, InTurn) else [tasks]
    drawn = [(one, one.drawn(Stream.VALIDATION, config.seed, 0, 1).initial) for one in families]
    training = content.training | {TRAINED_ON: trained_on(drawn)}
    checkpoint.write(path, replace(content, training=training))


def _measured(task: TaskConfig, training: Mapping[str, Any], source: str) -> TrainedOn | None:
    if TRAINED_ON in training:
        field = f"{source}: metadata field training.{TRAINED_ON}"
        return check(TrainedOn, training[TRAINED_ON], field)
    if task.is_own:
        return None
    widths = [task.inputs, *[task.width] * (task.layers - 1), task.outputs]
    shapes = sorted(([m, n] for n, m in pairwise(widths)), key=lambda one: one[0] * one[1])
    count = sum(m * n for m, n in shapes)
    return TrainedOn(
        kinds=["linear"],
        parameters=[count, count],
        matrices=[shapes[0], shapes[-1]],
        batches=[None],
    )


def _of_loss(hidden: float) -> str:
    match hidden:
        case 0:
            return "always known: call step(closure)"
        case 1:
            return "never known: step() is enough"
    return f"hidden in {hidden:.0%} of the meta-batches: step() is enough"


def _of_inputs(config: TrainConfig) -> str:
    hidden = config.meta.hide.inputs
    if config.task.is_own or hidden == 1:
        return "never known: any model will do"
    if hidden == 0:
        return "always known: for chains of nn.Linear and nn.LeakyReLU"
    return f"hidden in {hidden:.0%} of the meta-batches: any model will do"


def _of_batches(sizes: Sequence[int | None]) -> str:
    numbers = [size for size in sizes if size is not None]
    parts = [f"mini-batches of {_between([min(numbers), max(numbers)])}"] if numbers else []
    return " and ".join([*parts, "all data at every step"] if None in sizes else parts)


def _between(ends: Sequence[int]) -> str:
    low, high = ends
    return f"{low:,}" if low == high else f"{low:,} to {high:,}"
