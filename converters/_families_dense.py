"""Families whose layers are all dense."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from types import MappingProxyType

from converters._family import (
    ALL_KINDS,
    ALWAYS,
    ATTENTION,
    GRANITE_DEFAULTS,
    SCALES,
    Extra,
    Family,
    attention,
    feed_forward,
    head_norms,
    norm,
    pre_norm,
    rules,
)

_POST_NORMS = (
    norm("post_attention_layernorm", "post_attention_norm"),
    norm("post_feedforward_layernorm", "post_ffw_norm"),
)
_LLAMA = pre_norm(attention(ATTENTION, ATTENTION), feed_forward("mlp_bias"))
# Gemma's norms multiply by 1 + weight; GGUF holds the sum.
_GEMMA = (
    norm("input_layernorm", "attn_norm", shift=1.0),
    norm("post_attention_layernorm", "post_attention_norm", shift=1.0),
    norm("pre_feedforward_layernorm", "ffn_norm", shift=1.0),
    norm("post_feedforward_layernorm", "post_ffw_norm", shift=1.0),
    *attention(ATTENTION, ATTENTION),
    *feed_forward(),
)
_FUSED = pre_norm(
    rules(
        ("self_attn.qkv_proj", "attn_qkv", ("qkv_width", "width")),
        ("self_attn.o_proj", "attn_output", ("width", "q_width")),
    ),
    rules(
        ("mlp.gate_up_proj", "ffn_up", ("two_ffn_width", "width")),
        ("mlp.down_proj", "ffn_down", ("width", "ffn_width")),
    ),
)
_OLMO = (
    *_POST_NORMS,
    *attention(ATTENTION, ATTENTION),
    *head_norms("q_width", "kv_width"),
    *feed_forward(),
)

_GELU = ("hidden_activation", "gelu_pytorch_tanh")
_QWEN_WINDOWS: dict[str, object] = {"sliding_window": 4096, "max_window_layers": 28}
_GEMMA_DEFAULTS: dict[str, object] = {
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "head_dim": 256,
    "hidden_activation": "gelu_pytorch_tanh",
    "tie_word_embeddings": True,
    "query_pre_attn_scalar": 256,
    "sliding_window": 4096,
}

_GEMMA3 = Family(
    "gemma3_text",
    "gemma3",
    _GEMMA + head_norms(shift=1.0),
    defaults={
        **_GEMMA_DEFAULTS,
        "rope_theta": 1000000.0,
        "rope_local_base_freq": 10000.0,
        "sliding_window_pattern": 6,
        "vocab_size": 262208,
        "max_position_embeddings": 131072,
    },
    local_rope=True,
    extras=(Extra("final_logit_softcapping", "final_logit_softcapping"),),
    windows="period",
    period=6,
    activation=_GELU,
    norm_shift=1.0,
    scaled_by_width=62,
    fixed={
        "use_bidirectional_attention": (None, False),
        "attn_logit_softcapping": (None,),
    },
)

DENSE: Mapping[str, Family] = MappingProxyType(
    {
        "LlamaForCausalLM": Family("llama", "llama", _LLAMA, paired=True, rope_kinds=ALL_KINDS),
        "MistralForCausalLM": Family(
            "mistral",
            "llama",
            pre_norm(attention(), feed_forward()),
            paired=True,
            defaults={"num_key_value_heads": 8, "sliding_window": 4096},
            rope_kinds=ALL_KINDS,
            windows="all",
        ),
        "Qwen2ForCausalLM": Family(
            "qwen2",
            "qwen2",
            pre_norm(attention(ALWAYS), feed_forward()),
            defaults={"num_key_value_heads": 32, **_QWEN_WINDOWS},
            windows="late",
        ),
        "Qwen3ForCausalLM": Family(
            "qwen3",
            "qwen3",
            pre_norm(attention(ATTENTION, ATTENTION) + head_norms(), feed_forward()),
            defaults={"num_key_value_heads": 32, "head_dim": 128, **_QWEN_WINDOWS},
            windows="late",
        ),
        "Gemma2ForCausalLM": Family(
            "gemma2",
            "gemma2",
            _GEMMA,
            defaults={
                **_GEMMA_DEFAULTS,
                "final_logit_softcapping": 30.0,
                "attn_logit_softcapping": 50.0,
                "max_position_embeddings": 8192,
            },
            extras=(
                Extra("attn_logit_softcapping", "attn_logit_softcapping"),
                Extra("final_logit_softcapping", "final_logit_softcapping"),
            ),
            windows="period",
            period=2,
            activation=_GELU,
            norm_shift=1.0,
            scaled_by_width=46,
            fixed={"use_bidirectional_attention": (None, False)},
        ),
        "Gemma3ForCausalLM": _GEMMA3,
        # EmbeddingGemma.
        "Gemma3TextModel": replace(
            _GEMMA3,
            architecture="gemma-embedding",
            scaled_by_width=0,
            fixed={**_GEMMA3.fixed, "use_bidirectional_attention": (True,)},
        ),
        "Phi3ForCausalLM": Family(
            "phi3",
            "phi3",
            _FUSED,
            defaults={"max_position_embeddings": 4096},
            rope_kinds=("default", "longrope"),
            extras=(Extra("sliding_window", "attention.sliding_window", "u32", required=True),),
            windows="all",
        ),
        "GraniteForCausalLM": Family(
            "granite",
            "granite",
            _LLAMA,
            paired=True,
            defaults=GRANITE_DEFAULTS,
            rope_kinds=ALL_KINDS,
            extras=SCALES,
        ),
        "SmolLM3ForCausalLM": Family(
            "smollm3",
            "smollm3",
            _LLAMA,
            paired=True,
            defaults={
                "num_key_value_heads": 4,
                "rope_theta": 2000000.0,
                "tie_word_embeddings": True,
                "no_rope_layer_interval": 4,
            },
            windows="unrotated",
            rotated_period=4,
        ),
        "Olmo2ForCausalLM": Family(
            "olmo2",
            "olmo2",
            _OLMO,
            defaults={"rms_norm_eps": 1e-5},
            writes_head=True,
        ),
        "Olmo3ForCausalLM": Family(
            "olmo3",
            "olmo2",
            _OLMO,
            defaults={"rms_norm_eps": 1e-5, "rope_theta": 500000.0, "sliding_window": 4096},
            local_rope=True,
            windows="period",
            period=4,
            writes_head=True,
        ),
        "Ministral3ForCausalLM": Family(
            "ministral3",
            "mistral3",
            pre_norm(attention(), feed_forward()),
            paired=True,
            defaults={"num_key_value_heads": 8, "head_dim": 128, "rms_norm_eps": 1e-5},
            rope_kinds=ALL_KINDS,
            windows="all",
        ),
    }
)
