"""Families some of whose layers have a state instead of keys and values."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from converters._config import Config
from converters._family import Extra, Family, Rule, attention, norm, rules


def _at_layer(source: str, target: str, shape: tuple[str, ...], **rest: object) -> Rule:
    return Rule(f"model.layers.{{}}.{source}", f"blk.{{}}.{target}", shape, **rest)  # type: ignore[arg-type]


_LFM2_INNER = (
    norm("ffn_norm", "ffn_norm"),
    *rules(
        ("feed_forward.w1", "ffn_gate", ("ffn_width", "width")),
        ("feed_forward.w3", "ffn_up", ("ffn_width", "width")),
        ("feed_forward.w2", "ffn_down", ("width", "ffn_width")),
    ),
)
_LFM2_ATTENTION = (
    norm("operator_norm", "attn_norm"),
    *attention()[:3],
    *rules(("self_attn.out_proj", "attn_output", ("width", "q_width"))),
    norm("self_attn.q_layernorm", "attn_q_norm", "head_width"),
    norm("self_attn.k_layernorm", "attn_k_norm", "head_width"),
    *_LFM2_INNER,
)
_LFM2_CONVOLUTION = (
    norm("operator_norm", "attn_norm"),
    *rules(("conv.in_proj", "shortconv.in_proj", ("three_widths", "width"))),
    _at_layer(
        "conv.conv",
        "shortconv.conv",
        ("width", "conv"),
        stored=("width", "one", "conv"),
        exact=True,
    ),
    *rules(("conv.out_proj", "shortconv.out_proj", ("width", "width"))),
    *_LFM2_INNER,
)


def _lfm2(config: Config) -> Mapping[str, object]:
    """transformers' rule for the inner width, and other families' names."""
    key = "block_ff_dim" if config.values.get("block_ff_dim") is not None else "intermediate_size"
    inner = config.integer(key)
    if config.flag("block_auto_adjust_ff_dim", True):
        inner = int(2 * inner / 3)
        if config.values.get("block_ffn_dim_multiplier") is not None:
            inner = int(config.number("block_ffn_dim_multiplier") * inner)
            multiple = config.integer("block_multiple_of")
            inner = -(-inner // multiple) * multiple
    adapted: dict[str, object] = {
        "intermediate_size": inner,
        "rms_norm_eps": config.number("norm_eps"),
        "conv_width": config.integer("conv_L_cache"),
    }
    if config.values.get("tie_embedding") is not None:
        adapted["tie_word_embeddings"] = config.flag("tie_embedding", True)
    attending = config.values.get("full_attn_idxs")
    if config.values.get("layer_types") is None and isinstance(attending, list):
        layers = range(config.integer("num_hidden_layers"))
        adapted["layer_types"] = ["full_attention" if i in attending else "conv" for i in layers]
    return adapted


RECURRENT: Mapping[str, Family] = MappingProxyType(
    {
        "Lfm2ForCausalLM": Family(
            "lfm2",
            "lfm2",
            _LFM2_ATTENTION,
            defaults={
                "num_attention_heads": 32,
                "num_key_value_heads": 8,
                "max_position_embeddings": 128000,
                "intermediate_size": 12288,
                "norm_eps": 1e-5,
                "rope_theta": 1000000.0,
                "tie_word_embeddings": True,
                "conv_L_cache": 3,
                "block_multiple_of": 256,
                "block_ffn_dim_multiplier": 1.0,
            },
            rope_kinds=("default",),
            extras=(Extra("conv_width", "shortconv.l_cache", "u32"),),
            fixed={"conv_bias": (None, False)},
            last_norm=("model.embedding_norm", "token_embd_norm"),
            recurrent=_LFM2_CONVOLUTION,
            recurrent_type="conv",
            adapted=_lfm2,
        ),
    }
)
