"""The fields of a configuration as a table: types, defaults, and meanings."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, get_args

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from metaopt.base.config import kind_of, models_in

HEADER = ["| field | type | default | meaning |", "| --- | --- | --- | --- |"]


def field_table(config: type[BaseModel]) -> str:
    """All fields of a configuration as a Markdown table."""
    rows = [f"| {' | '.join(row)} |" for row in _rows(config, "")]
    return "\n".join(HEADER + rows)


def _rows(config: type[BaseModel], prefix: str) -> Iterator[tuple[str, ...]]:
    for name, info in config.model_fields.items():
        variants = list(models_in(info.annotation))
        if not variants:
            yield _row(prefix + name, info)
        elif len(variants) == 1:
            yield from _rows(variants[0], f"{prefix}{name}.")
        else:
            yield from _union_rows(info, variants, f"{prefix}{name}.")


def _union_rows(
    section: FieldInfo, variants: list[type[BaseModel]], prefix: str
) -> Iterator[tuple[str, ...]]:
    """One row for the kinds of a section, and one for each field with the kinds that have it."""
    kinds = ", ".join(f"`{kind_of(variant)}`" for variant in variants)
    meanings = "; ".join(_meaning(variant.model_fields["kind"]) for variant in variants)
    chosen = isinstance(section.default, BaseModel)
    default = f"`{kind_of(type(section.default))}`" if chosen else "required"
    yield f"`{prefix}kind`", kinds, default, meanings
    names = dict.fromkeys(name for variant in variants for name in variant.model_fields)
    for name in names:
        if name == "kind":
            continue
        owners = {kind_of(v): v.model_fields[name] for v in variants if name in v.model_fields}
        only = "" if len(owners) == len(variants) else f" ({', '.join(owners)})"
        first = next(iter(owners.values()))
        defaults: dict[str, list[str]] = {}
        for kind, info in owners.items():
            defaults.setdefault(_default(info), []).append(kind)
        apart = [f"{default} ({', '.join(kinds)})" for default, kinds in defaults.items()]
        default = ", ".join(apart) if len(apart) > 1 else _default(first)
        path, kind, _, meaning = _row(prefix + name, first, only)
        yield path, kind, default, meaning


def _row(name: str, info: FieldInfo, only: str = "") -> tuple[str, ...]:
    return f"`{name}`", _type_name(info.annotation), _default(info), _meaning(info) + only


def _default(info: FieldInfo) -> str:
    return "required" if info.is_required() else f"`{_plain(info.default)}`"


def _meaning(info: FieldInfo) -> str:
    return info.description or ""


def _plain(value: Any) -> Any:
    return "null" if value is None else value if value != "" else "empty"


def _type_name(annotation: Any) -> str:
    text = str(annotation) if get_args(annotation) else getattr(annotation, "__name__", "")
    if "Literal" in text and not text.startswith("dict"):
        return ", ".join(f"`{choice}`" for choice in get_args(annotation))
    # The outermost type is named first.
    places = {word: text.find(word) for word in ("dict", "list", "float", "int", "str")}
    found = {word: place for word, place in places.items() if place >= 0}
    if not found:
        return text
    word = min(found, key=found.__getitem__)
    return f"{word} or null" if type(None) in get_args(annotation) else word
