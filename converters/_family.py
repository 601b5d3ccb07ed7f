"""What a table of model families is made of: tensors, numbers, the family itself."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Literal

from converters._config import Config
from converters._gguf_writer import Field

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
        part: Names of attributes of `Shape`: of each head's stored rows, how many lie in front
            of those that are taken, and how many behind; empty where rows are no heads' own.
            The first dimension of `shape` is then the heads.
        only: The layers that have it: "dense", "experts", or "" for all.
        cut: Which part of the stored rows it is: [0] out of [1].
        alternates: Whether the parts' rows alternate, instead of following each other.
        transposed: Whether rows and columns are stored the other way round.
        needs: The attribute of `Shape` without which, or where it is 0, there is no such tensor.
        stored: The shape in the checkpoint, where it is another; names as in `shape`.
        exact: Whether it stays F32 whatever type is asked for.
        negated_exp: Whether the values are x of the -e^x that readers want.
        order: How the stored rows, or columns, change places: a name in `converters._delta_rows`.
        or_stacked: The stored name and cut where one tensor has all experts instead.
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
    needs: str = ""
    stored: tuple[str, ...] = ()
    exact: bool = False
    negated_exp: bool = False
    part: tuple[str, ...] = ()
    only: Literal["", "dense", "experts"] = ""
    order: str = ""
    or_stacked: tuple[str, tuple[int, int]] | None = None


@dataclass(frozen=True)
class Extra:
    """A number of the config that becomes a metadata key of the architecture.

    Attributes:
        source: config.json's key.
        target: GGUF's, behind the architecture's name.
        kind: Its type there. A bool is written where it is false.
        required: Whether it is written where the config has null: then as 0. A bool is then
            written as it is.
    """

    source: str
    target: str
    kind: Literal["f32", "u32", "bool"] = "f32"
    required: bool = False


def rules(*rows: tuple[object, ...]) -> tuple[Rule, ...]:
    return tuple(
        Rule(f"model.layers.{{}}.{source}", f"blk.{{}}.{target}", *rest)  # type: ignore[arg-type]
        for source, target, *rest in rows
    )


ATTENTION = "attention_bias"


def attention(qkv: str = NO_BIAS, out: str = NO_BIAS) -> tuple[Rule, ...]:
    return rules(
        ("self_attn.q_proj", "attn_q", ("q_width", "width"), True, qkv),
        ("self_attn.k_proj", "attn_k", ("kv_width", "width"), True, qkv),
        ("self_attn.v_proj", "attn_v", ("kv_width", "width"), False, qkv),
        ("self_attn.o_proj", "attn_output", ("width", "q_width"), False, out),
    )


def feed_forward(bias: str = NO_BIAS) -> tuple[Rule, ...]:
    return rules(
        ("mlp.gate_proj", "ffn_gate", ("ffn_width", "width"), False, bias),
        ("mlp.up_proj", "ffn_up", ("ffn_width", "width"), False, bias),
        ("mlp.down_proj", "ffn_down", ("width", "ffn_width"), False, bias),
    )


def norm(source: str, target: str, width: str = "width", shift: float = 0.0) -> Rule:
    return rules((source, target, (width,), False, NO_BIAS, shift))[0]


def head_norms(
    q: str = "head_width", k: str = "head_width", shift: float = 0.0
) -> tuple[Rule, ...]:
    return (
        norm("self_attn.q_norm", "attn_q_norm", q, shift),
        norm("self_attn.k_norm", "attn_k_norm", k, shift),
    )


def pre_norm(attention: tuple[Rule, ...], inner: tuple[Rule, ...]) -> tuple[Rule, ...]:
    """A layer in the order of its work, a norm before each half: the order in the file, too."""
    return (
        norm("input_layernorm", "attn_norm"),
        *attention,
        norm("post_attention_layernorm", "ffn_norm"),
        *inner,
    )


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
        model: Tensors of the model as a whole besides embedding, last norm and head.
        experts_if: The config flag that says whether there are experts; "" where there always are.
        experts_used: The config key of how many a token goes through.
        by_merges: Whether readers expect BPE with byte_fallback as merges, not as scores.
        layered: Whether layers have sizes of their own (`_layers.py`).
        last_norm: What the norm in front of the head is called, in the checkpoint and in GGUF.
        recurrent: The tensors of a layer that has a state instead of keys and values.
        recurrent_types: What layer_types calls such a layer.
        attention_only: The architecture of a model none of whose layers is recurrent, if another.
        dense: What the same name means where there are no experts.
        adapted: The config in the names and meanings of the other families.
        latent: Keys and values are stored as one latent: multi-head latent attention.
        constants: Further fields, the same for all models.
        delta: Whether such layers are linear attention by the gated delta rule.
        rope_sections: How rotated pairs are shared out to a picture's axes, where nothing is said;
            () for families without such axes.
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
    model: tuple[Rule, ...] = ()
    experts_if: str = ""
    experts_used: str = "num_experts_per_tok"
    by_merges: bool = False
    layered: bool = False
    last_norm: tuple[str, str] = ("model.norm", "output_norm")
    recurrent: tuple[Rule, ...] = ()
    recurrent_types: tuple[str, ...] = ()
    attention_only: str = ""
    dense: Family | None = None
    adapted: Callable[[Config], Mapping[str, object]] | None = None
    latent: bool = False
    constants: tuple[Field, ...] = ()
    delta: bool = False
    rope_sections: tuple[int, ...] = ()


ALL_KINDS = ("default", "linear", "llama3", "yarn", "longrope")

# Granite's multipliers.
SCALES = (
    Extra("attention_multiplier", "attention.scale"),
    Extra("embedding_multiplier", "embedding_scale"),
    Extra("residual_multiplier", "residual_scale"),
    Extra("logits_scaling", "logit_scale"),
)
GRANITE_DEFAULTS: dict[str, object] = {
    "embedding_multiplier": 1.0,
    "residual_multiplier": 1.0,
    "attention_multiplier": 1.0,
    "logits_scaling": 1.0,
}
