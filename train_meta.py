"""Meta-train a learned optimizer: python train_meta.py --config lstm_update_tele.yaml."""

import time

BEGAN = time.perf_counter()

from pathlib import Path  # noqa: E402

from metaopt import cli, config  # noqa: E402
from metaopt.run import Run  # noqa: E402
from metaopt.schema import TrainConfig  # noqa: E402


def main() -> None:
    """Read the configuration, train, print the validation table and where the file is."""
    parser = cli.parser("Meta-train a learned optimizer.")
    parser.add_argument("--config", required=True, help="a path, or a name in configs/")
    parser.add_argument("--resume", action="store_true", help="go on with a stopped run")
    arguments = parser.parse_args()
    settings = config.load(TrainConfig, arguments.config, arguments.overrides)
    folder = Path(arguments.out) if arguments.out else Path("runs") / settings.name
    device = cli.device(arguments.device)
    try:
        run = Run(settings, folder, device, BEGAN)
    except config.ConfigError as error:
        raise config.ConfigError(f"{arguments.config}: {error}") from None
    print(run.execute(resume_run=arguments.resume))


if __name__ == "__main__":
    cli.run(main)
