"""LoRA of ``peft`` on four models: the adapters are trained, all other weights are frozen."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import nn

from architectures.base import Architecture, Refused, Row, wake
from architectures.decoders import CAUSAL, DECODERS, gpt2, tokens
from architectures.encoders import ENCODERS, bert
from architectures.llamas import causal
from architectures.pairs import PAIRS, t5

_OF = {architecture.name: architecture for architecture in (*ENCODERS, *DECODERS, *PAIRS)}


def adapted(model: nn.Module, second: bool = False, **options: Any) -> nn.Module:
    """A model with LoRA of rank 4 on all its linear layers, not at the start of zeros.

    Args:
        model: what is adapted.
        second: whether another adapter, of rank 3, is active too.
        options: of the configuration.
    """
    from peft import LoraConfig, get_peft_model

    shared = {"target_modules": "all-linear", "init_lora_weights": False, **options}
    result: Any = get_peft_model(model, LoraConfig(r=4, lora_alpha=8, **shared))
    if second:
        result.add_adapter("second", LoraConfig(r=3, **shared))
        result.base_model.set_adapter(["default", "second"])
    return wake(result)


def vera(model: nn.Module) -> nn.Module:
    """A model with VeRA on queries and values."""
    from peft import VeraConfig, get_peft_model

    config = VeraConfig(r=4, target_modules=["q_proj", "v_proj"], init_weights=False)
    return wake(get_peft_model(model, config))


def _pairs(path: str, layers: int = 2, second: bool = False) -> tuple[Row, ...]:
    """Both factors of the adapters of one target."""
    ranks = {"default": 4, **({"second": 3} if second else {})}
    return tuple(
        Row(
            "both factors of an adapter" + (", each adapter" if second else ""),
            "general linear",
            rank,
            f"base_model.model.{path}.lora_{{A,B}}.{name}.weight",
            layers=layers,
        )
        for name, rank in ranks.items()
    )


def _centred(paths: str) -> Row:
    """Factors whose output only LayerNorms read: they take out its mean."""
    moves = " ".join(f"base_model.model.{path}" for path in paths.split())
    return Row("what LayerNorm centres", "translation", 0, moves)


_GPT2 = "transformer.h.#."
_gpt2_targets = ("attn.c_attn", "attn.c_proj", "mlp.c_fc", "mlp.c_proj")
_BERT = "bert.encoder.layer.#."
_bert_targets = (
    *(f"attention.self.{name}" for name in ("query", "key", "value")),
    *("attention.output.dense", "intermediate.dense", "output.dense"),
)
_T5 = (
    *(f"encoder.block.#.layer.0.SelfAttention.{name}" for name in "qkvo"),
    *(f"encoder.block.#.layer.1.DenseReluDense.{name}" for name in ("wi", "wo")),
    *(f"decoder.block.#.layer.0.SelfAttention.{name}" for name in "qkvo"),
    *(f"decoder.block.#.layer.1.EncDecAttention.{name}" for name in "qkvo"),
    *(f"decoder.block.#.layer.2.DenseReluDense.{name}" for name in ("wi", "wo")),
)
_LLAMA = (
    *(f"model.layers.#.self_attn.{name}_proj" for name in "qkvo"),
    *(f"model.layers.#.mlp.{name}_proj" for name in ("gate", "up", "down")),
)


def gpt2_rows(second: bool = False) -> tuple[Row, ...]:
    """Of one adapter, or two."""
    names = "{default,second}" if second else "default"
    return (
        *(row for name in _gpt2_targets for row in _pairs(f"{_GPT2}{name}", second=second)),
        _centred(f"transformer.h.{{0,1}}.{{attn,mlp}}.c_proj.lora_B.{names}.weight"),
    )


FROZEN = Refused("all weights that are frozen", "", "frozen")
bert_rows = (
    *(row for name in _bert_targets for row in _pairs(f"{_BERT}{name}")),
    *_pairs("cls.predictions.transform.dense", layers=1),
    _centred("bert.encoder.layer.{0,1}.{attention.output,output}.dense.lora_B.default.weight"),
)
# Between the layers and their norms there is the dropout of LoRA's input alone, and no other.


def _lora(
    name: str,
    build: Callable[[], nn.Module],
    rows: tuple[Row, ...],
    like: Architecture | None,
    **of: Any,
) -> Architecture:
    example = tokens if like is None else like.example
    calls = CAUSAL if like is None else like.calls
    refused = of.pop("refused", (FROZEN,))
    return Architecture(name, build, example, calls, rows, refused, needs="peft", **of)


def _llama() -> nn.Module:
    return causal("Llama", tie_word_embeddings=False)


_llama_rows = tuple(row for path in _LLAMA for row in _pairs(path))

ADAPTERS = (
    _lora("LoRA on BERT", lambda: adapted(bert()), bert_rows, _OF["BERT"]),
    _lora(
        "LoRA on BERT, dropout 0.1",
        lambda: adapted(bert(), lora_dropout=0.1),
        bert_rows,
        _OF["BERT"],
        random=True,
    ),
    _lora("LoRA on GPT-2", lambda: adapted(gpt2()), gpt2_rows(), _OF["GPT-2"]),
    _lora(
        "LoRA on GPT-2, two adapters",
        lambda: adapted(gpt2(), second=True),
        gpt2_rows(second=True),
        _OF["GPT-2"],
    ),
    _lora("LoRA on Llama", lambda: adapted(_llama()), _llama_rows, None, doubled=True),
    _lora(
        "rsLoRA on Llama, dropout 0.1",
        lambda: adapted(_llama(), use_rslora=True, lora_dropout=0.1),
        _llama_rows,
        None,
        doubled=True,
        random=True,
    ),
    _lora(
        "LoRA on T5",
        lambda: adapted(t5(gains=False)),
        tuple(row for path in _T5 for row in _pairs(path)),
        _OF["T5"],
        doubled=True,
    ),
    _lora(
        "DoRA on Llama",
        lambda: adapted(_llama(), use_dora=True),
        (),
        None,
        doubled=True,
        refused=(Refused("both factors of an adapter", "base_model.model.model.layers", "DoRA"),),
    ),
    _lora(
        "VeRA on Llama",
        lambda: vera(_llama()),
        (),
        None,
        doubled=True,
        refused=(Refused("scales of an adapter", "base_model.model.model.layers", "VeRA"),),
    ),
)
