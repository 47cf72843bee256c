"""``connect(models)``: a curve of low loss through trained networks.

min over the bends of  E_{t ~ U(0,1)} [ L(w(t)) + (wd/2) |w(t)|^2 ]
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from hashlib import blake2b
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.quasirandom import SobolEngine
from tqdm import tqdm

from metaopt.base.checkpoint import read_state, write_state
from metaopt.base.files import make_folder
from metaopt.base.streams import Stream, item_generator
from metaopt.landscape.between.batches import Batches
from metaopt.landscape.between.control_points import ControlPoints
from metaopt.landscape.between.curve_training import CurveTraining, rate
from metaopt.landscape.between.curves import Curve
from metaopt.landscape.between.layout import Layout
from metaopt.landscape.between.structure import require_equal_structure
from metaopt.landscape.data import Data
from metaopt.landscape.samples import Loss
from metaopt.symmetry.discovery.find import plain

ASIDE = 1e-3
"""How far a bend starts from its segment, as a share of the distance between ends."""
SAVED_EVERY = 10.0
"""Seconds between two writes of the state."""
SHOWN_EVERY = 0.5
"""Seconds between two readings of the loss, which wait for the device."""
STRATA = 256
"""Steps in a row whose t lie in different parts of [0, 1)."""
STRATIFIED, GLOBAL = 2**34, 2**33
"""Where items of the stream of random numbers for t begin, and which item seeds torch."""
STATE, FILE = "state.pt", "curve.safetensors"


def connect(
    models: Sequence[nn.Module],
    *,
    kind: str = "bezier",
    bends: int = 1,
    shape: str = "path",
    loss: Loss,
    data: Data,
    steps: int = 2000,
    lr: float = 0.03,
    momentum: float = 0.9,
    weight_decay: float = 0.0,
    seed: int = 0,
    batch_size: int | None = None,
    folder: str | Path | None = None,
) -> Curve:
    """The bends of a curve w(t) through trained networks, so that the loss along it is low.

        min over the bends of  E_{t ~ U(0,1)} [ L(w(t)) + (wd/2) |w(t)|^2 ]

    Each step draws one t from U(0,1), for its mini-batch, and is one of SGD with momentum on the
    bends; of 256 steps in a row one falls into each 256th of the interval. The
    rate is constant for half of the steps, falls in a straight line to 1 % of itself at 90 % of
    them, and stays there. Models are called by ``torch.func.functional_call``; they do not change.

    Bends start on the segment between their ends, moved aside by random normal numbers of norm
    1e-3 times the distance of the ends: where a symmetry of the loss exchanges two sides of the
    segment, as in a ring, the segment itself is a saddle, whose gradient no step could leave.

    The model trains in training mode: batch normalisation uses the statistics of its batch, and
    dropout drops. Parameters that do not require gradients (in the first model) are interpolated
    along the straight line between their ends, and not at all where all ends have the same.

    Args:
        models: two or more trained models of one structure. Wrappers (``torch.compile``, data
            parallel) are looked through.
        kind: ``bezier`` (smooth) or ``chain`` (straight pieces).
        bends: trained control points between two ends; 0: the chord, which is not trained.
        shape: ``path``: a curve through all models in order. ``star``: one trained centre, joined
            by a straight line to each model; it takes ``kind="chain"`` and ``bends=1``, since the
            centre is the one bend between any two ends.
        loss: (outputs, targets) -> a scalar, the mean over the samples.
        data: a pair (inputs, targets), or an iterable of such pairs, one for each step, that is run
            through again and again, e.g. a DataLoader (see ``metaopt.noise``).
        steps: how many steps.
        lr: the first learning rate.
        momentum: from 0 to 1, below 1.
        weight_decay: wd, at least 0.
        seed: of t, of the start, of the orders of ``batch_size``, and of torch's random numbers
            while it trains (dropout, shuffles of a DataLoader), at least 0.
        batch_size: cuts a pair into mini-batches, in a new order in each epoch; None: the pair is
            one batch.
        folder: a folder for the state (at least every 10 s), TensorBoard events and, in the end,
            ``curve.safetensors``. If it holds a state of the same curve, training goes on from
            there and ends in the same bits, if the data come in an order that the seed or their
            own generator decides. None: nothing is written.

    Returns:
        The curve; its ends are those of the models, bit for bit.

    Raises:
        ValueError: if models differ in structure (the message names the first parameter that
            does), have nothing to train, an argument is out of range, the loss is not finite, or
            the folder holds the state of another curve.

    References:
        Garipov et al., arXiv 1802.10026; Draxler et al., arXiv 1803.00885; of stars Lin et al.,
        arXiv 2404.06391.
    """
    plains = [plain(model) for model in models]
    layout = Layout(kind, bends, shape, len(plains))
    _require(steps, lr, momentum, weight_decay, seed)
    require_equal_structure(plains)
    template = plains[0]
    points = ControlPoints.of(plains)
    ends = [{p: b.detach().clone() for p, b in one.named_buffers()} for one in plains]
    start(points, layout, seed)
    curve = Curve(template, points, layout, ends, loss, weight_decay)
    if layout.bend_rows:
        if not any(part.is_trained for part in points.parts):
            raise ValueError("no parameter of the models requires a gradient: nothing to train")
        training = CurveTraining(template, points, layout, loss, momentum, weight_decay)
        device = next(p.device for p in template.parameters() if p.requires_grad)
        settings = [kind, bends, shape, steps, lr, momentum, weight_decay, seed, batch_size]
        with _training_mode(template), _own_numbers(seed, device):
            batches = Batches(data, batch_size, seed, device)
            kept = _Kept(folder, training, batches, settings, points, device)
            _train(training, batches, kept, steps, lr, seed)
    if folder is not None:
        make_folder(Path(folder))
        curve.save(Path(folder) / FILE)
    return curve


def start(points: ControlPoints, layout: Layout, seed: int) -> None:
    """Put bends between the ends, which alone are in ``points`` before.

    Args:
        points: changed in place.
        layout: how they make the curve.
        seed: of the random numbers that move bends aside.
    """
    trained = [part for part in points.parts if part.is_trained]
    entries = sum(len(part.points[0]) for part in trained)
    beginnings = {row: layout.start(row) for row in layout.bend_rows}
    sizes = {row: _distance(points, shares) for row, shares in beginnings.items()}
    numbers = {row: item_generator(Stream.CURVES, seed, row) for row in beginnings}
    for part in points.parts:
        placed = dict(zip(layout.end_rows, part.points, strict=True))
        for row, shares in beginnings.items():
            placed[row] = torch.empty_like(part.points[0])
            part.write(shares, placed[row])
            if part.is_trained:
                drawn = torch.from_numpy(numbers[row].standard_normal(len(placed[row])))
                aside = ASIDE * sizes[row] / entries**0.5
                placed[row].add_(drawn.to(placed[row]), alpha=aside)
        part.points = [placed[row] for row in range(layout.count)]


def _distance(points: ControlPoints, shares: Sequence[tuple[int, float]]) -> float:
    """The distance of the first two ends that a bend lies between."""
    (one, _), (other, _) = shares[:2]
    return points.distance(one, other)


def _require(steps: int, lr: float, momentum: float, weight_decay: float, seed: int) -> None:
    if steps < 1:
        raise ValueError(f"steps must be at least 1, found {steps}")
    if not 0 < lr < float("inf"):
        raise ValueError(f"lr must be finite and above 0, found {lr}")
    if not 0 <= momentum < 1:
        raise ValueError(f"momentum must be at least 0 and below 1, found {momentum}")
    if not 0 <= weight_decay < float("inf"):
        raise ValueError(f"weight_decay must be finite and at least 0, found {weight_decay}")
    if seed < 0:
        raise ValueError(f"seed must not be negative, found {seed}")


@contextmanager
def _training_mode(model: nn.Module) -> Iterator[None]:
    modes = {module: module.training for module in model.modules()}
    try:
        model.train()
        yield
    finally:
        for module, training in modes.items():
            module.training = training


@contextmanager
def _own_numbers(seed: int, device: torch.device) -> Iterator[None]:
    """Torch's random numbers from the seed; afterwards they are as they were."""
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        torch.manual_seed(int(item_generator(Stream.CURVES, seed, GLOBAL).integers(2**63)))
        yield


