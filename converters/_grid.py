"""Weights as a quantizer left them: integers, scales and zero points; and the blocks they become.

A weight is scale * (code - zero), scale and zero being those of its row and of its column's
group. GGUF's blocks hold 32 columns and a scale of 16 bits, so they hold such weights as they
are where the columns of each block share a group and the scales are numbers of 16 bits.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType

import numpy as np

from converters._encode import Q4_0, Q4_1, Q5_0, Q8_0, TensorType
from converters._source import Array, Floats

_BLOCK = 32
# What these types' decoders take off a stored integer, and how many bits it has.
_SIGNED = MappingProxyType({Q4_0: (8, 4), Q5_0: (16, 5), Q8_0: (128, 8)})


@dataclass(frozen=True)
class Grid:
    """Some rows.

    Attributes:
        codes: int16 [rows, columns], unsigned numbers of some bits.
        scales: float32 [rows, groups].
        zeros: int16 [rows, groups].
        groups: The group of each column.
    """

    codes: Array
    scales: Floats
    zeros: Array
    groups: Array

    def floats(self) -> Floats:
        """The weights."""
        whole = self.codes - np.take(self.zeros, self.groups, axis=1)
        weights: Floats = whole.astype(np.float32)
        weights *= np.take(self.scales, self.groups, axis=1)
        return weights

    def each(self, change: Callable[[Array], Array]) -> Grid:
        """With a change of places among the rows."""
        return replace(
            self,
            codes=change(self.codes),
            scales=change(self.scales),
            zeros=change(self.zeros),
        )

    def columns(self, runs: tuple[tuple[int, int], ...]) -> Grid:
        """With some runs of columns, one behind the other."""
        return replace(
            self,
            codes=np.concatenate([self.codes[:, a:b] for a, b in runs], axis=1),
            groups=np.concatenate([self.groups[a:b] for a, b in runs]),
        )

    def blocks(self, kind: TensorType) -> tuple[Array, Array] | None:
        """Rows of blocks that keep codes and groups.

        Scales, and Q4_1's minimums, are rounded to 16 bits; `fits` says whether that loses
        anything.

        Returns:
            uint8 [rows, bytes], and which rows they hold; the others' bytes mean nothing. None
            where blocks of the type cannot hold such rows.
        """
        rows, columns = self.codes.shape
        if kind not in (*_SIGNED, Q4_1) or not _is_aligned(self.groups):
            return None
        groups = self.groups[::_BLOCK]
        scales, zeros = self.scales[:, groups], self.zeros[:, groups]
        codes = self.codes
        numbers = [scales]
        if kind is Q4_1:
            numbers.append(_minimums(scales, zeros))
            limit = 16
        else:
            offset, bits = _SIGNED[kind]
            codes = codes - np.repeat(zeros, _BLOCK, axis=1) + np.int16(offset)
            limit = 1 << bits
        held = (codes.min(axis=1) >= 0) & (codes.max(axis=1) < limit)
        for values in numbers:
            held &= np.isfinite(_round_half(values)).all(axis=1)
        parts = [_halves(values) for values in numbers]
        integers = codes.reshape(rows, columns // _BLOCK, _BLOCK).astype(np.uint8)
        if kind is Q8_0:
            parts.append(integers ^ np.uint8(128))
        else:
            if kind is Q5_0:
                parts.append(np.packbits(integers >> 4, axis=-1, bitorder="little"))
            low = integers & 15
            parts.append(low[..., :16] | (low[..., 16:] << 4))
        blocks = np.concatenate(parts, axis=-1).reshape(rows, -1)
        return np.ascontiguousarray(blocks), held


def fits(
    scales: Floats, zeros: Array, groups: Array, codes: tuple[int, int]
) -> Mapping[TensorType, bool]:
    """Which types hold every code of a tensor, and whether they hold it exactly.

    Args:
        scales: [rows, groups], finite.
        zeros: The same shape.
        groups: The group of each column.
        codes: The smallest and the largest code that may occur.

    Returns:
        Types by what a weight takes, and whether scales and minimums are numbers of 16 bits.
    """
    if not _is_aligned(groups):
        return {}
    rounded = _round_half(scales)
    if np.isinf(rounded).any():
        return {}
    exact = bool((rounded == scales).all())
    low, high = codes[0] - int(zeros.max()), codes[1] - int(zeros.min())
    found: dict[TensorType, bool] = {}
    for kind, (offset, bits) in _SIGNED.items():
        if -offset <= low and high < (1 << bits) - offset:
            found[kind] = exact
    if codes[1] < 16:
        minimums = _minimums(scales, zeros)
        halves = _round_half(minimums)
        if not np.isinf(halves).any():
            found[Q4_1] = exact and bool((halves == minimums).all())
    return found


def _is_aligned(groups: Array) -> bool:
    """Whether each 32 columns share a group."""
    if len(groups) % _BLOCK:
        return False
    of_blocks = groups.reshape(-1, _BLOCK)
    return bool((of_blocks == of_blocks[:, :1]).all())


def _minimums(scales: Floats, zeros: Array) -> Floats:
    products: Floats = scales * -zeros.astype(np.float32)
    return products


def _round_half(values: Floats) -> Floats:
    with np.errstate(over="ignore"):
        rounded: Floats = values.astype(np.float16).astype(np.float32)
    return rounded


def _halves(values: Floats) -> Array:
    """[rows, blocks] numbers as [rows, blocks, 2] bytes."""
    with np.errstate(over="ignore"):
        halves = np.ascontiguousarray(values.astype("<f2"))
    return halves.view(np.uint8).reshape(*values.shape, 2)
