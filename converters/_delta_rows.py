"""Linear attention by the gated delta rule: its sizes, and the order of its heads in a file.

A query and key head serves several value heads. Checkpoints keep the value heads of one key head
together; GGUF's qwen35 has the first of each, then the second of each, so that value head h goes
with key head h % n_key_heads. GGUF's qwen3next leaves value heads where they are, but takes apart
what the checkpoint stores by key head.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from types import MappingProxyType

from converters._config import Config
from converters._gguf_writer import Field

Runs = tuple[tuple[int, int], ...]


@dataclass(frozen=True)
class Order:
    """Runs [first, last) of stored rows and columns as they follow each other in the file.

    Attributes:
        rows: The rows; none for all of them as they are stored.
        columns: The columns, likewise.
    """

    rows: Runs = ()
    columns: Runs = ()


AS_STORED = Order()


@dataclass(frozen=True)
class DeltaShape:
    """Sizes of a layer of linear attention."""

    key_heads: int = 0
    value_heads: int = 0
    key_width: int = 0
    value_width: int = 0
    taps: int = 0

    @classmethod
    def read(cls, config: Config) -> DeltaShape:
        """Reads and checks them.

        Args:
            config: config.json, or its text_config.

        Raises:
            ConversionError: A size is missing or out of range, or heads cannot be shared out.
        """
        shape = cls(
            key_heads=config.integer("linear_num_key_heads"),
            value_heads=config.integer("linear_num_value_heads"),
            key_width=config.integer("linear_key_head_dim"),
            value_width=config.integer("linear_value_head_dim"),
            taps=config.integer("linear_conv_kernel_dim"),
        )
        if shape.value_heads % shape.key_heads:
            raise config.fail(
                "linear_num_value_heads", f"a multiple of the {shape.key_heads} key heads"
            )
        return shape

    def fields(self) -> Iterator[Field]:
        """The metadata, without the architecture's name."""
        yield Field("ssm.conv_kernel", "u32", self.taps)
        yield Field("ssm.state_size", "u32", self.key_width)
        yield Field("ssm.group_count", "u32", self.key_heads)
        yield Field("ssm.time_step_rank", "u32", self.value_heads)
        yield Field("ssm.inner_size", "u32", self.values)

    @property
    def keys(self) -> int:
        """Numbers of all query, or key, heads."""
        return self.key_heads * self.key_width

    @property
    def values(self) -> int:
        """Numbers of all value heads."""
        return self.value_heads * self.value_width

    @property
    def channels(self) -> int:
        """What goes through the convolution: queries, keys, values."""
        return 2 * self.keys + self.values

    @property
    def channels_and_gates(self) -> int:
        """And a gate for each value."""
        return self.channels + self.values

    @property
    def two_value_heads(self) -> int:
        """Two numbers for each value head."""
        return 2 * self.value_heads

    @property
    def share(self) -> int:
        """Value heads of one key head."""
        return self.value_heads // self.key_heads


NO_DELTA = DeltaShape()


def _tiled(shape: DeltaShape, width: int, begin: int = 0) -> Runs:
    """Value heads of so many rows from `begin` on: the first of each key head, the second..."""
    heads = (k * shape.share + v for v in range(shape.share) for k in range(shape.key_heads))
    return tuple((begin + h * width, begin + (h + 1) * width) for h in heads)


def _parts(shape: DeltaShape, *parts: tuple[int, int]) -> Runs:
    """Parts [first, last) of what is stored by key head: one part of every head, then the next."""
    stride = shape.channels_and_gates // shape.key_heads
    return tuple(
        (k * stride + first, k * stride + last)
        for first, last in parts
        for k in range(shape.key_heads)
    )


def _tiled_channels(shape: DeltaShape) -> Order:
    begin = 2 * shape.keys
    return Order(((0, begin), *_tiled(shape, shape.value_width, begin)))


def _channels(shape: DeltaShape) -> Order:
    key, values = shape.key_width, shape.share * shape.value_width
    return Order(_parts(shape, (0, key), (key, 2 * key), (2 * key, 2 * key + values)))


def _gates(shape: DeltaShape) -> Order:
    begin, values = 2 * shape.key_width, shape.share * shape.value_width
    return Order(_parts(shape, (begin + values, begin + 2 * values)))


ORDERS: Mapping[str, Callable[[DeltaShape], Order]] = MappingProxyType(
    {
        "tiled channels": _tiled_channels,
        "tiled rows": lambda shape: Order(_tiled(shape, shape.value_width)),
        "tiled heads": lambda shape: Order(_tiled(shape, 1)),
        "tiled columns": lambda shape: Order(columns=_tiled(shape, shape.value_width)),
        "channels": _channels,
        "gates": _gates,
    }
)