def drawn(seed: int, step: int) -> Iterator[float]:
    """Random numbers on [0, 1), one for each step from ``step`` on.

    Each is uniform. Blocks of 256 are scrambled points of Sobol's sequence, so that any 2^k in a
    row from a multiple of 2^k on lie one in each 2^k-th of the interval: together they move a bend
    with much less noise than independent numbers. Blocks are independent of each other.
    """
    while True:
        block, done = divmod(step, STRATA)
        key = item_generator(Stream.CURVES, seed, STRATIFIED + block).integers(2**31)
        points = SobolEngine(1, scramble=True, seed=int(key)).draw(STRATA, dtype=torch.float64)
        yield from points[done:, 0].tolist()
        step = (block + 1) * STRATA


def _train(
    training: CurveTraining, batches: Batches, kept: _Kept, steps: int, lr: float, seed: int
) -> None:
    step = kept.step
    bar = tqdm(total=steps, initial=step, desc="connecting", disable=step >= steps)
    numbers = drawn(seed, step)
    with bar, kept:
        total, count, shown = None, 0, time.monotonic()
        while step < steps:
            now = lr * rate(step, steps)
            inputs, targets = batches.next()
            loss = training.step(next(numbers), inputs, targets, now)
            total = loss if total is None else total + loss
            step, count = step + 1, count + 1
            clock = time.monotonic()
            if clock - shown < SHOWN_EVERY and step < steps:
                continue
            mean = _finite(total, count, step, now)
            bar.update(step - bar.n)
            bar.set_postfix_str(f"loss {mean:.4g}, lr {now:.2g}")
            kept.record(step, mean, now, is_last=step == steps)
            total, count, shown = None, 0, clock


