"""What reads files and arguments of a user's: each is given a damaged one.

A target writes a damaged file to a folder and reads it as the package does. What it raises, how
long it takes and what it takes of memory is the business of ``fuzz``.
"""

from __future__ import annotations

import io
import json
import pickle
import random
import shutil
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import torch
import yaml

import metaopt
from benchmarks.hardening import damage, trap
from benchmarks.hardening.runs import COORDINATE, META, SHAPES, VALIDATION
from metaopt.base import checkpoint, config
from metaopt.base.process import World
from metaopt.evaluation import tuning
from metaopt.evaluation.config import EvalConfig
from metaopt.meta.build import meta_optimizer
from metaopt.meta.config import TrainConfig
from metaopt.meta.run import Run
from metaopt.meta.run_files import METRICS_FILE, STATE_FILE
from metaopt.optim import hub, show
from metaopt.optim.learned import restore
from metaopt.rules.baselines import hand_made
from studies.output import PRETRAINED, ROOT
from studies.study.config import StudyConfig

CPU = torch.device("cpu")
CONFIGS = ROOT / "configs"
TRAINING = sorted([*CONFIGS.glob("*_*.yaml"), *(CONFIGS / "paper").glob("*.yaml")])
TRAINING = [path for path in TRAINING if not path.name.startswith("eval")]
EVALUATION = sorted(CONFIGS.glob("eval*.yaml"))
SMALL = sorted(PRETRAINED.glob("*.safetensors"), key=lambda path: path.stat().st_size)[:4]

Target = Callable[[random.Random, Path], None]


@cache
def _plain(path: Path) -> Any:
    return yaml.safe_load(path.read_text(encoding="utf-8"))


@cache
def _bytes(path: Path) -> bytes:
    return path.read_bytes()


def _built(found: TrainConfig) -> None:
    config.to_yaml(found)
    # As a checkpoint's: shapes cost nothing, whatever sizes are asked for.
    with torch.device("meta"):
        meta_optimizer(found)


def training_config(draw: random.Random, folder: Path) -> None:
    """``train_meta.py --config``."""
    path = folder / "damaged.yaml"
    path.write_bytes(damage.as_yaml(damage.of_data(_plain(draw.choice(TRAINING)), draw), draw))
    _built(config.load(TrainConfig, path))


def evaluation_config(draw: random.Random, folder: Path) -> None:
    """``eval_meta.py --config``."""
    path = folder / "damaged.yaml"
    path.write_bytes(damage.as_yaml(damage.of_data(_plain(draw.choice(EVALUATION)), draw), draw))
    config.load(EvalConfig, path)


def study_config(draw: random.Random, folder: Path) -> None:
    """``python -m studies.study --config``."""
    path = folder / "damaged.yaml"
    data = damage.of_data(_plain(CONFIGS / "study.yaml"), draw)
    path.write_bytes(damage.as_yaml(data, draw))
    config.load(StudyConfig, path)


def overrides(draw: random.Random, folder: Path) -> None:
    """``--set key.sub=value``."""
    path = draw.choice(TRAINING)
    fields = [".".join(map(str, at)) for at in damage.places(_plain(path)) if at]
    given = [_override(draw, fields) for _ in range(draw.choice((1, 1, 2, 4)))]
    _built(config.load(TrainConfig, path, given))


def _override(draw: random.Random, fields: list[str]) -> str:
    strange = ("", ".", "a..b", "kind", "rules.update.kind.x", "task.options.a.b.c", "=", "meta[0]")
    key = draw.choice(fields) if draw.random() < 0.9 else draw.choice(strange)
    if draw.random() < 0.3:
        key += draw.choice((".x", ".0", "x", ".kind", "." * 50, ".a" * 3000))
    equals = "=" if draw.random() < 0.97 else ""
    odd = damage.as_yaml(draw.choice(damage.ODD), draw) if draw.random() < 0.7 else b""
    value = odd.decode(errors="replace") or draw.choice(damage.YAML_TAGS)
    return f"{key}{equals}{value}"


def checkpoint_file(draw: random.Random, folder: Path) -> None:
    """``metaopt.load`` and ``metaopt show``."""
    path = folder / "damaged.safetensors"
    path.write_bytes(damage.of_safetensors(_bytes(draw.choice(SMALL)), draw))
    _loaded(path)


def _loaded(path: Path) -> None:
    found = hub.read(path)
    restore(*found)
    show.report(found[1], str(path))


