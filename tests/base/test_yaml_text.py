"""YAML as users write it: merges, aliases, and what would be silent or endless."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from string import ascii_lowercase
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support import FEW, basis_of

from metaopt.base.config import ConfigError, load
from metaopt.base.yaml_text import MOST_BYTES, InvalidYAMLError, parse, written
from metaopt.meta.config import TrainConfig

BOTTOM = "a: &a {x: 1, y: 2}\n"


@pytest.mark.parametrize(
    ("text", "data"),
    [
        ("b: {<<: *a, y: 3}", {"x": 1, "y": 3}),
        ("b: {y: 3, <<: *a}", {"x": 1, "y": 3}),
        ("c: &c {y: 3, z: 4}\nb: {<<: [*a, *c]}", {"x": 1, "y": 2, "z": 4}),
        ("c: &c {<<: *a, y: 3}\nb: {<<: *c, x: 5}", {"x": 5, "y": 3}),
        ("c: {d: &d {<<: *a, x: 3}}\nb: {<<: *d}", {"x": 3, "y": 2}),
        ("b: {<<: {}}", {}),
        ("b: {'<<': 1}", {"<<": 1}),
    ],
)
def test_merges_bring_what_is_not_given(text: str, data: Any) -> None:
    assert parse(BOTTOM + text)["b"] == data


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("b: {x: 1, x: 2}", "'x' is given twice"),
        ("b: {<<: *a, <<: *a}", "<<: [*a, *b]"),
        ("b: {<<: *a, y: 1, y: 2}", "'y' is given twice"),
        ("b: {<<: {z: 1, z: 1}}", "'z' is given twice"),
        ("b: {<<: 5}", "mapping"),
        ("b: {<<: *unknown}", "unknown"),
        ("b: &b {c: *b}", "within itself"),
        ("b: &b {<<: *b}", "within itself"),
        ("b: 010", "010 is one number"),
        ("b: 1:30", "1:30 is one number"),
        ("? [x]\n: 1", "no text"),
        ("b: !!int ''", ""),
        ("b: !!bool perhaps", ""),
        ("b: !!python/object:os.system x", "python"),
        ('b: "\\ud800"', "surrogates"),
        ("b:\t1", "\\t"),
        ("b: " + "[" * 5000, "nested too deeply"),
        ("b: " + "x" * MOST_BYTES, str(MOST_BYTES)),
    ],
)
def test_mistakes_are_one_line(text: str, words: str) -> None:
    with pytest.raises(InvalidYAMLError) as caught:
        parse(BOTTOM + text)
    assert words in str(caught.value)
    assert str(caught.value).strip()
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("names", ["[{}]", "{{<<: [{}]}}", "{{x: [{}]}}"])
def test_aliases_of_aliases_are_bounded(names: str) -> None:
    lines = ["a: &a {x: [1, 1, 1, 1, 1, 1, 1, 1, 1, 1]}"]
    for before, after in pairwise(ascii_lowercase[:10]):
        lines.append(f"{after}: &{after} {names.format(','.join(10 * [f'*{before}']))}")
    with pytest.raises(InvalidYAMLError, match="aliases written out"):
        parse("\n".join(lines))


def test_a_change_of_one_place_changes_no_other(tmp_path: Path) -> None:
    rule = "{kind: coordinate_lstm, outer_lr: 1e-3}"
    text = f"name: x\nlabel: x\nrules: {{update: &u {rule}, teleport: *u}}\nteleporter: {{}}\n"
    (tmp_path / "x.yaml").write_text(text)
    found = load(TrainConfig, tmp_path / "x.yaml", ["rules.update.hidden=3"]).rules.by_name()
    assert tuple(basis_of(rule).hidden for rule in found.values()) == (3, 20)


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
def test_encodings(encoding: str) -> None:
    assert parse("a: é".encode(encoding)) == {"a": "é"}
    with pytest.raises(InvalidYAMLError):
        parse("a: é".encode("latin-1"))


def test_large_merges_of_shared_sections_make_a_configuration(tmp_path: Path) -> None:
    text = (
        "name: merged\nlabel: merged\n"
        "rules:\n  update: &rule {kind: lstm, hidden: 7, outer_lr: 1e-3}\n"
        "  teleport: {<<: *rule, outer_lr: 1e-4}\nteleporter: {}\n"
    )
    (tmp_path / "merged.yaml").write_text(text)
    found = load(TrainConfig, tmp_path / "merged.yaml").rules.by_name()
    assert [(basis_of(rule).hidden, rule.learning_rate) for rule in found.values()] == [
        (7, 1e-3),
        (7, 1e-4),
    ]
    (tmp_path / "merged.yaml").write_text(text.replace("*rule", "*rules"))
    with pytest.raises(ConfigError, match=r"merged\.yaml: not valid YAML: .*rules"):
        load(TrainConfig, tmp_path / "merged.yaml")


plain = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text()


@FEW
@given(data=st.dictionaries(st.text(), plain | st.lists(plain) | st.dictionaries(st.text(), plain)))
def test_what_is_written_is_read_as_it_was(data: dict[str, Any]) -> None:
    assert parse(written(data)) == data
