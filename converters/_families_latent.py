"""Families with latent attention: DeepSeek V2 and V3, GLM 4.7 Flash."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from types import MappingProxyType

from converters._families_experts import each_expert
from converters._family import Extra, Family, Rule, feed_forward, norm, pre_norm, rules
from converters._gguf_writer import Field

_KV_B = "model.layers.{}.self_attn.kv_b_proj"
_ATTENTION = (
    *rules(
        ("self_attn.q_proj", "attn_q", ("q_direct", "width")),
        ("self_attn.q_a_proj", "attn_q_a", ("q_rank", "width")),
    ),
    norm("self_attn.q_a_layernorm", "attn_q_a_norm", "q_rank"),
    *rules(
        ("self_attn.q_b_proj", "attn_q_b", ("q_indirect", "q_rank")),
        ("self_attn.kv_a_proj_with_mqa", "attn_kv_a_mqa", ("latent_key", "width")),
    ),
    norm("self_attn.kv_a_layernorm", "attn_kv_a_norm", "kv_rank"),
    # Keys come transposed, since they meet queries, not latents.
    Rule(
        _KV_B,
        "blk.{}.attn_k_b",
        ("heads", "kv_rank", "plain_width"),
        part=("nothing", "value_width"),
        transposed=True,
    ),
    Rule(
        _KV_B,
        "blk.{}.attn_v_b",
        ("heads", "value_width", "kv_rank"),
        part=("plain_width", "nothing"),
    ),
    *rules(("self_attn.o_proj", "attn_output", ("width", "heads_out"))),
)
_SHARED = rules(
    ("mlp.shared_experts.gate_proj", "ffn_gate_shexp", ("shared_width", "width")),
    ("mlp.shared_experts.up_proj", "ffn_up_shexp", ("shared_width", "width")),
    ("mlp.shared_experts.down_proj", "ffn_down_shexp", ("width", "shared_width")),
)
_CHOICE = Rule(
    "model.layers.{}.mlp.gate.e_score_correction_bias",
    "blk.{}.exp_probs_b",
    ("experts",),
    suffix="",
    target_suffix=".bias",
)


def _layer(*choice: Rule) -> tuple[Rule, ...]:
    experts = each_expert("mlp.gate", "mlp.experts", "gate_proj", "up_proj", "down_proj")
    return pre_norm(
        _ATTENTION,
        (
            *(replace(rule, only="dense") for rule in feed_forward()),
            *(replace(rule, only="experts") for rule in (*experts, *choice, *_SHARED)),
        ),
    )


_EXTRAS = (
    Extra("moe_intermediate_size", "expert_feed_forward_length", "u32"),
    Extra("n_shared_experts", "expert_shared_count", "u32", required=True),
    Extra("routed_scaling_factor", "expert_weights_scale"),
)
_SOFTMAX = Field("expert_gating_func", "u32", 1)
_SIGMOID = Field("expert_gating_func", "u32", 2)
_NORM = Extra("norm_topk_prob", "expert_weights_norm", "bool", required=True)
_NO = (None, False)
# A bias would stand beside the first halves of projections only, and no file has one.
_FIXED = {"attention_bias": _NO, "mlp_bias": _NO, "moe_layer_freq": (None, 1)}
_WIDTHS = {"kv_lora_rank": 512, "qk_rope_head_dim": 64, "v_head_dim": 128, "qk_nope_head_dim": 128}
_V3 = {
    **_FIXED,
    "rope_interleave": (None, True),
    "scoring_func": (None, "sigmoid"),
    "topk_method": (None, "noaux_tc"),
}

LATENT: Mapping[str, Family] = MappingProxyType(
    {
        "DeepseekV2ForCausalLM": Family(
            "deepseek_v2",
            "deepseek2",
            _layer(),
            defaults={
                **_WIDTHS,
                "q_lora_rank": 1536,
                "max_position_embeddings": 2048,
                "n_routed_experts": 64,
                "n_shared_experts": 2,
                "moe_intermediate_size": 1407,
                "first_k_dense_replace": 0,
                "routed_scaling_factor": 1.0,
                "topk_method": "greedy",
            },
            rope_kinds=("default", "yarn"),
            extras=_EXTRAS,
            fixed={
                **_FIXED,
                "norm_topk_prob": _NO,
                "scoring_func": (None, "softmax"),
                "topk_method": ("greedy", "group_limited_greedy"),
            },
            expert_width="moe_intermediate_size",
            latent=True,
            constants=(_SOFTMAX,),
        ),
        "DeepseekV3ForCausalLM": Family(
            "deepseek_v3",
            "deepseek2",
            _layer(_CHOICE),
            defaults={
                **_WIDTHS,
                "q_lora_rank": 1536,
                "max_position_embeddings": 4096,
                "n_routed_experts": 256,
                "n_shared_experts": 1,
                "num_experts_per_tok": 8,
                "moe_intermediate_size": 2048,
                "first_k_dense_replace": 3,
                "routed_scaling_factor": 2.5,
                "norm_topk_prob": True,
                "n_group": 8,
                "topk_group": 4,
            },
            rope_kinds=("default", "yarn"),
            extras=(*_EXTRAS, _NORM),
            fixed=_V3,
            expert_width="moe_intermediate_size",
            latent=True,
            constants=(_SIGMOID,),
        ),
        "Glm4MoeLiteForCausalLM": Family(
            "glm4_moe_lite",
            "deepseek2",
            _layer(_CHOICE),
            defaults={
                **_WIDTHS,
                "q_lora_rank": 768,
                "qk_nope_head_dim": 192,
                "v_head_dim": 256,
                "max_position_embeddings": 202752,
                "rms_norm_eps": 1e-5,
                "n_routed_experts": 64,
                "n_shared_experts": 1,
                "num_experts_per_tok": 4,
                "moe_intermediate_size": 1536,
                "first_k_dense_replace": 1,
                "routed_scaling_factor": 1.8,
                "norm_topk_prob": True,
                "n_group": 1,
                "topk_group": 1,
            },
            rope_kinds=("default", "yarn"),
            extras=(*_EXTRAS, _NORM),
            fixed=_V3,
            expert_width="moe_intermediate_size",
            latent=True,
            constants=(_SIGMOID,),
        ),
    }
)
