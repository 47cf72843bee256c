"""Meta-train a learned optimizer: python train_meta.py --config lstm_update_tele.yaml."""

import time

BEGAN = time.perf_counter()

from pathlib import Path  # noqa: E402

from metaopt import cli, config  # noqa: E402
from metaopt.distributed import World  # noqa: E402
from metaopt.errors import UserError  # noqa: E402
from metaopt.profiling import WARM_UP  # noqa: E402
from metaopt.run import Run  # noqa: E402
from metaopt.schema import TrainConfig  # noqa: E402


def main(world: World) -> None:
    """Read the configuration, train, print the validation table and where the file is.

    Args:
        world: the processes that share the meta-batch.
    """
    parser = cli.parser("Meta-train a learned optimizer.")
    parser.add_argument("--config", required=True, help="a path, or a name in configs/")
    parser.add_argument("--resume", action="store_true", help="go on with a stopped run")
    parser.add_argument(
        "--profile",
        type=cli.positive,
        metavar="N",
        help=f"trace N outer steps, after {WARM_UP} to warm up, into profile/ of the results; "
        "TensorBoard and ui.perfetto.dev open it",
    )
    arguments = parser.parse_args()
    settings = config.load(TrainConfig, arguments.config, arguments.overrides)
    folder = Path(arguments.out) if arguments.out else Path("runs") / settings.name
    device = cli.device(arguments.device, world)
    try:
        run = Run(settings, folder, device, BEGAN, world)
    except UserError as error:
        raise UserError(f"{arguments.config}: {error}") from None
    world.say(run.execute(arguments.resume, arguments.profile))


if __name__ == "__main__":
    cli.run(main)
