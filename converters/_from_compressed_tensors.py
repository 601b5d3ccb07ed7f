"""compressed-tensors: integers, packed into words or not, and 8-bit floats."""

from __future__ import annotations

import numpy as np

from converters._config import Config
from converters._encode import TensorType
from converters._from_fp8 import TYPES, PackedFloat8
from converters._packed import FLOATS, Packed, PackedGrid, Store, unpack_words
from converters._source import Array, Floats, TensorEntry
from pyengine._errors import ConversionError

_FORMATS = (
    "pack-quantized",
    "int-quantized",
    "float-quantized",
    "naive-quantized",
    "mixed-precision",
    "dense",
)
_PACKED = ".weight_packed"


def find(
    store: Store, config: Config, rounded: TensorType
) -> dict[str, tuple[Packed, tuple[str, ...]]]:
    """The quantized matrices, and the stored tensors that each consists of."""
    block, bits = _read_groups(config)
    found: dict[str, tuple[Packed, tuple[str, ...]]] = {}
    for name, entry in store.entries.items():
        if name.endswith(_PACKED):
            words = _Words(store, name.removesuffix("_packed"), bits)
            found[words.entry.name] = (words, words.parts)
        elif name.endswith(".weight") and entry.dtype in TYPES:
            scale = f"{name}_scale"
            shape = store.check(scale, FLOATS).shape
            # Groups of modules differ; that without rectangles tells its scales' shape.
            plain = shape in ((), (1,), entry.shape[:1], (*entry.shape[:1], 1))
            packed = PackedFloat8(store, name, scale, None if plain else block, rounded)
            found[name] = (packed, (name, scale))
        elif name.endswith(".weight") and entry.dtype == "I8":
            signed = _Bytes(store, name)
            found[name] = (signed, signed.parts)
    return found


def _read_groups(config: Config) -> tuple[tuple[int, int] | None, set[int]]:
    """The rectangle that shares a scale, if any, and the bits of codes, of all groups."""
    sparse, turned = config.section("sparsity_config"), config.section("transform_config")
    if sparse is not None and sparse.values and sparse.text("format", "") != "dense":
        raise config.fail("sparsity_config", "none")
    if turned is not None and turned.values:
        raise config.fail("transform_config", "none")
    _check_format(config)
    block: tuple[int, int] | None = None
    bits: set[int] = set()
    groups = config.section("config_groups")
    for key in groups.values if groups is not None else ():
        group = groups.section(key) if groups is not None else None
        weights = group.section("weights") if group is not None else None
        if group is None or weights is None:
            continue
        _check_format(group)
        bits.add(weights.integer("num_bits", 8))
        stated = weights.values.get("block_structure")
        if stated is not None:
            if (
                not isinstance(stated, list)
                or len(stated) != 2
                or not all(type(n) is int and n > 0 for n in stated)
            ):
                raise weights.fail("block_structure", "two positive integers")
            block = (stated[0], stated[1])
    return block, bits


def _check_format(config: Config) -> None:
    stated = config.text("format", "dense")
    if stated not in _FORMATS:
        raise config.fail("format", f"one of {', '.join(_FORMATS)}")


