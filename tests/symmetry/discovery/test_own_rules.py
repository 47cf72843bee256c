"""Rules of a user's own: for modules, for functions, with parameters."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from places import ROOT
from teleports import change, outputs, teleported
from torch import Tensor, nn

import metaopt
from metaopt.symmetry.discovery.operation import Operation, Result
from metaopt.symmetry.discovery.rules.registry import RULES


@pytest.fixture(autouse=True)
def _only_here() -> Iterator[None]:
    before = dict(RULES)
    yield
    RULES.clear()
    RULES.update(before)


class _Half(nn.Module):
    """Positively homogeneous, in a way that no trace shows."""

    def forward(self, x: Tensor) -> Tensor:
        return x.sort(dim=0).values.clamp(min=0) if x.sum() > 1e9 else x.relu() * 0.5


def _net() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 6), _Half(), nn.Linear(6, 3))


def test_a_rule_for_a_module() -> None:
    assert not metaopt.symmetries(_net())

    @metaopt.symmetry_rule(_Half)
    def half(op: Operation) -> Result:
        return op.homogeneous(op.value(0))

    for found in (metaopt.symmetries(_net()), metaopt.symmetries(_net(), torch.randn(5, 4))):
        assert [f"{s.group}: {s.name}" for s in found] == ["positive scaling: 0 -> 2"]
        assert not found[0].assumes
    x = torch.randn(5, 4)
    assert change(outputs(_net(), x), outputs(teleported(_net()), x)) < 1e-6


def test_a_rule_that_is_wrong_is_found_out_by_an_example() -> None:
    @metaopt.symmetry_rule(_Half)
    def wrong(op: Operation) -> Result:
        return op.value(0)

    assert [s.group for s in metaopt.symmetries(_net())] == ["general linear"]
    found = metaopt.symmetries(_net(), torch.randn(5, 4))
    assert not found
    assert "changes the outputs on the example" in str(found)


class _Squashed(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(4, 6), nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.b(torch.special.i1(self.a(x)))


def test_a_rule_for_a_function() -> None:
    assert not metaopt.symmetries(_Squashed())

    @metaopt.symmetry_rule(torch.special.i1)
    def bessel(op: Operation) -> Result:
        return op.odd(op.value(0))

    found = metaopt.symmetries(_Squashed(), torch.randn(5, 4))
    assert [f"{s.group}: {s.name}" for s in found] == ["sign flips: a -> b"]


def test_what_is_no_operation_is_refused() -> None:
    with pytest.raises(TypeError, match="expected classes of modules, functions or their names"):
        metaopt.symmetry_rule(3)


def test_the_page_runs(capsys: pytest.CaptureFixture[str]) -> None:
    page = (ROOT / "docs" / "extending" / "symmetry_rule.md").read_text(encoding="utf-8")
    code = page.split("```python\n")[1].split("```")[0]
    exec(compile(code, "symmetry_rule.md", "exec"), {})
    assert "positive scaling" in capsys.readouterr().out
