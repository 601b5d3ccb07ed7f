"""Importance matrices, in the files in which llama.cpp's llama-imatrix keeps them.

For a weight matrix whose inputs are x, the matrix says of each column the sum of x**2 over tokens,
and how many tokens these were; of experts, both for each. The mean of x**2 is by how much the
squared error of a column's weights counts in the output's.

The file is GGUF: ``general.type`` is ``imatrix``; ``imatrix.datasets``, ``imatrix.chunk_count``
and ``imatrix.chunk_size`` (tokens) say where it comes from; and for the matrix ``name`` there are
two F32 tensors, ``name.in_sum2`` of shape [experts, columns] and ``name.counts`` of [experts, 1],
dimensions of 1 left out at the front. The older format (``.dat``, little endian) is a number of
entries, each a name, a number of calls and means times that number, then optionally a number of
chunks and one data set; lengths come before texts and values, all int32. Its entries do not say how
many experts they hold. (llama.cpp, tools/imatrix/imatrix.cpp and common/imatrix-loader.cpp)
"""

from __future__ import annotations

import os
import struct
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt

from converters._encode import F32
from converters._gguf_writer import Field, OutTensor, build_header, write_gguf
from pyengine import ArgumentError, ModelFile, ModelFileError, ModelFormatError

Floats = npt.NDArray[np.float32]

_SUMS = ".in_sum2"
_COUNTS = ".counts"


@dataclass(frozen=True, eq=False)
class ImatrixEntry:
    """What is known of one weight matrix, or of one for each expert.

    Attributes:
        sums: Sums of squared inputs, float32 [experts, columns]; one row where there are none.
        counts: Tokens that went into each row, float32 [experts].
    """

    sums: Floats
    counts: Floats

    def importance(self, n_experts: int | None = None) -> Floats:
        """Means of squared inputs, float32 [experts, columns]; 1 for an expert that saw no token.

        Args:
            n_experts: How many rows are expected. One row is cut into so many, as entries of the
                older format need.

        Raises:
            ArgumentError: The entry holds another number of experts.
        """
        sums, counts = self.sums, self.counts
        if n_experts is not None and len(sums) != n_experts:
            if len(sums) != 1 or n_experts < 1 or sums.size % n_experts:
                raise ArgumentError(
                    f"n_experts: expected {len(sums)}, as the entry has, found {n_experts}"
                )
            sums = sums.reshape(n_experts, -1)
            counts = np.repeat(counts, n_experts)
        divisors = counts[:, None]
        means = np.ones_like(sums)
        np.divide(sums, divisors, out=means, where=divisors > 0)
        return means


@dataclass(frozen=True, eq=False)
class Imatrix:
    """An importance matrix.

    Attributes:
        entries: By the name of the weight tensor, such as ``blk.0.attn_q.weight``.
        datasets: Names of the texts it was measured on.
        chunk_count: How many pieces of these.
        chunk_size: Tokens in each; 0 in files of the older format, which do not say.
    """

    entries: Mapping[str, ImatrixEntry]
    datasets: tuple[str, ...] = ()
    chunk_count: int = 0
    chunk_size: int = 0


def _check_entry(where: str, sums: Floats, counts: Floats) -> ImatrixEntry:
    for what, values in (("sums", sums), ("counts", counts)):
        if not np.isfinite(values).all() or (values < 0).any():
            raise ModelFormatError(f"{where}: expected finite {what} of 0 or more, found others")
    return ImatrixEntry(sums, counts)


def read_imatrix(path: str | os.PathLike[str]) -> Imatrix:
    """Reads an importance matrix of either format.

    Args:
        path: The file.

    Raises:
        ModelFileError: The file cannot be read.
        ModelFormatError: It is no importance matrix, or contradicts itself.
    """
    path = Path(path)
    try:
        with path.open("rb") as file:
            is_gguf = file.read(4) == b"GGUF"
            if not is_gguf:
                file.seek(0)
                return _read_old(file, path, path.stat().st_size)
        return _read_gguf(path)
    except OSError as error:
        if isinstance(error, ModelFileError):
            raise
        raise ModelFileError(f"{path}: cannot be read: {error.strerror}") from error


# ---- GGUF --------------------------------------------------------------------------------------


def _metadata(path: Path, found: Mapping[str, Any]) -> tuple[tuple[str, ...], int, int]:
    kind = found.get("general.type", "imatrix")
    if kind != "imatrix":
        raise ModelFormatError(f"{path}: general.type: expected 'imatrix', found {kind!r:.60}")
    numbers = []
    for key in ("imatrix.chunk_count", "imatrix.chunk_size"):
        number = found.get(key, 0)
        if not isinstance(number, int) or isinstance(number, bool) or number < 0:
            raise ModelFormatError(f"{path}: {key}: expected a count, found {number!r:.60}")
        numbers.append(number)
    datasets = found.get("imatrix.datasets", [])
    if not isinstance(datasets, list) or not all(isinstance(name, str) for name in datasets):
        raise ModelFormatError(f"{path}: imatrix.datasets: expected texts, found something else")
    return tuple(datasets), numbers[0], numbers[1]