def _finite(total: Tensor, count: int, step: int, lr: float) -> float:
    mean = float(total) / count
    if not abs(mean) < float("inf"):
        raise ValueError(
            f"the loss on the curve is {mean} within {count} steps before step {step}: lower lr "
            f"({lr:.3g}), or look for such numbers in models and data"
        )
    return mean


class _Kept:
    """The state of a training in a folder, and its events; without a folder it keeps nothing.

    Raises:
        ValueError: if the folder holds the state of another curve.
    """

    def __init__(
        self,
        folder: str | Path | None,
        training: CurveTraining,
        batches: Batches,
        settings: list,
        points: ControlPoints,
        device: torch.device,
    ) -> None:
        self._device = device
        self._folder = None if folder is None else Path(folder)
        self._training, self._batches = training, batches
        self.step, self._saved = 0, time.monotonic()
        self._writer: Any = None
        if self._folder is None:
            return
        make_folder(self._folder)
        self._of = f"{settings} {fingerprint(points)}"
        if (self._folder / STATE).exists():
            self._resume(read_state(self._folder / STATE))

    def _resume(self, state: dict[str, Any]) -> None:
        if state.get("of") != self._of:
            raise ValueError(
                f"{self._folder}: holds the state of another curve (other models or settings): "
                f"choose another folder, or remove {STATE} there"
            )
        self._training.resume(state["training"])
        self._batches.resume(state["batches"])
        torch.set_rng_state(state["torch"])
        if state["cuda"] is not None and self._device.type == "cuda":
            torch.cuda.set_rng_state(state["cuda"], self._device)
        self.step = state["step"]

    def __enter__(self) -> None:
        if self._folder is not None:
            from torch.utils.tensorboard import SummaryWriter

            self._writer = SummaryWriter(str(self._folder), purge_step=self.step or None)

    def __exit__(self, *_: object) -> None:
        if self._writer is not None:
            self._writer.close()

    def record(self, step: int, loss: float, lr: float, is_last: bool) -> None:
        """Write events, and the state if its time has come.

        Args:
            step: how many steps are done.
            loss: the mean loss on the curve since the last call.
            lr: the learning rate.
            is_last: whether the state is written in any case.
        """
        if self._folder is None:
            return
        self._writer.add_scalar("connect/loss", loss, step)
        self._writer.add_scalar("connect/lr", lr, step)
        if is_last or time.monotonic() - self._saved >= SAVED_EVERY:
            self._save(self._folder, step)

    def _save(self, folder: Path, step: int) -> None:
        on_cuda = self._device.type == "cuda"
        state = {
            "of": self._of,
            "step": step,
            "training": self._training.state(),
            "batches": self._batches.state(),
            "torch": torch.get_rng_state(),
            "cuda": torch.cuda.get_rng_state(self._device) if on_cuda else None,
        }
        write_state(folder / STATE, state)
        self._saved = time.monotonic()


def fingerprint(points: ControlPoints) -> str:
    """A digest of all control points."""
    digest = blake2b(digest_size=16)
    for part in points.parts:
        digest.update(f"{part.paths} {part.dtype} {part.is_trained}".encode())
        for vector in part.points:
            digest.update(vector.cpu().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
