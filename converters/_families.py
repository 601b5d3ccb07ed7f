"""The model families that can be converted, as data.

The conventions (key and tensor names, which rows are permuted, what is folded into weights) are
those that existing GGUF readers expect of each architecture. Defaults are those that transformers
takes for what config.json leaves out.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Literal

# Whether a bias stands beside a weight: never, always, or as this flag of the config says.
NO_BIAS, ALWAYS = "", "always"


@dataclass(frozen=True)
class Rule:
    """One tensor of a layer, or of the whole model.

    Attributes:
        source: The checkpoint's name without ".weight"; "{}" stands for the layer.
        target: GGUF's name without ".weight"; "{}" stands for the layer.
        shape: Names of attributes of `Shape`, slowest dimension first.
        heads: Whether the rows are those of heads that are rotated.
        bias: The config flag that says whether a bias stands beside the weight, or a constant.
        shift: What is added to the values.
    """

    source: str
    target: str
    shape: tuple[str, ...]
    heads: bool = False
    bias: str = NO_BIAS
    shift: float = 0.0


@dataclass(frozen=True)
class Extra:
    """A number of the config that becomes a metadata key of the architecture.

    Attributes:
        source: config.json's key.
        target: GGUF's, behind the architecture's name.
        kind: Its type there.
        required: Whether it is written where the config has null: then as 0.
    """

    source: str
    target: str
    kind: Literal["f32", "u32"] = "f32"
    required: bool = False


def _rules(*rows: tuple[object, ...]) -> tuple[Rule, ...]:
    return tuple(
        Rule(f"model.layers.{{}}.{source}", f"blk.{{}}.{target}", *rest)  # type: ignore[arg-type]
        for source, target, *rest in rows
    )


_ATTENTION = "attention_bias"


def _attention(qkv: str = NO_BIAS, out: str = NO_BIAS) -> tuple[Rule, ...]:
    return _rules(
        ("self_attn.q_proj", "attn_q", ("q_width", "width"), True, qkv),
        ("self_attn.k_proj", "attn_k", ("kv_width", "width"), True, qkv),
        ("self_attn.v_proj", "attn_v", ("kv_width", "width"), False, qkv),
        ("self_attn.o_proj", "attn_output", ("width", "q_width"), False, out),
    )


def _feed_forward(bias: str = NO_BIAS) -> tuple[Rule, ...]:
    return _rules(
        ("mlp.gate_proj", "ffn_gate", ("ffn_width", "width"), False, bias),
        ("mlp.up_proj", "ffn_up", ("ffn_width", "width"), False, bias),
        ("mlp.down_proj", "ffn_down", ("width", "ffn_width"), False, bias),
    )


def _norm(source: str, target: str, width: str = "width", shift: float = 0.0) -> Rule:
    return _rules((source, target, (width,), False, NO_BIAS, shift))[0]


def _head_norms(
    q: str = "head_width", k: str = "head_width", shift: float = 0.0
) -> tuple[Rule, ...]:
    return (
        _norm("self_attn.q_norm", "attn_q_norm", q, shift),
        _norm("self_attn.k_norm", "attn_k_norm", k, shift),
    )


_PRE_NORMS = (
    _norm("input_layernorm", "attn_norm"),
    _norm("post_attention_layernorm", "ffn_norm"),
)
_POST_NORMS = (
    _norm("post_attention_layernorm", "post_attention_norm"),
    _norm("post_feedforward_layernorm", "post_ffw_norm"),
)
_LLAMA = _PRE_NORMS + _attention(_ATTENTION, _ATTENTION) + _feed_forward("mlp_bias")
# Gemma's norms multiply by 1 + weight; GGUF holds the sum.
_GEMMA = (
    _norm("input_layernorm", "attn_norm", shift=1.0),
    _norm("post_attention_layernorm", "post_attention_norm", shift=1.0),
    _norm("pre_feedforward_layernorm", "ffn_norm", shift=1.0),
    _norm("post_feedforward_layernorm", "post_ffw_norm", shift=1.0),
    *_attention(_ATTENTION, _ATTENTION),
    *_feed_forward(),
)
_FUSED = (
    *_PRE_NORMS,
    *_rules(
        ("self_attn.qkv_proj", "attn_qkv", ("qkv_width", "width")),
        ("self_attn.o_proj", "attn_output", ("width", "q_width")),
        ("mlp.gate_up_proj", "ffn_up", ("two_ffn_width", "width")),
        ("mlp.down_proj", "ffn_down", ("width", "ffn_width")),
    ),
)
_OLMO = (
    *_POST_NORMS,
    *_attention(_ATTENTION, _ATTENTION),
    *_head_norms("q_width", "kv_width"),
    *_feed_forward(),
)

# Which layers attend to a window, where config.json has no layer_types: none; all, if it has a
# sliding_window; all but the last of each period; from max_window_layers on, if it says
# use_sliding_window; those that are not rotated, likewise.
Windows = Literal["none", "all", "period", "late", "unrotated"]


@dataclass(frozen=True)
class Family:
    """What config.json's `architectures` names.

    Attributes:
        model_type: config.json's model_type, used where `architectures` is absent.
        architecture: GGUF's general.architecture.
        layer: The tensors of a layer.
        paired: Whether query and key rows are re-ordered so that rotated pairs are neighbours.
        defaults: What transformers takes for an absent key.
        rope_kinds: The kinds of scaling that the architecture's readers know.
        local_rope: Whether windowed layers have a rotation of their own, without scaling.
        extras: Further numbers.
        windows: Which layers have one.
        period: Of windowed layers, where metadata does not list them.
        rotated_period: The last layer of each is not rotated; 0 where all are.
        activation: The config key of the activation function and the only value of it.
        norm_shift: What is added to the last norm.
        scaled_by_width: A model of so many layers scales its scores by the width of all heads
            in the embedding, and its files do not say so.
        writes_head: The output head is written even where it is the embedding.
        fixed: Keys that must have one of these values.
    """

    model_type: str
    architecture: str
    layer: tuple[Rule, ...]
    paired: bool = False
    defaults: Mapping[str, object] = field(default_factory=lambda: MappingProxyType({}))
    rope_kinds: tuple[str, ...] = ("default", "linear", "yarn")
    local_rope: bool = False
    extras: tuple[Extra, ...] = ()
    windows: Windows = "none"
    period: int = 0
    rotated_period: int = 0
    activation: tuple[str, str] = ("hidden_act", "silu")
    norm_shift: float = 0.0
    scaled_by_width: int = 0
    writes_head: bool = False
    fixed: Mapping[str, tuple[object, ...]] = field(default_factory=lambda: MappingProxyType({}))


_ALL_KINDS = ("default", "linear", "llama3", "yarn", "longrope")
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

FAMILIES: Mapping[str, Family] = MappingProxyType(
    {
        "LlamaForCausalLM": Family("llama", "llama", _LLAMA, paired=True, rope_kinds=_ALL_KINDS),
        "MistralForCausalLM": Family(
            "mistral",
            "llama",
            _PRE_NORMS + _attention() + _feed_forward(),
            paired=True,
            defaults={"num_key_value_heads": 8, "sliding_window": 4096},
            rope_kinds=_ALL_KINDS,
            windows="all",
        ),
        "Qwen2ForCausalLM": Family(
            "qwen2",
            "qwen2",
            _PRE_NORMS + _attention(ALWAYS) + _feed_forward(),
            defaults={"num_key_value_heads": 32, **_QWEN_WINDOWS},
            windows="late",
        ),
        "Qwen3ForCausalLM": Family(
            "qwen3",
            "qwen3",
            _PRE_NORMS + _attention(_ATTENTION, _ATTENTION) + _head_norms() + _feed_forward(),
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
        "Gemma3ForCausalLM": Family(
            "gemma3_text",
            "gemma3",
            _GEMMA + _head_norms(shift=1.0),
            defaults={
                **_GEMMA_DEFAULTS,
                "rope_theta": 1000000.0,
                "rope_local_base_freq": 10000.0,
                "sliding_window_pattern": 6,
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
            defaults={
                "embedding_multiplier": 1.0,
                "residual_multiplier": 1.0,
                "attention_multiplier": 1.0,
                "logits_scaling": 1.0,
            },
            rope_kinds=_ALL_KINDS,
            extras=(
                Extra("attention_multiplier", "attention.scale"),
                Extra("embedding_multiplier", "embedding_scale"),
                Extra("residual_multiplier", "residual_scale"),
                Extra("logits_scaling", "logit_scale"),
            ),
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
            _PRE_NORMS + _attention() + _feed_forward(),
            paired=True,
            defaults={"num_key_value_heads": 8, "head_dim": 128, "rms_norm_eps": 1e-5},
            rope_kinds=_ALL_KINDS,
            windows="all",
        ),
    }
)

# Checkpoints that also see, named by what they wrap: the text model's settings lie in
# text_config, its tensors behind a prefix, and the rest is left out.
WRAPPERS: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {
        "Gemma3ForConditionalGeneration": ("Gemma3ForCausalLM",),
        "Mistral3ForConditionalGeneration": ("Ministral3ForCausalLM", "MistralForCausalLM"),
    }
)
TEXT_PREFIXES = ("model.language_model.", "language_model.model.", "language_model.")
LEFT_OUT_PREFIXES = (
    "vision_tower.",
    "multi_modal_projector.",
    "model.vision_tower.",
    "model.multi_modal_projector.",
)
