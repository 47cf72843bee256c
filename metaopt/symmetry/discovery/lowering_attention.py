"""torch's attention and transformer layers as the operations that they perform.

The parts of a transformer layer may have been exchanged by others: each part is written as what it
is, or as a call of which nothing is known.
"""

from __future__ import annotations

from typing import Any

from torch import nn

from metaopt.symmetry.discovery.lowering import LOWERED, Lowered, Writer


def _attention(
    at: Writer,
    query: Any,
    key: Any,
    value: Any,
    key_padding_mask: Any = None,
    need_weights: bool = True,
    attn_mask: Any = None,
    average_attn_weights: bool = True,
    is_causal: bool = False,
) -> tuple[Any, Any]:
    """As ``forward`` of ``nn.MultiheadAttention`` does it, for inputs in batches."""
    module = at.module
    names = ("in_proj_weight", "in_proj_bias", "bias_k", "bias_v")
    projections = [at.own(name) for name in names]
    separate: dict[str, Any] = {}
    if not module._qkv_same_embed_dim:
        weights = {f"{one}_proj_weight": at.own(f"{one}_proj_weight") for one in "qkv"}
        separate = {"use_separate_proj_weight": True, **weights}
    output, weights_of_heads = at.call(
        "multi_head_attention_forward",
        query,
        key,
        value,
        module.embed_dim,
        module.num_heads,
        *projections,
        module.add_zero_attn,
        module.dropout,
        at.own("out_proj.weight"),
        at.own("out_proj.bias"),
        training=at.training,
        key_padding_mask=key_padding_mask,
        need_weights=need_weights,
        attn_mask=attn_mask,
        is_causal=is_causal,
        average_attn_weights=average_attn_weights,
        **separate,
    )
    return output, weights_of_heads if need_weights else None


def _add(at: Writer, x: Any, norm: str, block: Any) -> Any:
    """x + block(norm(x)), or norm(x + block(x))."""
    if at.module.norm_first:
        return at.call("add", x, block(at.part(norm, x)))
    return at.part(norm, at.call("add", x, block(x)))


def _attend(at: Writer, name: str, drop: str, x: Any, memory: Any, **masks: Any) -> Any:
    attended = at.part(name, x, memory, memory, **masks, need_weights=False)
    # An exchanged part may return anything.
    first = attended[0] if isinstance(attended, tuple) else at.call("getitem", attended, 0)
    return at.part(drop, first)


def _feed_forward(at: Writer, drop: str, x: Any) -> Any:
    x = at.part("linear1", x)
    activation = at.module.activation
    x = at.part("activation", x) if isinstance(activation, nn.Module) else at.apply(activation, x)
    return at.part(drop, at.part("linear2", at.part("dropout", x)))


def _encoder_layer(
    at: Writer,
    src: Any,
    src_mask: Any = None,
    src_key_padding_mask: Any = None,
    is_causal: bool = False,
) -> Any:
    masks = {"attn_mask": src_mask, "key_padding_mask": src_key_padding_mask}
    masks["is_causal"] = is_causal
    x = _add(at, src, "norm1", lambda x: _attend(at, "self_attn", "dropout1", x, x, **masks))
    return _add(at, x, "norm2", lambda x: _feed_forward(at, "dropout2", x))


def _decoder_layer(
    at: Writer,
    tgt: Any,
    memory: Any,
    tgt_mask: Any = None,
    memory_mask: Any = None,
    tgt_key_padding_mask: Any = None,
    memory_key_padding_mask: Any = None,
    tgt_is_causal: bool = False,
    memory_is_causal: bool = False,
) -> Any:
    own = {"attn_mask": tgt_mask, "key_padding_mask": tgt_key_padding_mask}
    own["is_causal"] = tgt_is_causal
    cross = {"attn_mask": memory_mask, "key_padding_mask": memory_key_padding_mask}
    cross["is_causal"] = memory_is_causal
    x = _add(at, tgt, "norm1", lambda x: _attend(at, "self_attn", "dropout1", x, x, **own))
    x = _add(
        at, x, "norm2", lambda x: _attend(at, "multihead_attn", "dropout2", x, memory, **cross)
    )
    return _add(at, x, "norm3", lambda x: _feed_forward(at, "dropout3", x))


def _layers(at: Writer, x: Any, *args: Any, **kwargs: Any) -> Any:
    for number in range(len(at.module.layers)):
        x = at.part(f"layers.{number}", x, *args, **kwargs)
    return x if at.module.norm is None else at.part("norm", x)


def _encoder(
    at: Writer,
    src: Any,
    mask: Any = None,
    src_key_padding_mask: Any = None,
    is_causal: bool | None = None,
) -> Any:
    masks = {"src_mask": mask, "src_key_padding_mask": src_key_padding_mask}
    return _layers(at, src, **masks, is_causal=bool(is_causal))


def _decoder(
    at: Writer,
    tgt: Any,
    memory: Any,
    tgt_mask: Any = None,
    memory_mask: Any = None,
    tgt_key_padding_mask: Any = None,
    memory_key_padding_mask: Any = None,
    tgt_is_causal: bool | None = None,
    memory_is_causal: bool = False,
) -> Any:
    masks = {"tgt_mask": tgt_mask, "memory_mask": memory_mask}
    masks |= {"tgt_key_padding_mask": tgt_key_padding_mask}
    masks |= {"memory_key_padding_mask": memory_key_padding_mask}
    causal = {"tgt_is_causal": bool(tgt_is_causal), "memory_is_causal": memory_is_causal}
    return _layers(at, tgt, memory, **masks, **causal)


def _transformer(
    at: Writer,
    src: Any,
    tgt: Any,
    src_mask: Any = None,
    tgt_mask: Any = None,
    memory_mask: Any = None,
    src_key_padding_mask: Any = None,
    tgt_key_padding_mask: Any = None,
    memory_key_padding_mask: Any = None,
    src_is_causal: bool | None = None,
    tgt_is_causal: bool | None = None,
    memory_is_causal: bool = False,
) -> Any:
    memory = at.part("encoder", src, src_mask, src_key_padding_mask, src_is_causal)
    masks = (tgt_mask, memory_mask, tgt_key_padding_mask, memory_key_padding_mask)
    return at.part("decoder", tgt, memory, *masks, tgt_is_causal, memory_is_causal)


ATTENTION: dict[type[nn.Module], Lowered] = {
    nn.MultiheadAttention: _attention,
    nn.TransformerEncoderLayer: _encoder_layer,
    nn.TransformerDecoderLayer: _decoder_layer,
    nn.TransformerEncoder: _encoder,
    nn.TransformerDecoder: _decoder,
    nn.Transformer: _transformer,
}
"""torch's attention and transformer layers -> the operations that they perform."""

ALL_LOWERED: dict[type[nn.Module], Lowered] = LOWERED | ATTENTION
"""All of torch's modules that are known by the operations that they perform."""
