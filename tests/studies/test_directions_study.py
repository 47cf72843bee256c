"""Directions one by one: what each variant is, that c = 1 is no average, and the table."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from metaopt import LearnedOptimizer
from metaopt.rules.learned import eigen
from metaopt.tasks.images import digits_apart
from studies import directions
from studies.directions import SHIPPED, SMOKE, VARIANTS, Piece, Unaveraged
from studies.noether.folder import Folder
from studies.rivals.networks import perceptron


def trained(variant: str, steps: int = 6) -> list[torch.Tensor]:
    """Weights after some steps on digits, to be evaluated."""
    torch.manual_seed(0)
    model = perceptron([64, 12, 10], torch.nn.Tanh)
    optimizer = LearnedOptimizer(model, VARIANTS[variant].rule())
    rows = directions.images().train
    for step in range(steps):
        optimizer.zero_grad()
        part = slice(32 * step, 32 * step + 32)
        torch.nn.functional.cross_entropy(model(rows.x[part]), rows.y[part]).backward()
        optimizer.step()
    optimizer.eval()
    return [p.detach().clone() for p in model.parameters()]


def test_without_averages_is_c_of_one(monkeypatch: pytest.MonkeyPatch) -> None:
    without = trained("Adam and orthogonal, no averages")
    averaged = trained(SHIPPED)
    assert not any(torch.allclose(a, b) for a, b in zip(without, averaged, strict=True))
    # c = p / (t + p)
    monkeypatch.setattr(eigen, "AVERAGED", 1e30)
    for a, b in zip(without, trained(SHIPPED), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-6)


def test_variants_mix_what_they_say() -> None:
    for name, variant in VARIANTS.items():
        rule = variant.rule().optimizer.rules["update"]
        if isinstance(rule, Unaveraged):
            rule = rule.rule
        assert isinstance(rule, eigen.EigenUpdateLSTM)
        assert sum(rule.untrained) == pytest.approx(1), name
        shares = [share for share in rule.untrained if share]
        assert shares == pytest.approx([1 / len(variant.directions)] * len(variant.directions))


def test_images_that_judge_elsewhere_are_not_seen() -> None:
    seen, _ = digits_apart()
    parts = directions.images()
    together = torch.cat([parts.train.x, parts.validation.x])
    assert torch.equal(together, seen.X)
    assert len(parts.test.x) == 0


def test_a_piece_is_kept_and_the_table_is_relative(tmp_path: Path) -> None:
    piece = Piece(next(iter(directions.NETWORKS)), "sign", 2.0, 0)
    kept = Folder(tmp_path, "x")
    losses = directions.run(piece, SMOKE, kept)
    assert losses == directions.run(piece, SMOKE, kept)
    assert len(losses) == len(SMOKE.marks)

    def loss(piece: Piece) -> list[float]:
        # As the others at lr 1, and half of that at 2; sign is thrice that of all others.
        own = (3.0 if piece.variant == "sign" else 1.0) / piece.rate
        return [own * (1 + piece.seed), own]

    table = directions.table({one: loss(one) for one in directions.pieces(SMOKE)}, SMOKE)
    rows = {line.split("|")[1].strip(): line for line in table.splitlines()[2:]}
    assert [*rows] == [*VARIANTS]
    assert "1 (0.5 at 2) |" in rows[SHIPPED]
    assert "3 (1.5 at 2) |" in rows["sign"]
