"""The figure of the README."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from metaopt.base.errors import UserError
from metaopt.base.process import World
from studies import readme_figure


def _results(names: list[str]) -> dict[str, object]:
    losses = [10.0 ** (5 - step / 10) for step in range(101)]
    entry = {"loss_geomean": losses, "loss_q05": losses, "loss_q95": losses}
    return {"steps": 100, "optimizers": dict.fromkeys(names, entry)}


def test_it_is_drawn_from_an_evaluation(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    results, out = tmp_path / "results.json", tmp_path / "figure.png"
    results.write_text(json.dumps(_results([*readme_figure.CURVES, "Momentum"])))
    monkeypatch.setattr("sys.argv", ["readme_figure", str(results), "--out", str(out)])
    readme_figure.main(World())
    assert out.read_bytes().startswith(b"\x89PNG")
    assert capsys.readouterr().out == f"written to {out}\n"


def test_what_is_missing_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match="expected Adam among the optimizers"):
        readme_figure.figure(_results([name for name in readme_figure.CURVES if name != "Adam"]))
    monkeypatch.setattr("sys.argv", ["readme_figure", str(tmp_path / "results.json")])
    with pytest.raises(UserError, match=r"results.json: not there; `python eval_meta.py"):
        readme_figure.main(World())
