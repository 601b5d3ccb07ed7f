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
        suffix: What follows the checkpoint's name.
        target_suffix: What follows GGUF's.
        experts: "each" where every expert has a tensor of its own, "{1}" in `source` standing
            for it; "stacked" where one tensor has all of them; "" for other weights.
        cut: Which part of the stored rows it is: [0] out of [1].
        alternates: Whether the parts' rows alternate, instead of following each other.
        transposed: Whether rows and columns are stored the other way round.
    """

    source: str
    target: str
    shape: tuple[str, ...]
    heads: bool = False
    bias: str = NO_BIAS
    shift: float = 0.0
    suffix: str = ".weight"
    target_suffix: str = ".weight"
    experts: Literal["", "each", "stacked"] = ""
    cut: tuple[int, int] = (0, 1)
    alternates: bool = False
    transposed: bool = False


@dataclass(frozen=True)
class Extra:
    """A number of the config that becomes a metadata key of the architecture.

    Attributes:
        source: config.json's key.
        target: GGUF's, behind the architecture's name.
        kind: Its type there. A bool is written where it is false.
        required: Whether it is written where the config has null: then as 0.
    """

    source: str
    target: str
    kind: Literal["f32", "u32", "bool"] = "f32"
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


def _pre_norm(attention: tuple[Rule, ...], inner: tuple[Rule, ...]) -> tuple[Rule, ...]:
    """A layer in the order of its work, a norm before each half: the order in the file, too."""
    return (
        _norm("input_layernorm", "attn_norm"),
        *attention,
        _norm("post_attention_layernorm", "ffn_norm"),
        *inner,
    )


_POST_NORMS = (
    _norm("post_attention_layernorm", "post_attention_norm"),
    _norm("post_feedforward_layernorm", "post_ffw_norm"),
)
_LLAMA = _pre_norm(_attention(_ATTENTION, _ATTENTION), _feed_forward("mlp_bias"))
# Gemma's norms multiply by 1 + weight; GGUF holds the sum.
_GEMMA = (
    _norm("input_layernorm", "attn_norm", shift=1.0),
    _norm("post_attention_layernorm", "post_attention_norm", shift=1.0),
    _norm("pre_feedforward_layernorm", "ffn_norm", shift=1.0),
    _norm("post_feedforward_layernorm", "post_ffw_norm", shift=1.0),
    *_attention(_ATTENTION, _ATTENTION),
    *_feed_forward(),
)
_FUSED = _pre_norm(
    _rules(
        ("self_attn.qkv_proj", "attn_qkv", ("qkv_width", "width")),
        ("self_attn.o_proj", "attn_output", ("width", "q_width")),
    ),
    _rules(
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

_GATE, _UP, _DOWN = ("ffn_gate_exps", "ffn_up_exps", "ffn_down_exps")
_INNER = ("experts", "expert_width", "width")
_OUTER = ("experts", "width", "expert_width")


def _experts(router: str, each: str, gate: str, up: str, down: str) -> tuple[Rule, ...]:
    """Experts that have tensors of their own."""
    at = "model.layers.{0}."
    return (
        *_rules((router, "ffn_gate_inp", ("experts", "width"))),
        Rule(f"{at}{each}.{{1}}.{gate}", f"blk.{{}}.{_GATE}", _INNER, experts="each"),
        Rule(f"{at}{each}.{{1}}.{up}", f"blk.{{}}.{_UP}", _INNER, experts="each"),
        Rule(f"{at}{each}.{{1}}.{down}", f"blk.{{}}.{_DOWN}", _OUTER, experts="each"),
    )


def _granite_experts() -> tuple[Rule, ...]:
    at = "model.layers.{}.block_sparse_moe."
    return (
        *_rules(("block_sparse_moe.router.layer", "ffn_gate_inp", ("experts", "width"))),
        Rule(at + "input_linear", f"blk.{{}}.{_GATE}", _INNER, experts="stacked", cut=(0, 2)),
        Rule(at + "input_linear", f"blk.{{}}.{_UP}", _INNER, experts="stacked", cut=(1, 2)),
        Rule(at + "output_linear", f"blk.{{}}.{_DOWN}", _OUTER, experts="stacked"),
    )


def _granite_shared() -> tuple[Rule, ...]:
    at, inner = "model.layers.{}.shared_mlp.", ("shared_width", "width")
    return (
        Rule(at + "input_linear", "blk.{}.ffn_gate_shexp", inner, cut=(0, 2)),
        Rule(at + "input_linear", "blk.{}.ffn_up_shexp", inner, cut=(1, 2)),
        Rule(at + "output_linear", "blk.{}.ffn_down_shexp", ("width", "shared_width")),
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
        _norm("input_layernorm", "attn_norm"),
        _norm("post_attention_layernorm", "post_attention_norm"),
        *_attention(_ATTENTION, _ATTENTION),
        Rule("model.layers.{}.self_attn.sinks", "blk.{}.attn_sinks", ("heads",), suffix=""),
        *_rules(("mlp.router", "ffn_gate_inp", ("experts", "width"), False, ALWAYS)),
        weight("gate_up_proj", _GATE, _INNER, (0, 2)),
        weight("gate_up_proj", _UP, _INNER, (1, 2)),
        weight("down_proj", _DOWN, _OUTER, (0, 1)),
        bias("gate_up_proj", _GATE, "expert_width", (0, 2)),
        bias("gate_up_proj", _UP, "expert_width", (1, 2)),
        bias("down_proj", _DOWN, "width", (0, 1)),
    )


_SCALES = (
    Extra("attention_multiplier", "attention.scale"),
    Extra("embedding_multiplier", "embedding_scale"),
    Extra("residual_multiplier", "residual_scale"),
    Extra("logits_scaling", "logit_scale"),
)
_GRANITE_DEFAULTS: dict[str, object] = {
    "embedding_multiplier": 1.0,
    "residual_multiplier": 1.0,
    "attention_multiplier": 1.0,
    "logits_scaling": 1.0,
}
_GRANITE_MOE_DEFAULTS = {**_GRANITE_DEFAULTS, "num_local_experts": 8, "num_experts_per_tok": 2}

# Which layers attend to a window, where config.json has no layer_types: none; all, if it has a
# sliding_window; all, if it says use_sliding_window, too; all but the last of each period; from
# max_window_layers on, if it says use_sliding_window; those that are not rotated, likewise.
Windows = Literal["none", "all", "used", "period", "late", "unrotated"]


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
        expert_width: The config key of an expert's inner width, "" where there are no experts.
        quantized: Values of quant_method that are read as they are.
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
    expert_width: str = ""
    quantized: tuple[str, ...] = ()


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
            _pre_norm(_attention(), _feed_forward()),
            paired=True,
            defaults={"num_key_value_heads": 8, "sliding_window": 4096},
            rope_kinds=_ALL_KINDS,
            windows="all",
        ),
        "Qwen2ForCausalLM": Family(
            "qwen2",
            "qwen2",
            _pre_norm(_attention(ALWAYS), _feed_forward()),
            defaults={"num_key_value_heads": 32, **_QWEN_WINDOWS},
            windows="late",
        ),
        "Qwen3ForCausalLM": Family(
            "qwen3",
            "qwen3",
            _pre_norm(_attention(_ATTENTION, _ATTENTION) + _head_norms(), _feed_forward()),
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
            defaults=_GRANITE_DEFAULTS,
            rope_kinds=_ALL_KINDS,
            extras=_SCALES,
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
            _pre_norm(_attention(), _feed_forward()),
            paired=True,
            defaults={"num_key_value_heads": 8, "head_dim": 128, "rms_norm_eps": 1e-5},
            rope_kinds=_ALL_KINDS,
            windows="all",
        ),
        "MixtralForCausalLM": Family(
            "mixtral",
            "llama",
            _pre_norm(
                _attention(),
                _experts("block_sparse_moe.gate", "block_sparse_moe.experts", "w1", "w3", "w2"),
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
            _pre_norm(
                _attention(_ATTENTION, _ATTENTION) + _head_norms(),
                _experts("mlp.gate", "mlp.experts", "gate_proj", "up_proj", "down_proj"),
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
            _pre_norm(_attention(_ATTENTION, _ATTENTION), _granite_experts()),
            paired=True,
            defaults=_GRANITE_MOE_DEFAULTS,
            extras=_SCALES,
            expert_width="intermediate_size",
        ),
        "GraniteMoeSharedForCausalLM": Family(
            "granitemoeshared",
            "granitemoe",
            _pre_norm(_attention(_ATTENTION, _ATTENTION), _granite_experts() + _granite_shared()),
            paired=True,
            defaults=_GRANITE_MOE_DEFAULTS,
            extras=(
                *_SCALES,
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
