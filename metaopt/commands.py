"""What ``train_meta.py`` and ``eval_meta.py`` do: ``metaopt train`` and ``metaopt eval``."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from metaopt import cli, config
from metaopt._began import BEGAN
from metaopt.distributed import World
from metaopt.errors import UserError
from metaopt.evaluate import execute
from metaopt.profiling import WARM_UP
from metaopt.run import Run
from metaopt.schema import EvalConfig, TrainConfig

PRETRAINED = Path(__file__).resolve().parent.parent / "checkpoints" / "pretrained"


def train(world: World, given: Sequence[str] | None = None, prog: str | None = None) -> None:
    """Read the configuration, train, print the validation table and where the file is.

    Args:
        world: the processes that share the meta-batch.
        given: the arguments; those of the process by default.
        prog: how the command is called, if not by its file.
    """
    parser = cli.parser("Meta-train a learned optimizer.", prog)
    parser.add_argument("--config", required=True, help="a path, or a name in configs/")
    parser.add_argument("--resume", action="store_true", help="go on with a stopped run")
    parser.add_argument(
        "--profile",
        type=cli.positive,
        metavar="N",
        help=f"trace N outer steps, after {WARM_UP} to warm up, into profile/ of the results; "
        "TensorBoard and ui.perfetto.dev open it",
    )
    arguments = parser.parse_args(given)
    settings = config.load(TrainConfig, arguments.config, arguments.overrides)
    folder = Path(arguments.out) if arguments.out else Path("runs") / settings.name
    device = cli.device(arguments.device, world)
    try:
        run = Run(settings, folder, device, BEGAN, world)
    except UserError as error:
        raise UserError(f"{arguments.config}: {error}") from None
    world.say(run.execute(arguments.resume, arguments.profile))


def evaluate(world: World, given: Sequence[str] | None = None, prog: str | None = None) -> None:
    """Evaluate checkpoints and baselines, write results, print the table.

    Args:
        world: the processes that share the tasks.
        given: the arguments; those of the process by default.
        prog: how the command is called, if not by its file.
    """
    parser = cli.parser("Compare learned and hand-made optimizers on unseen tasks.", prog)
    parser.add_argument("--config", default="eval.yaml", help="a path, or a name in configs/")
    parser.add_argument(
        "--checkpoints",
        nargs="+",
        metavar="PATH",
        help="learned optimizers; by default all of checkpoints/pretrained/ and runs/",
    )
    arguments = parser.parse_args(given)
    settings = config.load(EvalConfig, arguments.config, arguments.overrides)
    named = arguments.checkpoints is not None
    if named:
        paths = [Path(path) for path in arguments.checkpoints]
    else:
        paths = [
            *sorted(PRETRAINED.glob("*.safetensors")),
            *sorted(Path("runs").glob("*/optimizer.safetensors")),
        ]
    folder = Path(arguments.out) if arguments.out else Path("runs/eval")
    device = cli.device(arguments.device, world)
    world.say(execute(settings, paths, folder, device, world, required=named))
