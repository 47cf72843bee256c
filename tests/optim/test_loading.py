"""Rules in checkpoints: kept to the bit, and broken files told in one line."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from saved_rules import RULES, learned, proposed
from support import UPDATE

import metaopt
from metaopt.base import checkpoint
from metaopt.base.checkpoint import CheckpointError
from metaopt.optim.learned import load
from metaopt.rules.learned.directions import NaturalSteps, Whitening
from metaopt.rules.learned.flattened import StatefulGradient


def _message(path: Path) -> str:
    """What loading a broken file says; one line that names the file."""
    with pytest.raises(CheckpointError) as caught:
        load(path)
    message = str(caught.value)
    assert str(path) in message
    assert "\n" not in message
    return message


# Kept as it was.


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("kind", list(RULES))
def test_a_loaded_rule_is_the_saved_one(kind: str, dtype: str, tmp_path: Path) -> None:
    saved = learned(kind, dtype)
    saved.save(tmp_path / "rule.safetensors")
    loaded = metaopt.load(tmp_path / "rule.safetensors")
    assert loaded.config == saved.config
    assert loaded.name == saved.name == "tiny"
    assert loaded.training == saved.training
    assert loaded.validation == saved.validation
    for mine, theirs in zip(proposed(loaded), proposed(saved), strict=True):
        assert torch.equal(mine, theirs)


@pytest.mark.parametrize("kind", ["directions", "flattened directions"])
def test_bases_and_inputs_are_kept(kind: str, tmp_path: Path) -> None:
    learned(kind).save(tmp_path / "rule.safetensors")
    optimizer = load(tmp_path / "rule.safetensors").optimizer
    assert isinstance(optimizer.rules["update"].basis, NaturalSteps)
    assert isinstance(optimizer.rules["teleport"].basis, Whitening)
    if kind == "flattened directions":
        for rule in optimizer.rules.values():
            assert isinstance(rule.gradient, StatefulGradient)


def test_a_loaded_rule_can_be_trained_on(tmp_path: Path) -> None:
    saved = learned()
    saved.save(tmp_path / "rule.safetensors")
    loaded = load(str(tmp_path / "rule.safetensors"))
    parameters = dict(loaded.optimizer.named_parameters())
    assert parameters.keys() == dict(saved.optimizer.named_parameters()).keys()
    assert all(p.requires_grad and not p.is_meta for p in parameters.values())


def test_metadata_say_what_the_file_is(tmp_path: Path) -> None:
    learned().save(tmp_path / "rule.safetensors")
    with safetensors.safe_open(tmp_path / "rule.safetensors", framework="pt") as file:
        metadata = file.metadata()
    assert metadata["format"] == "metaopt"
    assert metadata["format_version"] == checkpoint.FORMAT_VERSION
    assert metadata["metaopt_version"] == metaopt.__version__
    assert json.loads(metadata["training"]) == {"seed": 3}
    assert json.loads(metadata["config"])["meta"]["steps"] == 4


# Broken files.


def _whole(tmp_path: Path) -> bytes:
    path = tmp_path / "whole.safetensors"
    learned("flattened pair").save(path)
    return path.read_bytes()


def _rewritten(tmp_path: Path, **metadata: str | None) -> bytes:
    """A whole file with some metadata changed or, where None, left out."""
    path = tmp_path / "whole.safetensors"
    learned("flattened pair").save(path)
    with safetensors.safe_open(path, framework="pt") as file:
        changed = file.metadata() | metadata
    kept = {key: value for key, value in changed.items() if value is not None}
    return safetensors.torch.save(safetensors.torch.load_file(path), kept)


def _reconfigured(tmp_path: Path, change: Callable[[dict[str, Any]], object]) -> bytes:
    """A whole file whose configuration was changed."""
    config = learned("flattened pair").config.model_dump(mode="json")
    change(config)
    return _rewritten(tmp_path, config=json.dumps(config))


def _pickled(tmp_path: Path) -> bytes:
    buffer = io.BytesIO()
    torch.save(learned().optimizer.state_dict(), buffer)
    return buffer.getvalue()


BROKEN: dict[str, tuple[Callable[[Path], bytes], str]] = {
    "empty": (lambda _: b"", "not a whole safetensors file"),
    "text": (lambda _: b"name: not a checkpoint\n" * 9, "not a whole safetensors file"),
    "header cut": (lambda p: _whole(p)[:100], "not a whole safetensors file"),
    "tensors cut": (lambda p: _whole(p)[:-1], "not a whole safetensors file"),
    "bytes too many": (lambda p: _whole(p) + b"x", "not a whole safetensors file"),
    "torch.save": (_pickled, "not a whole safetensors file"),
    "no metadata": (
        lambda _: safetensors.torch.save({"w": torch.ones(2)}),
        "format: found None, expected 'metaopt'",
    ),
    "another program": (
        lambda p: _rewritten(p, format="pt"),
        "format: found 'pt', expected 'metaopt'",
    ),
    "unknown version": (
        lambda p: _rewritten(p, format_version="2"),
        "format_version: found '2', expected '1'",
    ),
    "no version": (lambda p: _rewritten(p, format_version=None), "format_version: found None"),
    "config cut": (lambda p: _rewritten(p, config='{"name": "ti'), "metadata field config"),
    "config a list": (lambda p: _rewritten(p, config="[]"), "expected a JSON object"),
    "no config": (lambda p: _rewritten(p, config=None), "metadata field config"),
    "training damaged": (lambda p: _rewritten(p, training="?"), "metadata field training"),
    "config nested": (lambda p: _rewritten(p, config="[" * 10**5), "metadata field config"),
    "config of digits": (
        lambda p: _rewritten(p, config='{"seed": ' + "1" * 5000 + "}"),
        "metadata field config",
    ),
    "unknown field": (
        lambda p: _reconfigured(p, lambda c: c.update(surprise=1)),
        "unknown field surprise",
    ),
    "unknown field of two lines": (
        lambda p: _reconfigured(p, lambda c: c.update({"two\nlines": 1})),
        "unknown field",
    ),
    "impossible value": (
        lambda p: _reconfigured(p, lambda c: c["task"].update(width=-1)),
        "field task.width",
    ),
    "action that cannot be exact": (
        lambda p: _reconfigured(p, lambda c: c["task"].update(samples=5)),
        "field teleporter.action",
    ),
    "other width": (
        lambda p: _reconfigured(p, lambda c: c["task"].update(width=5)),
        "tensor networks.teleport.head.W: found [9, 4] of float32, but its config asks for [25, 4]",
    ),
    "other hidden size": (
        lambda p: _reconfigured(p, lambda c: c["rules"]["update"].update(hidden=5)),
        "but its config asks for",
    ),
    "other kind of rule": (
        lambda p: _reconfigured(p, lambda c: c["rules"].update(update=UPDATE)),
        "but its config asks for",
    ),
    "other dtype": (
        lambda p: _reconfigured(p, lambda c: c.update(dtype="float64")),
        "of float32, but its config asks for",
    ),
}
BROKEN |= {
    f"hidden 10^{exponent}": (
        lambda p, size=10**exponent: _reconfigured(  # type: ignore[misc]
            p, lambda c: c["rules"]["update"].update(hidden=size)
        ),
        "",
    )
    for exponent in (6, 9, 10, 20)
}


@pytest.mark.parametrize("kind", list(BROKEN))
def test_broken_files_are_told_in_one_line(kind: str, tmp_path: Path) -> None:
    make, hint = BROKEN[kind]
    path = tmp_path / "broken.safetensors"
    path.write_bytes(make(tmp_path))
    assert hint in _message(path)


def test_missing_files_are_told(tmp_path: Path) -> None:
    assert "no such file" in _message(tmp_path / "none.safetensors")
    assert "no such file" in _message(tmp_path)


def test_missing_and_surplus_tensors_are_told(tmp_path: Path) -> None:
    rule = learned()
    config = rule.config.model_dump(mode="json")
    tensors = dict(rule.optimizer.state_dict())
    path = tmp_path / "broken.safetensors"
    checkpoint.write(path, checkpoint.Checkpoint(tensors | {"x": torch.ones(2)}, config, {}, {}))
    assert "tensor x: found [2] of float32, but its config asks for none" in _message(path)
    name, tensor = tensors.popitem()
    checkpoint.write(path, checkpoint.Checkpoint(tensors, config, {}, {}))
    assert f"tensor {name}: found none" in _message(path)
    assert str(list(tensor.shape)) in _message(path)


def test_no_byte_of_the_header_breaks_the_reader(tmp_path: Path) -> None:
    whole = _whole(tmp_path)
    path = tmp_path / "broken.safetensors"
    header = 8 + int.from_bytes(whole[:8], "little")
    told: list[str] = []
    for position in range(0, header, 23):
        path.write_bytes(whole[:position] + bytes([whole[position] ^ 0x15]) + whole[position + 1 :])
        try:
            load(path)
        except CheckpointError as error:
            told.append(str(error))
    assert len(told) > 50
    assert all(str(path) in message for message in told)


@pytest.mark.parametrize("kind", ["coordinate pair", "flattened step", "Adam and teleport"])
def test_a_rule_that_was_cast_is_saved_as_it_is(kind: str, tmp_path: Path) -> None:
    rule = learned(kind)
    rule.optimizer.to(torch.float64)
    rule.save(tmp_path / "cast.safetensors")
    loaded = load(tmp_path / "cast.safetensors")
    assert loaded.config == rule.config.model_copy(update={"dtype": "float64"})
    for name, tensor in rule.optimizer.state_dict().items():
        assert torch.equal(loaded.optimizer.state_dict()[name], tensor)
    loaded.optimizer.to(torch.float32)
    loaded.save_pretrained(tmp_path / "back")
    assert load(tmp_path / "back").config == rule.config


@pytest.mark.parametrize("where", [torch.float16, torch.bfloat16, torch.device("meta")])
def test_a_rule_that_could_not_be_loaded_again_is_not_saved(
    where: torch.dtype | torch.device, tmp_path: Path
) -> None:
    rule = learned()
    rule.save(tmp_path / "a")
    before = (tmp_path / "a").read_bytes()
    rule.optimizer.to(where)
    for save in (rule.save, rule.save_pretrained):
        with pytest.raises(CheckpointError, match=r"asks for"):
            save(tmp_path / "a")
    assert (tmp_path / "a").read_bytes() == before
