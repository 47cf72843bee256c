"""BERT, RoBERTa, DistilBERT and ViT of ``transformers``: LayerNorm streams, no cache."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from architectures.base import NON_ZERO, Architecture, Inputs, Row, wake

TEXT: dict[str, Any] = {
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 24,
    "vocab_size": 50,
    "max_position_embeddings": 32,
}
IMAGE: dict[str, Any] = {
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 24,
    "image_size": 8,
    "patch_size": 4,
}


def attention(
    path: str, q: str, k: str, v: str, o: str, key_bias: bool = True, drops: bool = False
) -> tuple[Row, ...]:
    """Of two heads of width 8 with biases: what scores, values and heads leave.

    Args:
        path: of the attention, up to and with the last point; ``#`` is the layer.
        q: the name of the query projection.
        k: of the key projection.
        v: of the value projection.
        o: of the output projection.
        key_bias: whether keys have a bias.
        drops: whether attention has dropout, whose masks do not go along with the heads.
    """
    keys = f"{path}{k}.weight" + (f" {path}{k}.bias" if key_bias else "")
    queries, values = f"{path}{q}.{{weight,bias}}", f"{path}{v}.{{weight,bias}}"
    out = f"{path}{o}.weight"
    rows = (
        Row("query, key of each head", "general linear", 8, f"{queries} {keys}", 2, 2),
        Row("value, output of each head", "general linear", 8, f"{values} {out}", 2, 2),
        Row(
            "heads",
            "permutation",
            2,
            f"{queries} {keys} {values} {out}",
            layers=2,
            needed=not drops,
        ),
    )
    if not key_bias:
        return rows
    softmax = Row("key bias (softmax)", "translation", 0, f"{path}{k}.bias", layers=2)
    return (*rows, softmax)


def hidden(moves: str, layers: int = 2) -> Row:
    """The units of a GELU network between two layers."""
    return Row("hidden units (GELU)", "permutation", 24, moves, layers=layers)


def before_norm(moves: str) -> Row:
    """What only LayerNorms read: they take out the mean."""
    return Row("what LayerNorm centres", "translation", 0, moves)


def stream(moves: str, what: str = "residual stream", needed: bool = True) -> Row:
    """One permutation for all that write to a stream and read it."""
    return Row(what, "permutation", 16, moves, needed=needed)


MASKED: dict[str, Callable[[nn.Module, Inputs], Any]] = {
    "plain": lambda model, given: model(input_ids=given.tokens()),
    "mask": lambda model, given: model(input_ids=given.tokens(), attention_mask=given.mask()),
}


def _tokens(dtype: torch.dtype) -> dict[str, Any]:
    given = Inputs(dtype)
    return {"input_ids": given.tokens(), "attention_mask": given.mask()}


def bert(attention_kind: str = "sdpa", dropout: float = 0.0) -> nn.Module:
    """With the head for masked words, tied to the embedding."""
    from transformers import BertConfig, BertForMaskedLM

    rates: dict[str, Any] = {
        "hidden_dropout_prob": dropout,
        "attention_probs_dropout_prob": dropout,
        "attn_implementation": attention_kind,
    }
    config = BertConfig(**TEXT, **rates)
    return wake(BertForMaskedLM(config))


def roberta() -> nn.Module:
    """Likewise."""
    from transformers import RobertaConfig, RobertaForMaskedLM

    rates: dict[str, Any] = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    return wake(RobertaForMaskedLM(RobertaConfig(**TEXT, **rates)))


def distilbert() -> nn.Module:
    """Likewise."""
    from transformers import DistilBertConfig, DistilBertForMaskedLM

    sizes: dict[str, Any] = {"dim": 16, "n_layers": 2, "n_heads": 2, "hidden_dim": 24}
    rates: dict[str, Any] = {"dropout": 0.0, "attention_dropout": 0.0}
    config = DistilBertConfig(vocab_size=50, max_position_embeddings=32, **sizes, **rates)
    return wake(DistilBertForMaskedLM(config))


def vit() -> nn.Module:
    """A classifier of images."""
    from transformers import ViTConfig, ViTForImageClassification

    return wake(ViTForImageClassification(ViTConfig(**{**IMAGE, "num_labels": 5})))


B = "{0}.encoder.layer.#."
ALL_B = "{0}.encoder.layer.{{0,1}}."


def _bert_rows(root: str, head: str, norm: str, drops: bool = False) -> tuple[Row, ...]:
    one, both = B.format(root), ALL_B.format(root)
    embeddings = f"{root}.embeddings."
    own, last = "attention.self.", f"{root}.encoder.layer.1.output.LayerNorm"
    into_norm = f"{both}attention.output.dense.{{weight,bias}} {both}output.dense.{{weight,bias}}"
    return (
        *attention(
            f"{one}attention.",
            "self.query",
            "self.key",
            "self.value",
            "output.dense",
            drops=drops,
        ),
        Row("last norm, head", NON_ZERO, 16, f"{last}.{{weight,bias}} {head}.weight"),
        hidden(f"{one}intermediate.dense.{{weight,bias}} {one}output.dense.weight"),
        # Dropout lies between the dense layers and their norms: no shift of all units passes it.
        before_norm(
            f"{embeddings}{{position,token_type}}_embeddings.weight"
            + ("" if drops else f" {into_norm}")
        ),
        stream(
            f"{embeddings}{{word,position,token_type}}_embeddings.weight "
            f"{embeddings}LayerNorm.{{weight,bias}} {both}{own}{{query,key,value}}.weight "
            f"{both}attention.output.dense.{{weight,bias}} "
            f"{both}attention.output.LayerNorm.{{weight,bias}} "
            f"{both}intermediate.dense.weight {both}output.dense.{{weight,bias}} "
            f"{both}output.LayerNorm.{{weight,bias}} {head}.{{weight,bias}} {norm}.{{weight,bias}}",
            "residual stream, with the tied head",
            needed=not drops,
        ),
    )


_bert = _bert_rows("bert", "cls.predictions.transform.dense", "cls.predictions.transform.LayerNorm")
_L = "distilbert.transformer.layer."
_E = "distilbert.embeddings."
_V = "vit.layers."


def _images(dtype: torch.dtype) -> dict[str, Any]:
    return {"pixel_values": Inputs(dtype).normal(2, 3, 8, 8)}


ENCODERS = (
    Architecture("BERT", bert, _tokens, MASKED, _bert, needs="transformers"),
    Architecture(
        "BERT, eager attention",
        lambda: bert("eager"),
        _tokens,
        MASKED,
        _bert,
        needs="transformers",
        same_as="BERT",
    ),
    Architecture(
        "BERT, dropout 0.1",
        lambda: bert(dropout=0.1),
        _tokens,
        MASKED,
        _bert_rows(
            "bert",
            "cls.predictions.transform.dense",
            "cls.predictions.transform.LayerNorm",
            drops=True,
        ),
        needs="transformers",
        random=True,
        says="no shift passes the dropout ahead of a LayerNorm; masks do not go along with heads",
    ),
    Architecture(
        "RoBERTa",
        roberta,
        _tokens,
        MASKED,
        _bert_rows("roberta", "lm_head.dense", "lm_head.layer_norm"),
        needs="transformers",
    ),
    Architecture(
        "DistilBERT",
        distilbert,
        _tokens,
        MASKED,
        (
            *attention(f"{_L}#.attention.", "q_lin", "k_lin", "v_lin", "out_lin"),
            Row(
                "last norm, head",
                NON_ZERO,
                16,
                f"{_L}1.output_layer_norm.{{weight,bias}} vocab_transform.weight",
            ),
            hidden(f"{_L}#.ffn.lin1.{{weight,bias}} {_L}#.ffn.lin2.weight"),
            before_norm(
                f"{_E}position_embeddings.weight {_L}{{0,1}}.attention.out_lin.{{weight,bias}} "
                f"{_L}{{0,1}}.ffn.lin2.{{weight,bias}}"
            ),
            stream(
                f"{_E}{{word,position}}_embeddings.weight {_E}LayerNorm.{{weight,bias}} "
                f"{_L}{{0,1}}.attention.{{q,k,v}}_lin.weight "
                f"{_L}{{0,1}}.attention.out_lin.{{weight,bias}} "
                f"{_L}{{0,1}}.{{sa,output}}_layer_norm.{{weight,bias}} "
                f"{_L}{{0,1}}.ffn.lin1.weight {_L}{{0,1}}.ffn.lin2.{{weight,bias}} "
                "vocab_transform.{weight,bias} vocab_layer_norm.{weight,bias}",
                "residual stream, with the tied head",
            ),
        ),
        needs="transformers",
    ),
    Architecture(
        "ViT",
        vit,
        _images,
        {"plain": lambda model, given: model(pixel_values=given.normal(given.batch, 3, 8, 8))},
        (
            *attention(f"{_V}#.attention.", "q_proj", "k_proj", "v_proj", "o_proj"),
            Row(
                "norm, attention",
                NON_ZERO,
                16,
                f"{_V}#.layernorm_before.{{weight,bias}} {_V}#.attention.{{q,k,v}}_proj.weight",
                layers=2,
            ),
            Row(
                "norm, MLP",
                NON_ZERO,
                16,
                f"{_V}#.layernorm_after.{{weight,bias}} {_V}#.mlp.fc1.weight",
                layers=2,
            ),
            Row("last norm, head", NON_ZERO, 16, "vit.layernorm.{weight,bias} classifier.weight"),
            hidden(f"{_V}#.mlp.fc1.{{weight,bias}} {_V}#.mlp.fc2.weight"),
            before_norm(
                "vit.embeddings.{cls_token,position_embeddings} "
                "vit.embeddings.patch_embeddings.projection.{weight,bias} "
                f"{_V}{{0,1}}.attention.o_proj.{{weight,bias}} {_V}{{0,1}}.mlp.fc2.{{weight,bias}}"
            ),
            stream(
                "vit.embeddings.{cls_token,position_embeddings} "
                "vit.embeddings.patch_embeddings.projection.{weight,bias} "
                f"{_V}{{0,1}}.attention.{{q,k,v}}_proj.weight "
                f"{_V}{{0,1}}.attention.o_proj.{{weight,bias}} "
                f"{_V}{{0,1}}.layernorm_{{before,after}}.{{weight,bias}} "
                f"{_V}{{0,1}}.mlp.fc1.weight {_V}{{0,1}}.mlp.fc2.{{weight,bias}} "
                "vit.layernorm.{weight,bias} classifier.weight"
            ),
        ),
        needs="transformers",
    ),
)
