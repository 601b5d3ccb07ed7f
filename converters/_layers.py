"""Sizes of layers that differ: heads, keys and values, feed-forward widths.

transformers has two spellings: numbers for all layers without a window (``global_head_dim``,
``num_global_key_value_heads``), or what differs by layer (``per_layer_config``).
"""

from __future__ import annotations

from dataclasses import dataclass

from converters._config import Config

_GLOBAL_HEAD_WIDTH = 512


@dataclass(frozen=True)
class Layer:
    """One layer's own sizes.

    Attributes:
        head_width: Dimensions of a head.
        kv_heads: KV heads.
        ffn_width: Inner width of the feed-forward part.
        owns_kv: Whether it has keys and values; else it attends to an earlier layer's.
        owns_v: Whether it has a weight for values; else keys serve.
    """

    head_width: int
    kv_heads: int
    ffn_width: int
    owns_kv: bool
    owns_v: bool


def read_layers(config: Config, windowed: list[bool]) -> list[Layer]:
    """What each layer has.

    Args:
        config: config.json.
        windowed: Which layers have a window.

    Returns:
        One entry for each.

    Raises:
        ConversionError: A value is missing or out of range, or layers without a window differ
            among each other.
    """
    head_width, kv_heads = config.integer("head_dim"), config.integer("num_key_value_heads")
    ffn_width = config.integer("intermediate_size")
    keys_are_values = config.flag("attention_k_eq_v", False)
    wide, few = _global_sizes(config, windowed, keys_are_values)
    n_shared = config.values.get("num_kv_shared_layers") or 0
    if isinstance(n_shared, bool) or not isinstance(n_shared, int) or n_shared < 0:
        raise config.fail("num_kv_shared_layers", "a number of layers")
    own = len(windowed) - n_shared
    for kind in set(windowed):
        if kind not in windowed[: max(own, 0)]:
            raise config.fail(
                "num_kv_shared_layers", "a layer of each kind with keys and values of its own"
            )
    for key, width in (("head_dim", head_width), ("global_head_dim", wide)):
        if width % 2:
            raise config.fail(key, f"an even number, not {width}")
    heads = config.integer("num_attention_heads")
    if heads % few:
        raise config.fail("num_global_key_value_heads", f"a divisor of {heads} heads, not {few}")
    double = 2 if config.flag("use_double_wide_mlp", False) else 1
    return [
        Layer(
            head_width=head_width if window else wide,
            kv_heads=kv_heads if window else few,
            ffn_width=ffn_width * (double if i >= own else 1),
            owns_kv=i < own,
            owns_v=i < own and (window or not keys_are_values),
        )
        for i, window in enumerate(windowed)
    ]


def _global_sizes(config: Config, windowed: list[bool], keys_are_values: bool) -> tuple[int, int]:
    """Head width and KV heads of layers without a window."""
    usual = (config.integer("head_dim"), config.integer("num_key_value_heads"))
    stated = config.section("per_layer_config")
    if stated is None:
        few = usual[1]
        if keys_are_values:
            few = config.integer("num_global_key_value_heads", few)
        return config.integer("global_head_dim", _GLOBAL_HEAD_WIDTH), few
    found: set[tuple[int, int]] = set()
    for i, window in enumerate(windowed):
        own = stated.section(str(i)) or Config({}, stated.where)
        known = {"head_dim", "num_key_value_heads"}
        strange = sorted(own.values.keys() - (set() if window else known))
        if strange:
            raise own.fail(
                strange[0], "head_dim and num_key_value_heads of layers without a window"
            )
        if not window:
            found.add(
                (
                    own.integer("head_dim", usual[0]),
                    own.integer("num_key_value_heads", usual[1]),
                )
            )
    if len(found) > 1:
        raise config.fail("per_layer_config", "one head_dim and one num_key_value_heads")
    return found.pop() if found else usual
