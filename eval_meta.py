"""Compare optimizers on unseen tasks: python eval_meta.py."""

from metaopt import cli
from metaopt.commands import evaluate as main

if __name__ == "__main__":
    cli.run(main)
