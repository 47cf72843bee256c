"""What an example proves, where a model computes more coarsely than its weights are kept."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

import metaopt
from metaopt.symmetry.discovery.operation import Operation
from metaopt.symmetry.discovery.values import Value


class Coarse(nn.Module):
    """A stream whose norms compute in another precision, as those of Llama do in float32."""

    def __init__(self, within: torch.dtype) -> None:
        super().__init__()
        self.within = within
        self.embed = nn.Linear(5, 6, bias=False)
        self.up, self.down = nn.Linear(6, 7), nn.Linear(7, 6)
        self.head = nn.Linear(6, 3, bias=False)
        self.double()

    def norm(self, x: Tensor) -> Tensor:
        wide = x.to(self.within)
        return (wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + 1e-6)).to(x.dtype)

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x)
        x = x + self.down(torch.nn.functional.gelu(self.up(self.norm(x))))
        return self.head(self.norm(x))


@pytest.mark.parametrize("within", [torch.float64, torch.float32, torch.bfloat16])
def test_rounding_of_the_code_is_no_change_of_the_outputs(within: torch.dtype) -> None:
    torch.manual_seed(0)
    model = Coarse(within)
    x = torch.randn(4, 5, dtype=torch.float64)
    found = metaopt.symmetries(model, x)
    assert [(s.group, s.size) for s in found] == [("orthogonal", 6)]
    assert found.skipped == metaopt.symmetries(model).skipped


def test_a_false_symmetry_is_still_seen() -> None:
    class Wrong(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x * (1 + 0.01 * x.float().tanh()).to(x.dtype)

    @metaopt.symmetry_rule(Wrong)
    def as_if_it_did_nothing(op: Operation) -> Value:
        return op.value(0)

    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 5), Wrong(), nn.Linear(5, 3)).double()
    assert len(metaopt.symmetries(model)) == 1
    found = metaopt.symmetries(model, torch.randn(6, 4, dtype=torch.float64))
    assert not found
    assert any("changes the outputs on the example" in one.reason for one in found.skipped)
