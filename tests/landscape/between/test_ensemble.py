"""Ensembles: the mean of what members predict, their memory, and their files."""

from __future__ import annotations

from pathlib import Path
from typing import cast

import pytest
import torch
from torch import Tensor, nn

import metaopt
from metaopt.landscape.between import ensemble as ensemble_module
from metaopt.landscape.between.ensemble import Average, average_of
from metaopt.landscape.between.tensors import tensors_of_model

F = nn.functional


class Frozen(nn.Module):
    """A frozen layer, BatchNorm, a head; ``scale`` is a keyword argument."""

    def __init__(self) -> None:
        super().__init__()
        self.base = nn.Linear(5, 7).requires_grad_(False)
        self.norm = nn.BatchNorm1d(7)
        self.head = nn.Linear(7, 3)

    def forward(self, x: Tensor, scale: float = 1.0) -> Tensor:
        return cast(Tensor, self.head(torch.tanh(self.norm(self.base(x)))) * scale)


def several(count: int = 3) -> list[Frozen]:
    """Models that share the frozen layer, each with weights and statistics of its own."""
    torch.manual_seed(0)
    base = Frozen().base.state_dict()
    models = []
    for _ in range(count):
        model = Frozen().double()
        model.base.load_state_dict(base)
        model(3 * torch.randn(40, 5, dtype=torch.float64) + 1)
        models.append(model.eval())
    return models


def ensemble_of(models: list[Frozen], average: Average = "softmax") -> metaopt.Ensemble:
    structure = Frozen().double()
    structure.base.load_state_dict(models[0].base.state_dict())
    return metaopt.Ensemble(structure, [tensors_of_model(m) for m in models], average)


X = torch.linspace(-2, 2, 60, dtype=torch.float64).reshape(12, 5)


def test_it_averages_probabilities_outputs_or_a_function_of_them() -> None:
    models = several()
    with torch.no_grad():
        outputs = torch.stack([model(X) for model in models])
        torch.testing.assert_close(ensemble_of(models)(X), outputs.softmax(2).mean(0))
        log = ensemble_of(models).log_probabilities(X)
        torch.testing.assert_close(log, outputs.softmax(2).mean(0).log())
        torch.testing.assert_close(ensemble_of(models, "outputs")(X), outputs.mean(0))
        by_function = ensemble_of(models, torch.sigmoid)
        torch.testing.assert_close(by_function(X), outputs.sigmoid().mean(0))
        torch.testing.assert_close(
            by_function.log_probabilities(X), outputs.sigmoid().mean(0).log()
        )
        named = ensemble_of(models)(X, scale=2.0)
        torch.testing.assert_close(named, (2 * outputs).softmax(2).mean(0))


def test_log_probabilities_do_not_underflow() -> None:
    models = several()
    log = ensemble_of(models).log_probabilities(X, scale=1e4)
    assert bool(log.isfinite().all())
    assert float(log.detach().min()) < -1e3


def test_axes_behind_the_classes_stay() -> None:
    model = nn.Conv2d(2, 4, 1)
    found = metaopt.Ensemble(model, [tensors_of_model(model)])(torch.randn(3, 2, 5, 6))
    torch.testing.assert_close(found.sum(1), torch.ones(3, 5, 6))


def test_members_in_one_pass_and_one_by_one_agree(monkeypatch: pytest.MonkeyPatch) -> None:
    ensemble = ensemble_of(several())
    wanted = ensemble(X)
    monkeypatch.setattr(ensemble_module, "ONE_BY_ONE", ())
    found = ensemble(X)
    assert ensemble._vectorised
    torch.testing.assert_close(found, wanted)
    torch.testing.assert_close(ensemble.log_probabilities(X), wanted.log())


