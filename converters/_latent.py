"""Latent attention: its widths, as config.json has them and as GGUF does."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Protocol

from converters._config import Config
from converters._gguf_writer import Field

_LAYER = re.compile(r"model\.layers\.(\d+)\.")


class _Widths(Protocol):
    @property
    def q_rank(self) -> int: ...
    @property
    def kv_rank(self) -> int: ...
    @property
    def latent_key(self) -> int: ...
    @property
    def rotated_width(self) -> int: ...
    @property
    def plain_width(self) -> int: ...
    @property
    def value_width(self) -> int: ...
    @property
    def dense_layers(self) -> int: ...


def latent_sizes(config: Config) -> dict[str, int]:
    """The attributes of `Shape` that such a model has beside others'."""
    heads = config.integer("num_attention_heads")
    if config.integer("num_key_value_heads", heads) != heads:
        raise config.fail("num_key_value_heads", f"{heads}, as many as heads")
    _groups(config)
    has_rank = config.values.get("q_lora_rank") is not None
    return {
        "q_rank": config.integer("q_lora_rank") if has_rank else 0,
        "kv_rank": config.integer("kv_lora_rank"),
        "rotated_width": config.integer("qk_rope_head_dim"),
        "plain_width": config.integer("qk_nope_head_dim"),
        "value_width": config.integer("v_head_dim"),
        "dense_layers": _dense_layers(config),
    }


def latent_fields(config: Config, widths: _Widths) -> Iterator[Field]:
    """The metadata, without the architecture's name: a cache of one head, the latent."""
    yield Field("attention.key_length", "u32", widths.latent_key)
    yield Field("attention.value_length", "u32", widths.kv_rank)
    yield Field("attention.key_length_mla", "u32", widths.plain_width + widths.rotated_width)
    yield Field("attention.value_length_mla", "u32", widths.value_width)
    yield Field("attention.kv_lora_rank", "u32", widths.kv_rank)
    if widths.q_rank:
        yield Field("attention.q_lora_rank", "u32", widths.q_rank)
    yield Field("leading_dense_block_count", "u32", widths.dense_layers)
    groups, used = _groups(config)
    if groups:
        yield Field("expert_group_count", "u32", groups)
        yield Field("expert_group_used_count", "u32", used)


def is_predictor(name: str, layers: int) -> bool:
    """Whether a tensor is of a layer behind the last, which predicts further tokens."""
    match = _LAYER.match(name)
    return match is not None and int(match[1]) >= layers


def _dense_layers(config: Config) -> int:
    """How many layers without experts stand in front of those with them."""
    layers = config.integer("num_hidden_layers")
    kinds = config.values.get("mlp_layer_types")
    if kinds is None:
        count = config.values.get("first_k_dense_replace")
        if isinstance(count, bool) or not isinstance(count, int) or not 0 <= count <= layers:
            raise config.fail("first_k_dense_replace", f"0 to {layers} layers")
        return count
    dense = kinds.count("dense") if isinstance(kinds, list) else 0
    if kinds != ["dense"] * dense + ["sparse"] * (layers - dense):
        raise config.fail("mlp_layer_types", f"'dense', then 'sparse', for {layers} layers")
    return dense


def _groups(config: Config) -> tuple[int, int]:
    """Groups of experts, and how many of them are chosen from; zeros where there are none."""
    if config.values.get("topk_method") == "greedy" or config.values.get("n_group") is None:
        return 0, 0
    groups, used = config.integer("n_group"), config.integer("topk_group")
    experts = config.integer("n_routed_experts")
    if experts % groups:
        raise config.fail("n_group", f"a divisor of {experts} experts")
    if used > groups:
        raise config.fail("topk_group", f"at most the {groups} groups")
    if config.integer("num_experts_per_tok") > experts // groups * used:
        raise config.fail("topk_group", "groups that hold as many experts as a token goes through")
    return groups, used
