"""CLIP of ``transformers``: two towers that meet in a product of normalised vectors."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from architectures.base import NON_ZERO, Architecture, Inputs, Only, Refused, Row, wake
from architectures.encoders import IMAGE, TEXT, attention, before_norm, hidden, stream


def clip() -> nn.Module:
    """Both towers, their projections and the temperature."""
    from transformers import CLIPConfig, CLIPModel

    text = {**TEXT, "projection_dim": 12, "bos_token_id": 1, "eos_token_id": 2}
    vision = {**IMAGE, "projection_dim": 12}
    config = CLIPConfig(text_config=text, vision_config=vision, projection_dim=12)
    return wake(CLIPModel(config))


def _clip_inputs(given: Inputs) -> dict[str, Any]:
    tokens = given.tokens()
    tokens[:, -1] = 2  # what the text is pooled at
    return {
        "input_ids": tokens,
        "pixel_values": given.normal(given.batch, 3, 8, 8),
        "attention_mask": torch.ones_like(tokens),
    }


def _tower(path: str) -> tuple[Row, ...]:
    layer = f"{path}.encoder.layers.#."
    qkv = f"{layer}self_attn.{{q,k,v}}_proj.weight"
    return (
        *attention(f"{layer}self_attn.", "q_proj", "k_proj", "v_proj", "out_proj"),
        Row("norm, attention", NON_ZERO, 16, f"{layer}layer_norm1.{{weight,bias}} {qkv}", layers=2),
        Row(
            "norm, MLP",
            NON_ZERO,
            16,
            f"{layer}layer_norm2.{{weight,bias}} {layer}mlp.fc1.weight",
            layers=2,
        ),
        hidden(f"{layer}mlp.fc1.{{weight,bias}} {layer}mlp.fc2.weight"),
    )


def _writers(path: str) -> str:
    """What writes to the stream of a tower, behind its embeddings."""
    layer = f"{path}.encoder.layers.{{0,1}}."
    return f"{layer}self_attn.out_proj.{{weight,bias}} {layer}mlp.fc2.{{weight,bias}}"


def _stream(path: str) -> str:
    """What writes to the stream of a tower and what reads it, between its ends."""
    layer = f"{path}.encoder.layers.{{0,1}}."
    return (
        f"{_writers(path)} {layer}layer_norm{{1,2}}.{{weight,bias}} "
        f"{layer}self_attn.{{q,k,v}}_proj.weight {layer}mlp.fc1.weight"
    )


def _rows(root: str, alone: bool) -> tuple[Row, ...]:
    """Of both towers; ``alone``: the similarities are the one output."""
    text, vision = f"{root}text_model", f"{root}vision_model"
    words = f"{text}.embeddings.{{token,position}}_embedding.weight"
    image = (
        f"{vision}.embeddings.class_embedding "
        f"{vision}.embeddings.{{patch,position}}_embedding.weight"
    )
    seen, told = f"{root}visual_projection.weight", f"{root}text_projection.weight"
    last = f"{vision}.post_layernorm.{{weight,bias}}"
    rows = (
        *_tower(text),
        *_tower(vision),
        Row("last norm, image projection", NON_ZERO, 16, f"{last} {seen}"),
        before_norm(f"{words} {_writers(text)} {image}"),
    )
    if not alone:
        return rows
    final, first = f"{text}.final_layer_norm.{{weight,bias}}", f"{vision}.pre_layrnorm"
    return (
        *rows,
        before_norm(f"{first}.bias {_writers(vision)}"),
        # The text is read at a place that its words decide: there is no rule for that.
        Row("last norm, text projection", NON_ZERO, 16, f"{final} {told}", needed=False),
        Row("image projection (normalised)", "positive scaling", 1, seen),
        Row("text projection (normalised)", "positive scaling", 1, told),
        Row("both projections", "orthogonal", 12, f"{seen} {told}", needed=False),
        Row("both projections", "permutation", 12, f"{seen} {told}", needed=False),
        stream(f"{words} {_stream(text)} {final} {told}", "stream of the text", needed=False),
        stream(
            f"{image} {first}.{{weight,bias}} {_stream(vision)} {last} {seen}",
            "stream of the image",
        ),
    )


CLIP = (
    Architecture(
        "CLIP",
        clip,
        lambda dtype: _clip_inputs(Inputs(dtype)),
        {"plain": lambda model, given: model(**_clip_inputs(given))},
        _rows("", alone=False),
        (Refused("streams", "(text|vision)_model", "leaves? the model"),),
        needs="transformers",
        says="last hidden states and projections are outputs too",
    ),
    Architecture(
        "CLIP, similarities alone",
        lambda: Only(clip(), "logits_per_image"),
        lambda dtype: _clip_inputs(Inputs(dtype)),
        {"plain": lambda model, given: model(**_clip_inputs(given))},
        _rows("model.", alone=True),
        (Refused("stream of the text", "model.text_model.final_layer_norm", "getitem"),),
        needs="transformers",
        says="words decide the place at which a text is read",
    ),
)
