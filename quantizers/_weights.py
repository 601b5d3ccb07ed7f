"""Weights of a GGUF file as floats, whatever their type."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt

from pyengine import ModelFile, dequantize
from pyengine._native import call, ffi, lib

Floats = npt.NDArray[np.float32]


class Weights:
    """Reads the tensors of an open file.

    Args:
        file: The file; it must stay open.
    """

    def __init__(self, file: ModelFile) -> None:
        self.file = file
        self.index = {info.name: i for i, info in enumerate(file.tensors)}

    def __contains__(self, name: str) -> bool:
        return name in self.index

    def raw(self, name: str) -> npt.NDArray[np.uint8]:
        """A tensor's bytes, in the file's mapping."""
        tensor = ffi.new("pe_tensor_info *")
        call(lib.pe_file_tensor, tensor, self.file.handle, self.index[name])
        return np.frombuffer(ffi.buffer(tensor.data, tensor.n_bytes), np.uint8)

    def code(self, name: str) -> int:
        """The number of a tensor's type in the file."""
        tensor = ffi.new("pe_tensor_info *")
        call(lib.pe_file_tensor, tensor, self.file.handle, self.index[name])
        return int(tensor.dtype)

    def metadata(self) -> Iterator[tuple[bytes, bytes]]:
        """Keys and values as the file has them, type and all."""
        meta = ffi.new("pe_meta *")
        for i in range(len(self.file.metadata)):
            call(lib.pe_file_meta, meta, self.file.handle, i)
            key = bytes(ffi.buffer(meta.key, meta.key_bytes))
            data = bytes(ffi.buffer(meta.data, meta.n_bytes))
            head = struct.pack("<I", meta.type)
            if meta.type == lib.PE_META_ARRAY:
                head += struct.pack("<IQ", meta.item_type, meta.n_items)
            elif meta.type == lib.PE_META_STRING:
                head += struct.pack("<Q", meta.n_bytes)
            yield key, head + data

    def floats(self, name: str, first: int = 0, n: int | None = None) -> Floats:
        """Rows of a tensor, those of stacked matrices one behind the other.

        Args:
            name: The tensor.
            first: The first row.
            n: How many; None for all that follow.

        Returns:
            Float32 ``[n, n_cols]``.
        """
        info: Any = self.file.tensors[self.index[name]]
        rows = self.raw(name).reshape(-1, info.n_bytes // _n_rows(info.shape))
        return np.asarray(
            dequantize(rows[first : None if n is None else first + n], info.dtype), np.float32
        )


def _n_rows(shape: tuple[int, ...]) -> int:
    return int(np.prod(shape[:-1], dtype=np.int64))
