"""Families with layers of experts."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from converters._family import (
    ALWAYS,
    ATTENTION,
    GRANITE_DEFAULTS,
    SCALES,
    Extra,
    Family,
    Rule,
    attention,
    head_norms,
    norm,
    pre_norm,
    rules,
)

_GATE, _UP, _DOWN = ("ffn_gate_exps", "ffn_up_exps", "ffn_down_exps")
_INNER = ("experts", "expert_width", "width")
_OUTER = ("experts", "width", "expert_width")


def each_expert(router: str, each: str, gate: str, up: str, down: str) -> tuple[Rule, ...]:
    """Experts that have tensors of their own."""
    at = "model.layers.{0}."
    return (
        *rules((router, "ffn_gate_inp", ("experts", "width"))),
        Rule(f"{at}{each}.{{1}}.{gate}", f"blk.{{}}.{_GATE}", _INNER, experts="each"),
        Rule(f"{at}{each}.{{1}}.{up}", f"blk.{{}}.{_UP}", _INNER, experts="each"),
        Rule(f"{at}{each}.{{1}}.{down}", f"blk.{{}}.{_DOWN}", _OUTER, experts="each"),
    )


def granite_experts() -> tuple[Rule, ...]:
    """Experts, gate and up of each in one tensor."""
    at = "model.layers.{}.block_sparse_moe."
    return (
        *rules(("block_sparse_moe.router.layer", "ffn_gate_inp", ("experts", "width"))),
        Rule(at + "input_linear", f"blk.{{}}.{_GATE}", _INNER, experts="stacked", cut=(0, 2)),
        Rule(at + "input_linear", f"blk.{{}}.{_UP}", _INNER, experts="stacked", cut=(1, 2)),
        Rule(at + "output_linear", f"blk.{{}}.{_DOWN}", _OUTER, experts="stacked"),
    )


def granite_shared(
    gate: str = "ffn_gate_shexp",
    up: str = "ffn_up_shexp",
    down: str = "ffn_down_shexp",
    width: str = "shared_width",
) -> tuple[Rule, ...]:
    """The expert of every token; where there are no others, the whole feed-forward."""
    at, inner = "model.layers.{}.shared_mlp.", (width, "width")
    return (
        Rule(at + "input_linear", f"blk.{{}}.{gate}", inner, cut=(0, 2)),
        Rule(at + "input_linear", f"blk.{{}}.{up}", inner, cut=(1, 2)),
        Rule(at + "output_linear", f"blk.{{}}.{down}", ("width", width)),
    )


def _gpt_oss_layer() -> tuple[Rule, ...]:
    at = "model.layers.{}.mlp.experts."

    def weight(source: str, target: str, shape: tuple[str, ...], cut: tuple[int, int]) -> Rule:
        return Rule(
            at + source,
            f"blk.{{}}.{target}",
            shape,
            suffix="",
            experts="stacked",
            cut=cut,
            alternates=True,
            transposed=True,
        )

    def bias(source: str, target: str, width: str, cut: tuple[int, int]) -> Rule:
        return Rule(
            at + source,
            f"blk.{{}}.{target}",
            ("experts", width),
            suffix="_bias",
            target_suffix=".bias",
            experts="stacked",
            cut=cut,
            alternates=True,
        )

    return (
        norm("input_layernorm", "attn_norm"),
        norm("post_attention_layernorm", "post_attention_norm"),
        *attention(ATTENTION, ATTENTION),
        Rule("model.layers.{}.self_attn.sinks", "blk.{}.attn_sinks", ("heads",), suffix=""),
        *rules(("mlp.router", "ffn_gate_inp", ("experts", "width"), False, ALWAYS)),
        weight("gate_up_proj", _GATE, _INNER, (0, 2)),
        weight("gate_up_proj", _UP, _INNER, (1, 2)),
        weight("down_proj", _DOWN, _OUTER, (0, 1)),
        bias("gate_up_proj", _GATE, "expert_width", (0, 2)),
        bias("gate_up_proj", _UP, "expert_width", (1, 2)),
        bias("down_proj", _DOWN, "width", (0, 1)),
    )


_GRANITE_MOE_DEFAULTS = {**GRANITE_DEFAULTS, "num_local_experts": 8, "num_experts_per_tok": 2}

EXPERTS: Mapping[str, Family] = MappingProxyType(
    {
        "MixtralForCausalLM": Family(
            "mixtral",
            "llama",
            pre_norm(
                attention(),
                each_expert("block_sparse_moe.gate", "block_sparse_moe.experts", "w1", "w3", "w2"),
            ),
            paired=True,
            defaults={
                "num_key_value_heads": 8,
                "num_local_experts": 8,
                "num_experts_per_tok": 2,
                "rms_norm_eps": 1e-5,
                "rope_theta": 1000000.0,
            },
            windows="all",
            expert_width="intermediate_size",
        ),
        "Qwen3MoeForCausalLM": Family(
            "qwen3_moe",
            "qwen3moe",
            pre_norm(
                attention(ATTENTION, ATTENTION) + head_norms(),
                each_expert("mlp.gate", "mlp.experts", "gate_proj", "up_proj", "down_proj"),
            ),
            defaults={
                "num_key_value_heads": 4,
                "num_experts_per_tok": 8,
                "moe_intermediate_size": 768,
                "norm_topk_prob": False,
                "sliding_window": 4096,
            },
            extras=(
                Extra("moe_intermediate_size", "expert_feed_forward_length", "u32"),
                Extra("norm_topk_prob", "expert_weights_norm", "bool"),
            ),
            windows="used",
            fixed={"decoder_sparse_step": (None, 1), "mlp_only_layers": (None, [])},
            expert_width="moe_intermediate_size",
        ),
        "GraniteMoeForCausalLM": Family(
            "granitemoe",
            "granitemoe",
            pre_norm(attention(ATTENTION, ATTENTION), granite_experts()),
            paired=True,
            defaults=_GRANITE_MOE_DEFAULTS,
            extras=SCALES,
            expert_width="intermediate_size",
        ),
        "GraniteMoeSharedForCausalLM": Family(
            "granitemoeshared",
            "granitemoe",
            pre_norm(attention(ATTENTION, ATTENTION), granite_experts() + granite_shared()),
            paired=True,
            defaults=_GRANITE_MOE_DEFAULTS,
            extras=(
                *SCALES,
                Extra("shared_intermediate_size", "expert_shared_feed_forward_length", "u32"),
            ),
            expert_width="intermediate_size",
        ),
        "GptOssForCausalLM": Family(
            "gpt_oss",
            "gpt-oss",
            _gpt_oss_layer(),
            defaults={
                "head_dim": 64,
                "num_key_value_heads": 8,
                "num_local_experts": 128,
                "num_experts_per_tok": 4,
                "rms_norm_eps": 1e-5,
                "rope_theta": 150000.0,
                "sliding_window": 128,
                "attention_bias": True,
            },
            extras=(Extra("intermediate_size", "expert_feed_forward_length", "u32"),),
            windows="period",
            period=2,
            writes_head=True,
            fixed={"swiglu_limit": (None, 7.0), "swiglu_alpha": (None, 1.702)},
            expert_width="intermediate_size",
            quantized=("mxfp4",),
        ),
    }
)
