"""What a linear head alone can do, on the network as it was pre-trained."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from studies.minilm.training import JUDGED_AT_ONCE
from studies.minilm.words import Words

DAMPINGS = (1e-4, 1e-3, 1e-2, 1e-1, 1.0)


@dataclass(frozen=True)
class Frozen:
    """Of the damping that is best on the validation words."""

    damping: float
    validation: float  # loss
    test: float  # loss


@torch.no_grad()
def features(base: nn.Module, words: Words, rows: Tensor) -> Tensor:
    """What the head reads, the mean of the last layer over a word's tokens, and 1: [R, 2 d + 1].

    Args:
        base: the pre-trained network; its head is not read.
        words: all words.
        rows: of which words.
    """
    base.eval()
    found = []
    for part in rows.split(JUDGED_AT_ONCE):
        mask = words.mask[part]
        out = base.get_submodule("bert")(words.inputs[part], attention_mask=mask)
        mean = (out.last_hidden_state * mask[..., None]).sum(1) / mask.sum(1, keepdim=True)
        found.append(torch.cat([out.pooler_output, mean, torch.ones(len(part), 1)], dim=1))
    return torch.cat(found).double()


def best_head(base: nn.Module, words: Words, limit: int) -> Frozen:
    """min over W of mean (H W - v)^2 + damping c |W|^2, c the mean square of H, in closed form.

    Args:
        base: the pre-trained network.
        words: all words.
        limit: words of each part, at most.
    """
    parts = [rows[:limit] for rows in (words.train, words.validation, words.test)]
    H, validation, test = (features(base, words, rows) for rows in parts)
    v, v_validation, v_test = (words.valence[rows].double() for rows in parts)
    identity = torch.eye(H.shape[1], dtype=H.dtype)

    def solved(damping: float) -> Frozen:
        scale = damping * H.square().mean()
        W = torch.linalg.solve(H.T @ H / len(H) + scale * identity, H.T @ v / len(H))
        losses = [
            float((X @ W - y).square().mean())
            for X, y in ((validation, v_validation), (test, v_test))
        ]
        return Frozen(damping, *losses)

    return min(map(solved, DAMPINGS), key=lambda found: found.validation)
