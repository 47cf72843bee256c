"""YAML, read in bounded time and memory, in the way that its reader would expect.

It is YAML 1.1 as PyYAML reads it, except that 1e-3 is a number and that there are no dates. These
are errors: a key that appears twice in one mapping; whole numbers that YAML 1.1 and 1.2 read
differently (010, 1:30); an anchor within itself; aliases that would be too long if written out. An
alias is read as a copy, so that changing it changes no other place.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any

import yaml
from yaml.constructor import ConstructorError
from yaml.nodes import MappingNode, Node, ScalarNode, SequenceNode

MOST_BYTES = 100_000
"""The longest text that is read; PyYAML reads some 50,000 bytes a second."""
MOST_VALUES = 100_000
"""The largest number of values, with all aliases written out."""
_MERGE = "tag:yaml.org,2002:merge"
_INT = "tag:yaml.org,2002:int"
_FLOAT = "tag:yaml.org,2002:float"
_OCTAL = re.compile(r"[-+]?0[0-7_]+")


class InvalidYAMLError(ValueError):
    """A text is not valid YAML of this kind; the message is one line."""


class _Loader(yaml.SafeLoader):
    def __init__(self, text: str | bytes) -> None:
        super().__init__(text)
        self._sizes: dict[int, int] = {}

    def compose_scalar_node(self, anchor: Any) -> ScalarNode:
        node = super().compose_scalar_node(anchor)
        self._sizes[id(node)] = 1
        return node

    def compose_sequence_node(self, anchor: Any) -> SequenceNode:
        node = super().compose_sequence_node(anchor)
        self._measure(node, node.value)
        return node

    def compose_mapping_node(self, anchor: Any) -> MappingNode:
        node = super().compose_mapping_node(anchor)
        self._measure(node, (part for pair in node.value for part in pair))
        # Checked before merges are written out, since merged fields may be given again.
        self._require_each_once(node)
        return node

    def _measure(self, node: Node, parts: Iterable[Node]) -> None:
        """Count the values of a node, with aliases counted as what they repeat."""
        size = 1
        for part in parts:
            if id(part) not in self._sizes:
                raise ConstructorError(None, None, "an anchor within itself", part.start_mark)
            size += self._sizes[id(part)]
        if size > MOST_VALUES:
            what = f"more than {MOST_VALUES} values, with all aliases written out"
            raise ConstructorError(None, None, what, node.start_mark)
        self._sizes[id(node)] = size

    def _require_each_once(self, node: MappingNode) -> None:
        seen = set()
        for key, _ in node.value:
            if not isinstance(key, ScalarNode):
                raise ConstructorError(None, None, "a field's name is no text", key.start_mark)
            name = key.value if key.tag == _MERGE else self.construct_object(key)
            if (key.tag == _MERGE, name) in seen:
                hint = "; <<: [*a, *b] merges several" if key.tag == _MERGE else ""
                what = f"field {name!r} is given twice{hint}"
                raise ConstructorError(None, None, what, key.start_mark)
            seen.add((key.tag == _MERGE, name))

    def construct_number(self, node: ScalarNode) -> Any:
        """A number; an error if YAML 1.2 would read another one."""
        if _OCTAL.fullmatch(node.value) or ":" in node.value:
            what = (
                f"{node.value} is one number in YAML 1.1 and another in 1.2; write it in decimals"
            )
            raise ConstructorError(None, None, f"{what}, or text in quotes", node.start_mark)
        if node.tag == _INT:
            return self.construct_yaml_int(node)
        return self.construct_yaml_float(node)

    def construct_sign(self, node: ScalarNode) -> str:
        """The texts << and = as values, not as names of fields."""
        return str(self.construct_scalar(node))


class _Dumper(yaml.SafeDumper):
    """Writes what ``_Loader`` reads; text that looks like a number is quoted."""


for _tag in (_INT, _FLOAT):
    _Loader.add_constructor(_tag, _Loader.construct_number)
for _tag in (_MERGE, "tag:yaml.org,2002:value"):
    _Loader.add_constructor(_tag, _Loader.construct_sign)


def _resolvers(of: Any) -> dict[str, list[Any]]:
    """PyYAML's rules for the types of plain values, without dates."""
    return {
        first: [(tag, pattern) for tag, pattern in rules if not tag.endswith("timestamp")]
        for first, rules in of.yaml_implicit_resolvers.items()
    }


for _class in (_Loader, _Dumper):
    _class.yaml_implicit_resolvers = _resolvers(yaml.SafeLoader)
    _class.add_implicit_resolver(
        _FLOAT,
        re.compile(r"^[-+]?([0-9]+(\.[0-9]*)?|\.[0-9]+)[eE][-+]?[0-9]+$"),
        list("-+.0123456789"),
    )


def parse(text: str | bytes) -> Any:
    """The plain data that a YAML text describes.

    Raises:
        InvalidYAMLError: if it is not valid, too long, or ambiguous.
    """
    if len(text) > MOST_BYTES:
        raise InvalidYAMLError(f"found {len(text)} bytes, expected at most {MOST_BYTES}")
    try:
        return _unshared(yaml.load(text, _Loader))
    except RecursionError:
        raise InvalidYAMLError("nested too deeply") from None
    # Besides its own errors, PyYAML lets through what its constructors raise on odd values.
    except (
        yaml.YAMLError,
        ValueError,
        TypeError,
        AttributeError,
        LookupError,
        ArithmeticError,
    ) as error:
        raise InvalidYAMLError(re.sub(r"\s+", " ", str(error) or repr(error)).strip()) from None


def _unshared(data: Any) -> Any:
    """A copy in which no object occurs twice and all text can be written as UTF-8."""
    if isinstance(data, dict):
        return {_unshared(key): _unshared(value) for key, value in data.items()}
    if isinstance(data, list):
        return [_unshared(value) for value in data]
    if isinstance(data, str) and not data.isascii():
        data.encode()  # of half a character it raises ValueError
    return data


def written(data: Any) -> str:
    """The YAML text that ``parse`` reads as ``data``."""
    return yaml.dump(data, Dumper=_Dumper, sort_keys=False)
