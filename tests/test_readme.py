"""The README says what the code says."""

from __future__ import annotations

import re

from places import ROOT

from metaopt.__main__ import tables
from metaopt.base.tables import TABLE_STEPS
from metaopt.evaluation.report import results_table, teleport_table

README = (ROOT / "README.md").read_text(encoding="utf-8")


def test_the_table_of_fields_is_the_generated_one() -> None:
    between = README.split("<!-- config table -->")[1].split("<!-- end of config table -->")[0]
    assert between.strip() == tables()


def test_it_opens_with_two_commands() -> None:
    blocks = re.findall(r"```bash\n(.*?)```", README, flags=re.DOTALL)
    assert "train_meta.py --config lstm_update_tele.yaml" in blocks[0]
    assert "pytest" in blocks[1]
    for block in blocks[:2]:
        assert len(block.strip().splitlines()) == 1
        assert "pip install -q -c constraints.txt -e" in block


def test_files_that_it_names_exist() -> None:
    named = re.findall(r"`((?:configs|metaopt|docs|benchmarks)/[\w./]+)`|\]\(([\w./]+)\)", README)
    paths = [first or second for first, second in named]
    assert len(paths) > 3
    assert [path for path in paths if not (ROOT / path).exists()] == []
    modules = re.findall(r"python -m ([\w.]+)", README)
    places = [ROOT / module.replace(".", "/") for module in modules if module != "pytest"]
    files = [
        place / "__main__.py" if place.is_dir() else place.with_suffix(".py") for place in places
    ]
    venv = ROOT / "venv.py"
    assert [file for file in files if file != venv and not file.exists()] == []


def test_the_results_table_has_the_shape_that_eval_meta_prints() -> None:
    entry = {
        "kind": "learned",
        "loss_geomean": [1.0] * 101,
        "diverged": 0,
        "seconds_per_step": 1e-3,
        "teleport": None,
        "origin": {},
    }
    header = results_table({"steps": 100, "optimizers": {"A": entry}}).splitlines()[0]
    cells = [cell.strip() for cell in header.strip("|").split("|")]
    assert cells[1:8] == [str(step) for step in TABLE_STEPS]
    rows = [[c.strip() for c in line.strip("|").split("|")] for line in README.splitlines()]
    # The README's rows are all shipped: it needs no column that says so.
    assert cells[-1] == "from"
    assert cells[:-1] in [row[: len(cells) - 1] for row in rows]
    assert teleport_table({"optimizers": {"A": entry}}) == ""
