"""Damage to files and to what is in them: of bytes, of plain data, of safetensors, of YAML."""

from __future__ import annotations

import copy
import json
import random
from collections.abc import Iterator
from typing import Any

import yaml

DEPTH = 2000
DEEPEST = 12
ODD: tuple[Any, ...] = (
    None,
    True,
    -1,
    0,
    1,
    10**6,
    2**31,
    2**63,
    10**30,
    10**400,
    -(10**18),
    0.5,
    -0.0,
    1e-320,
    1e300,
    float("inf"),
    float("nan"),
    "",
    "a",
    "1e3",
    "x" * 5000,
    "\u0000",
    "\ud83d\ude00\u202e\n",
    "__import__('os').system('true')",
    "benchmarks.hardening.trap:Trap",
    "../../../../etc/passwd",
    [],
    [[]],
    {},
    {"kind": "lstm"},
    {"a": 1},
    [1, 2, 3],
    [None],
)
YAML_TAGS = (
    "!!python/object/apply:os.system ['true']",
    "!!python/object/apply:benchmarks.hardening.trap.spring []",
    "!!python/name:os.system",
    "!!python/object/new:benchmarks.hardening.trap.Trap []",
    "!!binary aGk=",
    "!!timestamp 2001-01-01",
    "&a [*a, *a]",
    "*nowhere",
    "!!set {a, b}",
    "? [a, b]\n: c",
    "0x7fffffffffffffffffff",
    "1:30:00",
    "{<<: {a: 1}}",
    "{<<: [1]}",
    "{? {a: 1} : 2}",
    ".inf",
    "1_000",
)
PATHS = tuple[Any, ...]


def nested(depth: int, of: Any, draw: random.Random) -> Any:
    """Lists or mappings in each other."""
    found = of
    for _ in range(depth):
        found = [found] if draw.random() < 0.5 else {"a": found}
    return found


def laughs(levels: int) -> str:
    """YAML whose anchors stand for 9^levels values."""
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x]"]
    for i in range(1, levels):
        inner = ", ".join([f"*a{i - 1}"] * 9)
        lines.append(f"a{i}: &a{i} [{inner}]")
    return "\n".join(lines)


def of_bytes(content: bytes, draw: random.Random) -> bytes:
    """Truncated, grown, bits flipped, parts exchanged or repeated."""
    if not content:
        return bytes(draw.randrange(256) for _ in range(20))
    at = draw.randrange(len(content))
    match draw.randrange(7):
        case 0:
            return content[:at]
        case 1:
            damaged = bytearray(content)
            for _ in range(draw.choice((1, 1, 3, 30))):
                damaged[draw.randrange(len(content))] ^= 1 << draw.randrange(8)
            return bytes(damaged)
        case 2:
            # Where headers are.
            damaged = bytearray(content)
            for _ in range(draw.choice((1, 2, 8))):
                damaged[draw.randrange(min(64, len(content)))] = draw.randrange(256)
            return bytes(damaged)
        case 3:
            junk = bytes(draw.randrange(256) for _ in range(draw.choice((1, 100))))
            return content[:at] + junk + content[at:]
        case 4:
            end = min(len(content), at + draw.choice((1, 100, 10_000)))
            return content[:at] + content[end:]
        case 5:
            end = min(len(content), at + draw.choice((10, 1000)))
            return content[:end] + content[at:end] * draw.choice((1, 50)) + content[end:]
        case _:
            other = draw.randrange(len(content))
            return content[:at] + content[other:] + content[:other]


def places(data: Any) -> Iterator[PATHS]:
    """The paths of all values in plain data, but for what is nested deeper than anything is."""
    left: list[tuple[PATHS, Any]] = [((), data)]
    while left:
        at, value = left.pop()
        yield at
        if len(at) < DEEPEST:
            inner: Any = value.items() if isinstance(value, dict) else ()
            if isinstance(value, list | tuple):
                inner = enumerate(value)
            left += [((*at, key), part) for key, part in inner]


def _copied(value: Any) -> Any:
    """A copy; nothing, of what is nested too deep to be copied."""
    try:
        return copy.deepcopy(value)
    except RecursionError:
        return None


def of_data(data: Any, draw: random.Random, odd: tuple[Any, ...] = ODD) -> Any:
    """Plain data with one to three values changed, removed, renamed, moved, or nested to depth."""
    data = _copied(data)
    for _ in range(draw.choice((1, 1, 2, 3))):
        data = _once(data, draw, odd)
    if draw.random() < 0.05:
        every = [path for path in places(data) if path]
        if every:
            path = draw.choice(every)
            parent = _at(data, path[:-1])
            if not isinstance(parent, tuple):
                depth = draw.choice((50, 500, DEPTH))
                parent[path[-1]] = nested(depth, parent[path[-1]], draw)
    return data


