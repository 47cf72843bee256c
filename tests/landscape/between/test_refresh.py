"""Running statistics that are those of data, and nothing else that changes."""

from __future__ import annotations

import copy

import pytest
import torch
from rings import convolutional, images
from torch import nn

from metaopt import connect, refresh_batchnorm
from metaopt.landscape.between.refresh import with_statistics

X, Y = images()


def test_with_one_batch_the_statistics_are_those_of_the_data() -> None:
    model = nn.Sequential(nn.BatchNorm2d(1), nn.Dropout(0.5))
    refresh_batchnorm(model, (X, Y))
    norm = model[0]
    torch.testing.assert_close(norm.running_mean, X.mean((0, 2, 3)))
    torch.testing.assert_close(norm.running_var, X.var((0, 2, 3)))


def test_batches_count_by_their_samples() -> None:
    model = nn.BatchNorm2d(1)
    parts = [(X[:40], Y[:40]), (X[40:], Y[40:])]
    refresh_batchnorm(model, parts)
    torch.testing.assert_close(model.running_mean, X.mean((0, 2, 3)))
    variances = [x.var((0, 2, 3)) for x, _ in parts]
    torch.testing.assert_close(model.running_var, (40 * variances[0] + 8 * variances[1]) / len(X))


def test_deeper_layers_see_what_batch_statistics_make() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.BatchNorm2d(1), nn.Conv2d(1, 2, 3), nn.Dropout(0.5), nn.BatchNorm2d(2))
    refresh_batchnorm(model, (X, Y))
    hidden = model[1](nn.functional.batch_norm(X, None, None, training=True))
    torch.testing.assert_close(model[3].running_mean, hidden.mean((0, 2, 3)))


@pytest.mark.parametrize("training", [True, False])
def test_all_else_stays(training: bool) -> None:
    model = convolutional(0, dropout=0.5).train(training)
    (norm,) = with_statistics(model)
    norm.momentum = None
    model.register_buffer("seen", torch.tensor(7))
    before = copy.deepcopy(model)
    numbers = torch.get_rng_state()
    refresh_batchnorm(model, (X, Y))
    assert all(module.training is training for module in model.modules())
    assert norm.momentum is None
    assert torch.equal(torch.get_rng_state(), numbers)
    for path, value in before.state_dict().items():
        if not path.startswith("1.running") and path != "1.num_batches_tracked":
            assert torch.equal(model.state_dict()[path], value)


def test_a_model_without_statistics_does_not_see_the_data() -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2, track_running_stats=False))
    refresh_batchnorm(model, (X, Y))


def test_empty_data_are_refused() -> None:
    with pytest.raises(ValueError, match="data hold no samples"):
        refresh_batchnorm(convolutional(0), [(X[:0], Y[:0])])


def test_a_curve_at_its_end_is_the_refreshed_end() -> None:
    one, other = convolutional(0), convolutional(1)
    curve = connect([one, other], bends=0, loss=nn.functional.cross_entropy, data=(X, Y))
    found = curve.model(0.0, (X, Y))
    refresh_batchnorm(one, (X, Y))
    for path, value in one.state_dict().items():
        assert torch.equal(found.state_dict()[path], value)
