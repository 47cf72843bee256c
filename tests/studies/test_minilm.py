"""The study of LoRA on MiniLM, on a small BERT of random weights and made-up words."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from metaopt.base.errors import UserError
from metaopt.base.streams import Stream
from studies.minilm import contenders, frozen, network, page, plan, training, words
from studies.minilm.training import Curve, Judging, Run
from studies.noether.folder import Folder

TINY: dict[str, Any] = {
    "vocab_size": 30,
    "hidden_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "intermediate_size": 24,
    "max_position_embeddings": 8,
    "num_labels": 1,
}
RULE = "lora_update_tele"
SIZE = replace(plan.SMOKE, words=6)
JUDGING = Judging(SIZE.marks, SIZE.words)


def small() -> Any:
    return transformers.BertForSequenceClassification(transformers.BertConfig(**TINY))


def make(seed: int) -> Any:
    return network.adapted(seed, small)


@pytest.fixture(scope="module")
def some() -> words.Words:
    draws = torch.Generator().manual_seed(0)
    inputs = torch.randint(1, 30, (30, words.TOKENS), generator=draws)
    valence = torch.rand(30, generator=draws) * 2 - 1
    parts = torch.arange(30).split([18, 6, 6])
    return words.Words(inputs, torch.ones_like(inputs), valence, *parts)


class Letters:
    """A tokenizer that knows letters, between two marks."""

    pad_token_id = 0

    def __call__(self, word: str) -> dict[str, list[int]]:
        return {"input_ids": [1, *(ord(letter) for letter in word[::3]), 2]}


def test_words_of_one_stem_are_in_one_part() -> None:
    stems = [f"{a}{b}{c}x" for a in "abcde" for b in "fgh" for c in "ijkl"]
    valences = {f"{stem}{end}": 0.5 for stem in stems for end in ("", "ed", "ing")}
    found = words.split(valences, Letters())  # type: ignore[arg-type]
    parts = [set(part.tolist()) for part in (found.train, found.validation, found.test)]
    assert all(parts)
    assert sorted(set.union(*parts)) == [*range(len(valences))]
    for first in range(0, len(valences), 3):
        assert sum(part.isdisjoint({first, first + 1, first + 2}) for part in parts) == 2
    assert found.mask.sum(1).tolist() == [(len(word) + 2) // 3 + 2 for word in valences]
    assert "happily"[: words.STEM] == "happ"


def test_a_package_that_is_missing_is_named() -> None:
    with pytest.raises(UserError, match="needs the package some-package: pip install"):
        words.package("no_such_package", "some-package")


def test_draws_of_tuning_are_never_shown(some: words.Words) -> None:
    run = Run("AdamW", 1e-2, 4, Stream.VALIDATION, 0)
    curves = [
        training.train(one, make, some, JUDGING)
        for one in (run, run, replace(run, stream=Stream.TEST), replace(run, seed=1))
    ]
    losses = [curve.losses[4] for curve in curves]
    assert losses[0] == losses[1]
    assert len(set(losses)) == 3


@pytest.mark.parametrize("name", ["AdamW, cosine", RULE, "LoRA-RITE", "Schedule-Free AdamW"])
def test_each_contender_trains_adapters_and_head(name: str, some: words.Words) -> None:
    if name in ("LoRA-RITE", "Schedule-Free AdamW"):
        pytest.importorskip("pytorch_optimizer")
    one = next((o for o in contenders.RIVALS if o.name == name), None) or contenders.learned(name)
    model = make(0)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    trainer = one.make(model, 1.0 if name == RULE else 1e-2, 4)
    for _ in range(3):
        trainer.zero_grad()
        training.loss(model, some, some.train).backward()
        trainer.step()
    trainer.judged(True)
    moved = {
        key for key, value in model.state_dict().items() if not torch.equal(value, before[key])
    }
    assert moved == {name for name, p in model.named_parameters() if p.requires_grad}
    trainer.judged(False)


def test_the_cosine_ends_at_its_horizon() -> None:
    trainer: Any = contenders.cosine(torch.nn.Linear(2, 1), 0.1, 4)
    rates = []
    for _ in range(6):
        rates.append(trainer.optimizers[0].param_groups[0]["lr"])
        trainer.step()
    assert rates[:2] == [0.1, pytest.approx(0.1 * (1 + 0.5**0.5) / 2)]
    assert rates[4:] == pytest.approx([0, 0])


def made_up(run: Run, judging: Judging) -> Curve:
    """The second rate is best at the end, the first one before; test losses are a tenth larger."""
    off = 0.1 * (run.stream is Stream.TEST)
    rates = contenders.named(run.contender).rates
    best = {mark: rates[mark == 4 and len(rates) > 1] for mark in judging.marks}
    losses = {m: 1 + off + (run.rate != rate) for m, rate in best.items() if m <= run.horizon}
    return Curve(losses, 0.5)


def test_each_column_has_its_own_rate_and_nothing_is_run_twice(tmp_path: Path) -> None:
    folder = Folder(tmp_path, "digest")
    whole = plan.Plan(SIZE, {RULE: "abc"}, folder, 1, made_up)
    rows = whole.rows()
    assert [label for label, _ in rows] == [
        "AdamW, cosine told the column",
        "AdamW, cosine over 4",
        "AdamW",
        "LoRA-RITE",
        "Schedule-Free AdamW",
        RULE,
    ]
    for label, cells in rows:
        rates = [cell.rate for cell in cells]
        grid = contenders.named(cells[0].name).rates
        assert rates == ([1, 1, 1] if label == RULE else [grid[0], grid[0], grid[1]])
        assert [cell.losses for cell in cells] == [[1.1] * SIZE.seeds] * 3
    assert [cell.horizon for cell in rows[0][1]] == [1, 2, 4]

    def never(run: Run, judging: Judging) -> Curve:
        raise AssertionError(run)

    assert replace(whole, of=never).rows() == rows
    with pytest.raises(AssertionError, match=RULE):
        replace(whole, of=never, rules={RULE: "trained on"}).rows()
    text = page.text(rows, SIZE, [RULE], frozen.Frozen(0.1, 1.0, 2.0))
    assert "1.1000 (0.001 *) |" in text
    assert "1.1000 (0.002) |" in text
    assert "in closed form: 2.0000" in text
    assert "not met at 2 and 4" in text
    assert f"- `{RULE}` against AdamW: 1.000 [1.000, 1.000] at 1, " in text


def test_the_best_head_is_that_of_least_squares(some: words.Words) -> None:
    model = small()
    H = frozen.features(model, some, some.train)
    target = H @ torch.linspace(-1, 1, H.shape[1], dtype=H.dtype)
    linear = replace(some, validation=some.train, test=some.train, valence=target.float())
    linear = replace(linear, inputs=some.inputs[:18], mask=some.mask[:18])
    found = frozen.best_head(model, linear, 100)
    assert found.damping == min(frozen.DAMPINGS)
    assert found.test < 1e-2 * float(target.var())