def _once(data: Any, draw: random.Random, odd: tuple[Any, ...]) -> Any:
    every = list(places(data))
    path = draw.choice(every)
    if not path or draw.random() < 0.02:
        return draw.choice(odd) if draw.random() < 0.3 else data
    parent = _at(data, path[:-1])
    if isinstance(parent, tuple):
        return data
    last, value = path[-1], parent[path[-1]]
    match draw.randrange(8):
        case 0 if isinstance(parent, dict):
            del parent[last]
        case 1 if isinstance(parent, dict):
            parent[draw.choice((f"{last}x", "", "kind", 7, str(last)[:-1]))] = parent.pop(last)
        case 2:
            parent[last] = nested(2, value, draw)
        case 3:
            parent[last] = _copied(_at(data, draw.choice(every)))
        case 4 if isinstance(value, int | float) and not isinstance(value, bool):
            parent[last] = value * draw.choice((-1, 0, 0.5, 2, 10**3, 10**9, 10**18))
        case 5 if isinstance(value, list):
            parent[last] = value * draw.choice((0, 2, 1000))
        case _:
            parent[last] = _copied(draw.choice(odd))
    return data


def _at(data: Any, path: PATHS) -> Any:
    for key in path:
        data = data[key]
    return data


def as_yaml(data: Any, draw: random.Random) -> bytes:
    """YAML of damaged data, some with a tag or an anchor in the place of a value, or bytes hurt."""
    try:
        text = yaml.safe_dump(data, sort_keys=False, allow_unicode=draw.random() < 0.5)
    except (RecursionError, yaml.YAMLError):
        text = _deep(draw)
    match draw.randrange(8):
        case 0:
            lines = text.splitlines() or [""]
            i = draw.randrange(len(lines))
            key, colon, _ = lines[i].partition(":")
            lines[i] = f"{key}{colon} {draw.choice(YAML_TAGS)}"
            text = "\n".join(lines)
        case 1:
            return of_bytes(text.encode(errors="surrogatepass"), draw)
        case 2 if draw.random() < 0.2:
            text = f"{laughs(draw.choice((3, 9, 12)))}\n{text}"
        case 3 if draw.random() < 0.2:
            text = _deep(draw)
    return text.encode(errors="surrogatepass")


def _deep(draw: random.Random) -> str:
    depth = draw.choice((100, DEPTH, 20 * DEPTH))
    return draw.choice(("[" * depth, "{a: " * depth, "- " * depth, "? " * depth))


def of_safetensors(content: bytes, draw: random.Random) -> bytes:
    """A file whose header lies, whose metadata are damaged, or whose bytes are."""
    if draw.random() < 0.3:
        return of_bytes(content, draw)
    start = 8 + int.from_bytes(content[:8], "little")
    header, body = json.loads(content[8:start]), content[start:]
    match draw.randrange(6):
        case 0:
            sizes = (0, 1, 7, 2**20, 2**32, 2**63, 2**64 - 1, len(content), start + 1)
            return draw.choice(sizes).to_bytes(8, "little") + content[8:]
        case 1:
            metadata = header["__metadata__"]
            field = draw.choice([f for f in ("config", "training", "validation") if f in metadata])
            damaged = of_data(json.loads(metadata[field]), draw)
            metadata[field] = as_json(damaged, draw)
        case 2:
            metadata = header["__metadata__"]
            metadata[draw.choice(list(metadata))] = str(draw.choice(ODD))
        case 3:
            names = [name for name in header if name != "__metadata__"]
            name = draw.choice(names)
            header[name] = of_data(header[name], draw)
        case 4:
            names = [name for name in header if name != "__metadata__"]
            entry = header[draw.choice(names)]
            entry["shape"] = draw.choice(([2**40], [2**62, 4], [0], [], [1] * 1000, [-1], [2**64]))
            if draw.random() < 0.3:
                entry["data_offsets"] = [0, draw.choice((0, 2**40, 2**63, len(body)))]
        case _:
            header = of_data(header, draw)
    encoded = as_json(header, draw).encode(errors="surrogatepass")
    return len(encoded).to_bytes(8, "little") + encoded + body


def as_json(data: Any, draw: random.Random) -> str:
    """JSON of damaged data; of what has none, JSON that is nested deep."""
    try:
        return json.dumps(data)
    except (RecursionError, TypeError, ValueError):
        depth = draw.choice((100, 20 * DEPTH))
        return draw.choice(("[" * depth, '{"a":' * depth))