def _read_gguf(path: Path) -> Imatrix:
    with ModelFile(path) as file:
        if file.n_parts != 1:
            raise ModelFormatError(f"{path}: expected one file, found {file.n_parts} parts")
        datasets, chunk_count, chunk_size = _metadata(path, file.metadata)
        tensors = {tensor.name: tensor for tensor in file.tensors}
    data: dict[str, Floats] = {}
    for name, tensor in tensors.items():
        if not name.endswith((_SUMS, _COUNTS)):
            continue
        if tensor.dtype != "F32" or len(tensor.shape) > 2 or tensor.n_bytes == 0:
            raise ModelFormatError(
                f"{path}: {name}: expected F32 of one or two dimensions, "
                f"found {tensor.dtype} of shape {tensor.shape}"
            )
        values = np.fromfile(path, "<f4", tensor.n_bytes // 4, offset=tensor.offset)
        if values.size != tensor.n_bytes // 4:
            raise ModelFileError(f"{path}: {name}: the file became shorter while it was read")
        data[name] = values.astype(np.float32, copy=False).reshape(-1, tensor.shape[-1])
    entries: dict[str, ImatrixEntry] = {}
    for name in sorted({name.removesuffix(_SUMS).removesuffix(_COUNTS) for name in data}):
        if name + _SUMS not in data or name + _COUNTS not in data:
            raise ModelFormatError(f"{path}: {name}: expected sums and counts, found one of them")
        sums, counts = data[name + _SUMS], data[name + _COUNTS].reshape(-1)
        if len(sums) != counts.size:
            raise ModelFormatError(
                f"{path}: {name}: expected a count for each of {len(sums)} rows, "
                f"found {counts.size}"
            )
        entries[name] = _check_entry(f"{path}: {name}", sums, counts)
    if not entries:
        raise ModelFormatError(f"{path}: expected an importance matrix, found no sums in it")
    return Imatrix(entries, datasets, chunk_count, chunk_size)


def write_imatrix(
    path: str | os.PathLike[str], imatrix: Imatrix, *, overwrite: bool = False
) -> None:
    """Writes an importance matrix as llama-imatrix does; llama-quantize takes it.

    Args:
        path: The file to make.
        imatrix: What to write; entries in the order of their names.
        overwrite: Replace a file that is there.

    Raises:
        ArgumentError: An entry's arrays do not fit each other, or hold numbers below 0 or none.
        ModelFileError: The file exists, or cannot be written.
    """
    data: dict[str, Floats] = {}
    tensors: list[OutTensor] = []
    for name, entry in sorted(imatrix.entries.items()):
        sums = np.ascontiguousarray(entry.sums, np.float32)
        counts = np.ascontiguousarray(entry.counts, np.float32)
        if sums.ndim != 2 or sums.size == 0 or counts.shape != sums.shape[:1]:
            raise ArgumentError(
                f"{name}: expected sums [experts, columns] and counts [experts], "
                f"found shapes {sums.shape} and {counts.shape}"
            )
        try:
            _check_entry(name, sums, counts)
        except ModelFormatError as error:
            raise ArgumentError(str(error)) from None
        several = len(sums) > 1
        tensors += [
            OutTensor(name + _SUMS, sums.shape if several else sums.shape[1:], F32),
            OutTensor(name + _COUNTS, (len(counts), 1) if several else (1,), F32),
        ]
        data[name + _SUMS], data[name + _COUNTS] = sums, counts
    if not tensors:
        raise ArgumentError("imatrix: expected entries, found none")
    fields = [
        Field("general.type", "str", "imatrix"),
        Field("imatrix.datasets", "str", list(imatrix.datasets)),
        Field("imatrix.chunk_count", "u32", imatrix.chunk_count),
        Field("imatrix.chunk_size", "u32", imatrix.chunk_size),
    ]

    def pieces(tensor: OutTensor) -> Iterable[npt.NDArray[Any]]:
        yield data[tensor.name].astype("<f4", copy=False)

    write_gguf(Path(path), build_header(fields, tensors), tensors, pieces, overwrite=overwrite)


# ---- the older format --------------------------------------------------------------------------


class _Reader:
    """Little-endian pieces of a file, never past its end."""

    def __init__(self, file: BinaryIO, path: Path, size: int) -> None:
        self.file, self.path, self.left = file, path, size

    def take(self, n_bytes: int, what: str) -> bytes:
        if n_bytes > self.left:
            raise ModelFormatError(
                f"{self.path}: {what}: expected {n_bytes} bytes, found {self.left}, or the file "
                "is no importance matrix"
            )
        data = self.file.read(n_bytes)
        if len(data) != n_bytes:
            raise ModelFileError(f"{self.path}: the file became shorter while it was read")
        self.left -= n_bytes
        return data

    def count(self, what: str, least: int) -> int:
        number = int(struct.unpack("<i", self.take(4, what))[0])
        if number < least:
            raise ModelFormatError(
                f"{self.path}: {what}: expected {least} or more, found {number}, or the file "
                "is no importance matrix"
            )
        return number

    def text(self, what: str) -> str:
        length = self.count(f"length of {what}", 0)
        return self.take(length, what).decode("utf-8", "surrogateescape")


def _read_old(file: BinaryIO, path: Path, size: int) -> Imatrix:
    reader = _Reader(file, path, size)
    entries: dict[str, ImatrixEntry] = {}
    for i in range(reader.count("number of entries", 1)):
        name = reader.text(f"name of entry {i}")
        if name in entries:
            raise ModelFormatError(f"{path}: {name[:96]!r}: expected once, found twice")
        calls = reader.count(f"calls of {name[:96]!r}", 0)
        n_values = reader.count(f"number of values of {name[:96]!r}", 1)
        raw = reader.take(4 * n_values, f"values of {name[:96]!r}")
        sums = np.frombuffer(raw, "<f4").astype(np.float32).reshape(1, -1)
        # Without calls the values stand as they are.
        counts = np.array([max(calls, 1)], np.float32)
        entries[name] = _check_entry(f"{path}: {name[:96]!r}", sums, counts)
    if reader.left == 0:
        return Imatrix(entries)
    chunks = reader.count("number of chunks", 0)
    dataset = reader.text("data set") if reader.left else ""
    return Imatrix(entries, (dataset,) if dataset else (), chunks)
