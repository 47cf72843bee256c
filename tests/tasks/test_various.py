"""The wide families: tasks that equal generators draw equally, and that can be trained twice over.

``ENTRIES`` are those that the default rule for mini-batches is meta-trained on.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from torch import Tensor

from metaopt.base.errors import UserError
from metaopt.base.streams import Stream
from metaopt.tasks import various_pictures, various_tables, various_texts
from metaopt.tasks.images import digits_apart
from metaopt.tasks.own import Task, make
from metaopt.tasks.own_batch import LossFamily, LossTasks
from metaopt.tasks.various import Various
from metaopt.tasks.various_corpus import MASK, UNKNOWN, corpus, tokens
from metaopt.tasks.various_pictures import Pictures
from metaopt.tasks.various_tables import Tables
from metaopt.tasks.various_texts import Texts

NAME = "metaopt.tasks.various:Various"
ENTRIES: list[dict[str, Any]] = yaml.safe_load(
    """
- {of: pictures, hidden: "40", activation: tanh, varied: true}
- {of: pictures, hidden: "", varied: true, batch: 24}
- {of: pictures, hidden: "72-36", activation: gelu, varied: true, batch: 40}
- {of: pictures, hidden: "28-28-28-28", varied: true}
- {of: pictures, hidden: "26-26-26-26-26-26-26", activation: leaky_relu, norm: layer, varied:
   true}
- {of: pictures, hidden: "44-44-22", activation: silu, norm: batch, varied: true, batch: 48}
- {of: pictures, hidden: "36-12-36", asks: image, varied: true, batch: 24}
- {of: pictures, network: convolutions, hidden: "6-12", norm: batch, varied: true}
- {of: pictures, network: convolutions, hidden: "8-8-20", pool: stride, activation: gelu, varied:
   true, batch: 16}
- {of: pictures, network: residual, hidden: "10", norm: batch, varied: true, batch: 24}
- {of: pictures, network: residual, hidden: "6", layers: 2, varied: true, batch: 16}
- {of: pictures, network: rows, hidden: "28", heads: 4, first: false, activation: relu, varied:
   true}
- {of: pictures, network: rows, hidden: "20", heads: 4, layers: 2, final: true, varied: true,
   batch: 16}
- {of: pictures, network: patches, hidden: "18", heads: 3, first: false, init: small_tables,
   varied: true, batch: 16}
- {of: tables, table: wine, hidden: "20-20", varied: true, batch: 16}
- {of: tables, table: diabetes, hidden: "24-12", activation: tanh, varied: true}
- {of: tables, table: iris, hidden: "10", activation: silu, varied: true, batch: 16}
- {of: tables, table: teacher, hidden: "48-48-48", activation: gelu, inputs: 16, outputs: 2,
   regression: true, varied: true}
- {of: tables, table: teacher, hidden: "112", norm: layer, inputs: 24, outputs: 6, varied: true,
   batch: 64}
- {of: tables, table: mixture, hidden: "30-30-30-30", activation: leaky_relu, norm: batch, inputs:
   14, outputs: 5, varied: true}
- {of: tables, table: mixture, hidden: "14-14-14-14-14", activation: silu, inputs: 6, outputs: 1,
   regression: true, varied: true, batch: 24}
- {of: texts, unit: words, vocabulary: 160, context: 3, width: 12, hidden: "32", activation: tanh,
   varied: true, batch: 48}
- {of: texts, unit: characters, vocabulary: 48, context: 6, width: 8, hidden: "64-32", activation:
   relu, norm: layer, varied: true, batch: 64}
- {of: texts, network: causal, unit: characters, vocabulary: 48, context: 12, width: 24, heads: 3,
   final: true, varied: true}
- {of: texts, network: causal, unit: words, vocabulary: 80, context: 8, width: 16, layers: 2,
   first: false, init: small_tables, activation: relu, varied: true}
