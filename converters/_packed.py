"""A quantized tensor of a checkpoint: several stored tensors that stand for one matrix."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Protocol

import numpy as np

from converters._encode import BF16, F16, F32, Q8_0, TensorType
from converters._grid import Grid, fits
from converters._source import Array, Floats, TensorEntry
from pyengine._errors import ConversionError

FLOATS = ("F32", "F16", "BF16")
BY_DTYPE = {"F32": F32, "F16": F16, "BF16": BF16}
Piece = Floats | Grid


class Reader(Protocol):
    """What reads stored tensors: a checkpoint."""

    def read_stored(self, name: str, first: int, last: int) -> Array:
        """Rows of a tensor as `TensorFile` reads them: floats, or codes as they are."""
        ...


class Store:
    """A checkpoint's tensors as they are stored, with checks."""

    def __init__(self, entries: Mapping[str, TensorEntry], reader: Reader, where: str) -> None:
        """Wraps a checkpoint.

        Args:
            entries: Its tensors.
            reader: Reads them.
            where: What messages call its configuration.
        """
        self.entries = entries
        self.where = where
        self._reader = reader
        self._owner = ""
        self._whole: dict[str, Array] = {}

    def check(
        self, name: str, dtypes: tuple[str, ...], shape: tuple[int, ...] | None = None
    ) -> TensorEntry:
        """The entry of a tensor that must be there.

        Args:
            name: Its name.
            dtypes: What its type may be.
            shape: What its shape must be, if that is known.

        Raises:
            ConversionError: It is missing, or of another type or shape.
        """
        entry = self.entries.get(name)
        if entry is None:
            raise ConversionError(
                f"tensor {name!r}: expected it, since {self.where} says that the weights are "
                "quantized, found no such tensor"
            )
        if entry.dtype not in dtypes:
            raise ConversionError(
                f"tensor {name!r}: expected dtype {' or '.join(dtypes)}, found {entry.dtype}"
            )
        if shape is not None and entry.shape != shape:
            raise ConversionError(
                f"tensor {name!r}: expected shape {list(shape)}, found {list(entry.shape)}"
            )
        return entry

    def matrix(self, name: str, dtypes: tuple[str, ...]) -> tuple[int, int]:
        """The shape of a tensor that must be a matrix with something in it."""
        shape = self.check(name, dtypes).shape
        if len(shape) != 2 or 0 in shape:
            raise ConversionError(
                f"tensor {name!r}: expected a matrix that is not empty, found shape {list(shape)}"
            )
        return shape[0], shape[1]

    def rows(self, name: str, first: int, last: int) -> Array:
        """Some rows of one tensor."""
        return self._reader.read_stored(name, first, last)

    def whole(self, name: str, owner: str) -> Array:
        """All of one tensor, which stays in memory until another owner's is wanted."""
        if owner != self._owner:
            self._whole.clear()
            self._owner = owner
        if name not in self._whole:
            shape = self.entries[name].shape
            whole = self._reader.read_stored(name, 0, shape[0] if shape else 1)
            self._whole[name] = whole.reshape(shape)
        return self._whole[name]


class Packed(ABC):
    """One quantized matrix.

    Attributes:
        entry: As the matrix that it stands for; its dtype is what it is stored as.
        rounded: The type for values that no type of blocks holds.
    """

    entry: TensorEntry
    rounded: TensorType

    @abstractmethod
    def fits(self) -> Mapping[TensorType, bool]:
        """Types of blocks that hold every code, and whether they hold every weight exactly.

        Raises:
            ConversionError: A scale, a zero point or a group is none.
        """

    @abstractmethod
    def read(self, first: int, last: int) -> Piece:
        """Rows [first, last)."""


class PackedGrid(Packed):
    """One of integers, scales and zero points.

    Attributes:
        codes: The smallest and the largest code that may occur.
    """

    rounded = Q8_0
    codes: tuple[int, int]

    @abstractmethod
    def scales(self, first: int, last: int) -> tuple[Floats, Array]:
        """Scales and zero points of rows [first, last), [rows, groups] each."""

    @abstractmethod
    def groups(self) -> Array:
        """The group of each column."""

    @abstractmethod
    def integers(self, first: int, last: int) -> Array:
        """Codes of rows [first, last), int16."""

    def fits(self) -> Mapping[TensorType, bool]:
        scales, zeros = self.scales(0, self.entry.shape[0])
        check_scales(scales, self.entry.name)
        groups = self.groups()
        if groups.min() < 0 or groups.max() >= scales.shape[1]:
            worst = int(groups.min() if groups.min() < 0 else groups.max())
            raise ConversionError(
                f"tensor {self.entry.name!r}: expected groups of columns from 0 to "
                f"{scales.shape[1] - 1}, found {worst}"
            )
        return fits(scales, zeros, groups, self.codes)

    def read(self, first: int, last: int) -> Piece:
        scales, zeros = self.scales(first, last)
        return Grid(self.integers(first, last), scales, zeros, self.groups())


def check_scales(scales: Floats, name: str) -> None:
    """Refuses scales that are no numbers, or all zero.

    A single scale of 0 is a group of weights that are all 0, as quantizers do write it.
    """
    bad = ~np.isfinite(scales)
    if bad.any():
        at = [int(i) for i in np.argwhere(bad)[0]]
        raise ConversionError(
            f"tensor {name!r}: expected finite scales, found {float(scales[tuple(at)])} at {at}"
        )
    if not scales.any():
        raise ConversionError(
            f"tensor {name!r}: expected scales that are not all zero, found only zeros"
        )


def unpack_words(words: Array, bits: int, count: int) -> Array:
    """Numbers out of 32-bit words along the last axis, the first in the lowest bits.

    Args:
        words: int32 [..., words].
        bits: 2, 3, 4 or 8; numbers of 3 bits lie across the borders of words.
        count: How many numbers are wanted.

    Returns:
        int16 [..., count].
    """
    raw = np.ascontiguousarray(words.astype("<i4", copy=False)).view(np.uint8)
    if bits == 8:
        return raw[..., :count].astype(np.int16)
    if bits == 3:
        ones = np.unpackbits(raw, axis=-1, bitorder="little")
        ones = ones[..., : ones.shape[-1] // 3 * 3]
        triples = ones.reshape(*raw.shape[:-1], -1, 3)
        numbers: Array = triples @ np.array([1, 2, 4], np.uint8)
        return numbers[..., :count].astype(np.int16)
    shifts = range(0, 8, bits)
    numbers = np.stack([(raw >> shift) & ((1 << bits) - 1) for shift in shifts], axis=-1)
    return numbers.reshape(*raw.shape[:-1], -1)[..., :count].astype(np.int16)
