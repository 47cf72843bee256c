"""The outer loop: it learns phi by differentiating through truncation windows of trajectories.

    phi <- Adam(phi, clip(dM/dphi)),   M the meta-loss of one window of B trajectories

One outer step runs one window. Trajectories start on fresh training tasks; after their last window
(``horizon``) the next B tasks are drawn. Each network has its own learning rate, and its gradient
is clipped by itself. If the meta-loss or the meta-gradient of a window is not finite, phi stays as
it is, the window is counted as skipped, and its trajectories are abandoned. An average of phi, if
one is kept (``averaging``), is what is validated and written. The state of a run holds everything
that the rest of it depends on: a killed run resumes and ends, bit for bit, where an uninterrupted
one would have.

With N processes (``World``) each one works on its own slice of the same meta-batch. The meta-loss
is a mean over trajectories, so M is the mean of the processes' meta-losses with weights local / B.
Gradients are averaged over the processes before they are clipped and checked, so that all processes
clip, skip and step alike, and phi has the same bits in all of them.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils import clip_grads_with_norm_, get_total_norm

from metaopt.base.checkpoint import Checkpoint
from metaopt.base.fields import DTYPES
from metaopt.base.process import World
from metaopt.base.streams import Stream
from metaopt.meta import build, shares
from metaopt.meta.build import meta_optimizer
from metaopt.meta.config import TrainConfig
from metaopt.meta.resuming import require_adam, require_like, require_parts, require_within
from metaopt.meta.schedule import schedule
from metaopt.meta.unroll import InnerState, resume, rollout_in_turn, start
from metaopt.meta.validation import Validation
from metaopt.rules.composed import States
from metaopt.tasks.base import Tasks
from metaopt.tasks.build import task_family
from metaopt.tasks.identity import identity
from metaopt.tasks.trained_on import TRAINED_ON, trained_on
from metaopt.tasks.variations import InTurn

_INNER = {"step": 0, "windows_left": [], "parts": []}


@dataclass
class Progress:
    """How far a run has come; plain numbers that are kept in the resume state.

    Attributes:
        outer_step: the outer steps taken, skipped ones included.
        inner_steps: the inner steps taken, summed over trajectories and the copies of each.
        drawn: the training tasks drawn.
        skipped: the outer steps that changed nothing, since a meta-loss or meta-gradient was not
            finite.
        seconds: the wall-clock time of all parts of the run.
        validation_seconds: the part of ``seconds`` that was spent on validation.
        best: the lowest validation score so far.
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
        meta_loss: M, over all processes.
        grad_norms: the norm of each network's meta-gradient before clipping, by the rule's name.
        teleports: the ``TeleportTrace.summary`` of the window; empty without teleports.
        skipped: whether phi was left as it is, since a number was not finite.
        votes: for each vote, whether any process said yes.
    """

    meta_loss: float
    grad_norms: dict[str, float]
    teleports: dict[str, float]
    skipped: bool
    votes: list[bool]


@dataclass
class MetaTrainer:
    """One meta-training run in memory: call ``outer_step`` until ``finished``.

    Args:
        config: the configuration of the run.
        device: the device that this process computes on.
        world: the processes that share the meta-batch.

    Raises:
        UserError: if a process would have no trajectory, or no validation task.
    """

    config: TrainConfig
    device: torch.device
    world: World = field(default_factory=World)
    progress: Progress = field(default_factory=Progress)

    def __post_init__(self) -> None:
        config = self.config
        self.dtype = DTYPES[config.dtype]
        self.share = self.world.share(config.meta.batch, "meta.batch")
        validation_share = self.world.share(config.validation.tasks, "validation.tasks")
        self.optimizer = meta_optimizer(config).to(self.device)
        family = task_family(config.task)
        self.training_tasks = build.training_tasks(family, config)
        build.require_symmetries(config, self.training_tasks)
        self.lengths = build.lengths(config.meta, config.seed)
        self.hiding = build.hiding(config.meta, config.seed)
        self.observe = build.observe(config.meta)
        self.windows = build.windows(config, self.optimizer, self.device, self.world.say)
        self.average = build.average(config.meta, self.optimizer)
        learned = {name: rule for name, rule in self.optimizer.rules.items() if _learns(rule)}
        self.networks = {name: list(rule.parameters()) for name, rule in learned.items()}
        self.base_lr = {name: config.rules.by_name()[name].learning_rate for name in learned}
        self.adam = torch.optim.Adam(
            [{"params": self.networks[name], "lr": self.base_lr[name]} for name in learned],
            fused=True,
        )
        self.tasks: Tasks | None = None
        self.inner: InnerState[States] | None = None
        self.windows_left: list[int] = []
        drawn = family.drawn(Stream.VALIDATION, config.seed, 0, config.validation.tasks)
        self.validation_tasks = drawn.to(self.device, self.dtype).select(validation_share)
        self._validation_parts = self.validation_tasks.in_parts()
        self.families = {"task": identity(family, drawn)}
        of_each = [(family, drawn.initial)]
        if isinstance(self.training_tasks, InTurn):
            for i, other in enumerate(self.training_tasks.families[1:]):
                some = other.drawn(Stream.VALIDATION, config.seed, 0, 2)
                self.families[f"task.more[{i}]"] = identity(other, some)
                of_each.append((other, some.initial))
        self.trained_on = trained_on(of_each)

    @property
    def finished(self) -> bool:
        """Whether all outer steps have been taken."""
        return self.progress.outer_step >= self.config.meta.outer_steps

    @property
    def trajectories(self) -> float:
        """The inner steps so far, counted in trajectories of ``meta.steps`` steps."""
        return self.progress.inner_steps / self.config.meta.steps

    @property
    def local_trajectories(self) -> int:
        """The number of trajectories of the meta-batch that this process runs."""
        return self.share.stop - self.share.start

    def outer_step(self, vote: Callable[[], Sequence[bool]] = tuple) -> Window:
        """One window: unroll, differentiate, update phi, cut the graph.

        Args:
            vote: called once in a step; the questions on which all processes have to act
                alike, such as whether to stop, answered by this one.
        """
        meta, progress = self.config.meta, self.progress
        tasks, inner = self._trajectories()
        steps = self.windows_left.pop(0)
        found = self.windows(tasks, inner, steps)
        loss, summary, votes = self._over_processes(found.meta_loss, found.teleports, vote())
        norms = [_clip(parameters, meta.clip) for parameters in self.networks.values()]
        # Here, once in an outer step, the CPU waits for the device.
        numbers = torch.stack([loss, *norms, *summary.values()]).tolist()
        value, norm_values = numbers[0], numbers[1 : 1 + len(norms)]
        skipped = not all(map(math.isfinite, (value, *norm_values)))
        progress.outer_step += 1
        progress.inner_steps += steps * meta.batch * self.windows.copies
        if skipped:
            progress.skipped += 1
            self.inner = None
        else:
            factor = schedule(meta, progress.outer_step)
            for group, lr in zip(self.adam.param_groups, self.base_lr.values(), strict=True):
                group["lr"] = lr * factor
            self.adam.step()
            self.average.update()
            self.inner = found.inner
        grad_norms = dict(zip(self.networks, norm_values, strict=True))
        teleports = dict(zip(summary, numbers[1 + len(norms) :], strict=True))
        decided = [count > 0 for count in votes.tolist()]
        return Window(value, grad_norms, teleports, skipped, decided)

    def _over_processes(
        self, loss: Tensor, summary: dict[str, Tensor], votes: Sequence[bool]
    ) -> tuple[Tensor, dict[str, Tensor], Tensor]:
        """Meta-loss, teleport summary and votes of all processes; averages gradients in place."""
        maxima = {name: number for name, number in summary.items() if name.endswith("_max")}
        means = {name: number for name, number in summary.items() if name not in maxima}
        mean_numbers, max_numbers, counts = self.world.mean_(
            [p.grad for group in self.networks.values() for p in group if p.grad is not None],
            torch.stack([loss, *means.values()]),
            torch.stack([*maxima.values()]) if maxima else loss.new_empty(0),
            votes,
            self.local_trajectories / self.config.meta.batch,
        )
        found = dict(zip(means, mean_numbers[1:], strict=True))
        found |= dict(zip(maxima, max_numbers, strict=True))
        return mean_numbers[0], {name: found[name] for name in summary}, counts

    def validate(self) -> Validation:
        """Run the averaged phi on the validation tasks of all processes; changes nothing."""
        optimizer, steps = self.average.optimizer, self.config.meta.steps
        losses, teleports = rollout_in_turn(self._validation_parts, optimizer, steps)
        found = shares.gathered(self.world, losses, teleports)
        best, epsilon = self.progress.best, self.config.meta.epsilon
        return Validation(self.progress.outer_step, *found, best, epsilon)

    def validated(self, found: Validation) -> None:
        """Note the score of a validation if it is the best so far."""
        if found.is_best:
            self.progress.best = found.score

    def state(self) -> dict[str, Any]:
        """Everything that the rest of the run depends on, as plain data and tensors.

        All processes have to call it. Only the first one gets the inner state of all trajectories.
        """
        inner = self.inner
        return {
            "config": self.config.model_dump(mode="json"),
            "families": self.families,
            "progress": vars(self.progress).copy(),
            "phi": self.optimizer.state_dict(),
            "adam": self.adam.state_dict(),
            "average": self.average.state(),
            "windows": self.windows.state(),
            "inner": None
            if inner is None
            else {
                "step": inner.step,
                "windows_left": self.windows_left.copy(),
                "parts": self.world.collect(shares.part(inner)),
            },
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Continue from ``state``, which another number of processes may have saved.

        Raises:
            AttributeError, LookupError, TypeError, ValueError: if another run saved it.
        """
        self._require_own(state)
        self.progress = Progress(**state["progress"])
        self.optimizer.load_state_dict(state["phi"])
        # Adam's options are those of this run; its learning rates are set anew in every step.
        self.adam.load_state_dict(self.adam.state_dict() | {"state": state["adam"]["state"]})
        self.average.restore(state["average"])
        self.windows.restore(state["windows"])
        self.inner = None
        if (inner := state["inner"]) is not None:
            rules = self.optimizer.rules
            self.windows_left = list(inner["windows_left"])
            copies = self.windows.copies
            share = slice(self.share.start * copies, self.share.stop * copies)
            first = self.progress.drawn - self.config.meta.batch
            horizon = inner["step"] + sum(self.windows_left)
            self.tasks = self._training_tasks(first).until(horizon)
            batch = self.config.meta.batch * copies
            require_parts(inner["parts"], self.tasks.initial, batch, rules)
            weights, rule_states = shares.take(inner["parts"], share, rules, self.device)
            fresh = start(self.tasks, self.optimizer, self.observe)
            require_like(rule_states, fresh.optimizer, "inner.optimizer")
            self.inner = resume(self.tasks, inner["step"], weights, rule_states, self.observe)

    def _require_own(self, state: dict[str, Any]) -> None:
        """Raise unless a state, apart from its inner state, fits this run."""
        progress = vars(self.progress)
        own = {
            # A field that an older state does not have keeps its default.
            "progress": {name: progress.get(name) for name in state["progress"]},
            "phi": self.optimizer.state_dict(),
            "average": self.average.state(),
            "windows": self.windows.state(),
        }
        require_like({name: state[name] for name in own}, own, "state")
        for name, value in state["progress"].items():
            # The best score is a mean of logarithms and may be negative.
            if name != "best":
                most = sys.maxsize if isinstance(progress[name], int) else sys.float_info.max
                require_within(value, most, f"state.progress.{name}")
        require_adam(state["adam"], [*self.networks.values()])
        if (inner := state["inner"]) is not None:
            require_like({**inner, "parts": [], "windows_left": []}, _INNER, "state.inner")
            require_within(inner["step"], self.config.meta.steps, "state.inner.step")
            for window in inner["windows_left"]:
                require_within(window, self.config.meta.steps, "state.inner.windows_left")
            if state["progress"]["drawn"] < self.config.meta.batch:
                raise ValueError("state.progress.drawn: found less than a meta-batch")

    def checkpoint(self, validation: dict[str, Any]) -> Checkpoint:
        """The checkpoint of the learned optimizer at the averaged phi, as it is now."""
        training = {
            "seed": self.config.seed,
            "streams": {"training": "TRAIN", "validation": "VALIDATION"},
            "outer_step": self.progress.outer_step,
            "trajectories": self.trajectories,
            "trajectories_begun": self.progress.drawn,
            "inner_steps": self.progress.inner_steps,
            "skipped": self.progress.skipped,
            TRAINED_ON: self.trained_on,
        }
        tensors = dict(self.average.optimizer.state_dict())
        return Checkpoint(tensors, self.config.model_dump(mode="json"), training, validation)

    def _trajectories(self) -> tuple[Tasks, InnerState[States]]:
        meta, progress = self.config.meta, self.progress
        if self.tasks is None or self.inner is None or not self.windows_left:
            number, done = progress.drawn // meta.batch, progress.outer_step / meta.outer_steps
            self.windows_left = self.lengths.windows(number, done)
            self.tasks = self._training_tasks(progress.drawn).until(sum(self.windows_left))
            progress.drawn += meta.batch
            self.inner = start(self.tasks, self.optimizer, self.observe)
        return self.tasks, self.inner

    def _training_tasks(self, first: int) -> Tasks:
        """This process's share of a meta-batch of tasks that all processes draw alike."""
        seed, batch = self.config.seed, self.config.meta.batch
        source, dtype = self.training_tasks, self.dtype
        drawn = source.sample(Stream.TRAIN, seed, first, batch, dtype, self.device)
        share = drawn.select(self.share).repeated(self.windows.copies)
        return share.hiding(self.hiding.of(first // batch))


def _clip(parameters: list[torch.nn.Parameter], limit: float | None) -> Tensor:
    """Scale the gradients of a network down to norm ``limit``; returns the norm before that."""
    norm = get_total_norm([p.grad for p in parameters if p.grad is not None])
    if limit is not None:
        clip_grads_with_norm_(parameters, limit, norm)
    return norm


def _learns(rule: torch.nn.Module) -> bool:
    return any(parameter.requires_grad for parameter in rule.parameters())
