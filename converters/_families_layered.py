"""Families whose layers differ in sizes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from types import MappingProxyType

from converters._family import Extra, Family, Rule, feed_forward, norm, rules


def _when(needs: str, *found: Rule) -> tuple[Rule, ...]:
    return tuple(replace(rule, needs=needs) for rule in found)


def _bare(source: str, target: str, shape: tuple[str, ...], target_suffix: str = ".weight") -> Rule:
    """A parameter that is not called a weight."""
    return Rule(
        f"model.layers.{{}}.{source}",
        f"blk.{{}}.{target}",
        shape,
        suffix="",
        target_suffix=target_suffix,
    )


def _experts() -> tuple[Rule, ...]:
    def stacked(source: str, target: str, *shape: str) -> Rule:
        return replace(_bare(f"experts.{source}", target, shape), experts="stacked")

    return (
        norm("post_feedforward_layernorm_1", "post_ffw_norm_1"),
        _bare("router.scale", "ffn_gate_inp", ("width",), ".scale"),
        *rules(("router.proj", "ffn_gate_inp", ("experts", "width"))),
        norm("pre_feedforward_layernorm_2", "pre_ffw_norm_2"),
        stacked("gate_up_proj", "ffn_gate_up_exps", "experts", "two_expert_width", "width"),
        stacked("down_proj", "ffn_down_exps", "experts", "width", "expert_width"),
        _bare("router.per_expert_scale", "ffn_down_exps", ("experts",), ".scale"),
        norm("post_feedforward_layernorm_2", "post_ffw_norm_2"),
    )


# Inputs of a token's own to each layer: one table, one projection, and a gate in each layer.
_INPUTS = (
    Rule("model.embed_tokens_per_layer", "per_layer_token_embd", ("vocab", "inputs_width")),
    Rule("model.per_layer_model_projection", "per_layer_model_proj", ("inputs_width", "width")),
    Rule("model.per_layer_projection_norm", "per_layer_proj_norm", ("input_width",)),
)
_GEMMA4 = (
    norm("input_layernorm", "attn_norm"),
    *rules(("self_attn.q_proj", "attn_q", ("q_width", "width"))),
    *_when(
        "owns_kv",
        *rules(("self_attn.k_proj", "attn_k", ("kv_width", "width"))),
        norm("self_attn.k_norm", "attn_k_norm", "head_width"),
    ),
    *_when("owns_v", *rules(("self_attn.v_proj", "attn_v", ("kv_width", "width")))),
    norm("self_attn.q_norm", "attn_q_norm", "head_width"),
    *rules(("self_attn.o_proj", "attn_output", ("width", "q_width"))),
    norm("post_attention_layernorm", "post_attention_norm"),
    norm("pre_feedforward_layernorm", "ffn_norm"),
    *feed_forward(),
    *_when("experts", *_experts()),
    norm("post_feedforward_layernorm", "post_ffw_norm"),
    *_when(
        "input_width",
        *rules(
            ("per_layer_input_gate", "inp_gate", ("input_width", "width")),
            ("per_layer_projection", "proj", ("width", "input_width")),
        ),
        norm("post_per_layer_input_norm", "post_norm"),
    ),
    _bare("layer_scalar", "layer_output_scale", ("one",)),
)

_ROPE = {
    "full_attention": {
        "rope_type": "proportional",
        "partial_rotary_factor": 0.25,
        "rope_theta": 1000000.0,
    },
    "sliding_attention": {"rope_type": "default", "rope_theta": 10000.0},
}
_DEFAULTS: dict[str, object] = {
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "head_dim": 256,
    "hidden_activation": "gelu_pytorch_tanh",
    "tie_word_embeddings": True,
    "rope_parameters": _ROPE,
    "sliding_window": 512,
    "vocab_size": 262144,
    "vocab_size_per_layer_input": 262144,
    "hidden_size_per_layer_input": 256,
    "max_position_embeddings": 131072,
}
_PLAIN = Family(
    "gemma4_text",
    "gemma4",
    _GEMMA4,
    defaults=_DEFAULTS,
    rope_kinds=("default", "proportional"),
    local_rope=True,
    extras=(
        # Readers take 30 for none.
        Extra("final_logit_softcapping", "final_logit_softcapping", required=True),
        Extra("num_kv_shared_layers", "attention.shared_kv_layers", "u32", required=True),
        Extra(
            "hidden_size_per_layer_input", "embedding_length_per_layer_input", "u32", required=True
        ),
        Extra("moe_intermediate_size", "expert_feed_forward_length", "u32"),
    ),
    windows="period",
    period=6,
    activation=("hidden_activation", "gelu_pytorch_tanh"),
    # Its images are seen both ways; text is not.
    fixed={"use_bidirectional_attention": (None, "vision"), "attention_bias": (None, False)},
    model=_INPUTS,
    expert_width="moe_intermediate_size",
    experts_if="enable_moe_block",
    experts_used="top_k_experts",
    by_merges=True,
    layered=True,
)

LAYERED: Mapping[str, Family] = MappingProxyType(
    {
        "Gemma4ForCausalLM": _PLAIN,
        "Gemma4UnifiedForCausalLM": replace(
            _PLAIN,
            model_type="gemma4_unified_text",
            defaults={
                **_DEFAULTS,
                "sliding_window": 1024,
                "hidden_size_per_layer_input": 0,
                "max_position_embeddings": 262144,
            },
        ),
    }
)
