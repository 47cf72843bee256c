"""GPT-2 and OPT of ``transformers``: what writes word by word, with caches."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from architectures.base import NON_ZERO, Architecture, Inputs, Refused, Row, wake
from architectures.encoders import attention, before_norm, hidden, stream


def _cached(model: nn.Module, given: Inputs) -> list[Tensor]:
    """All but two words, then these with the cache of the others."""
    tokens = given.tokens()
    first = model(input_ids=tokens[:, :-2], use_cache=True)
    cache = first.past_key_values
    last = model(input_ids=tokens[:, -2:], past_key_values=cache, use_cache=True)
    return [first.logits, last.logits]


CAUSAL = {
    "plain": lambda model, given: model(input_ids=given.tokens(), use_cache=False),
    "mask": lambda model, given: model(
        input_ids=given.tokens(), attention_mask=given.mask(), use_cache=False
    ),
    "labels": lambda model, given: model(
        input_ids=(tokens := given.tokens()), labels=tokens, use_cache=False
    ),
    "cache": _cached,
}
"""Calls of models that predict the next word."""


def tokens(dtype: torch.dtype) -> dict[str, Any]:
    """An example without a cache, which would be an output."""
    given = Inputs(dtype)
    return {"input_ids": given.tokens(), "attention_mask": given.mask(), "use_cache": False}


def gpt2() -> nn.Module:
    """With a tied head."""
    from transformers import GPT2Config, GPT2LMHeadModel

    rates: dict[str, Any] = {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0}
    sizes: dict[str, Any] = {
        "n_embd": 16,
        "n_layer": 2,
        "n_head": 2,
        "n_inner": 24,
        "n_positions": 32,
    }
    return wake(GPT2LMHeadModel(GPT2Config(vocab_size=50, **sizes, **rates)))


def opt(tied: bool = True) -> nn.Module:
    """With ReLU; a tied head or one of its own."""
    from transformers import OPTConfig, OPTForCausalLM

    sizes: dict[str, Any] = {
        "hidden_size": 16,
        "ffn_dim": 24,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
    }
    config = OPTConfig(
        vocab_size=50,
        max_position_embeddings=32,
        word_embed_proj_dim=16,
        dropout=0.0,
        tie_word_embeddings=tied,
        **sizes,
    )
    return wake(OPTForCausalLM(config))


G = "transformer.h."
P = "model.decoder.layers."
_c_attn = f"{G}#.attn.c_attn.{{weight,bias}}"
_gpt2 = (
    Row("query, key of each head", "general linear", 8, _c_attn, 2, 2),
    Row(
        "value, output of each head",
        "general linear",
        8,
        f"{_c_attn} {G}#.attn.c_proj.weight",
        2,
        2,
    ),
    Row("heads", "permutation", 2, f"{_c_attn} {G}#.attn.c_proj.weight", 1, 2),
    Row("key bias (softmax)", "translation", 0, f"{G}#.attn.c_attn.bias", layers=2),
    Row(
        "norm, attention",
        NON_ZERO,
        16,
        f"{G}#.ln_1.{{weight,bias}} {G}#.attn.c_attn.weight",
        layers=2,
    ),
    Row("norm, MLP", NON_ZERO, 16, f"{G}#.ln_2.{{weight,bias}} {G}#.mlp.c_fc.weight", layers=2),
    hidden(f"{G}#.mlp.c_fc.{{weight,bias}} {G}#.mlp.c_proj.weight"),
    before_norm(f"transformer.wpe.weight {G}{{0,1}}.{{attn,mlp}}.c_proj.{{weight,bias}}"),
    stream(
        f"transformer.{{wte,wpe}}.weight {G}{{0,1}}.ln_{{1,2}}.{{weight,bias}} "
        f"{G}{{0,1}}.attn.c_attn.weight {G}{{0,1}}.mlp.c_fc.weight "
        f"{G}{{0,1}}.{{attn,mlp}}.c_proj.{{weight,bias}} transformer.ln_f.{{weight,bias}}",
        "residual stream, with the tied head",
    ),
)


def _opt_rows(tied: bool) -> tuple[Row, ...]:
    out = f"{P}{{0,1}}.self_attn.out_proj.{{weight,bias}} {P}{{0,1}}.fc2.{{weight,bias}}"
    last = "model.decoder.final_layer_norm.{weight,bias}"
    relu = f"{P}#.fc1.{{weight,bias}} {P}#.fc2.weight"
    embedded = "model.decoder.{embed_tokens,embed_positions}.weight"
    rows = (
        *attention(f"{P}#.self_attn.", "q_proj", "k_proj", "v_proj", "out_proj"),
        norm_row(
            f"{P}#.self_attn_layer_norm", f"{P}#.self_attn.{{q,k,v}}_proj.weight", "attention"
        ),
        norm_row(f"{P}#.final_layer_norm", f"{P}#.fc1.weight", "MLP"),
        Row("hidden units (ReLU)", "positive scaling", 24, relu, layers=2),
        Row("hidden units (ReLU)", "permutation", 24, relu, layers=2),
        before_norm(f"{'model.decoder.embed_positions.weight' if tied else embedded} {out}"),
        stream(
            f"{embedded} {out} {P}{{0,1}}.{{self_attn,final}}_layer_norm.{{weight,bias}} "
            f"{P}{{0,1}}.self_attn.{{q,k,v}}_proj.weight {P}{{0,1}}.fc1.weight {last}"
            + ("" if tied else " lm_head.weight"),
            "residual stream, with the tied head" if tied else "residual stream",
        ),
    )
    if tied:
        return rows
    return (*rows, Row("last norm, head", NON_ZERO, 16, f"{last} lm_head.weight"))


def norm_row(norm: str, reads: str, what: str, layers: int = 2, bias: bool = True) -> Row:
    """The gains of a norm against the layers that alone read it."""
    gains = f"{norm}.{{weight,bias}}" if bias else f"{norm}.weight"
    return Row(f"norm, {what}", NON_ZERO, 16, f"{gains} {reads}", layers=layers)


DECODERS = (
    Architecture(
        "GPT-2",
        gpt2,
        tokens,
        CAUSAL,
        _gpt2,
        (Refused("last norm", "transformer.ln_f", "LayerNorm"),),
        needs="transformers",
    ),
    Architecture(
        "OPT",
        opt,
        tokens,
        CAUSAL,
        _opt_rows(tied=True),
        (Refused("last norm", "model.decoder.final_layer_norm", "LayerNorm"),),
        needs="transformers",
    ),
    Architecture(
        "OPT, head not tied",
        lambda: opt(tied=False),
        tokens,
        CAUSAL,
        _opt_rows(tied=False),
        needs="transformers",
    ),
)
