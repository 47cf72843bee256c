"""Imports go one way (DESIGN section 4); read from the source, functions' own imports too."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "metaopt"

BOTTOM = {
    "_began",
    "_version",
    "distributed",
    "errors",
    "families",
    "global_generators",
    "horizon",
    "loss_statistics",
    "network",
    "pace",
    "signals",
    "streams",
    "tables",
    "units",
    "yaml_text",
}
APART = {"config", "schema", "schema_meta", "schema_task", "schema_types", "checkpoint", "report"}
APART |= {"description", "figures", "model_card", "pretrained", "reach"}
RULES_TASKS_SYMMETRY = {"rules", "tasks", "symmetry"}
ORDER = [RULES_TASKS_SYMMETRY, {"optimizers"}, {"unroll"}, {"meta_train", "evaluate"}]
HOUSE = set().union(*ORDER)


def _unit(dotted: str) -> str | None:
    """``metaopt.rules.lstm`` -> ``rules``; None for what is not of the package."""
    first, _, rest = dotted.partition(".")
    if first != "metaopt":
        return None
    return rest.partition(".")[0] or "metaopt"


def _imported(path: Path) -> set[str]:
    """Modules and subpackages of the package that a file names in an import."""
    found: set[str | None] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {_unit(alias.name) for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: imports are absolute"
            if node.module == "metaopt":
                modules = {alias.name for alias in node.names} & set(UNITS)
                found |= modules or {"metaopt"}
            else:
                found.add(_unit(node.module or ""))
    return {unit for unit in found if unit is not None}


UNITS: dict[str, list[Path]] = {
    path.stem: sorted(path.rglob("*.py")) if path.is_dir() else [path]
    for path in sorted(PACKAGE.iterdir())
    if path.suffix == ".py" or (path / "__init__.py").is_file()
}
UNITS["metaopt"] = UNITS.pop("__init__")
EDGES = {
    unit: set().union(*(_imported(path) for path in paths)) - {unit}
    for unit, paths in UNITS.items()
}


def _reached(unit: str) -> set[str]:
    """All that a unit imports, directly or through others."""
    reached: set[str] = set()
    waiting = [unit]
    while waiting:
        new = EDGES[waiting.pop()] - reached
        reached |= new
        waiting += new
    return reached


def test_house_stands() -> None:
    assert set(UNITS) >= HOUSE | BOTTOM | APART
    assert EDGES["optimizers"] >= {"rules", "symmetry"}
    assert {"optimizers", "tasks"} <= _reached("meta_train") & _reached("evaluate")


@pytest.mark.parametrize("unit", sorted(UNITS))
def test_no_import_cycle(unit: str) -> None:
    assert unit not in _reached(unit)


@pytest.mark.parametrize("unit", sorted(BOTTOM))
def test_bottom_layer_stands_on_itself(unit: str) -> None:
    assert _reached(unit) <= BOTTOM


@pytest.mark.parametrize("unit", sorted(APART))
def test_files_and_reports_know_nothing_of_the_mathematics(unit: str) -> None:
    assert _reached(unit) <= BOTTOM | APART


@pytest.mark.parametrize("floor", range(len(ORDER)))
def test_lower_floors_never_reach_upper_ones(floor: int) -> None:
    upper = set().union(*ORDER[floor + 1 :])
    for unit in ORDER[floor]:
        assert not _reached(unit) & upper


@pytest.mark.parametrize(
    ("unit", "allowed"),
    [
        ("tasks", set()),
        ("symmetry", set()),
        ("rules", {"tasks"}),
        ("meta_train", HOUSE - {"meta_train", "evaluate"}),
        ("evaluate", HOUSE - {"meta_train", "evaluate"}),
    ],
)
def test_neighbours_on_a_floor_stay_apart(unit: str, allowed: set[str]) -> None:
    assert _reached(unit) & HOUSE <= allowed


def test_package_never_imports_the_scripts() -> None:
    scripts = {path.stem for path in ROOT.glob("*.py")}
    assert {"train_meta", "eval_meta"} <= scripts
    for path in PACKAGE.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ImportFrom):
                assert node.module not in scripts
            if isinstance(node, ast.Import):
                assert not {alias.name for alias in node.names} & scripts
