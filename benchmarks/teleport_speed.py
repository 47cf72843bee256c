"""``metaopt.teleport`` on all symmetries of a model of 100 M parameters: seconds, least of some.

    python -m benchmarks.teleport_speed

Two skeletons, parameters without a forward, with the symmetries of BERT (a matrix for each head,
permutations of units, one permutation of the stream) and of Llama (scales and rotations, matrices,
scalings, permutations). Beside it: the same touch by touch, each on a float64 copy of the tensor,
and all parameters converted to float64 and back, which bounds what lower precision can cost.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterable, Sequence
from functools import partial

import torch
from torch import Tensor, nn

from benchmarks.timing import seconds
from metaopt.symmetry.groups import Group, Slot, Symmetry
from metaopt.symmetry.modules import tensor_at, touches
from metaopt.teleport.module import teleport

DEPTH, WIDTH, HEADS, HEAD, GROUPS = 12, 768, 12, 64, 4
REPEATS = 5

Factors = tuple[tuple[str, int], ...]


class Skeleton(nn.Module):
    """Parameters by name, without a forward."""

    def __init__(self, shapes: dict[str, tuple[int, ...]]) -> None:
        super().__init__()
        for path, shape in shapes.items():
            owner: nn.Module = self
            *modules, name = path.split(".")
            for part in modules:
                if part not in dict(owner.named_children()):
                    owner.add_module(part, nn.Module())
                owner = owner.get_submodule(part)
            owner.register_parameter(name, nn.Parameter(0.02 * torch.randn(shape)))


def symmetry(
    name: str,
    group: Group,
    size: int,
    incoming: Iterable[Slot],
    outgoing: Iterable[Slot] = (),
    blocks: int = 1,
) -> Symmetry:
    """One that allows its own group alone."""
    slots = tuple(incoming), tuple(outgoing)
    return Symmetry(name, group, size, *slots, blocks, frozenset({group}))


def slot(path: str, axis: int = 0, factors: Factors = ()) -> Slot:
    """The slot of a path."""
    module, _, name = path.rpartition(".")
    return Slot(module, name, axis, factors=factors)


def both(path: str) -> tuple[Slot, Slot]:
    """Rows of a weight, with its bias."""
    return slot(f"{path}.weight"), slot(f"{path}.bias")


def bert(width: int = WIDTH, vocabulary: int = 30522) -> tuple[Skeleton, list[Symmetry]]:
    """Biases everywhere, norms after each sum."""
    units = 4 * width
    shapes: dict[str, tuple[int, ...]] = {"words.weight": (vocabulary, width)}
    shapes |= {"positions.weight": (512, width), "norm.weight": (width,), "norm.bias": (width,)}
    found = []
    stream = [slot("words.weight", 1), slot("positions.weight", 1), *both("norm")]
    for i in range(DEPTH):
        at = f"layer.{i}"
        for name in ("q", "k", "v", "o"):
            shapes |= {f"{at}.{name}.weight": (width, width), f"{at}.{name}.bias": (width,)}
        shapes |= {f"{at}.up.weight": (units, width), f"{at}.up.bias": (units,)}
        shapes |= {f"{at}.down.weight": (width, units), f"{at}.down.bias": (width,)}
        for name in ("first", "second"):
            shapes |= {f"{at}.{name}.weight": (width,), f"{at}.{name}.bias": (width,)}
        q, k, v, o, up, down = (f"{at}.{name}" for name in ("q", "k", "v", "o", "up", "down"))
        out = [slot(f"{o}.weight", 1)]
        heads = width // HEAD
        found += [
            symmetry(f"{q} -> {k}", Group.LINEAR, HEAD, both(q), both(k), heads),
            symmetry(f"{v} -> {o}", Group.LINEAR, HEAD, both(v), out, heads),
            symmetry(
                f"{up} -> {down}", Group.PERMUTATION, units, both(up), [slot(f"{down}.weight", 1)]
            ),
        ]
        stream += [slot(f"{path}.weight", 1) for path in (q, k, v, up)]
        stream += [s for n in ("o", "down", "first", "second") for s in both(f"{at}.{n}")]
    return Skeleton(shapes), [*found, symmetry("stream", Group.PERMUTATION, width, stream)]


def llama(width: int = WIDTH, vocabulary: int = 32000) -> tuple[Skeleton, list[Symmetry]]:
    """Grouped queries, rotary embedding, gated units, no biases."""
    units, narrow = 8 * width // 3, GROUPS * HEAD
    copies = width // narrow
    shapes: dict[str, tuple[int, ...]] = {"embed.weight": (vocabulary, width)}
    shapes |= {"norm.weight": (width,), "head.weight": (vocabulary, width)}
    found = []
    stream = [slot("embed.weight", 1), slot("norm.weight"), slot("head.weight", 1)]
    pairs: Factors = (("unit", 2), ("block", HEAD // 2))
    groups, repeated = ("block", GROUPS), ("copy", copies)
    for i in range(DEPTH):
        at = f"layers.{i}"
        q, k, v, o = (f"{at}.{name}.weight" for name in ("q", "k", "v", "o"))
        gate, up, down = (f"{at}.{name}.weight" for name in ("gate", "up", "down"))
        shapes |= {q: (width, width), k: (narrow, width), v: (narrow, width), o: (width, width)}
        shapes |= {gate: (units, width), up: (units, width), down: (width, units)}
        shapes |= {f"{at}.first.weight": (width,), f"{at}.second.weight": (width,)}
        turned = [slot(q, 0, (groups, repeated, *pairs))], [slot(k, 0, (groups, *pairs))]
        out = [slot(o, 1, (groups, repeated, ("unit", HEAD)))]
        rows, columns = [slot(gate), slot(up)], [slot(down, 1)]
        found += [
            symmetry(f"{q} -> {k}", Group.ROTARY, 2, *turned, GROUPS * HEAD // 2),
            symmetry(f"{v} -> {o}", Group.LINEAR, HEAD, [slot(v)], out, GROUPS),
            symmetry(f"{up} -> {down}", Group.SCALING, units, [slot(up)], columns),
            symmetry(f"{gate} -> {down}", Group.PERMUTATION, units, rows, columns),
        ]
        stream += [slot(path, 1) for path in (q, k, v, gate, up)]
        stream += [slot(o), slot(down)]
        stream += [slot(f"{at}.{name}.weight") for name in ("first", "second")]
    return Skeleton(shapes), [*found, symmetry("stream", Group.PERMUTATION, width, stream)]


@torch.no_grad()
def touch_by_touch(model: nn.Module, symmetries: Sequence[Symmetry]) -> None:
    """The plain way: a float64 copy of the tensor for each touch."""
    for path, steps in touches(model, symmetries, 0.5, 0).items():
        tensor: Tensor = tensor_at(model, path)
        value = tensor.double()
        for step in steps:
            act = step.element.act
            if not step.is_incoming:
                act = step.element.act_inversely_transposed
            value = step.slot.apply(value, step.symmetry.blocks, step.symmetry.size, act)
        tensor.copy_(value)


@torch.no_grad()
def there_and_back(model: nn.Module) -> None:
    """All parameters to float64, and back."""
    for parameter in model.parameters():
        parameter.copy_(parameter.double())


def least(sides: dict[str, Callable[[], object]], repeats: int) -> dict[str, float]:
    """The least seconds of each side, in turns, since other work only adds to them."""
    rounds = [{name: seconds(run, torch.device("cpu")) for name, run in sides.items()}]
    for _ in range(repeats):
        rounds.append({name: seconds(run, torch.device("cpu")) for name, run in sides.items()})
    return {name: min(each[name] for each in rounds) for name in sides}


def main() -> None:
    """Print a line for each model."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--repeats", type=int, default=REPEATS, metavar="N")
    repeats = parser.parse_args().repeats
    print(f"{torch.get_num_threads()} threads, float32")
    print("model  parameters  symmetries  teleport s  touch by touch  float64 and back")
    for name, build in (("bert", bert), ("llama", llama)):
        torch.manual_seed(0)
        model, found = build()
        sides: dict[str, Callable[[], object]] = {
            "own": partial(teleport, model, 0.5, 0, found),
            "plain": partial(touch_by_touch, model, found),
            "bound": partial(there_and_back, model),
        }
        best = least(sides, repeats)
        count = sum(parameter.numel() for parameter in model.parameters())
        ratios = f"{best['plain'] / best['own']:14.2f}  {best['bound'] / best['own']:16.2f}"
        print(f"{name:<5}  {count:10,}  {len(found):10}  {best['own']:10.2f}  {ratios}")


if __name__ == "__main__":
    main()