def optimizer_folder(draw: random.Random, folder: Path) -> None:
    """A folder that ``save_pretrained`` wrote."""
    own = folder / "optimizer"
    if not own.exists():
        metaopt.load(SMALL[0]).save_pretrained(own)
    model, described = own / hub.MODEL_FILE, own / hub.CONFIG_FILE
    before = {path: path.read_bytes() for path in (model, described)}
    if draw.random() < 0.5:
        model.write_bytes(damage.of_safetensors(before[model], draw))
    elif draw.random() < 0.5:
        described.write_bytes(damage.of_bytes(before[described], draw))
    else:
        data = damage.of_data(json.loads(before[described]), draw)
        described.write_bytes(damage.as_json(data, draw).encode(errors="surrogatepass"))
    try:
        _loaded(own)
    finally:
        for path, content in before.items():
            path.write_bytes(content)


def _tiny() -> TrainConfig:
    given = [*SHAPES, *META, *VALIDATION, "meta.outer_steps=3"]
    return config.load(TrainConfig, COORDINATE.config, given)


def _stopped(folder: Path) -> Path:
    """The folder of a run that was stopped before its last outer step, made once."""
    own = folder / "stopped"
    if not own.exists():
        run = Run(_tiny(), own, CPU, 0.0, World())
        run.execute(False)
        run.trainer.progress.outer_step = 2
        checkpoint.write_state(own / STATE_FILE, run.trainer.state())
    return own


def _resumed(folder: Path, name: str, damaged: Callable[[bytes], bytes]) -> None:
    """A stopped run resumed, one of its files damaged."""
    own = folder / "run"
    shutil.rmtree(own, ignore_errors=True)
    own.mkdir()
    for file in (STATE_FILE, METRICS_FILE):
        shutil.copy(_stopped(folder) / file, own / file)
    (own / name).write_bytes(damaged((own / name).read_bytes()))
    Run(_tiny(), own, CPU, 0.0, World()).execute(True)


def resume_state(draw: random.Random, folder: Path) -> None:
    """``state.pt`` of ``--resume``."""

    def damaged(content: bytes) -> bytes:
        match draw.randrange(4):
            case 0:
                return damage.of_bytes(content, draw)
            case 1:
                return _pickle(draw)
            case _:
                state = torch.load(io.BytesIO(content), weights_only=True)
                odd = (*damage.ODD, torch.zeros(()), torch.ones(2, 3), torch.zeros(0).long())
                buffer = io.BytesIO()
                torch.save(damage.of_data(state, draw, odd), buffer)
                return buffer.getvalue()

    try:
        _resumed(folder, STATE_FILE, damaged)
    except RecursionError:
        # It is torch.save that cannot write what is nested so deep.
        return


class _Runs:
    """What unpickled calls something."""

    def __reduce__(self) -> tuple[Any, ...]:
        return trap.spring, ()


def _pickle(draw: random.Random) -> bytes:
    found: Any = draw.choice((_Runs(), [_Runs()], {"config": _Runs()}, trap.spring, b"", 1))
    if draw.random() < 0.5:
        return pickle.dumps(found)
    buffer = io.BytesIO()
    torch.save(found, buffer)
    return buffer.getvalue()


def metrics(draw: random.Random, folder: Path) -> None:
    """``metrics.jsonl`` of ``--resume``."""

    def damaged(content: bytes) -> bytes:
        if draw.random() < 0.4:
            return damage.of_bytes(content, draw)
        rows = [json.loads(line) for line in content.splitlines()]
        return "\n".join(
            damage.as_json(damage.of_data(row, draw) if draw.random() < 0.3 else row, draw)
            for row in rows
        ).encode(errors="surrogatepass")

    _resumed(folder, METRICS_FILE, damaged)


def tuning_cache(draw: random.Random, folder: Path) -> None:
    """The values that hand-made optimizers were tuned to."""
    grids = "tuning.grids={GD: {lr: [1e-3]}, Adam: {lr: [0.1], beta1: [0.9], beta2: [0.9]}}"
    tiny = (*SHAPES, "steps=2", "tuning.tasks=2", grids, "baselines=[GD,Adam]")
    settings, cache_file = config.load(EvalConfig, "eval.yaml", tiny), folder / "cache.json"
    whole = folder / "whole_cache.json"
    if not whole.exists():
        tuning.tune(settings, CPU, whole, World())
    content = whole.read_bytes()
    if draw.random() < 0.3:
        content = damage.of_bytes(content, draw)
    else:
        content = damage.as_json(damage.of_data(json.loads(content), draw), draw).encode(
            errors="surrogatepass"
        )
    cache_file.write_bytes(content)
    for choice in tuning.tune(settings, CPU, cache_file, World()):
        tuning.edges(choice, settings)
        hand_made(choice.base, choice.values, choice.step)


TARGETS: dict[str, Target] = {
    "training configuration": training_config,
    "evaluation configuration": evaluation_config,
    "study configuration": study_config,
    "overrides": overrides,
    "checkpoint": checkpoint_file,
    "optimizer folder": optimizer_folder,
    "resume state": resume_state,
    "metrics": metrics,
    "tuning cache": tuning_cache,
}