def test_a_model_that_vmap_cannot_run_is_run_member_by_member(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(ensemble_module, "ONE_BY_ONE", ())

    class Branching(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(5, 3)

        def forward(self, x: Tensor) -> Tensor:
            found = self.layer(x)
            return cast(Tensor, found if found.sum().item() > 0 else 2 * found)

    torch.manual_seed(0)
    models = [Branching().double() for _ in range(4)]
    ensemble = metaopt.Ensemble(Branching().double(), [tensors_of_model(m) for m in models])
    expected = torch.stack([m(X) for m in models]).softmax(2).mean(0)
    torch.testing.assert_close(ensemble(X), expected)
    assert not ensemble._vectorised


def test_what_members_share_is_kept_once_and_each_has_its_statistics() -> None:
    models = several()
    ensemble = ensemble_of(models)
    stacked = ensemble.stacked.tensors()
    assert not any(path.startswith("base") for path in stacked)
    assert stacked["norm.running_mean"].shape == (3, 7)
    for found, model in zip(ensemble.members, models, strict=True):
        for path, tensor in tensors_of_model(model).items():
            assert torch.equal(found[path], tensor)
    assert ensemble.members[1]["head.weight"].data_ptr() == stacked["head.weight"][1].data_ptr()
    torch.testing.assert_close(ensemble.model(-1)(X), models[-1](X), rtol=0, atol=0)


def test_it_stays_in_evaluation_mode() -> None:
    ensemble = ensemble_of(several())
    before = {name: x.clone() for name, x in ensemble.state_dict().items()}
    first = ensemble.train()(X)
    assert torch.equal(ensemble(X), first)
    assert not ensemble.averaged.training
    assert all(torch.equal(x, before[name]) for name, x in ensemble.state_dict().items())


def test_a_state_dictionary_of_another_number_of_members_is_loaded() -> None:
    wanted = ensemble_of(several(4))
    found = metaopt.Ensemble(Frozen().double(), [{}])
    found.load_state_dict(wanted.state_dict())
    assert len(found) == 4
    assert torch.equal(found(X), wanted(X))
    assert found.float()(X.float()).dtype == torch.float32


@pytest.mark.parametrize("average", ["outputs", torch.sigmoid])
def test_a_file_brings_it_back(tmp_path: Path, average: Average) -> None:
    wanted, path = ensemble_of(several(), average), tmp_path / "members.safetensors"
    wanted.save(path)
    by_function = average if callable(average) else None
    found = metaopt.Ensemble.load(path, Frozen().double(), by_function)
    assert found.average == average
    assert found.trace is None
    assert len(found) == 3
    assert torch.equal(found(X), wanted(X))
    if by_function is not None:
        with pytest.raises(ValueError, match="average is a function of the outputs there"):
            metaopt.Ensemble.load(path, Frozen().double())
    with pytest.raises(ValueError, match="no tensor 'weight', which the model has"):
        metaopt.Ensemble.load(path, nn.Linear(5, 3), torch.sigmoid)


def test_what_is_averaged_follows_from_the_loss() -> None:
    classes, numbers = torch.tensor([0, 1]), torch.zeros(2, 3)
    assert average_of(F.cross_entropy, numbers) == "softmax"
    assert average_of(nn.CrossEntropyLoss(label_smoothing=0.1), classes) == "softmax"
    assert average_of(lambda f, y: F.cross_entropy(f, y), classes) == "softmax"
    assert average_of(nn.HuberLoss(), numbers) == "outputs"
    with pytest.raises(ValueError, match="what is averaged is not known for this loss"):
        average_of(F.binary_cross_entropy_with_logits, numbers)


def test_what_is_wrong_is_said() -> None:
    model = nn.Linear(5, 3)
    with pytest.raises(ValueError, match="at least one member, found none"):
        metaopt.Ensemble(model, [])
    with pytest.raises(ValueError, match="average must be 'softmax', 'outputs' or a function"):
        metaopt.Ensemble(model, [{}], "mean")
    with pytest.raises(ValueError, match=r"'weight' has shape \[3, 5\] in the model, found \[2\]"):
        metaopt.Ensemble(model, [{"weight": torch.zeros(2)}])
    with pytest.raises(ValueError, match="outputs, which are no probabilities"):
        metaopt.Ensemble(model, [{}], "outputs").log_probabilities(X.float())
