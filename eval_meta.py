"""Compare optimizers on unseen tasks: python eval_meta.py."""

from metaopt.__main__ import evaluate as main
from metaopt.base import cli

if __name__ == "__main__":
    cli.run(main)
