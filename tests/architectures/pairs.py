"""T5 and Whisper of ``transformers``: an encoder and a decoder, with caches."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor, nn

from architectures.base import NON_ZERO, Architecture, Call, Inputs, Only, Refused, Row, wake
from architectures.decoders import norm_row
from architectures.encoders import attention, before_norm, hidden, stream


def whisper() -> nn.Module:
    """Of eight positions of sound."""
    from transformers import WhisperConfig, WhisperForConditionalGeneration

    sizes: dict[str, Any] = {
        f"{side}_{name}": count
        for side in ("encoder", "decoder")
        for name, count in (("layers", 2), ("attention_heads", 2), ("ffn_dim", 24))
    }
    ends: dict[str, Any] = {
        "pad_token_id": 0,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "decoder_start_token_id": 1,
    }
    config = WhisperConfig(
        vocab_size=50,
        d_model=16,
        num_mel_bins=5,
        max_source_positions=8,
        max_target_positions=16,
        dropout=0.0,
        **sizes,
        **ends,
    )
    return wake(WhisperForConditionalGeneration(config))


def t5(gains: bool) -> nn.Module:
    """With relative positions, ReLU, RMSNorm, everything tied to one embedding."""
    from transformers import T5Config, T5ForConditionalGeneration

    sizes: dict[str, Any] = {"d_model": 16, "d_kv": 8, "d_ff": 24, "num_layers": 2, "num_heads": 2}
    positions: dict[str, Any] = {
        "relative_attention_num_buckets": 8,
        "relative_attention_max_distance": 12,
    }
    config = T5Config(vocab_size=50, dropout_rate=0.0, **sizes, **positions)
    return wake(T5ForConditionalGeneration(config), gains)


E, D = "model.encoder.", "model.decoder."


def _sound(given: Inputs) -> dict[str, Any]:
    return {
        "input_features": given.normal(given.batch, 5, 16),
        "decoder_input_ids": given.tokens(),
        "use_cache": False,
    }


def _in_two_calls(make: Callable[[Inputs], dict[str, Any]]) -> Call:
    """Logits of the first words, then of the last two with the cache of the first call."""

    def called(model: nn.Module, given: Inputs) -> list[Tensor]:
        inputs = make(given) | {"use_cache": True}
        words = inputs.pop("decoder_input_ids")
        first = model(**inputs, decoder_input_ids=words[:, :-2])
        cache = first.past_key_values
        last = model(**inputs, decoder_input_ids=words[:, -2:], past_key_values=cache)
        return [first.logits, last.logits]

    return called


_names = ("q_proj", "k_proj", "v_proj", "out_proj")
_whisper = (
    *attention(f"{E}layers.#.self_attn.", *_names, key_bias=False),
    *attention(f"{D}layers.#.self_attn.", *_names, key_bias=False),
    *attention(f"{D}layers.#.encoder_attn.", *_names, key_bias=False),
    *(
        row
        for side in (E, D)
        for row in (
            norm_row(
                f"{side}layers.#.self_attn_layer_norm",
                f"{side}layers.#.self_attn.{{q,k,v}}_proj.weight",
                "attention",
            ),
            norm_row(f"{side}layers.#.final_layer_norm", f"{side}layers.#.fc1.weight", "MLP"),
            hidden(f"{side}layers.#.fc1.{{weight,bias}} {side}layers.#.fc2.weight"),
        )
    ),
    norm_row(
        f"{D}layers.#.encoder_attn_layer_norm", f"{D}layers.#.encoder_attn.q_proj.weight", "cross"
    ),
    Row("first channels (GELU)", "permutation", 16, f"{E}conv1.{{weight,bias}} {E}conv2.weight"),
    before_norm(
        f"model.{{encoder,decoder}}.layers.{{0,1}}.self_attn.out_proj.{{weight,bias}} "
        f"model.{{encoder,decoder}}.layers.{{0,1}}.fc2.{{weight,bias}} "
        f"{D}layers.{{0,1}}.encoder_attn.out_proj.{{weight,bias}} {D}embed_positions.weight"
    ),
    stream(
        f"{D}embed_{{tokens,positions}}.weight "
        f"{D}layers.{{0,1}}.{{self_attn,encoder_attn,final}}_layer_norm.{{weight,bias}} "
        f"{D}layers.{{0,1}}.self_attn.{{q,k,v}}_proj.weight "
        f"{D}layers.{{0,1}}.encoder_attn.q_proj.weight "
        f"{D}layers.{{0,1}}.{{self_attn,encoder_attn}}.out_proj.{{weight,bias}} "
        f"{D}layers.{{0,1}}.fc1.weight {D}layers.{{0,1}}.fc2.{{weight,bias}} "
        f"{D}layer_norm.{{weight,bias}}",
        "stream of the decoder, with the tied head",
    ),
)


def _pair(given: Inputs) -> dict[str, Any]:
    return {
        "input_ids": given.tokens(),
        "attention_mask": given.mask(),
        "decoder_input_ids": given.tokens(length=4),
        "use_cache": False,
    }


def _t5_rows(root: str, alone: bool) -> tuple[Row, ...]:
    """Of T5 at its start: all gains 1. ``alone``: logits are the one output."""
    enc, dec = f"{root}encoder.block.", f"{root}decoder.block."
    kinds = {
        "encoder": f"{enc}#.layer.0.SelfAttention",
        "decoder": f"{dec}#.layer.0.SelfAttention",
        "cross": f"{dec}#.layer.1.EncDecAttention",
    }
    linear = [
        Row(f"{what}, {kind}", "general linear", 8, f"{path}.{{{names}}}.weight", 2, 2)
        for kind, path in kinds.items()
        for what, names in (
            ("query, key of each head", "q,k"),
            ("value, output of each head", "v,o"),
        )
    ]
    bias = "0.layer.0.SelfAttention.relative_attention_bias.weight"
    shared = [
        Row(
            f"heads of the {name}, all layers (one position bias)",
            "permutation",
            2,
            f"{path}{{0,1}}.layer.0.SelfAttention.{{q,k,v,o}}.weight {path}{bias}",
        )
        for name, path in (("encoder", enc), ("decoder", dec))
    ]
    relu = [
        Row("hidden units (ReLU)", group, 24, f"{path}.DenseReluDense.{{wi,wo}}.weight", layers=2)
        for path in (f"{enc}#.layer.1", f"{dec}#.layer.2")
        for group in ("positive scaling", "permutation")
    ]
    norms = [
        norm_row(f"{path}.layer_norm", f"{path}.{reads}.weight", what, bias=False)
        for path, reads, what in (
            (f"{enc}#.layer.0", "SelfAttention.{q,k,v}", "attention"),
            (f"{enc}#.layer.1", "DenseReluDense.wi", "MLP"),
            (f"{dec}#.layer.0", "SelfAttention.{q,k,v}", "attention"),
            (f"{dec}#.layer.1", "EncDecAttention.q", "cross"),
            (f"{dec}#.layer.2", "DenseReluDense.wi", "MLP"),
        )
    ]
    rows = (
        *linear,
        Row("heads, cross", "permutation", 2, f"{kinds['cross']}.{{q,k,v,o}}.weight", 1, 2),
        *shared,
        Row("position bias of each head (softmax)", "translation", 0, f"{enc}{bias} {dec}{bias}"),
        *relu,
        *norms,
    )
    weights = (
        f"{root}shared.weight {enc}{{0,1}}.layer.0.SelfAttention.{{q,k,v,o}}.weight "
        f"{enc}{{0,1}}.layer.1.DenseReluDense.{{wi,wo}}.weight "
        f"{dec}{{0,1}}.layer.0.SelfAttention.{{q,k,v,o}}.weight "
        f"{dec}{{0,1}}.layer.1.EncDecAttention.{{q,k,v,o}}.weight "
        f"{dec}{{0,1}}.layer.2.DenseReluDense.{{wi,wo}}.weight"
    )
    gains = (
        f"{enc}{{0,1}}.layer.{{0,1}}.layer_norm.weight "
        f"{dec}{{0,1}}.layer.{{0,1,2}}.layer_norm.weight "
        f"{root}{{encoder,decoder}}.final_layer_norm.weight"
    )
    cross = f"{dec}{{0,1}}.layer.1.EncDecAttention.{{k,v}}.weight"
    if not alone:
        # What leaves the encoder keeps its sign: the last gains change theirs with the stream.
        last = f"{root}encoder.final_layer_norm.weight"
        without = weights.replace("EncDecAttention.{q,k,v,o}", "EncDecAttention.{q,o}")
        return (
            *rows,
            Row("both streams, the encoder's last norm", "sign flips", 16, f"{without} {last}"),
        )
    return (
        *rows,
        Row("both streams, through the shared embedding", "orthogonal", 16, weights),
        stream(f"{weights} {gains}", "both streams, through the shared embedding"),
        Row(
            "last norm of the encoder, cross",
            NON_ZERO,
            16,
            f"{root}encoder.final_layer_norm.weight {cross}",
        ),
    )


_PAIRS = {"plain": lambda model, given: model(**_pair(given))}

PAIRS = (
    Architecture(
        "T5",
        lambda: t5(gains=False),
        lambda dtype: _pair(Inputs(dtype)),
        {**_PAIRS, "cache": _in_two_calls(_pair)},
        _t5_rows("", alone=False),
        needs="transformers",
        doubled=True,
        says="the encoder's last hidden state is an output too",
    ),
    Architecture(
        "T5, logits alone",
        lambda: Only(t5(gains=False)),
        lambda dtype: _pair(Inputs(dtype)),
        _PAIRS,
        _t5_rows("model.", alone=True),
        needs="transformers",
        doubled=True,
        says="at its start, all gains 1",
    ),
    Architecture(
        "Whisper",
        whisper,
        lambda dtype: _sound(Inputs(dtype)),
        {"plain": lambda model, given: model(**_sound(given)), "cache": _in_two_calls(_sound)},
        _whisper,
        (
            Refused("stream of the encoder", "model.encoder", "leaves? the model|frozen"),
            Refused("last norm", "model.decoder.layer_norm", "LayerNorm"),
        ),
        needs="transformers",
        says="the encoder's last hidden state is an output too",
    ),
)
