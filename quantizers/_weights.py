"""Weights of a GGUF file as floats, whatever their type."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt

from converters._encode import TensorType
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
        tensor = self._tensor(name)
        return np.frombuffer(ffi.buffer(tensor.data, tensor.n_bytes), np.uint8)

    def kind(self, name: str) -> TensorType:
        """A tensor's type, also one that no file is written in (its file type is 0 here)."""
        code = self._tensor(name).dtype
        info = ffi.new("pe_dtype_info *")
        call(lib.pe_dtype_describe, info, code)
        return TensorType(
            ffi.string(info.name).decode(), code, 0, info.block_weights, info.block_bytes
        )

    def _tensor(self, name: str) -> Any:
        tensor = ffi.new("pe_tensor_info *")
        call(lib.pe_file_tensor, tensor, self.file.handle, self.index[name])
        return tensor

    def metadata(self) -> Iterator[tuple[bytes, bytes]]:
        """Keys, and whole entries as the file has them."""
        info, meta = ffi.new("pe_file_info *"), ffi.new("pe_meta *")
        lib.pe_file_describe(info, self.file.handle)
        for i in range(info.n_meta):
            call(lib.pe_file_meta, meta, self.file.handle, i)
            key = bytes(ffi.buffer(meta.key, meta.key_bytes))
            data = bytes(ffi.buffer(meta.data, meta.n_bytes))
            head = struct.pack("<Q", len(key)) + key + struct.pack("<I", meta.type)
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
