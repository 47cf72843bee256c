"""What a checkpoint is, in rows of a name and a text: for ``metaopt show`` and the model card."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from torch import Tensor

from metaopt.base.checkpoint import Checkpoint
from metaopt.base.config import check
from metaopt.base.tables import printable
from metaopt.meta.config import TrainConfig
from metaopt.optim.reach import TESTED, Reach
from metaopt.optim.seen import seen
from metaopt.tasks.config import TaskConfig

Rows = list[tuple[str, str]]
NO_LICENCE = "none given"
_APART = ("command", "commit", TESTED)


def name_of(content: Checkpoint, source: str) -> str:
    """The name of the optimizer in tables; raises ``ConfigError`` if there is no valid one."""
    return printable(_config(content, source).label)


def rows(content: Checkpoint, source: str) -> Rows:
    """Licence, rules, their sizes, tasks and training.

    Args:
        content: the checkpoint.
        source: names it in errors.

    Raises:
        ConfigError: where its configuration is none; one line.
    """
    config = _config(content, source)
    numbers = ", ".join(
        printable(f"{key.replace('_', ' ')} {value}")
        for key, value in content.training.items()
        if key not in _APART and isinstance(value, int | float | str)
    )
    found = [
        ("written by", f"metaopt {printable(content.metaopt_version)}"),
        ("licence", content.licence or NO_LICENCE),
        *_of_rules(config, content.tensors),
        *_of_decay(config),
        ("parameters", _size(content.tensors)),
        ("teleporter", _fields(config.teleporter) if config.teleporter else "none"),
        ("tasks", _fields(config.task, *_task_fields(config.task))),
        ("outer loop", _fields(config.meta, "batch", "outer_steps", "steps", "unroll", "loss")),
        ("dtype", config.dtype),
        ("training", numbers or "not in the file"),
    ]
    found += [
        (key, printable(content.training.get(key, "not in the file")))
        for key in ("command", "commit")
    ]
    return found


def experience(content: Checkpoint, source: str) -> Rows:
    """What it was meta-trained with: loss, inputs, layers, sizes, batches, steps.

    Args:
        content: the checkpoint.
        source: names it in errors.

    Raises:
        ConfigError: where its configuration is none, or its training says what cannot be; one line.
    """
    return seen(_config(content, source), content.training, source)


def brief(
    config: TrainConfig,
    training: Mapping[str, Any],
    reach: Reach,
    tensors: Mapping[str, Tensor],
    licence: str,
    origin: str,
) -> Rows:
    """What a learned optimizer is, in nine rows.

    Args:
        config: the configuration that it was meta-trained with.
        training: the field ``training`` of the checkpoint.
        reach: how far it goes.
        tensors: its parameters.
        licence: or empty.
        origin: where it was loaded from, or empty.
    """
    kinds = [f"{name}: {rule.kind}" for name, rule in config.rules.by_name().items()]
    rows = [
        ("from", origin or "no file"),
        ("rules", ", ".join(kinds)),
        ("action", config.teleporter.action if config.teleporter else "none: it does not teleport"),
        ("tasks", _fields(config.task, *_task_fields(config.task))),
        ("horizon", str(reach)),
        ("parameters", _size(tensors)),
        ("licence", licence or NO_LICENCE),
        *((key, training.get(key, "not known")) for key in ("command", "commit")),
    ]
    return [(name, printable(value)) for name, value in rows]


def aligned(found: Rows) -> str:
    """The rows one below the other, indented."""
    width = max((len(name) for name, _ in found), default=0)
    return "\n".join(f"  {name.ljust(width)}  {text}" for name, text in found)


def shapes(tensors: dict[str, Tensor]) -> Rows:
    """Name, and shape with dtype, of every tensor."""
    return [
        (printable(name), f"{list(t.shape)} {str(t.dtype).removeprefix('torch.')}")
        for name, t in sorted(tensors.items())
    ]


def _config(content: Checkpoint, source: str) -> TrainConfig:
    return check(TrainConfig, content.config, f"{source}: metadata field config")


def _of_rules(config: TrainConfig, tensors: dict[str, Tensor]) -> Iterator[tuple[str, str]]:
    for name, rule in config.rules.by_name().items():
        own = {key: t for key, t in tensors.items() if key.startswith(f"networks.{name}.")}
        yield f"rules.{name}", f"{_fields(rule)}: {_size(own)}"


def _of_decay(config: TrainConfig) -> Iterator[tuple[str, str]]:
    if found := "; ".join(filter(None, (rule.decay for rule in config.rules.by_name().values()))):
        yield (
            "weight decay",
            f"{found}: acts on what has a gradient though weight_decay is 0; "
            "LearnedOptimizer(.., learned_decay=0) turns it off",
        )


def _task_fields(task: TaskConfig) -> tuple[str, ...]:
    """The names of the fields of ``task`` to show; none stands for all that are set."""
    return ("family", "options") if task.is_own else ()


def _size(tensors: Mapping[str, Tensor]) -> str:
    return f"{sum(t.numel() for t in tensors.values()):,} numbers in {len(tensors)} tensors"


def _fields(section: Any, *names: str) -> str:
    """Fields of a section with their values, ``kind`` first; all that are set, or those named."""
    chosen = names or sorted(type(section).model_fields, key=lambda name: name != "kind")
    values = {name: getattr(section, name) for name in chosen}
    return ", ".join(
        printable(f"{name.replace('_', ' ')} {value}")
        for name, value in values.items()
        if value is not None
    )
