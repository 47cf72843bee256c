"""How symmetries are printed: by blocks of the model, equal blocks once; and as rows."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support import FEW

import metaopt
from metaopt.symmetry.groups import Group, Skipped, Slot, Symmetry
from metaopt.symmetry.names import ranges, shortened
from metaopt.symmetry.table import block_of


def symmetry(
    group: Group, name: str, size: int, blocks: int = 1, assumes: str = "", free: int = 0
) -> Symmetry:
    makers, _, readers = name.partition(" -> ")
    incoming = tuple(Slot(module, "weight", 0) for module in makers.split(", "))
    outgoing = tuple(Slot(module, "weight", 1) for module in readers.split(", ") if readers)
    allows = frozenset({group})
    return Symmetry(name, group, size, incoming, outgoing, blocks, allows, assumes, (), free)


def llama(layers: int = 4) -> list[Symmetry]:
    stream = ["model.embed_tokens"]
    found = []
    for i in range(layers):
        at = f"model.layers.{i}"
        stream += [f"{at}.self_attn.o_proj", f"{at}.mlp.down_proj"]
        qk = f"{at}.self_attn.q_proj -> {at}.self_attn.k_proj"
        vo = f"{at}.self_attn.v_proj -> {at}.self_attn.o_proj"
        found += [
            symmetry(Group.ROTARY, qk, 2, 32),
            symmetry(Group.LINEAR, vo, 16, 4),
            symmetry(Group.SCALING, f"{at}.mlp.up_proj -> {at}.mlp.down_proj", 128),
        ]
    stream_name = f"{', '.join(stream)} -> lm_head"
    return [*found, symmetry(Group.PERMUTATION, stream_name, 64)]


def test_equal_blocks_are_printed_once() -> None:
    skipped = [
        Skipped(f"model.layers.{i}.mlp.gate_proj", f"'model.layers.{i}.mlp.act_fn' stops it")
        for i in range(4)
    ]
    skipped += [Skipped(f"model.layers.{i}.norm", "it has no symmetry") for i in (0, 1, 3)]
    skipped += [
        Skipped(f"model.layers.{i}.end", f"'model.layers.{i + 1}.norm' stops it") for i in range(3)
    ]
    stops = "'model.layers.0.norm' stops it"
    skipped += [Skipped(f"model.layers.{i}.mlp.act", stops) for i in range(4)]
    skipped += [Skipped("model.embed_tokens", "its output is read"), Skipped("", "none")]
    assert str(metaopt.Symmetries(llama(), skipped)) == (
        """\
13 symmetries, orbit of dimension 4,864
  group                  units  made by -> read by
  permutation               64  model.embed_tokens, model.layers.{0-3}.self_attn.o_proj, \
model.layers.{0-3}.mlp.down_proj -> lm_head
  model.layers.{0-3} (each of dimension 1,216)
    scale and rotation    32 x 2  self_attn.q_proj -> self_attn.k_proj
    general linear        4 x 16  self_attn.v_proj -> self_attn.o_proj
    positive scaling         128  mlp.up_proj -> mlp.down_proj
left alone                          why
  model.layers.{0-3}.mlp.gate_proj  'model.layers.{0-3}.mlp.act_fn' stops it
  model.layers.{0,1,3}.norm         it has no symmetry
  model.layers.{0-2}.end            'model.layers.{1-3}.norm' stops it
  model.layers.{0-3}.mlp.act        'model.layers.0.norm' stops it
  output of model.embed_tokens      is read
  (the model)                       none"""
    )


def test_blocks_that_differ_are_printed_one_by_one() -> None:
    found = llama(2)
    found[5] = replace(found[5], size=64)
    assert str(metaopt.Symmetries(found[:-1])) == (
        """\
6 symmetries, orbit of dimension 2,368
  group                  units  made by -> read by
  model.layers.0 (of dimension 1,216)
    scale and rotation    32 x 2  self_attn.q_proj -> self_attn.k_proj
    general linear        4 x 16  self_attn.v_proj -> self_attn.o_proj
    positive scaling         128  mlp.up_proj -> mlp.down_proj
  model.layers.1 (of dimension 1,152)
    scale and rotation    32 x 2  self_attn.q_proj -> self_attn.k_proj
    general linear        4 x 16  self_attn.v_proj -> self_attn.o_proj
    positive scaling          64  mlp.up_proj -> mlp.down_proj"""
    )


def test_what_is_alone_in_its_block_keeps_its_name() -> None:
    found = [
        symmetry(Group.SCALING, "0 -> 2", 8),
        symmetry(Group.LINEAR, "layer1.0.conv1 -> layer1.0.conv2", 4),
        symmetry(Group.TRANSLATION, "head", 10, free=5),
    ]
    assert str(metaopt.Symmetries(found)) == (
        """\
