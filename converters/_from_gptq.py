"""GPTQ's tensors: 32-bit words of codes along the inputs, one column of words an output."""

from __future__ import annotations

import numpy as np

from converters._config import Config
from converters._packed import FLOATS, Packed, PackedGrid, Store, unpack_words
from converters._source import Array, Floats, TensorEntry
from pyengine._errors import ConversionError

_SUFFIX = ".qweight"
_BITS = (2, 3, 4, 8)


def find(store: Store, config: Config) -> dict[str, tuple[Packed, tuple[str, ...]]]:
    """The quantized matrices, and the stored tensors that each consists of."""
    layout = config.text("checkpoint_format", "gptq")
    if layout not in ("gptq", "gptq_v2"):
        raise config.fail("checkpoint_format", "'gptq' or 'gptq_v2'")
    found: dict[str, tuple[Packed, tuple[str, ...]]] = {}
    for name in store.entries:
        if name.endswith(_SUFFIX):
            packed = _Gptq(store, config, name.removesuffix(_SUFFIX), layout == "gptq")
            found[packed.entry.name] = (packed, packed.parts)
    return found


class _Gptq(PackedGrid):
    def __init__(self, store: Store, config: Config, module: str, less_one: bool) -> None:
        self._store, self._module, self._less_one = store, module, less_one
        self._codes, self._scales, self._zeros, index = (
            f"{module}.{part}" for part in ("qweight", "scales", "qzeros", "g_idx")
        )
        self._index = index if index in store.entries else ""
        words, outputs = store.matrix(self._codes, ("I32",))
        n_groups, _ = store.matrix(self._scales, FLOATS)
        self._bits = self._read_bits(config, words)
        if words * 32 % self._bits:
            raise ConversionError(
                f"tensor {self._codes!r}: expected rows of words that hold whole numbers of "
                f"{self._bits} bits, found {words}"
            )
        inputs = words * 32 // self._bits
        store.check(self._scales, FLOATS, (n_groups, outputs))
        store.check(self._zeros, ("I32",), (n_groups, -(-outputs * self._bits // 32)))
        if self._index:
            store.check(self._index, ("I32", "I64"), (inputs,))
        else:
            size = group_size(config, "group_size", inputs)
            if n_groups != -(-inputs // size):
                raise ConversionError(
                    f"tensor {self._scales!r}: expected {-(-inputs // size)} rows, one for each "
                    f"{size} inputs, found {n_groups}"
                )
            self._size = size
        self.codes = (0, (1 << self._bits) - 1)
        self.entry = TensorEntry(f"{module}.weight", f"{self._bits}-bit GPTQ", (outputs, inputs))
        self.parts = tuple(
            name for name in (self._codes, self._scales, self._zeros, self._index) if name
        )

    def _read_bits(self, config: Config, words: int) -> int:
        """Bits of a code: those of the config, but where layers differ the index tells."""
        stated = config.integer("bits")
        if config.values.get("dynamic") and self._index:
            inputs = self._store.check(self._index, ("I32", "I64")).shape[0]
            stated = words * 32 // max(inputs, 1)
        if stated not in _BITS:
            raise ConversionError(
                f"tensor {self._codes!r}: expected codes of {', '.join(map(str, _BITS))} bits, "
                f"found {stated}"
            )
        return stated

    def scales(self, first: int, last: int) -> tuple[Floats, Array]:
        outputs = self.entry.shape[0]
        scales = self._store.whole(self._scales, self._module)
        words = self._store.whole(self._zeros, self._module)
        zeros = unpack_words(words, self._bits, outputs)[:, first:last]
        if self._less_one:
            # A zero point of 0 wraps round to the largest number.
            zeros = (zeros + 1) & np.int16((1 << self._bits) - 1)
        return np.ascontiguousarray(scales[:, first:last].T), np.ascontiguousarray(zeros.T)

    def groups(self) -> Array:
        if not self._index:
            return np.arange(self.entry.shape[1]) // self._size
        return self._store.whole(self._index, self._module).astype(np.int64)

    def integers(self, first: int, last: int) -> Array:
        words = self._store.whole(self._codes, self._module)[:, first:last]
        return unpack_words(np.ascontiguousarray(words.T), self._bits, self.entry.shape[1])


def group_size(config: Config, key: str, columns: int) -> int:
    """Columns of a group; -1 stands for whole rows."""
    value = config.values.get(key, -1)
    if value in (-1, None):
        return columns
    return min(config.integer(key), columns)
