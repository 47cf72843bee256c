"""The state of a run of ``fge``: its steps, members, mean and trace; saved and gone on from."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.swa_utils import AveragedModel

from metaopt.base.checkpoint import read_state, write_state
from metaopt.landscape.between.batches import Batches
from metaopt.landscape.between.curve_evaluation import class_axis, wrong_classes
from metaopt.landscape.between.ensemble import SOFTMAX, Average, average_of
from metaopt.landscape.between.ensemble_trace import Trace
from metaopt.landscape.between.refresh import called
from metaopt.landscape.between.tensors import set_tensors, tensors_of_model
from metaopt.landscape.data import Data, pairs_of, tensors_of, with_tensors
from metaopt.landscape.samples import Loss
from metaopt.symmetry.discovery.find import plain


class Run:
    """A run that advances step by step.

    Args:
        model: the model, which trains in place.
        optimizer: its optimizer.
        batches: mini-batches without end, on the model's device.
        loss: (outputs, targets) -> a scalar.
        average: what the ensemble averages; None: what the loss and the first targets say.
        watch: data that are measured and not trained on, or None.
        settings: what the state of a run in a folder must agree with.

    Attributes:
        step: how many steps were taken.
        members: the tensors of each member.
        average: what the ensemble averages; None before the first step.
        axis: that of classes, if probabilities are averaged.
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: Optimizer,
        batches: Batches,
        loss: Loss,
        average: Average | None,
        watch: Data | None,
        settings: Mapping[str, Any],
    ) -> None:
        self.step = 0
        self.members: list[dict[str, Tensor]] = []
        self.average, self.axis = average, 1
        self._model, self._inside, self._optimizer = model, plain(model), optimizer
        self._loss, self._settings = loss, dict(settings)
        self._device, self._batches = device_of(model), batches
        self._watch = None if watch is None else pairs_of(watch)
        self._mean = AveragedModel(self._inside)
        trained = [(path, p) for path, p in self._inside.named_parameters() if p.requires_grad]
        self._start = {path: p.detach().clone() for path, p in trained}
        self._rates: list[float] = []
        self._rows: list[Tensor] = []
        self._collected: list[int] = []
        self._watched: list[tuple[int, float, float]] = []

    @property
    def averaged(self) -> nn.Module:
        """The model with the mean of the members' weights."""
        found = self._mean.module
        assert isinstance(found, nn.Module)
        return found

    def advance(self, rate: float) -> None:
        """One step on the next mini-batch.

        Args:
            rate: the rate that the optimizer has now, for the trace.
        """
        inputs, targets = self._batches.next()
        if self.average is None:
            self.average = average_of(self._loss, targets)
        self._optimizer.zero_grad()
        outputs = called(self._model, inputs)
        if self.step == 0 and self.average == SOFTMAX:
            self.axis = class_axis(outputs, targets) or self.axis
        value = self._loss(outputs, targets)
        value.backward()
        self._optimizer.step()
        self.step += 1
        self._rates.append(rate)
        # They stay on the device: nothing waits for them before they are shown.
        row = (value.detach(), _error(outputs, targets), self._distance())
        self._rows.append(torch.stack([x.to(value) for x in row]))

    def collect(self) -> None:
        """The weights as they are now become a member.

        Raises:
            ValueError: if they are not finite.
        """
        tensors = tensors_of_model(self._inside)
        for path, tensor in tensors.items():
            if not bool(torch.isfinite(tensor).all()):
                raise ValueError(
                    f"{path!r} is not finite after step {self.step}: take smaller rates in lr"
                )
        self._mean.update_parameters(self._inside)
        before = self.members[-1] if self.members else {}
        # What has not changed since the last member, such as frozen weights, is not kept twice.
        self.members.append(
            {
                path: before[path] if path in before and torch.equal(before[path], x) else x.clone()
                for path, x in tensors.items()
            }
        )
        self._collected.append(self.step)

    @torch.no_grad()
    def measure(self) -> None:
        """Loss and error on the data that are watched, once at a step; the run goes on as without.

        Means over the samples, in evaluation mode.
        """
        if self._watch is None or (self._watched and self._watched[-1][0] == self.step):
            return
        total, count = torch.zeros(2, dtype=torch.float64), 0
        with torch.random.fork_rng(devices=[]), modes_kept(self._model):
            self._model.eval()
            for pair in self._watch:
                inputs = (x.to(self._device) for x in tensors_of(pair[0]))
                targets = pair[1].to(self._device)
                outputs = called(self._model, with_tensors(pair[0], inputs))
                found = (self._loss(outputs, targets), _error(outputs, targets))
                total += len(targets) * torch.stack([x.double().cpu() for x in found])
                count += len(targets)
        if count == 0:
            raise ValueError("watch: the data hold no samples")
        loss, error = (total / count).tolist()
        self._watched.append((self.step, loss, error))

    def figures(self) -> dict[str, str]:
        """What the bar shows: of the last step, or of the data that are watched."""
        loss, error, distance = self._rows[-1].tolist()
        if self._watched:
            _, loss, error = self._watched[-1]
        values = {"rate": self._rates[-1], "loss": loss, "error": error, "distance": distance}
        return {name: f"{x:.3g}" for name, x in values.items() if x == x}

    def trace(self) -> Trace:
        """The course of the run so far."""
        rows = torch.stack(self._rows).double().cpu()
        watched = torch.tensor(self._watched, dtype=torch.float64).reshape(-1, 3)
        return Trace(
            rate=torch.tensor(self._rates, dtype=torch.float64),
            loss=rows[:, 0],
            error=rows[:, 1],
            distance=rows[:, 2],
            members=torch.tensor(self._collected),
            watched=watched[:, 0].long(),
            watched_loss=watched[:, 1],
            watched_error=watched[:, 2],
        )

    def save(self, path: Path) -> None:
        """Write the run to one file, whole or not at all.

        Args:
            path: the file.
        """
        state = {
            "of": self._settings,
            "average": self.average if isinstance(self.average, str) else None,
            "axis": self.axis,
            "step": self.step,
            "tensors": tensors_of_model(self._inside),
            "optimizer": self._optimizer.state_dict(),
            "mean": self._mean.state_dict(),
            "members": self.members,
            "start": self._start,
            "batches": self._batches.state(),
            "torch": torch.get_rng_state(),
            "cuda": torch.cuda.get_rng_state() if torch.cuda.is_initialized() else None,
            "rates": self._rates,
            "rows": torch.stack(self._rows),
            "collected": self._collected,
            "watched": self._watched,
        }
        write_state(path, state)

    def load(self, path: Path) -> None:
        """Go on from a file: model, optimizer and the place in the data become those of the run.

        Args:
            path: the file.

        Raises:
            CheckpointError: if it is damaged.
            ValueError: if the run there had other settings.
        """
        state = read_state(path)
        for name, value in self._settings.items():
            found = state.get("of", {}).get(name)
            if found != value:
                raise ValueError(
                    f"{path}: the run there has {name} {found!r}, found {value!r}: choose another "
                    f"folder, or the same settings"
                )
        if self.average is None and state["average"] is None:
            raise ValueError(f"{path}: average is a function of the outputs there: pass it again")
        self.average, self.axis = self.average or state["average"], state["axis"]
        set_tensors(self._inside, state["tensors"])
        self._optimizer.load_state_dict(state["optimizer"])
        self._mean.load_state_dict(state["mean"])
        self._batches.resume(state["batches"])
        torch.set_rng_state(state["torch"])
        if state["cuda"] is not None and torch.cuda.is_available():
            torch.cuda.set_rng_state(state["cuda"])
        own = tensors_of_model(self._inside)
        self._start = _beside(own, state["start"])
        self.members = [_beside(own, member) for member in state["members"]]
        self.step, self._rates = state["step"], state["rates"]
        self._rows = list(state["rows"].to(self._device))
        self._collected, self._watched = state["collected"], state["watched"]

    def _distance(self) -> Tensor:
        own = dict(self._inside.named_parameters())
        with torch.no_grad():
            each = [torch.linalg.vector_norm(own[p] - start) for p, start in self._start.items()]
            return torch.linalg.vector_norm(torch.stack([one.to(self._device) for one in each]))


def device_of(model: nn.Module) -> torch.device:
    """Where a model's first parameter lies; the CPU if it has none."""
    return next((p.device for p in model.parameters()), torch.device("cpu"))


def _error(outputs: Any, targets: Tensor) -> Tensor:
    """The share of samples that are classified wrongly; NaN if targets are no classes."""
    wrong = wrong_classes(outputs, targets)
    return torch.tensor(torch.nan) if wrong is None else wrong.double().mean()


def _beside(own: Mapping[str, Tensor], tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Tensors on the devices of the model's own."""
    return {path: x.to(own[path].device) for path, x in tensors.items()}


@contextmanager
def modes_kept(model: nn.Module) -> Iterator[None]:
    """After it, all modules are in training or evaluation mode as they were before."""
    modes = [(module, module.training) for module in model.modules()]
    try:
        yield
    finally:
        for module, mode in modes:
            module.training = mode
