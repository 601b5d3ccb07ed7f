"""Families some of whose layers have a state instead of keys and values."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from types import MappingProxyType

from converters._config import Config
from converters._families_experts import granite_experts, granite_shared
from converters._family import (
    ATTENTION,
    GRANITE_DEFAULTS,
    SCALES,
    Extra,
    Family,
    Rule,
    attention,
    norm,
    pre_norm,
    rules,
)


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


# ---- Granite 4

_MAMBA2 = (
    *rules(("mamba.in_proj", "ssm_in", ("ssm_in", "width"))),
    _at_layer(
        "mamba.conv1d",
        "ssm_conv1d",
        ("ssm_conv", "conv"),
        stored=("ssm_conv", "one", "conv"),
        exact=True,
        bias="mamba_conv_bias",
    ),
    _at_layer("mamba.dt_bias", "ssm_dt", ("ssm_heads",), suffix="", target_suffix=".bias"),
    _at_layer(
        "mamba.A_log",
        "ssm_a",
        ("ssm_heads", "one"),
        suffix="",
        target_suffix="",
        stored=("ssm_heads",),
        exact=True,
        negated_exp=True,
    ),
    _at_layer(
        "mamba.D",
        "ssm_d",
        ("ssm_heads", "one"),
        suffix="",
        target_suffix="",
        stored=("ssm_heads",),
        exact=True,
    ),
    _at_layer(
        "mamba.norm", "ssm_norm", ("ssm_groups", "ssm_group"), stored=("ssm_inner",), exact=True
    ),
    *rules(("mamba.out_proj", "ssm_out", ("width", "ssm_inner"))),
)
_GRANITE_EXPERTS = granite_experts() + granite_shared()
_GRANITE_FFN = granite_shared("ffn_gate", "ffn_up", "ffn_down", "ffn_width")


def _granite_hybrid(config: Config) -> Mapping[str, object]:
    """Sizes that follow from others, and other families' names."""
    inner, heads = config.integer("mamba_expand") * config.integer("hidden_size"), "mamba_n_heads"
    n_heads, n_groups = config.integer(heads), config.integer("mamba_n_groups")
    if inner % n_heads or n_heads % n_groups:
        raise config.fail(heads, f"a divisor of {inner} that {n_groups} groups divide")
    width = config.values.get("mamba_d_head")
    if width not in (None, "auto", inner // n_heads):
        raise config.fail("mamba_d_head", f"{inner // n_heads} for {n_heads} heads of {inner}")
    limit = config.values.get("time_step_limit")
    if limit is not None and not (
        isinstance(limit, list)
        and len(limit) == 2
        and limit[0] == 0
        and limit[1] in (math.inf, {"__float__": "Infinity"})
    ):
        raise config.fail("time_step_limit", "0 to infinity")
    position = config.values.get("position_embedding_type")
    if position not in (None, "rope", "nope"):
        raise config.fail("position_embedding_type", "None, 'nope' or 'rope'")
    adapted: dict[str, object] = {
        "conv_width": config.integer("mamba_d_conv"),
        "mamba_conv_bias": config.flag("mamba_conv_bias", True),
        "ssm_inner": inner,
        "ssm_state": config.integer("mamba_d_state"),
        "ssm_heads": n_heads,
        "ssm_groups": n_groups,
        "is_rotated": position == "rope",
    }
    if not config.values.get("num_local_experts"):
        adapted["intermediate_size"] = config.integer("shared_intermediate_size")
    return adapted


_GRANITE_DENSE = Family(
    "granitemoehybrid",
    "granitehybrid",
    pre_norm(attention(ATTENTION, ATTENTION), _GRANITE_FFN),
    paired=True,
    defaults={
        **GRANITE_DEFAULTS,
        "num_local_experts": 8,
        "num_experts_per_tok": 2,
        "shared_intermediate_size": 1024,
        "mamba_expand": 2,
        "mamba_n_heads": 128,
        "mamba_n_groups": 1,
        "mamba_d_state": 256,
        "mamba_d_conv": 4,
    },
    extras=(
        *SCALES,
        Extra("is_rotated", "rope.scaling.finetuned", "bool"),
        Extra("conv_width", "ssm.conv_kernel", "u32"),
        Extra("ssm_inner", "ssm.inner_size", "u32"),
        Extra("ssm_state", "ssm.state_size", "u32"),
        Extra("ssm_heads", "ssm.time_step_rank", "u32"),
        Extra("ssm_groups", "ssm.group_count", "u32"),
    ),
    fixed={"mamba_proj_bias": (None, False)},
    recurrent=pre_norm(_MAMBA2, _GRANITE_FFN),
    recurrent_types=("mamba", "linear_attention"),
    attention_only="granite",
    adapted=_granite_hybrid,
)

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
            recurrent_types=("conv",),
            adapted=_lfm2,
        ),
        "GraniteMoeHybridForCausalLM": replace(
            _GRANITE_DENSE,
            layer=pre_norm(attention(ATTENTION, ATTENTION), _GRANITE_EXPERTS),
            recurrent=pre_norm(_MAMBA2, _GRANITE_EXPERTS),
            expert_width="intermediate_size",
            attention_only="",
            extras=(
                *_GRANITE_DENSE.extras,
                Extra("shared_intermediate_size", "expert_shared_feed_forward_length", "u32"),
            ),
            dense=_GRANITE_DENSE,
        ),
    }
)
