"""What makes tasks differ keeps images and labels together, and is exactly what it says."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from metaopt.tasks import various_texts as texts
from metaopt.tasks.various_changes import (
    FEWEST,
    ImageChange,
    drawn_change,
    drawn_labels,
    drawn_scale,
    fewer,
    mistaken,
)
from metaopt.tasks.various_corpus import MASK
from metaopt.tasks.various_pictures import LEVELS, patches
from metaopt.tasks.various_tables import standardised, turned

IMAGE = [[0.1, 0.2, 0.3], [0.4, 0.5, 0.6], [0.7, 0.8, 0.9]]


def draws(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


@pytest.mark.parametrize(
    ("change", "wanted"),
    [
        (ImageChange(), IMAGE),
        (ImageChange(down=1), [[0, 0, 0], *IMAGE[:2]]),
        (ImageChange(down=-1, right=1), [[0, 0.4, 0.5], [0, 0.7, 0.8], [0, 0, 0]]),
        (ImageChange(transposed=True), [[0.1, 0.4, 0.7], [0.2, 0.5, 0.8], [0.3, 0.6, 0.9]]),
        (ImageChange(mirrored=True), [row[::-1] for row in IMAGE]),
        (ImageChange(inverted=True), [[1 - x for x in row] for row in IMAGE]),
        (ImageChange(contrast=0.5), [[0.25 + x / 2 for x in row] for row in IMAGE]),
        (
            ImageChange(order=torch.tensor([1, 0, *range(2, 9)])),
            [[0.2, 0.1, 0.3], *IMAGE[1:]],
        ),
    ],
)
def test_images_change_as_named(change: ImageChange, wanted: list[list[float]]) -> None:
    found = change.of(torch.tensor(IMAGE).reshape(1, 9), draws())
    torch.testing.assert_close(found, torch.tensor(wanted).reshape(1, 9).float())


def test_noise_has_the_deviation_that_is_asked_for() -> None:
    images = torch.rand(500, 64)
    noise = ImageChange(noise=0.2).of(images, draws()) - images
    assert float(noise.std()) == pytest.approx(0.2, rel=0.02)
    assert float(noise.mean()) == pytest.approx(0, abs=0.01)


def test_pixels_change_order_only_where_they_may() -> None:
    orders = [drawn_change(draws(seed), 64, permutes=True).order for seed in range(20)]
    drawn = [order for order in orders if order is not None]
    assert 0 < len(drawn) < 20
    for order in drawn:
        assert order.sort().values.tolist() == list(range(64))
    assert all(drawn_change(draws(seed), 64, permutes=False).order is None for seed in range(20))


def test_classes_are_permuted_or_merged() -> None:
    found = [drawn_labels(draws(seed), 10) for seed in range(40)]
    counts = [len(set(names.tolist())) for names in found]
    assert 10 in counts
    assert min(counts) >= 2
    assert len(set(counts)) > 3
    for names, count in zip(found, counts, strict=True):
        assert set(names.tolist()) == set(range(count))


@pytest.mark.parametrize("share", [0, 0.1, 1])
def test_so_many_labels_are_wrong(share: float) -> None:
    y = torch.arange(200).reshape(20, 10) % 7
    found = mistaken(y, share, 7, draws())
    assert int((found != y).sum()) == round(share * 200)
    assert found.min() >= 0
    assert found.max() < 7


def test_factors_of_inputs_are_between_those_of_e() -> None:
    logs = np.log([drawn_scale(draws(seed)) for seed in range(50)])
    assert np.abs(logs).max() <= 1
    assert logs.min() < -0.7
    assert logs.max() > 0.7


def test_fewer_rows_are_the_first_ones_again_and_again() -> None:
    rows = torch.randperm(300, generator=torch.Generator().manual_seed(0))
    counts = set()
    for seed in range(20):
        found = fewer(rows, draws(seed))
        count = len(found.unique())
        assert len(found) == 300
        assert torch.equal(found, rows[torch.arange(300) % count])
        counts.add(count)
    assert max(counts) == 300
    assert FEWEST <= min(counts) < 150


def test_a_patch_is_the_number_of_its_levels() -> None:
    levels = torch.randint(LEVELS, (5, 64), generator=torch.Generator().manual_seed(0))
    found = patches((levels + 0.5) / LEVELS)
    digits = found[..., None] // LEVELS ** torch.arange(4) % LEVELS
    images = digits.reshape(5, 4, 4, 2, 2).transpose(2, 3).reshape(5, 64)
    assert torch.equal(images, levels)


def test_columns_turn_without_changing_lengths() -> None:
    for seed in range(4):
        Q = turned(draws(seed), 6).double()
        torch.testing.assert_close(Q @ Q.T, torch.eye(6).double(), atol=1e-6, rtol=0)


def test_columns_are_standardised_by_the_rows_shown() -> None:
    X = torch.cat([torch.randn(50, 3) * 4 + 2, torch.full((50, 1), 7.0)], dim=1)
    rows = torch.arange(20)
    found = standardised(X, rows)[rows]
    torch.testing.assert_close(found.mean(0), torch.zeros(4), atol=1e-6, rtol=0)
    torch.testing.assert_close(found.var(0, correction=0), torch.tensor([1.0, 1, 1, 0]))


def some_windows() -> Tensor:
    found = torch.randint(40, (30, 16), generator=torch.Generator().manual_seed(0))
    return found.where(found != MASK, 0)


def test_renamed_tokens_are_told_back() -> None:
    names = texts.renamed(draws(), 40)
    assert names[MASK] == MASK
    assert not torch.equal(names, torch.arange(40))
    assert torch.equal(names.argsort()[names[some_windows()]], some_windows())


def test_so_many_tokens_are_misread_and_none_becomes_a_mask() -> None:
    found = texts.misread(some_windows(), 0.5, 40, draws())
    assert int((found != some_windows()).sum()) == 240
    assert not (found == MASK).any()
    assert found.max() < 40


def test_masks_hide_what_is_asked_for() -> None:
    given, at, hidden = texts.masked(some_windows(), draws())
    assert at.shape == (30, 2)
    assert ((given == MASK).sum(1) == 2).all()
    assert torch.equal(given.scatter(1, at, hidden), some_windows())


def test_windows_do_not_overlap_and_stretches_hang_together() -> None:
    cut = texts.windows(torch.arange(103), 5)
    assert torch.equal(cut.flatten(), torch.arange(100))
    part = texts.stretch(cut, draws())
    assert len(part) == 6
    assert torch.equal(part.flatten(), torch.arange(30) + part[0, 0])
