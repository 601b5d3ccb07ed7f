"""bitsandbytes' tensors: 4-bit numbers of a table with scales of 64 weights, and LLM.int8."""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np

from converters._config import Config
from converters._encode import TensorType
from converters._json import parse_object
from converters._packed import BY_DTYPE, FLOATS, Packed, PackedGrid, Store, check_scales
from converters._source import Array, Floats, TensorEntry
from pyengine._errors import ConversionError

_STATE = ".quant_state.bitsandbytes__"
_DTYPES = {"float32": "F32", "float16": "F16", "bfloat16": "BF16"}
# Codes of -127 to 127 stand for the largest weight of the row times code / 127.
_STEP = np.float32(1 / 127)


def find(store: Store, config: Config) -> dict[str, tuple[Packed, tuple[str, ...]]]:
    """The quantized matrices, and the stored tensors that each consists of."""
    found: dict[str, tuple[Packed, tuple[str, ...]]] = {}
    for name in store.entries:
        weight, state, kind = name.partition(_STATE)
        if state:
            four = _FourBits(store, weight, name, kind)
            found[weight] = (four, four.parts)
        elif name.endswith(".SCB"):
            weight = name.removesuffix("SCB") + "weight"
            layout = f"{weight}_format"
            parts = (weight, name, *((layout,) if layout in store.entries else ()))
            found[weight] = (_EightBits(store, weight, name, layout), parts)
    return found


class _EightBits(PackedGrid):
    """int8 with the largest weight of each row."""

    codes = (1, 255)

    def __init__(self, store: Store, name: str, largest: str, layout: str) -> None:
        rows, columns = store.matrix(name, ("I8",))
        store.check(largest, ("F32",), (rows,))
        if layout in store.entries:
            store.check(layout, ("U8",))
            found = store.whole(layout, name).reshape(-1)
            if found.any():
                raise ConversionError(
                    f"tensor {layout!r}: expected 0, rows as they are, found {int(found.max())}"
                )
        self._store, self._largest = store, largest
        self.entry = TensorEntry(name, "LLM.int8", (rows, columns))

    def scales(self, first: int, last: int) -> tuple[Floats, Array]:
        largest = self._store.whole(self._largest, self.entry.name)[first:last, None]
        return largest * _STEP, np.full(largest.shape, 128, np.int16)

    def groups(self) -> Array:
        return np.zeros(self.entry.shape[1], np.int64)

    def integers(self, first: int, last: int) -> Array:
        return self._store.rows(self.entry.name, first, last).astype(np.int16) + np.int16(128)


class _FourBits(Packed):
    """Two codes a byte, the first in the high half, through all rows without a break."""

    def __init__(self, store: Store, name: str, state: str, kind: str) -> None:
        self._store = store
        store.check(state, ("U8",))
        stated = Config(parse_object(store.whole(state, name).tobytes(), state), state)
        if kind not in ("nf4", "fp4"):
            raise ConversionError(f"tensor {state!r}: expected nf4 or fp4, found {kind!r}")
        shape = stated.values.get("shape")
        if (
            not isinstance(shape, list)
            or len(shape) != 2
            or not all(type(n) is int and 0 < n < 2**31 for n in shape)
        ):
            raise stated.fail("shape", "two positive integers")
        rows, columns = shape
        if columns % 2:
            raise stated.fail("shape", "an even number of columns")
        self._block = stated.integer("blocksize")
        dtype = stated.text("dtype", "float16")
        if dtype not in _DTYPES:
            raise stated.fail("dtype", " or ".join(_DTYPES))
        self.rounded = BY_DTYPE[_DTYPES[dtype]]
        size, n_blocks = rows * columns, -(-rows * columns // self._block)
        store.check(name, ("U8",), (size // 2, 1))
        self._scales, self._table = f"{name}.absmax", f"{name}.quant_map"
        store.check(self._table, ("F32",), (16,))
        inner = (f"{name}.nested_absmax", f"{name}.nested_quant_map")
        self._nested: tuple[str, ...] = inner if inner[0] in store.entries else ()
        if self._nested:
            self._inner_block = stated.integer("nested_blocksize")
            offset = stated.values.get("nested_offset")
            if not isinstance(offset, int | float) or not math.isfinite(offset):
                raise stated.fail("nested_offset", "a number")
            self._offset = np.float32(offset)
            store.check(inner[0], ("F32",), (-(-n_blocks // self._inner_block),))
            store.check(inner[1], ("F32",), (256,))
        store.check(self._scales, ("U8",) if self._nested else FLOATS, (n_blocks,))
        self.entry = TensorEntry(name, kind.upper(), (rows, columns))
        self.parts = (name, state, self._scales, self._table, *self._nested)

    def fits(self) -> Mapping[TensorType, bool]:
        if self._nested:
            check_scales(self._whole(self._nested[0]), self._nested[0])
        for name in (self._table, *self._nested[1:]):
            check_scales(self._whole(name), name)
        check_scales(self._all_scales(), self._scales)
        return {}

    def _whole(self, name: str) -> Array:
        return self._store.whole(name, self.entry.name)

    def _all_scales(self) -> Floats:
        scales = self._whole(self._scales)
        if self._nested:
            outer, table = (self._whole(name) for name in self._nested)
            blocks = np.arange(len(scales)) // self._inner_block
            scales = table[scales] * outer[blocks] + self._offset
        return scales

    def read(self, first: int, last: int) -> Floats:
        columns = self.entry.shape[1]
        begin, end = first * columns, last * columns
        pairs = self._store.rows(self.entry.name, begin // 2, end // 2).reshape(-1)
        codes = np.stack([pairs >> 4, pairs & 15], axis=-1).reshape(-1)
        weights: Floats = self._whole(self._table)[codes]
        weights *= self._all_scales()[np.arange(begin, end) // self._block]
        return weights.reshape(last - first, columns)
