"""AWQ's tensors in the layout called GEMM: words of eight 4-bit codes along the outputs."""

from __future__ import annotations

import numpy as np

from converters._config import Config
from converters._from_gptq import group_size
from converters._packed import FLOATS, Packed, PackedGrid, Store, unpack_words
from converters._source import Array, Floats, TensorEntry
from pyengine._errors import ConversionError

_SUFFIX = ".qweight"
# Where output i of each eight stands in its word; the word holds 0, 2, 4, 6, 1, 3, 5, 7.
_PLACES = (0, 4, 1, 5, 2, 6, 3, 7)


def find(store: Store, config: Config) -> dict[str, tuple[Packed, tuple[str, ...]]]:
    """The quantized matrices, and the stored tensors that each consists of."""
    bits = "bits" if "bits" in config.values else "w_bit"
    if config.integer(bits, 4) != 4:
        raise config.fail(bits, "4")
    layout = config.text("version", "gemm")
    if layout.lower() != "gemm":
        raise config.fail("version", "'gemm'")
    found: dict[str, tuple[Packed, tuple[str, ...]]] = {}
    for name in store.entries:
        if name.endswith(_SUFFIX):
            packed = _Awq(store, config, name.removesuffix(_SUFFIX))
            found[packed.entry.name] = (packed, packed.parts)
    return found


class _Awq(PackedGrid):
    codes = (0, 15)

    def __init__(self, store: Store, config: Config, module: str) -> None:
        self._store, self._module = store, module
        self.parts = tuple(f"{module}.{part}" for part in ("qweight", "scales", "qzeros"))
        codes, scales, zeros = self.parts
        inputs, words = store.matrix(codes, ("I32",))
        key = "group_size" if "group_size" in config.values else "q_group_size"
        self._size = group_size(config, key, inputs)
        if inputs % self._size:
            raise ConversionError(
                f"tensor {codes!r}: expected whole groups of {self._size} inputs, found {inputs}"
            )
        n_groups = inputs // self._size
        store.check(scales, FLOATS, (n_groups, 8 * words))
        store.check(zeros, ("I32",), (n_groups, words))
        self.entry = TensorEntry(f"{module}.weight", "4-bit AWQ", (8 * words, inputs))

    def scales(self, first: int, last: int) -> tuple[Floats, Array]:
        _, scales, zeros = (self._store.whole(part, self._module) for part in self.parts)
        return np.ascontiguousarray(scales[:, first:last].T), _outputs(zeros, first, last)

    def groups(self) -> Array:
        return np.arange(self.entry.shape[1]) // self._size

    def integers(self, first: int, last: int) -> Array:
        return _outputs(self._store.whole(self.parts[0], self._module), first, last)


def _outputs(words: Array, first: int, last: int) -> Array:
    """Outputs [first, last) of [inputs, words], as rows."""
    begin = first // 8
    codes = unpack_words(words[:, begin : -(-last // 8)], 4, 8 * (-(-last // 8) - begin))
    ordered = codes.reshape(len(codes), -1, 8)[..., _PLACES].reshape(len(codes), -1)
    return np.ascontiguousarray(ordered[:, first - 8 * begin : last - 8 * begin].T)
