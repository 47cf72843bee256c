"""The state of a run of ``fge``: its steps, members, mean and trace; saved and gone on from."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.swa_utils import AveragedModel

from metaopt.base.files import write_atomically
from metaopt.landscape.between.ensemble import CLASSES, Average, average_of
from metaopt.landscape.between.ensemble_trace import Trace
from metaopt.landscape.between.tensors import set_tensors, tensors_of_model
from metaopt.landscape.data import Data, pairs_of
from metaopt.landscape.samples import Loss
from metaopt.optim.rounds import Rounds, on_device
from metaopt.symmetry.discovery.find import plain


class Run:
    """A run that advances step by step.

    Args:
        model: the model, which trains in place.
        optimizer: its optimizer.
        data: mini-batches.
        loss: (outputs, targets) -> a scalar.
        average: what the ensemble averages; None: what the loss and the first targets say.
        watch: data that are measured and not trained on, or None.
        settings: what a file of the run must agree with.

    Attributes:
        step: how many steps were taken.
        members: the tensors of each member.
        average: what the ensemble averages; None before the first step.
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: Optimizer,
        data: Data,
        loss: Loss,
        average: Average | None,
        watch: Data | None,
        settings: Mapping[str, Any],
    ) -> None:
        self.step = 0
        self.members: list[dict[str, Tensor]] = []
        self.average = average
        self._model, self._inside, self._optimizer = model, plain(model), optimizer
        self._loss, self._settings = loss, dict(settings)
        self._device = next(self._inside.parameters()).device
        self._rounds = Rounds(data, self._device)
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
        inputs, targets = next(self._rounds)
        if self.average is None:
            self.average = average_of(self._loss, targets)
        self._optimizer.zero_grad()
        outputs = _called(self._model, inputs)
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
                inputs, targets = on_device(pair, self._device)
                outputs = _called(self._model, inputs)
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
        """Write the run to one file, whole or not at all."""
        content = BytesIO()
        torch.save(
            {
                "settings": self._settings,
                "average": self.average if isinstance(self.average, str) else None,
                "step": self.step,
                "tensors": tensors_of_model(self._inside),
                "optimizer": self._optimizer.state_dict(),
                "mean": self._mean.state_dict(),
                "members": self.members,
                "start": self._start,
                "rounds": self._rounds.state_dict(),
                "rates": self._rates,
                "rows": torch.stack(self._rows),
                "collected": self._collected,
                "watched": self._watched,
            },
            content,
        )
        write_atomically(path, content.getvalue())

    def load(self, path: Path) -> None:
        """Go on from a file: model, optimizer and the place in the data become those of the run.

        Raises:
            ValueError: if it is no such file, or one of other settings.
        """
        try:
            found = torch.load(path, map_location=self._device, weights_only=True)
            settings = found["settings"]
        except Exception as error:
            # Files of other kinds raise errors of many kinds.
            raise ValueError(f"{path}: is no run of fge that can be gone on with") from error
        for name, value in self._settings.items():
            if settings[name] != value:
                raise ValueError(
                    f"{path}: the run there has {name} {settings[name]!r}, found {value!r}: give "
                    f"another path, or the same settings"
                )
        set_tensors(self._inside, found["tensors"])
        self._optimizer.load_state_dict(found["optimizer"])
        self._mean.load_state_dict(found["mean"])
        self._rounds.load_state_dict(_on_cpu(found["rounds"]))
        if self.average is None and found["average"] is None:
            raise ValueError(f"{path}: average is a function of the outputs there: pass it again")
        self.average = self.average or found["average"]
        self.step, self.members, self._start = found["step"], found["members"], found["start"]
        self._rates, self._rows = found["rates"], list(found["rows"])
        self._collected, self._watched = found["collected"], found["watched"]

    def _distance(self) -> Tensor:
        own = dict(self._inside.named_parameters())
        with torch.no_grad():
            each = [torch.linalg.vector_norm(own[p] - start) for p, start in self._start.items()]
            return torch.linalg.vector_norm(torch.stack([one.to(self._device) for one in each]))


def _called(model: nn.Module, inputs: Any) -> Any:
    if isinstance(inputs, Mapping):
        return model(**inputs)
    return model(*inputs) if isinstance(inputs, tuple | list) else model(inputs)


def _error(outputs: Any, targets: Tensor) -> Tensor:
    """The share of samples that are classified wrongly; NaN if targets are no classes."""
    if not isinstance(outputs, Tensor) or targets.is_floating_point():
        return torch.tensor(torch.nan)
    if outputs.dim() != targets.dim() + 1 or outputs.shape[CLASSES + 1 :] != targets.shape[1:]:
        return torch.tensor(torch.nan)
    return (outputs.argmax(CLASSES) != targets).double().mean()


def _on_cpu(rounds: dict[str, Any]) -> dict[str, Any]:
    """Generators keep their states on the CPU, whatever device the rest was loaded to."""
    lists = {key: [state.cpu() for state in rounds[key]] for key in ("at_start", "now")}
    return rounds | lists


@contextmanager
def modes_kept(model: nn.Module) -> Iterator[None]:
    """After it, all modules are in training or evaluation mode as they were before."""
    modes = [(module, module.training) for module in model.modules()]
    try:
        yield
    finally:
        for module, mode in modes:
            module.training = mode
