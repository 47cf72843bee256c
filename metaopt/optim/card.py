"""The model card of a shared optimizer: what it is, how it is loaded, what it does."""

from __future__ import annotations

from metaopt.base.checkpoint import Checkpoint
from metaopt.optim.description import Rows, experience, name_of, rows
from metaopt.optim.figures import figures, unseen_sections, validation_section

_CARD = """---
{licence}library_name: metaopt
tags:
- learned-optimizer
- meta-learning
- pytorch
---

# {name}

A learned optimizer of metaopt: a rule that proposes the steps of gradient-based training, itself
meta-trained on many small tasks.

{about}

It was meta-trained with

{seen}

## How to load it

```python
import metaopt

opt = metaopt.LearnedOptimizer(model, "this folder, or its hub id")   # as torch.optim.Adam is used
rule = metaopt.load("this folder, or its hub id")                     # the rule by itself
```

`metaopt show FOLDER` prints what is in it. No code from the files is run.

## Validation

{validation}

## Unseen tasks

{unseen}

Figures are for the tasks named; on other losses, architectures or data compare with a tuned
hand-made optimizer before you rely on it.
"""


def card(content: Checkpoint, source: str) -> str:
    """The text of ``README.md``, front matter included.

    Args:
        content: the checkpoint.
        source: names it in errors.

    Raises:
        ConfigError: where its configuration or its figures are none; one line.
    """
    found = figures(content.validation, source)
    return _CARD.format(
        licence=f"license: {content.licence.lower()}\n" if content.licence else "",
        name=_literal(name_of(content, source)),
        about=_listed(rows(content, source)),
        seen=_listed(experience(content, source)),
        validation=validation_section(found),
        unseen="\n\n".join(unseen_sections(found)),
    )


def _listed(found: Rows) -> str:
    return "\n".join(f"- **{name}**: {_literal(text)}" for name, text in found)


def _literal(text: str) -> str:
    """Text that Markdown shows as it is."""
    for mark in ("\\", "`", "<", "*", "["):
        text = text.replace(mark, f"\\{mark}")
    return text
