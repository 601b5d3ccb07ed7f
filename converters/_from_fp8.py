"""Weights of 8-bit floats with a scale for the tensor, for each row, or for each rectangle."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

import numpy as np

from converters._config import Config
from converters._encode import TensorType
from converters._packed import FLOATS, Packed, Store, check_scales
from converters._source import Array, Floats, TensorEntry
from pyengine._errors import ConversionError

TYPES = ("F8_E4M3", "F8_E5M2")


def _table(exponent_bits: int, has_infinity: bool) -> Floats:
    """What each byte stands for: sign, exponent, the rest fraction."""
    codes = np.arange(256)
    fraction_bits = 7 - exponent_bits
    exponent = (codes >> fraction_bits) & ((1 << exponent_bits) - 1)
    fraction = (codes & ((1 << fraction_bits) - 1)) / (1 << fraction_bits)
    bias = (1 << (exponent_bits - 1)) - 1
    power = np.exp2(np.maximum(exponent, 1) - bias)
    values = np.where(exponent > 0, 1 + fraction, fraction) * power
    values = np.where(codes >> 7, -values, values)
    if has_infinity:
        values[exponent == (1 << exponent_bits) - 1] = np.nan
    else:
        values[(codes & 127) == 127] = np.nan
    table: Floats = values.astype(np.float32)
    return table


_VALUES = MappingProxyType({"F8_E4M3": _table(4, False), "F8_E5M2": _table(5, True)})


def decode(codes: Array, dtype: str, name: str) -> Floats:
    """Bytes as numbers.

    Raises:
        ConversionError: One is NaN or infinity.
    """
    values: Floats = _VALUES[dtype][codes]
    if np.isnan(values.sum()):
        raise ConversionError(f"tensor {name!r}: expected finite weights, found NaN or infinity")
    return values


def find(store: Store, config: Config, rounded: TensorType) -> Mapping[str, _Found]:
    """The quantized matrices, and the stored tensors that each consists of."""
    block: tuple[int, int] | None = None
    stated = config.values.get("weight_block_size")
    if stated is not None:
        if (
            not isinstance(stated, list)
            or len(stated) != 2
            or not all(type(n) is int and n > 0 for n in stated)
        ):
            raise config.fail("weight_block_size", "two positive integers")
        block = (stated[0], stated[1])
    found: dict[str, _Found] = {}
    for name, entry in store.entries.items():
        if name.endswith(".weight") and entry.dtype in TYPES:
            inverse = f"{name}_scale_inv"
            scale = inverse if block or inverse in store.entries else f"{name}_scale"
            found[name] = (PackedFloat8(store, name, scale, block, rounded), (name, scale))
    return found


_Found = tuple[Packed, tuple[str, ...]]


class PackedFloat8(Packed):
    """A matrix of 8-bit floats."""

    def __init__(
        self,
        store: Store,
        name: str,
        scale: str,
        block: tuple[int, int] | None,
        rounded: TensorType,
    ) -> None:
        """Checks both tensors.

        Args:
            store: The checkpoint.
            name: The tensor of weights.
            scale: That of scales.
            block: Rows and columns that share a scale; None for one scale of the tensor or of
                each row, as the shape says.
            rounded: What the weights become.
        """
        rows, columns = store.matrix(name, TYPES)
        shape = store.check(scale, FLOATS).shape
        grid = (-(-rows // block[0]), -(-columns // block[1])) if block else shape
        allowed = [grid] if block else [(), (1,), (1, 1), (rows,), (rows, 1)]
        if shape not in allowed:
            raise ConversionError(
                f"tensor {scale!r}: expected shape "
                f"{' or '.join(str(list(one)) for one in allowed)}, found {list(shape)}"
            )
        n_scales = int(np.prod(shape))
        self._grid = grid if block else (n_scales, 1)
        self._block = block or (1 if n_scales == rows else rows, columns)
        self._store, self._scale = store, scale
        self._dtype = store.entries[name].dtype
        self.entry = TensorEntry(name, self._dtype, (rows, columns))
        self.rounded = rounded

    def fits(self) -> Mapping[TensorType, bool]:
        check_scales(self._scales(), self._scale)
        return {}

    def _scales(self) -> Floats:
        scales: Floats = self._store.whole(self._scale, self.entry.name).reshape(self._grid)
        return scales

    def read(self, first: int, last: int) -> Floats:
        name = self.entry.name
        weights = decode(self._store.rows(name, first, last), self._dtype, name)
        scales = self._scales()[np.arange(first, last) // self._block[0]]
        weights *= np.take(scales, np.arange(weights.shape[1]) // self._block[1], axis=1)
        return weights
