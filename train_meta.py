"""Meta-train a learned optimizer: python train_meta.py --config lstm_update_tele.yaml."""

from metaopt import cli
from metaopt.commands import train as main

if __name__ == "__main__":
    cli.run(main)
