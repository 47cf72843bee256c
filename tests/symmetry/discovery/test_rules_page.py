"""What the page about rules of one's own says, word by word."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch
from around import Around
from places import ROOT
from teleports import change, outputs
from torch import Tensor, nn

import metaopt
from metaopt.optim.show_model import report
from metaopt.symmetry.discovery.operation import Operation, Result

pytestmark = pytest.mark.usefixtures("rules_of_metaopt")
PAGE = (ROOT / "docs" / "extending" / "symmetry_rule.md").read_text(encoding="utf-8")


class _Leaky(nn.Module):
    """max(x, 0) + s min(x, 0), with a slope for each unit."""

    def __init__(self) -> None:
        super().__init__()
        self.slopes = nn.Parameter(torch.rand(6))

    def forward(self, x: Tensor) -> Tensor:
        return torch.where(x > 0, x, self.slopes * x)


def test_slopes_change_places_with_their_units() -> None:
    @metaopt.symmetry_rule(_Leaky)
    def leaky(op: Operation) -> Result:
        x = op.value(0)
        return op.add(op.homogeneous(x), op.multiply(op.own("slopes"), op.homogeneous(x)))

    model, x = Around(_Leaky()), torch.randn(5, 4)
    scaling, relabelling = metaopt.symmetries(model, permutations=True)
    assert scaling.group == "positive scaling"
    assert {slot.path for slot in scaling.slots} == {"a.weight", "a.bias", "b.weight"}
    assert "inside.slopes" in {slot.path for slot in relabelling.slots}
    before = outputs(model, x)
    metaopt.teleport(model, symmetries=[scaling, relabelling])
    assert change(before, outputs(model, x)) < 1e-6


def _doubled(x: Tensor) -> Tensor:
    return x.repeat(1, 2)


class _Wide(nn.Module):
    """Most of what the page has words for, in one forward."""

    def __init__(self) -> None:
        super().__init__()
        self.mixing = nn.Parameter(torch.randn(8, 12))

    def forward(self, x: Tensor) -> Tensor:
        if x.sum() > 1e9:
            return x
        x = _doubled(nn.functional.dropout(x, 0.1, self.training))
        x = torch.einsum("bi,oi->bo", x, self.mixing).pow(3)
        return torch.cat([x.mean(-1, keepdim=True), x.exp().cumsum(-1)], -1)


@pytest.mark.parametrize("asks", [False, True])
def test_the_words_of_the_page(asks: bool) -> None:
    @metaopt.symmetry_rule(_Wide)
    def wide(op: Operation) -> Result:
        assert op.module.mixing.shape == (8, 12)
        (x,) = op.moved(op.masked(op.value(0)), _doubled)
        x = op.power(op.contract([x, op.own("mixing")], ["bi", "oi"], "bo"), 3)
        op.fix(op.curved(x))
        op.fix(op.total(x, [-1]))
        return op.like(op.shape)

    model = Around(_Wide(), asks)
    model.b = nn.Linear(9, 3)
    # Where entries lie is known in a run alone.
    found = metaopt.symmetries(model, torch.randn(5, 4))
    assert [f"{s.group}: {s.name}" for s in found] == ["positive scaling: a -> inside.mixing"]


def test_the_page_prints_what_it_says(capsys: pytest.CaptureFixture[str]) -> None:
    code = re.findall(r"^```python\n(.*?)^```", PAGE, flags=re.M | re.S)
    said = re.findall(r"^```text\n(.*?)^```", PAGE, flags=re.M | re.S)
    assert len(code) == len(said) == 3
    exec(compile("\n".join(code), "symmetry_rule.md", "exec"), {})
    assert capsys.readouterr().out == "".join(said)


def test_a_rule_of_the_page_takes_ten_lines() -> None:
    rules = re.findall(r"^@metaopt.symmetry_rule.*?(?=\n\n)", PAGE, flags=re.M | re.S)
    assert [len(rule.splitlines()) <= 10 for rule in rules] == [True] * 3


def test_a_model_is_shown_as_the_page_about_commands_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    page = (ROOT / "docs" / "guide" / "commands.md").read_text(encoding="utf-8")
    (tmp_path / "net.py").write_text(page.split("```python\n")[1].split("```")[0])
    monkeypatch.chdir(tmp_path)
    assert f"```text\n{report('net.py:build')}\n```" in page


class _Reversed(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x[:, [5, 4, 3, 2, 1, 0]]


class _Recurrent(nn.Module):
    def __init__(self, kind: type[nn.Module]) -> None:
        super().__init__()
        self.inside = kind(6, 6)

    def forward(self, x: Tensor) -> Tensor:
        found: Tensor = self.inside(x)[0]
        return found


@pytest.mark.parametrize("inside", [_Reversed(), *map(_Recurrent, (nn.RNN, nn.LSTM, nn.GRU))])
def test_what_the_theory_says_is_not_found(inside: nn.Module) -> None:
    found = metaopt.symmetries(Around(inside), torch.randn(5, 4), permutations=True)
    assert not found
    assert {skipped.module for skipped in found.skipped} >= {"b"}
