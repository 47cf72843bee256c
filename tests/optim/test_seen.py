"""What a checkpoint was meta-trained with: told by ``metaopt show``, recorded, or not recorded."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from places import PRETRAINED
from saved_rules import learned
from support import UPDATE, tiny_config

from metaopt.base import checkpoint
from metaopt.base.config import ConfigError
from metaopt.optim.card import card
from metaopt.optim.seen import NOT_RECORDED, record, seen
from metaopt.optim.show import report
from metaopt.tasks.config import TaskConfig
from metaopt.tasks.trained_on import TRAINED_ON

MEASURED = {
    "kinds": ["convolution", "linear"],
    "parameters": [1200, 34000],
    "matrices": [[3, 4], [64, 128]],
    "batches": [16, 64, None],
}


def of_own(training: dict[str, Any], **hide: float) -> dict[str, str]:
    config = tiny_config({"update": UPDATE})
    meta = config.meta.model_copy(update={"hide": config.meta.hide.model_copy(update=hide)})
    task = TaskConfig(family="never.imported:Here")
    return dict(seen(config.model_copy(update={"task": task, "meta": meta}), training, "here"))


def test_what_was_measured_is_told_in_words() -> None:
    found = of_own({TRAINED_ON: MEASURED}, loss=0.25)
    assert found["loss"] == "hidden in 25% of the meta-batches: step() is enough"
    assert found["inputs of layers"] == "never known: any model will do"
    assert found["layers"] == "convolution, linear"
    assert found["networks"] == "1,200 to 34,000 parameters, matrices from 3 x 4 to 64 x 128"
    assert found["batches"] == "mini-batches of 16 to 64 and all data at every step"


def test_old_files_say_that_it_is_not_recorded() -> None:
    found = of_own({})
    assert {found[name] for name in ("layers", "networks", "batches")} == {NOT_RECORDED}
    assert found["loss"] == "always known: call step(closure)"


def test_of_the_regression_family_the_configuration_says_all() -> None:
    config = tiny_config({"update": UPDATE})
    found = dict(seen(config, {}, "here"))
    assert found["inputs of layers"].startswith("always known")
    assert found["layers"] == "linear"
    assert found["batches"] == "all data at every step"
    assert NOT_RECORDED not in found.values()


def test_record_writes_what_the_family_shows(tmp_path: Path) -> None:
    learned().save(tmp_path / "rule")
    before = checkpoint.read(tmp_path / "rule")
    told = dict(seen(learned().config, {}, "here"))
    record(tmp_path / "rule")
    after = checkpoint.read(tmp_path / "rule")
    assert set(after.training) - set(before.training) == {TRAINED_ON}
    assert replace(after, training={}, tensors={}) == replace(before, training={}, tensors={})
    assert all(tensor.equal(after.tensors[name]) for name, tensor in before.tensors.items())
    assert dict(seen(learned().config, after.training, "here")) == told


@pytest.mark.parametrize(
    "wrong",
    [
        [],
        {"kinds": "linear"},
        MEASURED | {"parameters": [1]},
        MEASURED | {"batches": []},
        MEASURED | {"matrices": [[1, 2]]},
        MEASURED | {"parameters": [0, 5]},
    ],
)
def test_what_cannot_be_ends_in_one_line(wrong: Any) -> None:
    with pytest.raises(ConfigError, match=rf"^here: metadata field training\.{TRAINED_ON}"):
        of_own({TRAINED_ON: wrong})


def test_it_stands_in_the_report_and_on_the_card() -> None:
    rule = learned()
    content = rule._content("here")
    training = content.training | {TRAINED_ON: MEASURED | {"kinds": ["lin\x1bear"]}}
    for text in (report(replace(content, training=training), "here"), card(content, "here")):
        assert "meta-trained with" in text
        assert "1,200 to 34,000" in text or "parameters, matrices" in text
        assert "\x1b" not in text


@pytest.mark.parametrize("path", sorted(PRETRAINED.glob("*.safetensors")), ids=lambda p: p.stem)
def test_every_shipped_rule_says_it(path: Path) -> None:
    found = report(checkpoint.read(path), str(path))
    assert "meta-trained with" in found
    assert NOT_RECORDED not in found
