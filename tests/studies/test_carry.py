"""How far the default rule carries: what is trained, what is kept, which figures are told."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional

from metaopt.base.shipped import DEFAULT
from metaopt.base.streams import Stream
from metaopt.optim.finite import NonFiniteError
from metaopt.tasks.images import digits_apart
from metaopt.tasks.various_corpus import MODULES as READ
from studies.carry import data, page, result, runs, settings
from studies.carry.runs import Piece, Where
from studies.carry.settings import FULL, SMOKE, Setting
from studies.drop_in_training import MODELS
from studies.minilm.contenders import Plain
from studies.rivals.contenders import COSINE, FREE, Contender
from studies.rivals.data import Rows
from studies.rivals.training import Start, alone, follow

NOWHERE = Path("no such folder")


def by_name(size: settings.Size) -> dict[str, Setting]:
    return {one.task.name: one for one in settings.settings(size, NOWHERE)[0]}


def test_networks_have_the_sizes_that_their_names_say() -> None:
    of = {name: settings.numbers(one.task) for name, one in by_name(FULL).items()}
    assert of["large CNN"] == pytest.approx(1e6, rel=0.05)
    assert of["language model"] == pytest.approx(3e6, rel=0.15)
    for wide, small in (
        ("two wide layers", "two layers, 32 units"),
        ("three wide layers", "3 layers, 100 and 50 units"),
    ):
        shapes = [p.shape for p in MODELS[small]().parameters() if p.ndim > 1]
        wider = [p.shape for p in by_name(FULL)[wide].task.make().parameters() if p.ndim > 1]
        hidden = [(own.numel(), shape.numel()) for own, shape in zip(wider, shapes, strict=True)]
        # One side of the first and the last matrix is that of the data.
        factors = [own / before for own, before in hidden]
        assert factors == [10.0, *[100.0] * (len(factors) - 2), 10.0]
    assert sum(name.endswith("; far") for name in of) == len(MODELS)


@pytest.mark.parametrize("name", by_name(SMOKE))
def test_each_network_fits_its_data(name: str) -> None:
    task = by_name(SMOKE)[name].task
    rows = task.parts().test
    torch.manual_seed(0)
    loss = task.loss(task.make()(rows.x), rows.y)
    loss.backward()
    classes = 256 if name == "language model" else 10
    assert float(loss.detach()) == pytest.approx(math.log(classes), rel=0.2)


def test_the_text_is_of_modules_that_meta_training_never_read() -> None:
    assert not {*data.MODULES} & {*READ}
    train, apart = data._texts()
    assert min(len(train), len(apart)) > 30_000
    rows = data.text(FULL.judged).train
    assert torch.equal(rows.x.flatten()[1:], rows.y.flatten()[:-1])
    assert bytes(rows.x.flatten().tolist()) in train.encode()
    judged = data.text(FULL.judged).test
    for x, y in zip(judged.x[:5].tolist(), judged.y[:5].tolist(), strict=True):
        assert bytes([*x, y[-1]]) in apart.encode()
        assert bytes(x) not in train.encode()


def test_the_language_model_looks_back_alone() -> None:
    torch.manual_seed(0)
    model = settings.language_model(16, 2)
    x = torch.randint(256, (2, data.CONTEXT))
    other = x.clone()
    other[:, 40] = (x[:, 40] + 1) % 256
    differs = (model(x) - model(other)).abs().amax((0, 2)) > 0
    assert differs.tolist() == [i >= 40 for i in range(data.CONTEXT)]


def test_digits_that_judge_are_read_by_nobody() -> None:
    seen, apart = digits_apart()
    parts = data.digits(FULL.judged)
    assert torch.equal(parts.train.x, seen.X)
    assert torch.equal(parts.test.x, apart.X[: FULL.judged])
    resized = data.resized(lambda: parts)
    assert resized.train.x.shape == (len(seen.X), 1, data.PIXELS, data.PIXELS)
    mean = functional.avg_pool2d(resized.test.x, 2).flatten(1)
    # Twice as many pixels a side: the same image, somewhat smoother.
    assert np.corrcoef(mean.flatten(), parts.test.x.flatten())[0, 1] > 0.95


class Breaking:
    """A trainer that moves nothing, and raises at its third step."""

    steps = 0

    def zero_grad(self) -> None:
        """Nothing."""

    def step(self) -> None:
        """Count."""
        self.steps += 1
        if self.steps == 3:
            raise NonFiniteError("p", 3)

    def eval(self) -> None:
        """Nothing."""

    train = eval


def test_losses_are_infinite_from_where_an_optimizer_breaks() -> None:
    torch.manual_seed(0)
    x = torch.ones(4, 2)
    rows = Rows(x, x.sum(1, keepdim=True))
    begun = Start(nn.Linear(2, 1), torch.zeros(5, 3, dtype=torch.long))
    first = functional.mse_loss(begun.model(x), rows.y).item()
    trainer = Plain([Breaking()])  # type: ignore[list-item]
    found = follow(begun, trainer, functional.mse_loss, rows, rows, (0, 2, 4, 5))
    assert found == [pytest.approx(first), pytest.approx(first), math.inf, math.inf]


def _where(tmp_path: Path) -> Where:
    return Where(SMOKE, NOWHERE, DEFAULT, tmp_path)


def test_a_piece_is_a_run_and_is_kept(tmp_path: Path) -> None:
    setting = by_name(SMOKE)["two wide layers"]
    contenders = [one for one in runs.untold(DEFAULT)[0] if one.learned or one.name == COSINE]
    wanted = list(runs.pieces(setting, contenders))
    # The rule has one rate; a cosine is told each of two marks, at one rate.
    assert len(wanted) == 2 * 1 + 2 * 2
    where = _where(tmp_path)
    found = runs.all_of(wanted, where, 1)
    for piece, one in found.items():
        contender = next(one for one in contenders if one.name == piece.contender)
        of = (piece.rate, piece.horizon, Stream.TEST, piece.seed, piece.marks)
        assert one["losses"] == alone(setting.task, contender, *of)
        assert one["seconds"] > 0
    assert runs.all_of(wanted, where, 1) == found
    told = result.outcome(setting, contenders, found)
    assert told["contenders"][DEFAULT]["learned"]
    assert told["contenders"][COSINE]["cells"][2]["rate"] == settings.WIDE[COSINE][0]
    assert told["contenders"][COSINE]["diverged"] == 0


def _no_optimizer(model: nn.Module, rate: float) -> Any:
    raise AssertionError


def outcomes(losses: dict[str, Any]) -> dict[str, Any]:
    """The JSON of a setting of marks 2 and 4, a cosine being told 4 alone, of one seed.

    Args:
        losses: of each rate of each contender those at 0, 2 and 4.
    """
    setting = replace(
        by_name(SMOKE)["two wide layers"],
        marks=(2, 4),
        told=(4,),
        seeds=1,
        rates={name: tuple(of) for name, of in losses.items()},
    )
    contenders = [
        Contender(name, _no_optimizer, tuple(of), told=name == COSINE, learned=name == "ours")
        for name, of in losses.items()
    ]
    made = {
        piece: {"losses": losses[piece.contender][piece.rate], "seconds": 8.0}
        for piece in runs.pieces(setting, contenders)
    }
    found = {
        "rule": "ours",
        "missing": ["MNIST left out."],
        "text": "Text.",
        "settings": {"tiny": result.outcome(setting, contenders, made)},
    }
    return json.loads(json.dumps(found))


def test_each_column_has_its_best_rate() -> None:
    found = outcomes(
        {
            "ours": {1.0: [2.0, 1.0, 0.5]},
            COSINE: {0.1: [2.0, 0.5, 0.8], 0.2: [2.0, 0.9, 0.4], 0.3: [2.0, 0.8, math.inf]},
            FREE: {0.1: [2.0, math.nan, 30.0]},
        }
    )
    of = found["settings"]["tiny"]["contenders"]
    cells = of[COSINE]["cells"]
    assert (cells["2"]["rate"], cells["2"]["at_edge"]) == (0.1, True)
    assert (cells["4"]["rate"], cells["4"]["at_edge"]) == (0.2, False)
    assert of["ours"]["seconds"] == 2.0
    assert [of[name]["diverged"] for name in ("ours", COSINE, FREE)] == [0, 0, 1]
    assert dict(result.ratios(found, "tiny", "ours")) == {2: [2.0], 4: [1.25]}
    assert result.behind(found) == [f"tiny: behind {COSINE}, at 2 (2 times), 4 (1.25 times)"]
    text = page.text(found)
    assert "0.5 (0.1*) | 0.4 (0.2)" in text
    assert "a cosine is told 4 alone" in text
    assert "- MNIST left out." in text
    assert page.figure(found).startswith(b"\x89PNG")


def test_a_rule_that_is_ahead_or_diverges_is_told() -> None:
    cosine = {0.1: [2.0, 1.0, 0.5]}
    ahead = outcomes({"ours": {1.0: [2.0, 1.0, 0.4]}, COSINE: cosine})
    assert result.behind(ahead) == []
    assert f"No run of `ours` diverged, and it is nowhere behind {COSINE}." in page.text(ahead)
    lost = outcomes({"ours": {1.0: [0.01, 1.0, 0.4]}, COSINE: cosine})
    assert result.behind(lost) == ["tiny: 1 of 1 diverged"]


def test_files_of_other_runs_have_other_names() -> None:
    one = Piece("a", "b", "v", 0.1, 4, (0, 2, 4), 0)
    others = [
        replace(one, version="w"),
        replace(one, rate=0.2),
        replace(one, horizon=8),
        replace(one, marks=(0, 4)),
        replace(one, seed=1),
    ]
    assert len({piece.name for piece in (one, *others)}) == 6
