"""Configurations, read from YAML and checked before any work begins.

Every mistake becomes a ``ConfigError`` of one line that names the file, the field, what was found
and what would be right. The fields are defined in the module ``config`` of each folder.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar, get_args

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from metaopt.base import shipped, yaml_text
from metaopt.base.errors import UserError, one_line, shown


class ConfigError(UserError):
    """A mistake in a configuration; the message is one line for the user."""


C = TypeVar("C", bound=BaseModel)


def find(name: str | Path) -> Path:
    """The path of a configuration: ``name`` as a path, or else as the name of a shipped one."""
    path = Path(name) if Path(name).is_file() else shipped.configuration(name)
    if path is None:
        known = ", ".join(shipped.configurations())
        raise ConfigError(f"{name}: no such file here or in configs/ (there: {known})")
    return path


def load(kind: type[C], name: str | Path, overrides: Sequence[str] = ()) -> C:
    """Read a configuration, apply overrides to it, and check it.

    Args:
        kind: ``TrainConfig`` or ``EvalConfig``.
        name: a path, or the name of a shipped configuration, with ``.yaml`` or without.
        overrides: ``key.sub=value``, values in YAML.

    Raises:
        ConfigError: one line, for any mistake in it.
    """
    path = find(name)
    try:
        content = path.read_bytes()
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror}") from None
    data = _parse(content, str(path))
    if not isinstance(data, dict):
        raise ConfigError(f"{path}: a configuration is a mapping of fields, found {shown(data)}")
    for override in overrides:
        _override(kind, data, override)
    source = f"{path} with --set" if overrides else str(path)
    return check(kind, data, source)


def check(kind: type[C], data: Any, source: str) -> C:
    """Check a mapping as a configuration; ``source`` names it in errors."""
    try:
        return kind.model_validate(data)
    except ValidationError as error:
        explained = _explain(kind, error.errors()[0], data)
        raise ConfigError(one_line(f"{source}: {explained}")) from None


def to_yaml(config: BaseModel) -> str:
    """The YAML text of a configuration, with every field written out."""
    return yaml_text.written(config.model_dump(mode="json"))


def _parse(text: str | bytes, source: str) -> Any:
    try:
        return yaml_text.parse(text)
    except yaml_text.InvalidYAMLError as error:
        raise ConfigError(f"{source}: not valid YAML: {one_line(str(error), 300)}") from None


def _override(kind: type[BaseModel], data: dict[str, Any], override: str) -> None:
    key, equals, text = override.partition("=")
    told = f"--set {one_line(override, 80)}"
    if not equals or not all(key.split(".")):
        raise ConfigError(f"{told}: expected key.sub=value, e.g. --set meta.batch=32")
    *parents, last = key.split(".")
    node: Any = data
    models = [kind]
    for parent in parents:
        # A section that is missing or null starts with only its default kind; its fields are
        # checked later, with all others.
        if node.get(parent) is None:
            node[parent] = _default_kind(models, parent)
        node = node[parent]
        if not isinstance(node, dict):
            raise ConfigError(f"{told}: {parent} is a value, not a section")
        models = _sections(models, parent)
    fields = [model.model_fields[last] for model in models if last in model.model_fields]
    # Text needs no quotes on a command line: --set name=1e3 is a name.
    is_text = bool(fields) and all(field.annotation is str for field in fields)
    node[last] = text if is_text else _parse(text, told)


def _default_kind(models: Sequence[type[BaseModel]], name: str) -> dict[str, Any]:
    """``kind`` of the default section of a field that can hold several; otherwise empty."""
    fields = [model.model_fields[name] for model in models if name in model.model_fields]
    defaults = [field.get_default(call_default_factory=True) for field in fields]
    kinds = [kind_of(type(default)) for default in defaults if isinstance(default, BaseModel)]
    return {"kind": kinds[0]} if any(kinds) else {}


def _explain(kind: type[BaseModel], error: ErrorDetails, data: Any) -> str:
    location = _location(error["loc"], data)
    field = ".".join(location)
    found = error["input"]
    match error["type"]:
        case "extra_forbidden":
            known = sorted(_known_fields(kind, location[:-1], data))
            close = difflib.get_close_matches(location[-1], known, n=1)
            hint = f"did you mean {close[0]}?" if close else f"known here: {', '.join(known)}"
            return f"unknown field {field}; {hint}"
        case "missing":
            return f"field {field} is missing"
        case "value_error":
            where = f"field {field}: " if field else ""
            return where + one_line(str(error["ctx"]["error"]))
        case _:
            message = error["msg"].removeprefix("Input ").removesuffix(".")
            return f"field {field}: found {shown(found)}, {message[0].lower()}{message[1:]}"


def _location(loc: tuple[int | str, ...], data: Any) -> list[str]:
    """The path of a field without the tags that pydantic adds for unions."""
    path: list[str] = []
    node = data
    for position, part in enumerate(loc):
        last = position == len(loc) - 1
        if isinstance(node, dict) and (part in node or last):
            node = node.get(part)
        elif isinstance(node, list) and isinstance(part, int) and part < len(node):
            node = node[part]
        else:
            continue
        path.append(str(part))
    return path


def _known_fields(kind: type[BaseModel], parents: Sequence[str], data: Any) -> list[str]:
    models = [kind]
    for parent in parents:
        if isinstance(data, list):
            # All elements of a list are of the same models.
            data = data[int(parent)]
        else:
            data, models = data[parent], _sections(models, parent)
        if isinstance(data, dict):
            tagged = [model for model in models if kind_of(model) == data.get("kind")]
            models = tagged or models
    return sorted({field for model in models for field in model.model_fields})


def _sections(models: Sequence[type[BaseModel]], name: str) -> list[type[BaseModel]]:
    """The sections that the field ``name`` of any of these models can hold."""
    fields = [model.model_fields[name] for model in models if name in model.model_fields]
    return [section for field in fields for section in models_in(field.annotation)]


def kind_of(model: type[BaseModel]) -> Any:
    """The value of ``kind`` that a variant of a union stands for; None for other sections."""
    field = model.model_fields.get("kind")
    if field is None:
        return None
    # The kinds that are classes of the user's have no single name.
    return (*get_args(field.annotation), "package.module:ClassName")[0]


def models_in(annotation: Any) -> Iterator[type[BaseModel]]:
    """The sections that a field of this type can hold."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for argument in get_args(annotation):
        yield from models_in(argument)
