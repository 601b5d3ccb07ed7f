"""Reader of safetensors files that trusts nothing in the header.

The file is: header length (uint64, little endian), the header as JSON, then the data. Offsets in
the header count from the end of the header.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from converters._json import parse_object
from converters._source import Array, Floats, TensorEntry
from pyengine._errors import ConversionError, ModelFileError

# Bytes of one element. Types that this package cannot turn into numbers are known all the same,
# so that a harmless buffer of such a type (position ids) does not make its file unreadable.
_ITEM_BYTES = {
    "F64": 8,
    "F32": 4,
    "F16": 2,
    "BF16": 2,
    "F8_E4M3": 1,
    "F8_E5M2": 1,
    "F8_E8M0": 1,
    "I64": 8,
    "U64": 8,
    "I32": 4,
    "U32": 4,
    "I16": 2,
    "U16": 2,
    "I8": 1,
    "U8": 1,
    "BOOL": 1,
}
_READABLE = ("F32", "F16", "BF16")
# Codes of quantized weights; floats of 8 bits are bytes to numpy.
_CODES = {"U8": "u1", "I8": "i1", "I32": "<i4", "I64": "<i8", "F8_E4M3": "u1", "F8_E5M2": "u1"}
_LENGTH_BYTES = 8
# The format's own limit; a longer header is refused before memory is spent on it.
_MAX_HEADER_BYTES = 100_000_000


class SafetensorsFile:
    """One open safetensors file.

    Reads go through the file and not through a mapping, so the pages that were read do not pile
    up in this process's resident memory.
    """

    def __init__(self, path: Path) -> None:
        """Opens the file and checks its whole header.

        Args:
            path: The file.

        Raises:
            ConversionError: The header breaks the format or does not fit the file.
            OSError: The file cannot be opened or read.
        """
        self.path = path
        self._file = path.open("rb", buffering=0)
        try:
            self._entries = self._read_header(path.stat().st_size)
        except BaseException:
            self._file.close()
            raise

    @property
    def entries(self) -> Mapping[str, TensorEntry]:
        """Every tensor by name, in the order in which the data lies in the file."""
        return self._entries

    def close(self) -> None:
        """Closes the file; safe to call twice."""
        self._file.close()

    def read_rows(self, name: str, first: int, last: int) -> Floats:
        """Reads [first, last) along the slowest dimension.

        Args:
            name: A name out of `entries`.
            first: First row.
            last: One past the last row.

        Returns:
            float32 of shape (last - first, ...), in memory of its own.

        Raises:
            ConversionError: The element type is no float of 16 or 32 bits, or the file became
                shorter after it was opened.
            ModelFileError: The system cannot read the file.
        """
        entry = self._entries[name]
        if entry.dtype not in _READABLE:
            raise ConversionError(
                f"{self.path}: tensor {name!r}: expected dtype F32, F16 or BF16, "
                f"found {entry.dtype}"
            )
        raw = self._read(entry, first, last)
        shape = (last - first, *entry.shape[1:])
        if entry.dtype == "F32":
            return raw.view("<f4").astype(np.float32, copy=False).reshape(shape)
        if entry.dtype == "F16":
            return raw.view("<f2").astype(np.float32).reshape(shape)
        # BF16 is the upper half of a float32.
        wide = raw.view("<u2").astype(np.uint32)
        wide <<= 16
        return wide.view(np.float32).reshape(shape)

    def read_bytes(self, name: str, first: int, last: int) -> Array:
        """Reads [first, last) of a tensor of bytes along the slowest dimension.

        Raises:
            ConversionError: The element type is another.
            ModelFileError: The system cannot read the file.
        """
        entry = self._entries[name]
        if entry.dtype != "U8":
            raise ConversionError(
                f"{self.path}: tensor {name!r}: expected dtype U8, found {entry.dtype}"
            )
        return self._read(entry, first, last).reshape(last - first, *entry.shape[1:])

    def read_stored(self, name: str, first: int, last: int) -> Array:
        """Reads [first, last) along the slowest dimension, codes as they are.

        Raises:
            ConversionError: The element type is of no use.
            ModelFileError: The system cannot read the file.
        """
        entry = self._entries[name]
        if entry.dtype not in _CODES:
            return self.read_rows(name, first, last)
        raw = self._read(entry, first, last)
        return raw.view(_CODES[entry.dtype]).reshape(last - first, *entry.shape[1:])

    def _read(self, entry: TensorEntry, first: int, last: int) -> Array:
        name = entry.name
        row_bytes = math.prod(entry.shape[1:]) * _ITEM_BYTES[entry.dtype]
        raw = np.empty((last - first) * row_bytes, np.uint8)
        try:
            self._file.seek(entry.start + first * row_bytes)
            self._fill(raw, name)
        except OSError as error:
            # Typed here, where it is known that reading failed and not writing.
            raise ModelFileError(
                f"{self.path}: tensor {name!r}: cannot be read: {error.strerror or error}"
            ) from error
        return raw

    def _fill(self, buffer: np.ndarray[Any, Any], name: str) -> None:
        view = buffer.data
        done = 0
        while done < len(view):
            count = self._file.readinto(view[done:])
            if not count:
                raise ConversionError(
                    f"{self.path}: tensor {name!r}: expected {len(view)} bytes, "
                    f"found the end of the file after {done}"
                )
            done += count

    def _read_header(self, size: int) -> dict[str, TensorEntry]:
        prefix = self._file.read(_LENGTH_BYTES) or b""
        if len(prefix) < _LENGTH_BYTES:
            raise ConversionError(
                f"{self.path}: expected a header length of {_LENGTH_BYTES} bytes, "
                f"found a file of {size} bytes"
            )
        length = int.from_bytes(prefix, "little")
        if length > min(size - _LENGTH_BYTES, _MAX_HEADER_BYTES):
            raise ConversionError(
                f"{self.path}: header length: expected at most "
                f"{min(size - _LENGTH_BYTES, _MAX_HEADER_BYTES)} bytes, found {length}"
            )
        raw = np.empty(length, np.uint8)
        self._fill(raw, "header")
        header = parse_object(raw.tobytes(), f"{self.path}: header", unique=True)
        header.pop("__metadata__", None)
        base = _LENGTH_BYTES + length
        spans = [self._span(name, row) for name, row in header.items()]
        spans.sort(key=lambda span: (span[1], span[2]))
        return self._placed(spans, base, size - base)

    def _span(self, name: str, row: object) -> tuple[TensorEntry, int, int]:
        where = f"{self.path}: tensor {name!r}"
        if not isinstance(row, dict):
            raise ConversionError(f"{where}: expected an object, found {type(row).__name__}")
        dtype = row.get("dtype")
        if not isinstance(dtype, str) or dtype not in _ITEM_BYTES:
            raise ConversionError(
                f"{where}: dtype: expected one of {', '.join(_ITEM_BYTES)}, found {dtype!r}"
            )
        shape = row.get("shape")
        if not isinstance(shape, list) or not all(_is_count(n) for n in shape):
            raise ConversionError(
                f"{where}: shape: expected a list of integers from 0 up, found {_short(shape)}"
            )
        offsets = row.get("data_offsets")
        if (
            not isinstance(offsets, list)
            or len(offsets) != 2
            or not all(_is_count(n) for n in offsets)
            or offsets[0] > offsets[1]
        ):
            raise ConversionError(
                f"{where}: data_offsets: expected [begin, end] with 0 <= begin <= end, "
                f"found {_short(offsets)}"
            )
        begin, end = offsets
        need = math.prod(shape) * _ITEM_BYTES[dtype]
        if end - begin != need:
            raise ConversionError(
                f"{where}: data_offsets: expected {need} bytes for {dtype} {_short(shape)}, "
                f"found {end - begin}"
            )
        return TensorEntry(name, dtype, tuple(shape)), begin, end

    def _placed(
        self, spans: list[tuple[TensorEntry, int, int]], base: int, size: int
    ) -> dict[str, TensorEntry]:
        """Checks that the spans tile the data part without a gap and turns them into entries."""
        entries: dict[str, TensorEntry] = {}
        at = 0
        for entry, begin, end in spans:
            if begin != at or end > size:
                fault = "overlap" if begin < at else "gap" if begin > at else "end beyond the data"
                raise ConversionError(
                    f"{self.path}: tensor {entry.name!r}: data_offsets: expected to begin at {at} "
                    f"and to end within {size}, found [{begin}, {end}] ({fault})"
                )
            entries[entry.name] = TensorEntry(entry.name, entry.dtype, entry.shape, base + begin)
            at = end
        if at != size:
            raise ConversionError(
                f"{self.path}: data: expected {at} bytes as the header says, found {size}"
            )
        return entries


def _is_count(value: object) -> bool:
    # A bool is an int to Python; a length beyond 2**63 is no length.
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 2**63


def _short(value: object) -> str:
    """The value as an error message shows it: hostile input must not make the message huge."""
    try:
        text = repr(value)
    except (ValueError, RecursionError):
        return f"a {type(value).__name__} too large to print"
    return text if len(text) <= 80 else text[:77] + "..."
