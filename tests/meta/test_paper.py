"""The paper's recipe against a literal computation, one matrix at a time, with torch.nn.LSTM."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from metaopt.base.config import load
from metaopt.base.streams import Stream
from metaopt.meta import build
from metaopt.meta.build import meta_optimizer
from metaopt.meta.config import TrainConfig
from metaopt.meta.looks import first_order
from metaopt.meta.unroll import start, unroll
from metaopt.rules.learned.flattened import FlattenedConfig, FlattenedRule
from metaopt.tasks.build import task_family

STEPS = 3


def paper_config(name: str) -> TrainConfig:
    smaller = ["dtype=float64", "task.weights=gaussian", "task.data=gaussian", "meta.batch=2"]
    return load(TrainConfig, f"paper/{name}.yaml", smaller)


def torch_lstm(rule: FlattenedRule) -> tuple[nn.LSTM, nn.Linear]:
    """The same network out of torch's own parts (whose gates are ordered i, f, g, o)."""
    hidden = rule.lstm.hidden
    lstm = nn.LSTM(rule.lstm.W_x[0].shape[1], hidden, num_layers=2).double()
    head = nn.Linear(hidden, rule.head.W.shape[0]).double()

    def reorder(p: Tensor) -> Tensor:
        i, f, o, g = p.detach().chunk(4)
        return torch.cat([i, f, g, o])

    with torch.no_grad():
        for layer in range(2):
            getattr(lstm, f"weight_ih_l{layer}").copy_(reorder(rule.lstm.W_x[layer]))
            getattr(lstm, f"weight_hh_l{layer}").copy_(reorder(rule.lstm.W_h[layer]))
            getattr(lstm, f"bias_ih_l{layer}").copy_(reorder(rule.lstm.b[layer]))
            getattr(lstm, f"bias_hh_l{layer}").zero_()
        head.weight.copy_(rule.head.W)
        head.bias.copy_(rule.head.b)
    return lstm, head


def s(z: Tensor) -> Tensor:
    return nn.functional.leaky_relu(z, 0.1)


def s_inverse(a: Tensor) -> Tensor:
    return torch.where(a > 0, a, 10 * a)


def literal_losses(config: TrainConfig, trajectory: int) -> tuple[list[Tensor], list[Tensor]]:
    """One trajectory as the paper writes it; returns losses and meta-gradients of the heads."""
    optimizer = meta_optimizer(config)
    networks = {}
    for name, rule in optimizer.rules.items():
        assert isinstance(rule, FlattenedRule)
        networks[name] = torch_lstm(rule)
    family = task_family(config.task)
    task = family.sample(Stream.TRAIN, config.seed, trajectory, 1, torch.float64)
    X, Y = task.X[0], task.Y[0]
    W1, W2 = task.initial[0][0], task.initial[1][0]
    hidden: dict[str, tuple[Tensor, Tensor] | None] = dict.fromkeys(networks)
    losses: list[Tensor] = []
    for _ in range(STEPS):
        A, B = W1.detach().requires_grad_(), W2.detach().requires_grad_()
        loss = 0.5 * (Y - B @ s(A @ X)).square().sum()
        G1, G2 = torch.autograd.grad(loss, (A, B))
        g = torch.cat([G1.flatten(), G2.flatten()])
        outputs = {}
        for name, (lstm, head) in networks.items():
            out, hidden[name] = lstm(g[None, None], hidden[name])
            outputs[name] = head(out[0, 0])
        T = None
        if "update" in outputs:
            f = outputs["update"]
            W1, W2 = W1 + f[:400].reshape(20, 20), W2 + f[400:].reshape(20, 20)
            if "teleport" in outputs:
                T = outputs["teleport"].reshape(20, 20)
        else:
            eta = 1e-7 * 5e4 ** torch.sigmoid(outputs["step_teleport"][400])
            W1, W2 = W1 - eta * G1, W2 - eta * G2
            T = outputs["step_teleport"][:400].reshape(20, 20)
        if T is not None:
            T = 0.01 * T / torch.linalg.norm(T)
            eye = torch.eye(20, dtype=torch.float64)
            H = s(W1 @ X)
            W1, W2 = s_inverse((eye + T) @ H) @ torch.linalg.inv(X), W2 @ (eye - T)
        losses.append(0.5 * (Y - W2 @ s(W1 @ X)).square().sum())
    heads = [head.weight for _, head in networks.values()]
    return losses, list(torch.autograd.grad(torch.stack(losses).sum(), heads))


@pytest.mark.parametrize("name", ["lstm_update_tele", "lstm_update", "lstm_lr_tele"])
def test_batched_step_is_the_papers(name: str) -> None:
    config = paper_config(name)
    optimizer = meta_optimizer(config)
    tasks = task_family(config.task).sample(Stream.TRAIN, config.seed, 0, 2, torch.float64)
    state = start(tasks, optimizer, first_order)
    _, unrolled = unroll(tasks, optimizer, state, STEPS, first_order)
    meta_loss = build.meta_loss(config.meta)(state.loss, unrolled.losses)
    heads = [rule.head.W for rule in optimizer.rules.values() if isinstance(rule, FlattenedRule)]
    gradients = torch.autograd.grad(meta_loss, heads)
    expected = [literal_losses(config, trajectory) for trajectory in range(2)]
    losses = torch.stack([torch.stack(losses) for losses, _ in expected], dim=1)
    torch.testing.assert_close(unrolled.losses, losses, rtol=1e-8, atol=0)
    for i, gradient in enumerate(gradients):
        mean = torch.stack([own[i] for _, own in expected]).mean(0)
        assert float((gradient - mean).norm()) <= 1e-6 * float(mean.norm())
        assert float(mean.norm()) > 0


def test_the_recipe_is_the_papers() -> None:
    for name in ("lstm_update_tele", "lstm_update", "lstm_lr_tele"):
        config = load(TrainConfig, f"paper/{name}.yaml")
        meta, task = config.meta, config.task
        assert meta.outer_steps * meta.unroll * meta.batch == 700 * meta.steps
        assert (meta.steps, meta.unroll, meta.batch, meta.loss) == (100, 10, 1, "sum")
        assert (meta.horizon.kind, meta.truncation, meta.estimator.kind) == (
            "fixed",
            "even",
            "gradient",
        )
        assert (meta.order, meta.rescale, meta.average, meta.warm_up) == (1, 0, None, 0)
        assert (task.width, task.inputs, task.outputs, task.samples) == (20, 20, 20, 20)
        rates = {key: rule.learning_rate for key, rule in config.rules.by_name().items()}
        assert rates.get("update", 1e-3) == 1e-3
        assert rates.get("teleport", 1e-4) == 1e-4
        for rule in config.rules.by_name().values():
            assert isinstance(rule, FlattenedConfig)
            assert (rule.gradient, rule.basis) == ("raw", "entries")
            assert (rule.scale, rule.free, rule.frozen) == (1.0, 1.0, False)
        if config.teleporter is not None:
            assert (config.teleporter.limit, config.teleporter.max_norm) == ("fixed", 0.01)
