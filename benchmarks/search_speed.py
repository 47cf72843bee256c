"""``metaopt.symmetries`` of BERT-base and of a Llama of one billion parameters: seconds, memory.

    python -m benchmarks.search_speed [--bf16]

Models of ``transformers`` with random weights, on the meta device, or with ``--bf16`` in memory
(2.3 GB). The example is one sequence of 8 tokens. Memory is by how much the process's peak grows
during the search: a copy of the weights would add their size. On the meta device nothing is tried
on the example, and with ``--bf16`` none is given to the search but the one that the model brings.
"""

from __future__ import annotations

import argparse
import resource
import time
import warnings

import torch
from torch import nn

import metaopt

TOKENS = 8


def models(device: str) -> dict[str, nn.Module]:
    """Models by name."""
    from transformers import BertConfig, BertForMaskedLM, LlamaConfig, LlamaForCausalLM

    llama = LlamaConfig(
        vocab_size=32000,
        hidden_size=2048,
        intermediate_size=8192,
        num_hidden_layers=16,
        num_attention_heads=32,
        num_key_value_heads=8,
    )
    torch.manual_seed(0)
    with torch.device(device):
        return {
            "BERT-base": BertForMaskedLM(BertConfig()).bfloat16(),
            "Llama, 1 B": LlamaForCausalLM(llama).bfloat16(),
        }


def peak() -> int:
    """The peak of the process's memory so far, in MB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024


def main() -> None:
    """Print a line for each model and each search."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--bf16", action="store_true", help="weights in memory, in bfloat16")
    device = "cpu" if parser.parse_args().bf16 else "meta"
    warnings.simplefilter("ignore")
    tokens = torch.zeros(1, TOKENS, dtype=torch.long, device=device)
    example = {"input_ids": tokens} if device == "meta" else None
    print("model       parameters     permutations  found  seconds  memory MB")
    for name, model in models(device).items():
        count = sum(parameter.numel() for parameter in model.parameters())
        for permutations in (False, True):
            before, start = peak(), time.perf_counter()
            found = metaopt.symmetries(model, example, permutations)
            took, grown = time.perf_counter() - start, peak() - before
            said = "with" if permutations else "without"
            print(f"{name:<10}  {count:13,}  {said:>12}  {len(found):5}  {took:7.1f}  {grown:9}")


if __name__ == "__main__":
    main()
