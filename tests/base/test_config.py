"""Configurations: what ships loads; every mistake is one line that names the file and the field."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml
from configurations import BASE, SHIPPED, TRAINING, error_of, relative_name
from support import UPDATE, UPDATE_AND_TELEPORT, tiny_config

from metaopt.base.config import ConfigError, check, load, to_yaml
from metaopt.base.shipped import CONFIGS
from metaopt.evaluation.config import EvalConfig
from metaopt.meta.build import meta_optimizer
from metaopt.meta.config import TrainConfig
from metaopt.rules.learned.flattened import FlattenedConfig

BASE_CONTENT = (CONFIGS / BASE).read_bytes()


# What ships.


def test_contract_files_ship() -> None:
    flattened = {"lstm_update_tele.yaml", "lstm_update.yaml", "lstm_lr_tele.yaml"}
    coordinate = {name.replace("lstm", "coordinate") for name in flattened}
    paper = {f"paper/{name}" for name in flattened}
    assert {relative_name(path) for path in SHIPPED} >= flattened | coordinate | paper | {
        "eval.yaml"
    }


@pytest.mark.parametrize("path", TRAINING, ids=relative_name)
def test_training_configs_load_and_build(path: Path) -> None:
    config = load(TrainConfig, path)
    optimizer = meta_optimizer(config)
    assert set(optimizer.rules) == set(config.rules.by_name())
    assert (optimizer.engine is None) == (config.teleporter is None)
    assert config.label == config.label.strip()


def test_labels_are_the_contracts() -> None:
    labels = {relative_name(path): load(TrainConfig, path).label for path in TRAINING}
    for ending, label in (
        ("update_tele", "LSTM(update,tele)"),
        ("update", "LSTM(update)"),
        ("lr_tele", "LSTM(lr,tele)"),
    ):
        assert labels[f"lstm_{ending}.yaml"] == label
        assert labels[f"paper/lstm_{ending}.yaml"] == label
        assert labels[f"coordinate_{ending}.yaml"] == f"coordinate {label}"


def test_evaluation_config_loads() -> None:
    config = load(EvalConfig, "eval.yaml")
    assert {"GD", "Momentum", "Adam", "L-BFGS"} <= set(config.baselines)
    assert 0.0 in config.tuning.grids["Adam"]["beta1"]


@pytest.mark.parametrize("path", TRAINING, ids=relative_name)
def test_names_of_runs_differ_and_fit_a_folder(path: Path) -> None:
    name = load(TrainConfig, path).name
    assert name == Path(name).name
    assert [load(TrainConfig, other).name for other in TRAINING].count(name) == 1


@pytest.mark.parametrize("file", ["lstm_update_tele", "lstm_update", "lstm_lr_tele"])
def test_paper_recipe(file: str) -> None:
    config = load(TrainConfig, f"paper/{file}.yaml")
    meta = config.meta
    assert meta.batch * meta.outer_steps * meta.unroll == 700 * 100
    assert (meta.steps, meta.unroll, meta.batch, meta.loss) == (100, 10, 1, "sum")
    if config.teleporter is not None:
        assert config.teleporter.element == "first_order"
        assert (config.teleporter.limit, config.teleporter.max_norm) == ("fixed", 0.01)
    if isinstance(config.rules.teleport, FlattenedConfig):
        assert config.rules.teleport.outer_lr == 1e-4


# Mistakes in fields.


@pytest.mark.parametrize(
    ("override", "field", "hint"),
    [
        ("meta.bach=3", "meta.bach", "did you mean batch?"),
        ("metta.batch=3", "metta", "did you mean meta?"),
        ("rules.update.hiden=3", "rules.update.hiden", "did you mean hidden?"),
        ("rules.update.zzz=3", "rules.update.zzz", "known here: basis, free, frozen, gradient"),
        ("meta.batch=many", "meta.batch", "valid integer"),
        ("meta.batch=1.5", "meta.batch", "valid integer"),
        ("meta.batch=true", "meta.batch", "valid integer"),
        ("meta.batch=0", "meta.batch", "greater than or equal to 1"),
        ("meta.batch=", "meta.batch", "valid integer"),
        ("meta.batch=[3]", "meta.batch", "valid integer"),
        ("seed=-1", "seed", "greater than or equal to 0"),
        ("task.slope=0", "task.slope", "greater than 0"),
        ("task.slope=2", "task.slope", "less than or equal to 1"),
        ("task.slope=.nan", "task.slope", "1"),
        ("task.layers=1", "task.layers", "greater than or equal to 2"),
        ("task.data=normal", "task.data", "'uniform' or 'gaussian'"),
        ("task=3", "task", "dictionary"),
        ("dtype=float16", "dtype", "'float32' or 'float64'"),
        ("meta.order=3", "meta.order", "less than or equal to 2"),
        ("meta.clip=.inf", "meta.clip", "finite"),
        ("rules.update.outer_lr=-1e-3", "rules.update.outer_lr", "greater than 0"),
        (
            "rules.update.kind=sgd",
            "rules.update",
            "'layer_lstm', 'matrix_lstm', 'eigen_lstm', 'gd'",
        ),
        ("rules.update={kind: adam}", "rules.update.lr", "missing"),
        ("rules.update={kind: adam, lr: 1, beta1: 1}", "rules.update.beta1", "less than 1"),
        ("rules.update=null", "rules", "exactly one of update and step_teleport"),
        ("teleporter.action=rotation", "teleporter.action", "'through_data', 'linear'"),
        ("teleporter.action=units", "", "lstm needs one of through_data, linear"),
        ("teleporter={action: units, guard: refuse}", "teleporter", "found exponential and refuse"),
        (
            "rules.teleport=null",
            "",
            "or add one, e.g. rules.teleport: {kind",
        ),
        ("rules.teleport={kind: unit_lstm, outer_lr: 1}", "", "unit_lstm needs units; found thr"),
        ("meta.hide.inputs=0.5", "", "these rules need the layers' inputs"),
        ("meta.hide.loss=1.5", "meta.hide.loss", "less than or equal to 1"),
    ],
)
def test_mistakes_in_fields(tmp_path: Path, override: str, field: str, hint: str) -> None:
    path = tmp_path / "broken.yaml"
    path.write_text((CONFIGS / BASE).read_text() + "teleporter: {action: through_data}\n")
    message = error_of(path, override)
    assert message.startswith(f"{path} with --set: ")
    assert f"field {field}" in message or not field
    assert hint in message


@pytest.mark.parametrize("section", ["name", "rules"])
def test_missing_fields(tmp_path: Path, section: str) -> None:
    content = yaml.safe_load((CONFIGS / BASE).read_text())
    del content[section]
    path = tmp_path / "broken.yaml"
    path.write_text(yaml.safe_dump(content))
    assert error_of(path) == f"{path}: field {section} is missing"


def test_the_label_is_the_name_where_none_is_given() -> None:
    content = {"name": "mine", "rules": {"update": UPDATE}}
    assert check(TrainConfig, content, "mine").label == "mine"


def test_rules_that_propose_generators_have_a_teleporter() -> None:
    for rules in (UPDATE_AND_TELEPORT, {"step_teleport": UPDATE}):
        found = tiny_config(rules, None).teleporter
        assert found is not None
        assert (found.action, found.guard, found.max_norm) == ("through_data", "shrink", 5.0)
    units = tiny_config({"update": UPDATE, "teleport": {"kind": "unit_lstm"}}, None).teleporter
    assert units is not None
    assert (units.action, units.guard, units.max_norm) == ("units", "none", 0.1)
    matrix, pair = {"kind": "matrix_lstm"}, {"kind": "pair_lstm"}
    pairs = tiny_config({"update": matrix, "teleport": pair}, None).teleporter
    assert pairs is not None
    assert (pairs.action, pairs.guard, pairs.order) == ("linear_pairs", "none", "before")
    with pytest.raises(ConfigError, match="teleporter: there is nothing to carry out"):
        tiny_config({"update": UPDATE}, {})


def test_impossible_teleporters() -> None:
    with pytest.raises(ConfigError, match="field teleporter: inexact: guard needs a guard"):
        tiny_config(UPDATE_AND_TELEPORT, {"guard": "none", "inexact": "guard"})
    with pytest.raises(ConfigError, match=r"linear_pairs is for order: before, found after"):
        tiny_config(UPDATE_AND_TELEPORT, {"action": "linear_pairs", "order": "after"})
    with pytest.raises(ConfigError, match=r"field teleporter.action: found \[1\], should be"):
        tiny_config(UPDATE_AND_TELEPORT, {"action": [1]})
    with pytest.raises(
        ConfigError, match=r"field rules.teleport: found .*expected a kind that is one of"
    ):
        tiny_config({"update": UPDATE, "teleport": {"kind": [1]}}, None)
    flattened = {"kind": "lstm", "basis": "sized"}
    with pytest.raises(ConfigError, match=r"rules.update.basis: found sized, which reads feat"):
        tiny_config({"update": flattened}, None)
    with pytest.raises(ConfigError, match=r"way that what rules.update keeps cannot"):
        tiny_config({"update": UPDATE, "teleport": {"kind": "pair_lstm"}}, None)
    with pytest.raises(ConfigError, match="field teleporter: cayley needs max_norm below 2"):
        tiny_config(UPDATE_AND_TELEPORT, {"element": "cayley", "max_norm": 2.0})


def test_nothing_to_learn_is_a_mistake() -> None:
    with pytest.raises(ConfigError, match="field rules: nothing to learn"):
        tiny_config({"update": {"kind": "gd", "lr": 1e-3}})


def test_step_teleport_stands_alone() -> None:
    with pytest.raises(ConfigError, match="leave teleport out"):
        tiny_config({"step_teleport": UPDATE, "teleport": UPDATE}, {})
    with pytest.raises(ConfigError, match="step_min must be below step_max"):
        tiny_config({"step_teleport": UPDATE | {"step_min": 1.0, "step_max": 0.5}}, {})


@pytest.mark.parametrize(
    ("override", "hint"),
    [
        ("baselines=[SGD]", "GD, Momentum, Adam, AdamW+cosine, L-BFGS"),
        ("baselines=[Adam@0]", "found 'Adam@0'"),
        ("tuning.grids.Adam.beta3=[0.5]", "the grid of Adam needs lr, beta1, beta2"),
        ("tuning.grids.RMSprop.lr=[0.5]", "grids are for GD"),
        ("tuning.grids.GD.lr=[]", "tuning.grids.GD.lr"),
        ("tuning.grids.GD.lr=[-1.0]", "tuning.grids.GD.lr"),
        ("tasks=0", "field tasks"),
    ],
)
def test_mistakes_in_evaluation(override: str, hint: str) -> None:
    message = error_of(Path("eval.yaml"), override, kind=EvalConfig)
    assert "eval.yaml" in message
    assert hint in message


# Mistakes of a whole file.


@pytest.mark.parametrize(
    ("content", "hint"),
    [
        (b"", "mapping of fields"),
        (b"- 1\n- 2\n", "mapping of fields"),
        (b"meta: [1\n", "not valid YAML"),
        (b"meta:\n\t- 1\n", "not valid YAML"),
        (b"name: a: b\n", "not valid YAML"),
        (b"\xff\xfe\x00name", "not valid YAML"),
        (b"name: !!python/object/apply:os.getcwd []\n", "not valid YAML"),
        (b"name: a\nname: b\n", "field 'name' is given twice"),
        (b"name: a\nmeta:\n  batch: 1\n  batch: 2\n", "field 'batch' is given twice"),
        (BASE_CONTENT + b"\n1: 2\n", "field 1"),
        (b"? [a]\n: 2\n", "not valid YAML"),
        # What the reader of a scalar or of nesting itself raises is no YAMLError.
        (b"name: 2024-13-45\n", "broken.yaml"),
        (b"seed: !!int many\n", "broken.yaml"),
        (b"seed: " + b"1" * 5000, "broken.yaml"),
        (b"seed: !!timestamp never\n", "broken.yaml"),
        (b"[" * 3000, "broken.yaml"),
        (BASE_CONTENT + b'\n"two\\nlines": 1\n', "unknown field"),
    ],
    ids=lambda value: repr(value[-20:])[2:-1] if isinstance(value, bytes) else "",
)
def test_mistakes_of_a_whole_file(tmp_path: Path, content: bytes, hint: str) -> None:
    path = tmp_path / "broken.yaml"
    path.write_bytes(content)
    message = error_of(path)
    assert message.startswith(f"{path}: ")
    assert hint in message


def test_missing_file_lists_what_there_is(tmp_path: Path) -> None:
    message = error_of(tmp_path / "none.yaml")
    assert str(tmp_path / "none.yaml") in message
    assert BASE in message
    assert str(tmp_path) in error_of(tmp_path)


def test_a_path_goes_before_the_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / BASE).write_text(to_yaml(tiny_config()))
    assert load(TrainConfig, BASE).name == "lstm_update_tele"
    monkeypatch.chdir(tmp_path)
    assert load(TrainConfig, BASE).name == "tiny"


# Exactness is checked against the tasks before any work begins.


@pytest.mark.parametrize(
    ("task", "action", "exact"),
    [
        ({"inputs": 4, "samples": 4}, "through_data", True),
        ({"inputs": 3, "samples": 4}, "through_data", False),
        ({"layers": 3, "width": 3, "inputs": 4, "samples": 4}, "through_data", False),
        ({"layers": 3, "width": 4, "inputs": 4, "samples": 4}, "through_data", True),
        ({"inputs": 3, "samples": 9}, "scaling", True),
        ({"slope": 0.1}, "linear", False),
        ({"slope": 0.1}, "orthogonal", False),
        ({"slope": 1.0}, "orthogonal", True),
    ],
)
def test_exactness_is_checked_when_built(task: dict[str, Any], action: str, exact: bool) -> None:
    strict = tiny_config(UPDATE_AND_TELEPORT, {"action": action}, task)
    if exact:
        assert meta_optimizer(strict).engine is not None
    else:
        with pytest.raises(ConfigError) as caught:
            meta_optimizer(strict)
        message = str(caught.value)
        assert message.startswith("field teleporter.action: the ")
        assert "inexact: guard" in message
        assert "\n" not in message
    lenient = tiny_config(UPDATE_AND_TELEPORT, {"action": action, "inexact": "guard"}, task)
    assert meta_optimizer(lenient).engine is not None
