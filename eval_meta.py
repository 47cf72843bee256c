"""Compare optimizers on unseen tasks: python eval_meta.py."""

from pathlib import Path

from metaopt import cli, config
from metaopt.distributed import World
from metaopt.evaluate import execute
from metaopt.schema import EvalConfig


def main(world: World) -> None:
    """Evaluate checkpoints and baselines, write results, print the table.

    Args:
        world: the processes that share the tasks.
    """
    parser = cli.parser("Compare learned and hand-made optimizers on unseen tasks.")
    parser.add_argument("--config", default="eval.yaml", help="a path, or a name in configs/")
    parser.add_argument(
        "--checkpoints",
        nargs="+",
        metavar="PATH",
        help="learned optimizers; by default all of checkpoints/pretrained/ and runs/",
    )
    arguments = parser.parse_args()
    settings = config.load(EvalConfig, arguments.config, arguments.overrides)
    named = arguments.checkpoints is not None
    if named:
        paths = [Path(path) for path in arguments.checkpoints]
    else:
        shipped = Path(__file__).resolve().parent / "checkpoints" / "pretrained"
        paths = [
            *sorted(shipped.glob("*.safetensors")),
            *sorted(Path("runs").glob("*/optimizer.safetensors")),
        ]
    folder = Path(arguments.out) if arguments.out else Path("runs/eval")
    device = cli.device(arguments.device, world)
    world.say(execute(settings, paths, folder, device, world, required=named))


if __name__ == "__main__":
    cli.run(main)
