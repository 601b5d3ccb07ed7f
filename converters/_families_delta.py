"""Families with layers of linear attention (gated delta rule) among those of attention."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from types import MappingProxyType

from converters._family import (
    Extra,
    Family,
    Rule,
    attention,
    feed_forward,
    head_norms,
    norm,
    rules,
)

_AT = "model.layers.{}.linear_attn."
# Norms multiply by 1 + weight, but not the one behind the recurrence; GGUF holds the sum.
_NORMS = (
    norm("input_layernorm", "attn_norm", shift=1.0),
    norm("post_attention_layernorm", "post_attention_norm", shift=1.0),
)


def _attention() -> tuple[Rule, ...]:
    q, *rest = attention()
    doubled = replace(q, shape=("two_q_width", "width"))
    return (*_NORMS, doubled, *rest, *head_norms(shift=1.0))


def _recurrent(projections: tuple[Rule, ...], tiled: str) -> tuple[Rule, ...]:
    """A layer of linear attention; `tiled` is "tiled " where value heads are re-ordered."""
    heads = f"{tiled}heads" if tiled else ""

    def vector(source: str, target: str, suffix: str, exp: bool = False) -> Rule:
        return Rule(
            _AT + source,
            f"blk.{{}}.{target}",
            ("delta.value_heads",),
            suffix="",
            target_suffix=suffix,
            order=heads,
            negated_exp=exp,
        )

    return (
        *_NORMS,
        *projections,
        Rule(
            _AT + "conv1d",
            "blk.{}.ssm_conv1d",
            ("delta.channels", "delta.taps"),
            stored=("delta.channels", "one", "delta.taps"),
            order=f"{tiled}channels" if tiled else "",
            exact=True,
        ),
        vector("dt_bias", "ssm_dt", ".bias"),
        vector("A_log", "ssm_a", "", exp=True),
        Rule(_AT + "norm", "blk.{}.ssm_norm", ("delta.value_width",)),
        Rule(
            _AT + "out_proj",
            "blk.{}.ssm_out",
            ("width", "delta.values"),
            order=f"{tiled}columns" if tiled else "",
        ),
    )


def _projection(source: str, target: str, rows: str, order: str, stored: str = "") -> Rule:
    return Rule(
        _AT + source,
        f"blk.{{}}.{target}",
        (rows, "width"),
        order=order,
        stored=(stored, "width") if stored else (),
    )


def _experts() -> tuple[Rule, ...]:
    at = "model.layers.{0}.mlp."

    def expert(source: str, target: str, outer: bool, stacked: str, cut: tuple[int, int]) -> Rule:
        shape = ("width", "expert_width") if outer else ("expert_width", "width")
        return Rule(
            f"{at}experts.{{1}}.{source}",
            f"blk.{{}}.{target}",
            ("experts", *shape),
            experts="each",
            or_stacked=(f"{at}experts.{stacked}", cut),
        )

    inner = ("shared_width", "width")
    return (
        *rules(("mlp.gate", "ffn_gate_inp", ("experts", "width"))),
        Rule(at + "shared_expert_gate", "blk.{}.ffn_gate_inp_shexp", ("one", "width"), exact=True),
        expert("gate_proj", "ffn_gate_exps", False, "gate_up_proj", (0, 2)),
        expert("up_proj", "ffn_up_exps", False, "gate_up_proj", (1, 2)),
        expert("down_proj", "ffn_down_exps", True, "down_proj", (0, 1)),
        *rules(
            ("mlp.shared_expert.gate_proj", "ffn_gate_shexp", inner),
            ("mlp.shared_expert.up_proj", "ffn_up_shexp", inner),
            ("mlp.shared_expert.down_proj", "ffn_down_shexp", ("width", "shared_width")),
        ),
    )


_SPLIT = _recurrent(
    (
        _projection("in_proj_qkv", "attn_qkv", "delta.channels", "tiled channels"),
        _projection("in_proj_z", "attn_gate", "delta.values", "tiled rows"),
        _projection("in_proj_b", "ssm_beta", "delta.value_heads", "tiled heads"),
        _projection("in_proj_a", "ssm_alpha", "delta.value_heads", "tiled heads"),
    ),
    "tiled ",
)
_FUSED = _recurrent(
    (
        _projection(
            "in_proj_qkvz", "attn_qkv", "delta.channels", "channels", "delta.channels_and_gates"
        ),
        _projection(
            "in_proj_qkvz", "attn_gate", "delta.values", "gates", "delta.channels_and_gates"
        ),
        _projection("in_proj_ba", "ssm_ba", "delta.two_value_heads", ""),
    ),
    "",
)
_DEFAULTS: dict[str, object] = {
    "num_attention_heads": 16,
    "num_key_value_heads": 4,
    "head_dim": 256,
    "partial_rotary_factor": 0.25,
    "linear_conv_kernel_dim": 4,
    "linear_key_head_dim": 128,
    "linear_value_head_dim": 128,
    "linear_num_key_heads": 16,
    "linear_num_value_heads": 32,
}
_EXPERT_DEFAULTS: dict[str, object] = {
    **_DEFAULTS,
    "num_key_value_heads": 2,
    "moe_intermediate_size": 512,
    "shared_expert_intermediate_size": 512,
}
_EXPERT_WIDTHS = (
    Extra("moe_intermediate_size", "expert_feed_forward_length", "u32"),
    Extra("shared_expert_intermediate_size", "expert_shared_feed_forward_length", "u32"),
)
_SECTIONS = (11, 11, 10)
_NO_BIAS: dict[str, tuple[object, ...]] = {"attention_bias": (None, False)}

DELTA: Mapping[str, Family] = MappingProxyType(
    {
        "Qwen3_5ForCausalLM": Family(
            "qwen3_5_text",
            "qwen35",
            _attention() + feed_forward(),
            recurrent=_SPLIT + feed_forward(),
            recurrent_types=("linear_attention",),
            defaults=_DEFAULTS,
            norm_shift=1.0,
            fixed=_NO_BIAS,
            delta=True,
            rope_sections=_SECTIONS,
        ),
        "Qwen3_5MoeForCausalLM": Family(
            "qwen3_5_moe_text",
            "qwen35moe",
            _attention() + _experts(),
            recurrent=_SPLIT + _experts(),
            recurrent_types=("linear_attention",),
            defaults={**_EXPERT_DEFAULTS, "num_experts_per_tok": 8, "num_experts": 256},
            extras=_EXPERT_WIDTHS,
            norm_shift=1.0,
            fixed=_NO_BIAS,
            expert_width="moe_intermediate_size",
            delta=True,
            rope_sections=_SECTIONS,
        ),
        "Qwen3NextForCausalLM": Family(
            "qwen3_next",
            "qwen3next",
            _attention() + _experts(),
            recurrent=_FUSED + _experts(),
            recurrent_types=("linear_attention",),
            defaults={**_EXPERT_DEFAULTS, "num_experts_per_tok": 10, "num_experts": 512},
            extras=(*_EXPERT_WIDTHS, Extra("norm_topk_prob", "expert_weights_norm", "bool")),
            norm_shift=1.0,
            fixed={**_NO_BIAS, "decoder_sparse_step": (None, 1), "mlp_only_layers": (None, [])},
            expert_width="moe_intermediate_size",
            delta=True,
        ),
    }
)
