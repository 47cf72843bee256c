"""The figure of an orbit: a panel for each quantity, in a file that is whole or not there."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from support import signed
from torch import nn

from metaopt.landscape.orbit import Orbit, orbit
from metaopt.landscape.orbit_figure import Panel, orbit_figure


@pytest.fixture(scope="module")
def found() -> Orbit:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2)).double()
    data = signed(6, 3, seed=1), torch.arange(6) % 2
    return orbit(model, "0 -> 2", nn.functional.cross_entropy, data)


def test_a_panel_for_each_quantity(found: Orbit) -> None:
    axes = [axis for axis in found.plot().axes if axis.get_visible()]
    labels = ["L", "|w|²", "|∇L|", "tr Σ", "tr G", "λ(G)", "cosine", "C"]
    assert [axis.get_ylabel() for axis in axes] == labels
    assert all(axis.get_xlabel() for axis in axes[4:])
    drawn = axes[1].get_lines()[0].get_ydata()
    torch.testing.assert_close(torch.as_tensor(drawn), found.squared_norm)
    assert axes[1].get_yscale() == "log"
    assert axes[0].get_title().startswith("loss\nconstant to ")
    assert "least at t = " in axes[1].get_title()


@pytest.mark.parametrize(("name", "head"), [("a.png", b"\x89PNG"), ("b.pdf", b"%PDF")])
def test_written_files(found: Orbit, tmp_path: Path, name: str, head: bytes) -> None:
    found.plot(tmp_path / name)
    assert (tmp_path / name).read_bytes().startswith(head)
    found.plot(str(tmp_path / name))
    assert [path.name for path in tmp_path.iterdir()] == [name]


def test_other_formats_are_refused(found: Orbit, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"must end with one of .png, .pdf, .svg, found"):
        found.plot(tmp_path / "a.gif")
    assert not list(tmp_path.iterdir())


def test_any_order_of_t_gaps_names_with_dollars_and_few_panels() -> None:
    t = torch.tensor([1.0, -1.0, 0.0, 0.5])
    panel = Panel("a $ b $", "c", torch.tensor([2.0, 1.0, torch.nan, 3.0]), torch.ones(4))
    still = Panel("still", "d", torch.ones(4) + 1e-6 * t)
    figure = orbit_figure(t, [panel, still], "a $x$ " * 60)
    figure.canvas.draw()
    first, second, *others = figure.axes
    assert first.get_lines()[0].get_xdata().tolist() == [-1, 0, 0.5, 1]
    assert second.get_xlabel()
    assert second.get_title() == "still\nconstant to 2e-06"
    assert second.get_ylim() == pytest.approx((0.9, 1.1), abs=1e-5)
    assert not any(axis.get_visible() for axis in others)
