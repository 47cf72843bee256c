"""Llama, Mistral, Qwen2, Qwen3 and Gemma of ``transformers``: RMSNorm, rotary, gated units."""

from __future__ import annotations

from typing import Any

from torch import nn

from architectures.base import NON_ZERO, Architecture, Refused, Row, wake
from architectures.decoders import CAUSAL, tokens

SIZES: dict[str, Any] = {
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 4,
    "intermediate_size": 24,
    "vocab_size": 50,
    "max_position_embeddings": 32,
}
"""Two key/value heads of two queries, width 4: four frequency pairs a layer."""


def causal(family: str, gains: bool = True, **options: Any) -> nn.Module:
    """A model of one of these families that predicts the next word.

    Args:
        family: as its classes begin.
        gains: whether those of the norms are unequal, as after training.
        options: of the configuration.
    """
    import transformers

    config = getattr(transformers, f"{family}Config")(**SIZES, **options)
    return wake(getattr(transformers, f"{family}ForCausalLM")(config), gains)


L = "model.layers."
S = f"{L}#.self_attn."
M = f"{L}#.mlp."


def rows(
    equal: bool,
    biases: bool = False,
    tied: bool = False,
    head_norms: bool = False,
    one_plus: bool = False,
) -> tuple[Row, ...]:
    """What these models have.

    Args:
        equal: whether the gains of all norms of the stream are equal.
        biases: whether query, key and value have some.
        tied: whether the head is the embedding.
        head_norms: whether queries and keys of a head are normalised.
        one_plus: whether a gain is 1 + the weight.
    """
    kind = "{weight,bias}" if biases else "weight"
    head = "" if tied else " lm_head.weight"
    weights = (
        f"model.embed_tokens.weight {L}{{0,1}}.self_attn.{{q,k,v,o}}_proj.weight "
        f"{L}{{0,1}}.mlp.{{gate,up,down}}_proj.weight{head}"
    )
    gains = f"{L}{{0,1}}.{{input,post_attention}}_layernorm.weight model.norm.weight"
    rotary = Row(
        "query, key of each frequency pair",
        "scale and rotation",
        2,
        f"{S}{{q,k}}_proj.{kind}",
        blocks=4,
        layers=2,
    )
    found = [
        Row(
            "value, output of each key/value head",
            "general linear",
            4,
            f"{S}v_proj.{kind} {S}o_proj.weight",
            2,
            2,
        ),
        Row("linear branch of gated units", NON_ZERO, 24, f"{M}{{up,down}}_proj.weight", layers=2),
        Row("gated units", "permutation", 24, f"{M}{{gate,up,down}}_proj.weight", layers=2),
        Row("residual stream", "orthogonal" if equal else "sign flips", 16, weights),
        Row("residual stream", "permutation", 16, f"{weights} {gains}"),
        Row(
            "key/value heads, with their queries",
            "permutation",
            2,
            f"{S}{{q,k,v}}_proj.{kind} {S}o_proj.weight",
            layers=2,
        ),
        Row("queries of one key", "permutation", 2, f"{S}q_proj.{kind} {S}o_proj.weight", 2, 2),
    ]
    if head_norms:
        found += [
            Row(
                "query norm, key norm, each frequency",
                NON_ZERO,
                2,
                f"{S}{{q,k}}_norm.weight",
                layers=2,
                needed=False,
            ),
            Row(
                "query, key, both norms, each frequency pair",
                "sign flips",
                2,
                f"{S}{{q,k}}_proj.weight {S}{{q,k}}_norm.weight",
                layers=2,
                needed=False,
            ),
            Row(
                "query, its norm, each frequency pair",
                "sign flips",
                2,
                f"{S}q_proj.weight {S}q_norm.weight",
                layers=2,
                needed=False,
            ),
            Row(
                "key, its norm",
                "sign flips",
                4,
                f"{S}k_proj.weight {S}k_norm.weight",
                layers=2,
                needed=False,
            ),
            Row(
                "query, key, each frequency pair",
                "sign flips",
                2,
                f"{S}{{q,k}}_proj.weight",
                layers=2,
                needed=False,
            ),
        ]
    else:
        found.append(rotary)
    if not one_plus:
        found += [
            Row(
                "norm, attention",
                NON_ZERO,
                16,
                f"{L}#.input_layernorm.weight {S}{{q,k,v}}_proj.weight",
                layers=2,
            ),
            Row(
                "norm, MLP",
                NON_ZERO,
                16,
                f"{L}#.post_attention_layernorm.weight {M}{{gate,up}}_proj.weight",
                layers=2,
            ),
        ]
        if not tied:
            found.append(Row("last norm, head", NON_ZERO, 16, "model.norm.weight lm_head.weight"))
    return tuple(found)


NAMED = "norm"
_unequal = Refused("rotations of the stream", "model", f"gains?.*{NAMED}|{NAMED}.*gains?")


def _architecture(
    name: str, family: str, equal: bool, options: dict[str, Any], **of: Any
) -> Architecture:
    refused = () if equal else (_unequal,)
    shape = {key: of.pop(key) for key in ("biases", "tied", "head_norms", "one_plus") if key in of}
    return Architecture(
        name,
        lambda: causal(family, gains=not equal, **options),
        tokens,
        CAUSAL,
        rows(equal, **shape),
        (*refused, *of.pop("refused", ())),
        needs="transformers",
        doubled=True,
        **of,
    )


_untied = {"tie_word_embeddings": False}
_window = {**_untied, "sliding_window": 4}
_norms = Refused("scale and rotation of query and key", "model.layers", "[qk]_norm|RMSNorm")

LLAMAS = (
    _architecture("Llama at its start", "Llama", True, _untied, says="all gains 1"),
    _architecture("Llama, trained", "Llama", False, _untied),
    _architecture(
        "Llama, eager attention",
        "Llama",
        False,
        {**_untied, "attn_implementation": "eager"},
        same_as="Llama, trained",
    ),
    _architecture("Mistral, trained", "Mistral", False, _window),
    _architecture("Qwen2, trained", "Qwen2", False, _untied, biases=True),
    _architecture("Qwen3, trained", "Qwen3", False, _untied, head_norms=True, refused=(_norms,)),
    _architecture(
        "Gemma at its start",
        "Gemma",
        True,
        {"tie_word_embeddings": True},
        tied=True,
        one_plus=True,
        says="its gains are 1 + weight, no linear action",
    ),
    _architecture(
        "Gemma, trained",
        "Gemma",
        False,
        {"tie_word_embeddings": True},
        tied=True,
        one_plus=True,
    ),
)