- {of: texts, network: masked, unit: words, vocabulary: 120, context: 12, width: 24, heads: 3,
   layers: 2, first: false, init: small_tables, normed: true, varied: true}
- {of: texts, network: masked, unit: words, vocabulary: 100, context: 10, width: 40, heads: 4,
   inner: 96, first: false, init: bert, normed: true, tied: true, varied: true}
- {of: texts, network: recurrent, unit: characters, vocabulary: 44, context: 12, width: 12,
   hidden: "28", varied: true}
"""
)


def short(options: dict[str, Any]) -> str:
    kinds = (options["of"], options.get("network"), options.get("table"), options.get("hidden"))
    return " ".join(str(kind) for kind in kinds if kind is not None)


entries = pytest.mark.parametrize("options", ENTRIES, ids=short)


def of(options: dict[str, Any]) -> LossFamily:
    return LossFamily(make(NAME, options), NAME)


def twice(tasks: LossTasks) -> tuple[Tensor, tuple[Tensor, ...], tuple[Tensor, ...]]:
    """Loss [B], its gradients, and the gradients of half their squared length."""
    weights = tuple(W.clone().requires_grad_() for W in tasks.initial)
    seen = tasks.observe(weights)
    length = sum((G.square().sum() / 2 for G in seen.grads), torch.zeros(()))
    # What adds to a softmax as a whole has no gradient at all.
    second = torch.autograd.grad(length, weights, allow_unused=True, materialize_grads=True)
    assert seen.loss is not None
    return seen.loss.detach(), tuple(G.detach() for G in seen.grads), second


@entries
def test_every_entry_can_be_trained_through(options: dict[str, Any]) -> None:
    """Equal generators give equal tasks, and loss, gradient and second order are finite."""
    family = of(options)
    one, other = (family.drawn(Stream.TRAIN, 3, 0, 2) for _ in range(2))
    for name in ("initial", "data", "test"):
        first, second = getattr(one, name), getattr(other, name)
        assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True)), name
        # Each task draws its own.
        assert any(not torch.equal(*part) for part in first), name
    loss, gradient, through = twice(one.at(0))
    assert loss.min() >= 0
    for part in (loss, one.loss(one.initial), *gradient, *through):
        assert part.isfinite().all()
    # No parameter is idle; biases of keys are: they move all scores of a query alike.
    idle = [name for name, G in zip(one.shapes, gradient, strict=True) if not G.any()]
    assert not [name for name in idle if not name.endswith("k.bias")]


SMALL: list[dict[str, Any]] = [
    {"of": "pictures", "hidden": "5-4", "activation": "gelu", "norm": "layer"},
    {"of": "pictures", "hidden": "5", "activation": "tanh", "asks": "image"},
    {"of": "pictures", "network": "convolutions", "hidden": "2-3", "activation": "silu"},
    {"of": "pictures", "network": "residual", "hidden": "2", "activation": "gelu"},
    {"of": "pictures", "network": "rows", "hidden": "4", "first": False},
    {"of": "pictures", "network": "patches", "hidden": "4"},
    {"of": "tables", "table": "mixture", "hidden": "4", "activation": "silu", "norm": "batch"},
    {"of": "tables", "table": "diabetes", "hidden": "4", "activation": "tanh"},
    {"of": "texts", "hidden": "6", "width": 3, "vocabulary": 20, "activation": "tanh"},
    {"of": "texts", "network": "recurrent", "hidden": "4", "width": 3, "vocabulary": 20},
    {"of": "texts", "network": "causal", "width": 4, "vocabulary": 20, "context": 5},
    {"of": "texts", "network": "masked", "width": 4, "vocabulary": 20, "context": 8, "tied": True},
]


@pytest.mark.parametrize("options", SMALL, ids=short)
def test_gradients_of_both_orders_are_finite_differences(options: dict[str, Any]) -> None:
    norm = "batch" if options.get("network") in ("convolutions", "residual") else None
    family = of(options | {"batch": 8} | ({"norm": norm} if norm else {}))
    tasks = family.sample(Stream.TRAIN, 0, 0, 1, torch.float64).at(0)
    _, gradient, through = twice(tasks)
    draws = torch.Generator().manual_seed(0)
    along = [torch.randn(W.shape, generator=draws, dtype=W.dtype) for W in tasks.initial]
    step = 1e-6

    def moved(sign: int) -> tuple[Tensor, Tensor]:
        weights = tuple(W + sign * step * V for W, V in zip(tasks.initial, along, strict=True))
        seen = tasks.observe(weights)
        assert seen.loss is not None
        return seen.loss.sum(), sum((G.square().sum() / 2 for G in seen.grads), torch.zeros(()))

    (loss, length), (loss_back, length_back) = moved(1), moved(-1)
    for found, forth, back in ((gradient, loss, loss_back), (through, length, length_back)):
        wanted = float((forth - back) / (2 * step))
        total = float(sum(((G * V).sum() for G, V in zip(found, along, strict=True))))
        assert total == pytest.approx(wanted, rel=1e-5, abs=1e-8)


def rows_of(X: Tensor) -> set[bytes]:
    return {row.numpy().tobytes() for row in X}


def drawn(family: Pictures | Tables | Texts, seed: int = 0) -> Task:
    return family.sample(np.random.default_rng(seed))


@cache
def apart() -> tuple[set[bytes], set[bytes]]:
    seen, reserved = digits_apart()
    return rows_of(seen.X), rows_of(reserved.X)


def test_pictures_are_shown_or_judged_and_never_those_reserved() -> None:
    seen, reserved = apart()
    for seed in range(3):
        task = drawn(Pictures(judged=1000), seed)
        shown, judged = rows_of(task.data[0]), rows_of(task.test[0])
        assert len(shown) + len(judged) == 1198
        assert shown | judged == seen
        assert not (shown | judged) & reserved


@pytest.mark.parametrize("network", various_pictures.NETWORKS)
def test_the_reserved_third_is_not_read(network: str, monkeypatch: pytest.MonkeyPatch) -> None:
    seen, _ = digits_apart()
    options: dict[str, Any] = {"network": network, "hidden": "8", "varied": True}
    wanted = drawn(Pictures(**options))
    monkeypatch.setattr(various_pictures, "digits_apart", lambda: (seen, None))
    found = drawn(Pictures(**options))
    for one, other in zip(found.data + found.test, wanted.data + wanted.test, strict=True):
        assert torch.equal(one, other)


def test_varied_pictures_have_the_labels_of_their_classes(monkeypatch: pytest.MonkeyPatch) -> None:
    """The rows are those of the task without changes, and equal classes stay equal."""
    monkeypatch.setattr(various_pictures, "WRONG", 0)
    for seed in range(6):
        plain, varied = (drawn(Pictures(varied=is_varied), seed) for is_varied in (False, True))
        old, new = plain.test[1], varied.test[1]
        names = {(int(a), int(b)) for a, b in zip(old, new, strict=True)}
        assert len(names) == len(old.unique())
        # Rows that come again do so with their labels.
        again = {(row.numpy().tobytes(), int(y)) for row, y in zip(*varied.data, strict=True)}
        assert len(again) == len(rows_of(varied.data[0]))


def test_an_image_told_again_costs_its_squared_errors() -> None:
    family = Pictures(hidden="", asks="image")
    X = torch.rand(5, 64)
    weights = {"0.weight": torch.eye(64), "0.bias": torch.full((64,), 0.5)}
    loss = family.loss(weights, (X, torch.zeros(5).long()))
    assert float(loss) == pytest.approx(0.25)


@pytest.mark.parametrize(("table", "rows"), [("diabetes", 442), ("iris", 150), ("wine", 178)])
def test_rows_of_tables_are_shown_or_judged(
    table: str, rows: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, y = various_tables.stored(table)
    numbers = torch.arange(rows, dtype=torch.float32)[:, None].expand(-1, 2)
    monkeypatch.setattr(various_tables, "stored", lambda _: (numbers, y))
    monkeypatch.setattr(various_tables, "standardised", lambda X, _: X)
    task = drawn(Tables(table))
    shown, judged = (set(part[0][:, 0].tolist()) for part in (task.data, task.test))
    assert not shown & judged
    assert shown | judged == set(range(rows))
    for X, found in (task.data, task.test):
        assert torch.equal(found, y[X[:, 0].long()])


@pytest.mark.parametrize("table", various_tables.DRAWN)
def test_targets_of_drawn_tables_are_standardised(table: str) -> None:
    numbers = drawn(Tables(table, outputs=3, regression=True)).data[1]
    assert numbers.shape == (1536, 3)
    torch.testing.assert_close(numbers.mean(0), torch.zeros(3), atol=1e-5, rtol=0)
    torch.testing.assert_close(numbers.var(0, correction=0), torch.ones(3))
    classes = drawn(Tables(table, outputs=5)).data[1]
    assert set(classes.tolist()) == set(range(5))


@pytest.mark.parametrize("network", various_texts.NETWORKS)
def test_windows_are_shown_or_judged(network: str) -> None:
    family = Texts(network=network, context=8, width=8)
    family.windows = various_texts.windows(torch.arange(9000), family.windows.shape[1])
    task = drawn(family)
    shown, judged = (set(part[0].flatten().tolist()) - {MASK} for part in (task.data, task.test))
    assert not shown & judged
    if network == "masked":
        x, at, y = task.data
        assert torch.equal(
            x.scatter(1, at, y) - x.scatter(1, at, y)[:, :1], torch.arange(8) + 0 * x
        )
    else:
        x, y = task.data
        assert torch.equal(y, x[:, -1] + 1 if network == "grams" else x + 1)


def test_the_text_is_public_and_not_that_of_the_tests() -> None:
    text = corpus()
    assert text == " ".join(text.lower().split())
    # Neither folders of a machine nor addresses of its memory.
    for place in ("/usr", "/home", "/opt", "site-packages", "<function", "object at 0x"):
        assert place not in text
    from pydoc_data.topics import topics  # what studies.rivals judges by

    for name in topics:
        assert " ".join(topics[name].lower().split())[:200] not in text


def test_tokens_are_the_most_frequent_units() -> None:
    characters = tokens("characters", 30)
    assert len(characters) == len(corpus())
    counts = characters.bincount()
    assert len(counts) == 30
    assert counts[MASK] == 0
    assert int(counts[2]) == corpus().count(" ")
    assert (counts[2:].diff() <= 0).all()
    assert counts[UNKNOWN] > 0


@pytest.mark.parametrize(
    ("options", "hint"),
    [
        ({"of": "movies"}, "of: found 'movies', expected one of pictures, tables, texts"),
        ({"of": "tables", "wide": 3}, "expected some of table, hidden"),
        ({"of": "pictures", "network": "mlp"}, "network: found 'mlp', expected one of perceptron"),
        ({"of": "pictures", "network": "rows", "asks": "image"}, "asks: found 'image'"),
        ({"of": "pictures", "network": "rows", "hidden": "9"}, "expected a multiple of 2 heads"),
        ({"of": "pictures", "network": "rows", "hidden": "8-8"}, "hidden: found '8-8'"),
        ({"of": "tables", "outputs": 1}, "outputs: found 1 classes, expected at least 2"),
        ({"of": "texts", "unit": "lines"}, "unit: found 'lines', expected one of characters"),
        ({"of": "texts", "vocabulary": 2}, "vocabulary: found 2, expected at least 3"),
    ],
)
def test_mistakes_in_options_end_in_a_line(options: dict[str, Any], hint: str) -> None:
    with pytest.raises(UserError) as caught:
        Various(**options)
    assert hint in str(caught.value)
    assert "\n" not in str(caught.value)