3 symmetries, orbit of dimension 29
  group                  units  made by -> read by
  positive scaling           8  0 -> 2
  general linear             4  layer1.0.conv1 -> layer1.0.conv2
  translation               10  head"""
    )
    assert str(metaopt.Symmetries()) == "0 symmetries"
    assert str(metaopt.Symmetries(found[:1])).startswith("1 symmetry, orbit of dimension 8\n")
    assert repr(metaopt.Symmetries(found)) == str(metaopt.Symmetries(found))


def test_an_assumption_that_all_share_is_printed_once() -> None:
    found = [replace(one, assumes="it is so") for one in llama()]
    lines = str(metaopt.Symmetries(found)).splitlines()
    assert lines[-1] == "all of them if it is so"
    assert not any("[if" in line for line in lines)
    found[0] = replace(found[0], assumes="")
    lines = str(metaopt.Symmetries(found)).splitlines()
    assert "all of them" not in lines[-1]
    # Block 0 is no longer like the others.
    assert any(line.startswith("  model.layers.{1-3} (each") for line in lines)
    assert sum(line.endswith("[if it is so]") for line in lines) == 6
    (line,) = str(metaopt.Symmetries(found[1:2])).splitlines()[2:]
    assert line.endswith("o_proj   [if it is so]")


def test_rows_are_plain() -> None:
    found = metaopt.Symmetries(llama())
    rows = found.rows()
    assert len(rows) == len(found)
    assert rows[1] == {
        "group": "general linear",
        "size": 16,
        "blocks": 4,
        "dimension": 1024,
        "made_by": "model.layers.0.self_attn.v_proj",
        "read_by": "model.layers.0.self_attn.o_proj",
        "tensors": [f"model.layers.0.self_attn.{name}_proj.weight" for name in "vo"],
        "assumes": "",
    }
    assert rows[-1]["made_by"].endswith("model.layers.{0-3}.mlp.down_proj")
    assert all(type(value) in (str, int, list) for row in rows for value in row.values())
    assert found[:0] == [] == metaopt.Symmetries().rows()


@pytest.mark.parametrize(
    ("paths", "short"),
    [
        ([], ""),
        (["a", "a", "b"], "a, b"),
        (["layers.0.w"], "layers.0.w"),
        (["layers.0.w", "layers.1.w"], "layers.{0,1}.w"),
        ([f"layers.{i}.w" for i in (3, 0, 1, 2, 7)], "layers.{0-3,7}.w"),
        ([f"l.{i}.e.{j}.w" for i in range(3) for j in range(4)], "l.{0-2}.e.{0-3}.w"),
        (["l.0.a", "head", "l.1.b", "l.2.a"], "l.{0,2}.a, head, l.1.b"),
        (["0", "2", "10.x"], "{0,2}, 10.x"),
    ],
)
def test_paths_that_differ_by_one_number_are_one(paths: list[str], short: str) -> None:
    assert ranges(paths) == short


def test_a_symmetry_is_named_in_short() -> None:
    *_, stream = llama()
    short = "model.embed_tokens, model.layers.{0-3}.self_attn.o_proj, model.layers.{0-3}.mlp"
    assert stream.short_name == f"{short}.down_proj -> lm_head"
    assert str(stream) == f"permutation               64  {stream.short_name}"
    assert llama()[0].short_name == llama()[0].name
    assert symmetry(Group.SCALING, "head", 3).short_name == "head"


@FEW
@given(st.lists(st.tuples(st.integers(0, 9), st.integers(0, 3), st.sampled_from("ab"))))
def test_no_path_is_lost_and_none_invented(places: list[tuple[int, int, str]]) -> None:
    paths = {f"m.{i}.{name}.{j}" for i, j, name in places}
    written: list[str] = []
    for short in shortened(paths):
        parts: list[list[str]] = [[]]
        for part in short.split("."):
            runs = [run.split("-") for run in part.strip("{}").split(",")]
            values = [
                str(n)
                for run in runs
                for n in (range(int(run[0]), int(run[-1]) + 1) if run[0].isdecimal() else run)
            ]
            parts = [[*before, value] for before in parts for value in values]
        written += [".".join(each) for each in parts]
    assert sorted(written) == sorted(paths)


def test_a_block_ends_with_a_number_that_all_share() -> None:
    assert block_of(["model.layers.3.mlp.up", "model.layers.3.attn.o"]) == "model.layers.3"
    assert block_of(["model.layers.3.mlp", "model.layers.4.mlp"]) == ""
    assert block_of(["encoder.layer.0.attention.q", "encoder.layer.0.attention.k"]) == (
        "encoder.layer.0"
    )
    assert block_of(["0", "2"]) == block_of(["0", "0.out_proj"]) == block_of([""]) == ""
    assert block_of(["0.a.1.b", "0.a.1.c"]) == "0.a.1"
