"""GGUF files as Python sees them: metadata and the tensor directory."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from pyengine._errors import ArgumentError, ClosedError, PyengineError
from pyengine._native import ClosableHandle, call, ffi, lib

_NUMBERS: dict[int, str] = {
    lib.PE_META_U8: "<u1",
    lib.PE_META_I8: "<i1",
    lib.PE_META_U16: "<u2",
    lib.PE_META_I16: "<i2",
    lib.PE_META_U32: "<u4",
    lib.PE_META_I32: "<i4",
    lib.PE_META_U64: "<u8",
    lib.PE_META_I64: "<i8",
    lib.PE_META_F32: "<f4",
    lib.PE_META_F64: "<f8",
    lib.PE_META_BOOL: "?",
}


@dataclass(frozen=True, slots=True)
class TensorInfo:
    """One tensor of a file.

    Attributes:
        name: As the file has it.
        dtype: GGUF type name such as ``"Q4_0"``.
        shape: Rows first, as numpy orders dimensions (GGUF lists them reversed).
        n_bytes: Size of its data.
        offset: Where its data begins in its part, in bytes.
        part: 0-based index of the file part that holds it.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    n_bytes: int
    offset: int
    part: int


class ModelFile(ClosableHandle):
    """A GGUF file, all parts of it, mapped read-only.

    Opening checks every count, offset and size but reads no tensor data, so it takes
    milliseconds for files of any size. The files must not be changed while open.

    Args:
        path: A GGUF file; for a split model its ``-00001-of-0000N.gguf`` part.

    Raises:
        ModelFileError: ``path`` cannot be opened or mapped.
        ModelFormatError: It is not a GGUF file, or a damaged one.
        UnsupportedModelError: A GGUF version or byte order that cannot be read.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        if not isinstance(path, str | os.PathLike) or not isinstance(os.fspath(path), str):
            raise ArgumentError(f"path: expected str or a path, found {path!r}")
        self.path = os.fspath(path)
        if "\0" in self.path:
            raise ArgumentError(f"path: expected a text without NUL, found {self.path!r}")
        out = ffi.new("pe_file **")
        call(lib.pe_file_open, out, os.fsencode(self.path))
        self._handle = ffi.gc(out[0], lib.pe_file_close)

    def __repr__(self) -> str:
        return f"ModelFile({self.path!r})"

    def close(self) -> None:
        """Unmaps the file unless an engine still uses it; closing twice is allowed."""
        if self._handle is not None:
            ffi.release(self._handle)
            self._handle = None

    @property
    def handle(self) -> Any:
        """The core's object, for this package's own use."""
        if self._handle is None:
            raise ClosedError(f"{self.path}: expected an open file, found it closed")
        return self._handle

    @cached_property
    def _info(self) -> Any:
        info = ffi.new("pe_file_info *")
        lib.pe_file_describe(info, self.handle)
        return info

    @property
    def version(self) -> int:
        """GGUF version, 2 or 3."""
        return int(self._info.version)

    @property
    def n_parts(self) -> int:
        """Files that the model is split into."""
        return int(self._info.n_parts)

    @property
    def n_bytes(self) -> int:
        """Size of all parts together."""
        return int(self._info.n_bytes)

    @cached_property
    def metadata(self) -> Mapping[str, Any]:
        """All entries of the first part, in file order.

        Numbers become int, float or bool, strings str (bytes that are not UTF-8 as
        surrogate escapes), arrays of numbers numpy arrays, other arrays lists.
        """
        return dict(self._read_metadata())

    def _read_metadata(self) -> Iterator[tuple[str, Any]]:
        meta = ffi.new("pe_meta *")
        for i in range(self._info.n_meta):
            call(lib.pe_file_meta, meta, self.handle, i)
            key = _text(ffi.buffer(meta.key, meta.key_bytes)[:])
            data = ffi.buffer(meta.data, meta.n_bytes)[:]
            if meta.type == lib.PE_META_ARRAY:
                yield key, _array(data, 0, meta.item_type, meta.n_items)[0]
            elif meta.type == lib.PE_META_STRING:
                yield key, _text(data)
            else:
                yield key, np.frombuffer(data, _NUMBERS[meta.type])[0].item()

    @cached_property
    def tensors(self) -> tuple[TensorInfo, ...]:
        """The tensor directory, in file order."""
        return tuple(self._read_tensors())

    def _read_tensors(self) -> Iterator[TensorInfo]:
        tensor = ffi.new("pe_tensor_info *")
        dtype = ffi.new("pe_dtype_info *")
        for i in range(self._info.n_tensors):
            call(lib.pe_file_tensor, tensor, self.handle, i)
            call(lib.pe_dtype_describe, dtype, tensor.dtype)
            yield TensorInfo(
                name=_text(ffi.buffer(tensor.name, tensor.name_bytes)[:]),
                dtype=ffi.string(dtype.name).decode(),
                shape=tuple(tensor.dims[j] for j in reversed(range(tensor.n_dims))),
                n_bytes=tensor.n_bytes,
                offset=tensor.offset,
                part=tensor.part,
            )

    def unsupported_reason(self) -> str | None:
        """Why this build cannot run the model, or None when it can."""
        handle = self.handle
        try:
            call(lib.pe_file_check, handle)
        except PyengineError as error:
            return str(error)
        return None


def _text(data: bytes) -> str:
    return data.decode("utf-8", "surrogateescape")


def _array(data: bytes, at: int, item_type: int, n_items: int) -> tuple[Any, int]:
    """Decodes n_items from byte at on; gives them and where they end.

    The core has checked all lengths.
    """
    if item_type in _NUMBERS:
        numbers = np.frombuffer(data, _NUMBERS[item_type], n_items, at)
        return numbers, at + numbers.nbytes
    items: list[Any] = []
    for _ in range(n_items):
        if item_type == lib.PE_META_STRING:
            begin = at + 8
            at = begin + int.from_bytes(data[at:begin], "little")
            items.append(_text(data[begin:at]))
        else:
            inner = int.from_bytes(data[at : at + 4], "little")
            n_inner = int.from_bytes(data[at + 4 : at + 12], "little")
            item, at = _array(data, at + 12, inner, n_inner)
            items.append(item)
    return items, at
