"""No shipped recipe takes more operations of torch a step than it did: a number, and no time."""

from __future__ import annotations

import pytest
import torch

from benchmarks.operations import ALLOWED, RENEWED, Counter, grown, recipes, recorded

pytestmark = pytest.mark.filterwarnings("ignore:.*:UserWarning")


@pytest.mark.parametrize("recipe", recipes())
def test_a_step_takes_no_more_operations_than_were_recorded(recipe: str) -> None:
    line = grown(recipe, recipes()[recipe](), recorded().get(recipe))
    assert line is None, line


def test_no_recipe_is_recorded_that_is_gone() -> None:
    assert recorded().keys() == recipes().keys()


def test_operations_are_counted_forward_and_backward_and_views_are_not() -> None:
    x = torch.ones(2, 3, requires_grad=True)
    with Counter() as forward:
        y = x.T[0].exp()
    assert forward.count == 1
    with Counter() as both:
        x.exp().sum()
    with Counter() as backward:
        y.sum().backward()
    assert both.count == 2
    # The sum, a one to start from, its product with exp(x), and the row put back among zeros.
    assert backward.count >= 4


def test_what_has_grown_is_told_in_one_line() -> None:
    allowed = 200 * (1 + ALLOWED)
    assert grown("drop-in: mine", allowed, 200.0) is None
    line = grown("drop-in: mine", allowed + 1, 200.0)
    assert line is not None
    for part in ("drop-in: mine", "200", f"{allowed + 1:g}", RENEWED):
        assert part in line
    assert RENEWED in (grown("drop-in: new", 1.0, None) or "")
