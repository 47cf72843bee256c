"""The house (DESIGN section 4): nine folders, imports downward; read from the source."""

from __future__ import annotations

import ast
import symtable
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from places import ROOT

PACKAGE = ROOT / "metaopt"
TESTS = ROOT / "tests"
FLOORS = [
    "base",
    "symmetry",
    "landscape",
    "tasks",
    "teleport",
    "rules",
    "meta",
    "optim",
    "evaluation",
]
BESIDE = ["studies", "benchmarks", "integrations"]
"""Folders of tests for what is no floor."""
BELOW = {"_version"}
"""Files beside the folders that every floor may read."""


def _imports(path: Path) -> list[ast.Import | ast.ImportFrom]:
    """All imports of a file, those within functions too."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    return [node for node in ast.walk(tree) if isinstance(node, ast.Import | ast.ImportFrom)]


def _rooms(path: Path) -> set[str]:
    """The folders, or files beside them, of the package that a file imports from."""
    found = set()
    for node in _imports(path):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        else:
            assert node.level == 0, f"{path}: imports are absolute"
            assert node.module is not None
            names = {f"metaopt.{alias.name}" for alias in node.names}
            found |= names if node.module == "metaopt" else {node.module}
    parts = (name.split(".") for name in found)
    return {(of[1] if len(of) > 1 else "") for of in parts if of[0] == "metaopt"}


FILES = sorted(PACKAGE.rglob("*.py"))


def _name(path: Path) -> str:
    return str(path.relative_to(PACKAGE))


def test_the_package_holds_nine_folders_and_few_files() -> None:
    folders = {path.parent.name for path in PACKAGE.glob("*/__init__.py")}
    assert folders == set(FLOORS)
    files = {path.name for path in PACKAGE.iterdir() if path.is_file()}
    assert files == {"__init__.py", "__main__.py", "_version.py", "py.typed"}


@pytest.mark.parametrize("path", [p for p in FILES if p.parent != PACKAGE], ids=_name)
def test_imports_run_downward(path: Path) -> None:
    floor = FLOORS.index(path.relative_to(PACKAGE).parts[0])
    assert _rooms(path) <= {*FLOORS[: floor + 1], *BELOW}


def _edges() -> dict[str, set[str]]:
    """Which module imports which, by dotted names."""
    modules = {
        ".".join(["metaopt", *path.relative_to(PACKAGE).with_suffix("").parts]): path
        for path in FILES
    }
    edges: dict[str, set[str]] = {}
    for name, path in modules.items():
        edges[name] = set()
        for node in _imports(path):
            if isinstance(node, ast.ImportFrom) and node.module is not None:
                wanted = {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
                edges[name] |= wanted & modules.keys()
    return edges


def test_no_module_imports_itself_through_others() -> None:
    edges = _edges()
    for start in edges:
        reached: set[str] = set()
        waiting = [start]
        while waiting:
            new = edges[waiting.pop()] - reached
            assert start not in new, f"{start} reaches itself"
            reached |= new
            waiting += new


def test_no_module_shadows_the_standard_library() -> None:
    names = {path.stem for path in FILES if not path.stem.startswith("_")}
    assert not names & sys.stdlib_module_names


def test_the_package_never_imports_what_stands_beside_it() -> None:
    beside = {"train_meta", "eval_meta", "studies", "benchmarks", "tests"}
    for path in FILES:
        for node in _imports(path):
            module = node.module if isinstance(node, ast.ImportFrom) else node.names[0].name
            assert (module or "").split(".")[0] not in beside, path


TEST_FILES = sorted(TESTS.rglob("*.py"))
TEST_MODULES = [path for path in TEST_FILES if path.name.startswith("test_")]


def test_the_tests_mirror_the_floors() -> None:
    folders = {path.parent.relative_to(TESTS) for path in TEST_MODULES if path.parent != TESTS}
    assert {folder.parts[0] for folder in folders} == {*FLOORS, *BESIDE}
    for folder in folders:
        assert folder.parts[0] in BESIDE or (PACKAGE / folder / "__init__.py").is_file(), folder


def test_what_tests_share_holds_no_tests() -> None:
    """But for classes that test modules make their own: pytest takes only those named Test."""
    for path in {*TEST_FILES} - {*TEST_MODULES}:
        for node in ast.parse(path.read_text(encoding="utf-8")).body:
            if isinstance(node, ast.FunctionDef | ast.ClassDef):
                assert not node.name.lower().startswith("test"), path


def test_no_test_module_imports_another() -> None:
    names = [path.stem for path in TEST_MODULES]
    # Without packages two of one name would be one module.
    assert len({*names}) == len(names)
    for path in TEST_FILES:
        for node in _imports(path):
            module = node.module if isinstance(node, ast.ImportFrom) else node.names[0].name
            assert module not in names, path


def test_no_file_is_longer_than_350_lines() -> None:
    beside = [
        path for folder in ("studies", "benchmarks") for path in (ROOT / folder).rglob("*.py")
    ]
    for path in [*FILES, *TEST_FILES, *beside]:
        assert len(path.read_text(encoding="utf-8").splitlines()) <= 350, path


def test_benchmarks_may_import_studies_and_not_the_other_way_round() -> None:
    for path in (ROOT / "studies").rglob("*.py"):
        for node in _imports(path):
            module = node.module if isinstance(node, ast.ImportFrom) else node.names[0].name
            assert (module or "").split(".")[0] != "benchmarks", path


def _tables(table: symtable.SymbolTable) -> Iterator[symtable.SymbolTable]:
    yield table
    for child in table.get_children():
        yield from _tables(child)


def test_no_comprehension_binds_a_name_that_its_function_reads_from_the_module() -> None:
    """Python 3.12 takes both for one local variable, and raises ``UnboundLocalError``."""
    inlined = {"listcomp", "setcomp", "dictcomp"}
    folders = [PACKAGE, TESTS, ROOT / "studies", ROOT / "benchmarks"]
    for path in (path for folder in folders for path in folder.rglob("*.py")):
        whole = symtable.symtable(path.read_text(encoding="utf-8"), str(path), "exec")
        for table in _tables(whole):
            parts = [child for child in table.get_children() if child.get_name() in inlined]
            bound = {s.get_name() for part in parts for s in part.get_symbols() if s.is_local()}
            read = {s.get_name() for t in (table, *parts) for s in t.get_symbols() if s.is_global()}
            if table.get_type() == "function":
                assert not bound & read, f"{path}: {table.get_name()}: {bound & read}"
