"""Whether inner steps are compiled (field ``meta.compile``), and what users are told of it.

Compiling takes a quarter to half a minute for each kind of trajectories and saves a few
milliseconds in each inner step, so that it pays from some ten thousand inner steps on. The choice
depends on the configuration, the device and whether there is a compiler, and on no clock: a run
that resumes where it was interrupted has the bits of one that was not.
"""

from __future__ import annotations

from collections.abc import Callable

import torch

from metaopt.meta.compiled import CompiledSteps
from metaopt.meta.config import MetaConfig, PersistentESConfig, TrainConfig
from metaopt.meta.groups import ALWAYS_WHOLE
from metaopt.meta.unroll import Advance, operation_by_operation
from metaopt.rules.own import is_own

LONG = 30_000
"""Inner steps of all windows from which steps are compiled; it has paid after 3,000 to 31,000."""

_FIELD = "meta.compile"


def advance(config: TrainConfig, device: torch.device, say: Callable[[str], object]) -> Advance:
    """How the windows of a run take their steps.

    Args:
        config: the configuration of the run.
        device: the device that it runs on.
        say: tells users a line.
    """
    return operation_by_operation if _why_not(config, device) else CompiledSteps(say=say)


def note(config: TrainConfig, device: torch.device) -> str | None:
    """One line for the user: that there is something to wait for, or why not; None if neither.

    Args:
        config: the configuration of the run.
        device: the device that it runs on.
    """
    why_not = _why_not(config, device)
    if why_not is None:
        return (
            f"{_FIELD}: inner steps are compiled first, which takes up to half a minute for each "
            f"kind of trajectories (TORCHINDUCTOR_CACHE_DIR: the folder that keeps them for later "
            f"runs)"
        )
    asked = config.meta.compile
    if asked == "always" or (asked == "auto" and why_not is NO_COMPILER):
        return f"{_FIELD}: {asked}: steps run operation by operation: {why_not}"
    return None


NO_COMPILER = "no C++ compiler was found (g++ or clang++, or what CXX names)"


def inner_steps(meta: MetaConfig) -> int:
    """The most inner steps that all windows of a run have."""
    whole = meta.truncation == "whole"
    return meta.outer_steps * (meta.steps if whole else min(meta.unroll, meta.steps))


def _why_not(config: TrainConfig, device: torch.device) -> str | None:
    meta = config.meta
    if meta.compile == "never":
        return "it was asked for"
    if meta.compile == "auto" and inner_steps(meta) < LONG:
        return "the run is short"
    if device.type != "cpu":
        return f"on {device} whole windows are replayed as graphs"
    if config.task.is_own:
        return "a family of your own sees other data in each step"
    if any(map(is_own, config.rules.by_name().values())):
        return "a rule of your own may do what no graph holds"
    if meta.batch > ALWAYS_WHOLE and meta.group is None:
        return f"over {ALWAYS_WHOLE} trajectories go through in groups of many sizes (meta.group)"
    if isinstance(meta.estimator, PersistentESConfig):
        return "estimator pes takes no gradients"
    return None if has_compiler() else NO_COMPILER


def has_compiler() -> bool:
    """Whether torch finds a C++ compiler."""
    from torch._inductor.cpp_builder import get_cpp_compiler

    try:
        return bool(get_cpp_compiler())
    except RuntimeError:
        # ``InvalidCxxCompiler`` is one.
        return False