class _Integers(PackedGrid):
    """Scales of groups, rows or the tensor, as the shape says."""

    def __init__(self, store: Store, name: str, rows: int, columns: int, bits: int) -> None:
        self._store, self._bits = store, bits
        self._scale, self._zero, self._index = (
            f"{name}_{part}" for part in ("scale", "zero_point", "g_idx")
        )
        shape = store.check(self._scale, FLOATS).shape
        per_row = len(shape) == 2 and shape[0] == rows and shape[1] > 0
        if not per_row and shape not in ((), (1,), (1, 1)):
            raise ConversionError(
                f"tensor {self._scale!r}: expected shape [{rows}, groups] or [1], "
                f"found {list(shape)}"
            )
        self._n_groups = shape[1] if per_row else 1
        if columns % self._n_groups:
            raise ConversionError(
                f"tensor {self._scale!r}: expected a number of groups that divides {columns} "
                f"columns, found {self._n_groups}"
            )
        self._per_row = per_row
        if self._index in store.entries:
            store.check(self._index, ("I32", "I64"), (columns,))
        self.codes = (0, (1 << bits) - 1)
        self.entry = TensorEntry(name, f"{bits}-bit compressed-tensors", (rows, columns))
        more = (self._scale, self._zero, self._index)
        self.parts: tuple[str, ...] = tuple(part for part in more if part in store.entries)

    def scales(self, first: int, last: int) -> tuple[Floats, Array]:
        scales = self._of_rows(self._store.whole(self._scale, self.entry.name), first, last)
        if self._zero not in self._store.entries:
            return scales, np.full(scales.shape, 1 << (self._bits - 1), np.int16)
        return scales, self._of_rows(self._zeros(), first, last).astype(np.int16)

    def _of_rows(self, values: Array, first: int, last: int) -> Array:
        if self._per_row:
            return np.ascontiguousarray(values[first:last])
        return np.full((last - first, 1), values.reshape(-1)[0])

    def _zeros(self) -> Array:
        """Zero points as unsigned as the codes."""
        return self._store.whole(self._zero, self.entry.name).astype(np.int16) + np.int16(
            1 << (self._bits - 1)
        )

    def groups(self) -> Array:
        columns = self.entry.shape[1]
        in_order = np.arange(columns) // (columns // self._n_groups)
        if self._index not in self._store.entries:
            return in_order
        index = self._store.whole(self._index, self.entry.name).astype(np.int64)
        # Never filled in where columns stay in their order.
        return in_order if (index == -1).all() else index


class _Words(_Integers):
    """Codes in 32-bit words along the rows, plus half their range."""

    def __init__(self, store: Store, name: str, stated: set[int]) -> None:
        self._codes, shape_of = f"{name}_packed", f"{name}_shape"
        n_rows, words = store.matrix(self._codes, ("I32",))
        store.check(shape_of, ("I64", "I32"), (2,))
        rows, columns = (int(n) for n in store.whole(shape_of, name))
        # The config tells bits by patterns of names; the words' number says the same.
        fitting = [b for b in (2, 4, 8) if columns > 0 and -(-columns * b // 32) == words]
        if rows != n_rows or len(fitting) != 1 or (stated and fitting[0] not in stated):
            raise ConversionError(
                f"tensor {self._codes!r}: expected words of 2, 4 or 8 bits for a matrix of "
                f"{[rows, columns]} as {shape_of!r} and {store.where} say, "
                f"found shape {[n_rows, words]}"
            )
        super().__init__(store, name, rows, columns, fitting[0])
        if self._zero in store.entries:
            whole = store.entries[self._zero]
            shape = (rows, self._n_groups) if self._per_row else whole.shape
            if whole.dtype == "I32":
                shape = (-(-rows * self._bits // 32), self._n_groups)
            store.check(self._zero, ("I8", "I32"), shape)
        self.parts = (self._codes, shape_of, *self.parts)

    def _zeros(self) -> Array:
        if self._store.entries[self._zero].dtype == "I8":
            return super()._zeros()
        words = self._store.whole(self._zero, self.entry.name)
        return unpack_words(np.ascontiguousarray(words.T), self._bits, self.entry.shape[0]).T

    def integers(self, first: int, last: int) -> Array:
        words = self._store.rows(self._codes, first, last)
        return unpack_words(words, self._bits, self.entry.shape[1])


class _Bytes(_Integers):
    """A signed byte a weight."""

    def __init__(self, store: Store, name: str) -> None:
        super().__init__(store, name, *store.matrix(name, ("I8",)), 8)
        if self._zero in store.entries:
            store.check(self._zero, ("I8",), store.entries[self._scale].shape)
        self.parts = (name, *self.parts)

    def integers(self, first: int, last: int) -> Array:
        return self._store.rows(self.entry.name, first, last).astype(np.int16) + np.int16(128)
