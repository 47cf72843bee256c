"""The outer loop: learn phi by differentiating through truncation windows of many trajectories.

    phi <- Adam(phi, clip(dM/dphi)),   M the meta-loss of one window of B trajectories

One outer step is one window. Trajectories begin on fresh training tasks; after ``meta.steps`` inner
steps the next B tasks are drawn. Networks have learning rates and clips of their own. A window
whose meta-loss or meta-gradient is not finite changes nothing, is counted, and its trajectories are
given up. Everything that a run depends on is in its state, so that a killed run resumes and ends,
bit for bit, where the unbroken one would have.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils import clip_grads_with_norm_, get_total_norm

from metaopt import build
from metaopt.learned import LearnedRule
from metaopt.schema import MetaConfig, TrainConfig
from metaopt.streams import Stream
from metaopt.tasks import TaskBatch
from metaopt.unroll import InnerState, TeleportTrace, resume, rollout, start, unroll


def schedule(config: MetaConfig, outer_step: int) -> float:
    """Factor on the outer learning rates at an outer step counted from 1.

    cosine: final + (1 - final) (1 + cos(pi (i - 1) / n)) / 2 (Loshchilov and Hutter 2017).
    """
    match config.schedule:
        case "constant":
            return 1.0
        case "cosine":
            half = (1 + math.cos(math.pi * (outer_step - 1) / config.outer_steps)) / 2
            return config.final_lr + (1 - config.final_lr) * half


@dataclass
class Progress:
    """Where a run is; all of it plain numbers, kept in the resume state.

    Attributes:
        outer_step: outer steps taken, skipped ones included.
        inner_steps: inner steps taken, summed over trajectories.
        drawn: training tasks drawn.
        skipped: outer steps without effect, for a non-finite meta-gradient.
        seconds: wall clock, over all parts of the run.
        validation_seconds: the part of it spent validating.
        best: lowest validation score so far.
    """

    outer_step: int = 0
    inner_steps: int = 0
    drawn: int = 0
    skipped: int = 0
    seconds: float = 0.0
    validation_seconds: float = 0.0
    best: float = math.inf


@dataclass
class Window:
    """What one outer step did.

    Attributes:
        meta_loss: M.
        grad_norms: of each network's meta-gradient before clipping.
        teleports: of the window, as in ``TeleportTrace.summary``; empty without teleports.
        skipped: whether it changed nothing.
    """

    meta_loss: float
    grad_norms: dict[str, float]
    teleports: dict[str, float]
    skipped: bool


@dataclass
class MetaTrainer:
    """One meta-training run in memory: call ``outer_step`` until ``finished``.

    Args:
        config: of the run.
        device: where it computes.
    """

    config: TrainConfig
    device: torch.device
    progress: Progress = field(default_factory=Progress)

    def __post_init__(self) -> None:
        config = self.config
        self.optimizer = build.meta_optimizer(config).to(self.device)
        self.family = build.task_family(config.task)
        self.observe = build.observe(config.meta)
        self.meta_loss = build.meta_loss(config.meta)
        learned = {name: rule for name, rule in self.optimizer.rules.items() if _learns(rule)}
        self.networks = {name: list(rule.parameters()) for name, rule in learned.items()}
        self.base_lr = {name: config.rules.by_name()[name].outer_lr for name in learned}
        self.adam = torch.optim.Adam(
            [{"params": self.networks[name], "lr": self.base_lr[name]} for name in learned],
            fused=True,
        )
        self.tasks: TaskBatch | None = None
        self.inner: InnerState | None = None
        self.validation_tasks = self._sample(Stream.VALIDATION, 0, config.validation.tasks)

    @property
    def finished(self) -> bool:
        """Whether all outer steps were taken."""
        return self.progress.outer_step >= self.config.meta.outer_steps

    @property
    def trajectories(self) -> float:
        """Inner steps so far as whole trajectories."""
        return self.progress.inner_steps / self.config.meta.steps

    def outer_step(self) -> Window:
        """One window: unroll, differentiate, update phi, cut the graph."""
        meta, progress = self.config.meta, self.progress
        tasks, inner = self._trajectories()
        steps = min(meta.unroll, meta.steps - inner.step)
        inner, unrolled = unroll(tasks, self.optimizer, inner, steps, self.observe)
        loss = self.meta_loss(unrolled.losses)
        self.adam.zero_grad()
        loss.backward()
        norms = [_clip(parameters, meta.clip) for parameters in self.networks.values()]
        summary = {} if unrolled.teleports is None else unrolled.teleports.summary()
        # The one wait for the device in an outer step.
        numbers = torch.stack([loss.detach(), *norms, *summary.values()]).tolist()
        value, norm_values = numbers[0], numbers[1 : 1 + len(norms)]
        skipped = not all(map(math.isfinite, (value, *norm_values)))
        progress.outer_step += 1
        progress.inner_steps += steps * meta.batch
        if skipped:
            progress.skipped += 1
            self.inner = None
        else:
            factor = schedule(meta, progress.outer_step)
            for group, lr in zip(self.adam.param_groups, self.base_lr.values(), strict=True):
                group["lr"] = lr * factor
            self.adam.step()
            self.inner = inner.detach()
        grad_norms = dict(zip(self.networks, norm_values, strict=True))
        teleports = dict(zip(summary, numbers[1 + len(norms) :], strict=True))
        return Window(value, grad_norms, teleports, skipped)

    def validate(self) -> tuple[Tensor, TeleportTrace | None]:
        """Losses [steps + 1, tasks] on the validation tasks, and the teleports."""
        return rollout(self.validation_tasks, self.optimizer, self.config.meta.steps)

    def state(self) -> dict[str, Any]:
        """All that the rest of the run depends on, as plain data and tensors."""
        inner = self.inner
        return {
            "config": self.config.model_dump(mode="json"),
            "progress": vars(self.progress).copy(),
            "phi": self.optimizer.state_dict(),
            "adam": self.adam.state_dict(),
            "inner": None
            if inner is None
            else {"step": inner.step, "weights": inner.weights, "optimizer": inner.optimizer},
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Go on from ``state``; raises ``KeyError`` or ``ValueError`` where it does not fit."""
        self.progress = Progress(**state["progress"])
        self.optimizer.load_state_dict(state["phi"])
        self.adam.load_state_dict(state["adam"])
        self.inner = None
        if (inner := state["inner"]) is not None:
            batch = self.config.meta.batch
            self.tasks = self._sample(Stream.TRAIN, self.progress.drawn - batch, batch)
            weights = tuple(W.to(self.device) for W in inner["weights"])
            rule_states = {key: value.to(self.device) for key, value in inner["optimizer"].items()}
            self.inner = resume(self.tasks, inner["step"], weights, rule_states, self.observe)

    def learned_rule(self, validation: dict[str, Any]) -> LearnedRule:
        """The learned optimizer as it is now."""
        training = {
            "seed": self.config.seed,
            "streams": {"training": "TRAIN", "validation": "VALIDATION"},
            "outer_step": self.progress.outer_step,
            "trajectories": self.trajectories,
            "skipped": self.progress.skipped,
        }
        return LearnedRule(self.optimizer, self.config, training, validation)

    def _trajectories(self) -> tuple[TaskBatch, InnerState]:
        meta = self.config.meta
        if self.tasks is None or self.inner is None or self.inner.step >= meta.steps:
            self.tasks = self._sample(Stream.TRAIN, self.progress.drawn, meta.batch)
            self.progress.drawn += meta.batch
            self.inner = start(self.tasks, self.optimizer, self.observe)
        return self.tasks, self.inner

    def _sample(self, stream: Stream, first: int, count: int) -> TaskBatch:
        dtype = build.DTYPES[self.config.dtype]
        return self.family.sample(stream, self.config.seed, first, count, dtype, self.device)


def _clip(parameters: list[torch.nn.Parameter], limit: float | None) -> Tensor:
    """Scales the gradients of a network down to the limit; returns their norm before that."""
    norm = get_total_norm([p.grad for p in parameters if p.grad is not None])
    if limit is not None:
        clip_grads_with_norm_(parameters, limit, norm)
    return norm


def _learns(rule: torch.nn.Module) -> bool:
    return any(parameter.requires_grad for parameter in rule.parameters())
