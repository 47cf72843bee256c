"""Meta-train a learned optimizer: python train_meta.py --config lstm_update_tele.yaml."""

from metaopt.__main__ import train as main
from metaopt.base import cli

if __name__ == "__main__":
    cli.run(main)
