"""Streaming writer of GGUF version 3.

The size of every part is known from the plan, so the header and the tensor directory are written
first and the tensor data follows in order; nothing larger than one piece of a tensor is held.
"""

from __future__ import annotations

import errno
import math
import os
import secrets
import shutil
import struct
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Literal, cast

import numpy as np

from converters._encode import TensorType
from converters._source import Array
from pyengine._errors import ConversionError, ModelFileError

_MAGIC = b"GGUF"
_VERSION = 3
_ALIGNMENT = 32
# Codes of GGUF's value types.
_CODES = {"u8": 0, "i32": 5, "u32": 4, "f32": 6, "bool": 7, "str": 8}
_ARRAY_CODE = 9
_FORMATS = {"u8": "B", "i32": "i", "u32": "I", "f32": "f", "bool": "?"}
_DTYPES = {"u8": "<u1", "i32": "<i4", "u32": "<u4", "f32": "<f4", "bool": "?"}

Kind = Literal["u8", "i32", "u32", "f32", "bool", "str"]
Scalar = int | float | bool | str
Value = Scalar | Sequence[int] | Sequence[float] | Sequence[str]


@dataclass(frozen=True)
class Field:
    """One metadata entry.

    Attributes:
        key: Its name.
        kind: The type of the value, or of each element of an array.
        value: A scalar, or a list or tuple for an array.
    """

    key: str
    kind: Kind
    value: Value


@dataclass(frozen=True)
class OutTensor:
    """One tensor of the file to write.

    Attributes:
        name: GGUF's name.
        shape: Slowest dimension first; the file holds it the other way round.
        kind: Its type.
    """

    name: str
    shape: tuple[int, ...]
    kind: TensorType

    @property
    def weights(self) -> int:
        """How many elements."""
        return math.prod(self.shape)

    @property
    def bytes(self) -> int:
        """How many bytes of data, without padding."""
        return math.prod(self.shape[:-1]) * self.kind.row_bytes(self.shape[-1])


def padding(size: int) -> int:
    """Zeros between a tensor of that many bytes, or the directory, and what follows."""
    return -size % _ALIGNMENT


def _string(text: str) -> bytes:
    try:
        raw = text.encode("utf-8")
    except UnicodeEncodeError:
        # JSON can spell half of a surrogate pair; UTF-8 cannot.
        raise ConversionError(
            f"text {text[:40]!r}: expected valid Unicode, found a lone surrogate"
        ) from None
    return struct.pack("<Q", len(raw)) + raw


def field_bytes(field: Field) -> bytes:
    """A metadata entry as the file has it."""
    kind, value = field.kind, field.value
    head = _string(field.key)
    try:
        if isinstance(value, list | tuple):
            head += struct.pack("<IIQ", _ARRAY_CODE, _CODES[kind], len(value))
            if kind == "str":
                return head + b"".join(_string(cast(str, item)) for item in value)
            return head + np.asarray(value, _DTYPES[kind]).tobytes()
        head += struct.pack("<I", _CODES[kind])
        if kind == "str":
            return head + _string(cast(str, value))
        return head + struct.pack("<" + _FORMATS[kind], value)
    except (struct.error, OverflowError, ValueError) as error:
        if isinstance(error, ConversionError):
            raise
        raise ConversionError(
            f"metadata {field.key}: expected a value that fits {kind}, found {value!r:.60}"
        ) from None


def build_header(fields: Sequence[Field], tensors: Sequence[OutTensor]) -> bytes:
    """Everything before the tensor data, padded.

    Args:
        fields: The metadata, in the order in which it is written.
        tensors: The tensors, in the order in which their data will follow.

    Returns:
        The bytes.

    Raises:
        ConversionError: A value does not fit its type, or a name appears twice.
    """
    for what, names in (
        ("metadata", [field.key for field in fields]),
        ("tensor", [tensor.name for tensor in tensors]),
    ):
        if len(set(names)) != len(names):
            twice = next(name for name in names if names.count(name) > 1)
            raise ConversionError(f"{what} {twice!r}: expected once, found twice")
    return join_header([field_bytes(field) for field in fields], tensors)


def join_header(entries: Sequence[bytes], tensors: Sequence[OutTensor]) -> bytes:
    """As `build_header`, of metadata that is bytes already."""
    parts = [_MAGIC, struct.pack("<IQQ", _VERSION, len(tensors), len(entries)), *entries]
    offset = 0
    for tensor in tensors:
        dims = tensor.shape[::-1]
        parts.append(_string(tensor.name))
        parts.append(struct.pack(f"<I{len(dims)}Q", len(dims), *dims))
        parts.append(struct.pack("<IQ", tensor.kind.code, offset))
        offset += tensor.bytes + padding(tensor.bytes)
    header = b"".join(parts)
    return header + bytes(padding(len(header)))


def file_size(header: bytes, tensors: Iterable[OutTensor]) -> int:
    """Bytes of the finished file."""
    return len(header) + sum(t.bytes + padding(t.bytes) for t in tensors)


def write_gguf(
    path: Path,
    header: bytes,
    tensors: Sequence[OutTensor],
    pieces: Callable[[OutTensor], Iterable[Array]],
    *,
    overwrite: bool = False,
    progress: Callable[[int, int, str], None] | None = None,
) -> int:
    """Writes the file under a temporary name and renames it when it is complete.

    Whatever ends the call early, an interrupt too, removes the temporary file; an old file under
    `path` stays as it was until the rename.

    Args:
        path: The file to make.
        header: What `build_header` made of the same tensors.
        tensors: The tensors in order.
        pieces: Gives the data of one tensor, piece after piece, as contiguous arrays.
        overwrite: Replace a file that is there.
        progress: Called with bytes done, bytes in all and the tensor's name.

    Returns:
        Bytes of the file.

    Raises:
        ModelFileError: The file exists, cannot be written, or the disk is full.
        ConversionError: The pieces of a tensor do not add up to its size.
    """
    total = file_size(header, tensors)
    path, partial = choose_names(path, total, overwrite)
    # True before the file is there: an interrupt right after open() must find it set.
    unfinished = True
    try:
        with partial.open("xb") as file:
            _write_all(file, header, tensors, pieces, total, progress)
            file.flush()
            os.fsync(file.fileno())
        put_in_place(partial, path, overwrite)
        unfinished = False
    except OSError as error:
        if isinstance(error, ModelFileError):
            raise
        raise write_error(path, total, error) from error
    finally:
        if unfinished:
            partial.unlink(missing_ok=True)
    return total


def choose_names(path: Path, total: int, overwrite: bool) -> tuple[Path, Path]:
    """The file to make, checked, and a name beside it for as long as it is not complete.

    Raises:
        ModelFileError: It cannot be made there, or the disk is too full for its bytes.
    """
    if path.is_symlink():  # it keeps pointing where it did
        path = path.resolve()
    _check_target(path, total, overwrite)
    # Unique, so that two runs for one target do not write into each other's file.
    return path, path.with_name(f"{path.name}.{os.getpid()}-{secrets.token_hex(4)}.partial")


def put_in_place(partial: Path, path: Path, overwrite: bool) -> None:
    """Gives a complete file its name."""
    if not overwrite and path.exists():
        raise ModelFileError(f"{path}: expected no file, found one made in the meantime")
    partial.replace(path)
    _sync_folder(path.parent)


def _write_all(
    file: BinaryIO,
    header: bytes,
    tensors: Sequence[OutTensor],
    pieces: Callable[[OutTensor], Iterable[Array]],
    total: int,
    progress: Callable[[int, int, str], None] | None,
) -> None:
    file.write(header)
    done = len(header)
    for tensor in tensors:
        written = 0
        for piece in pieces(tensor):
            file.write(piece.reshape(-1).view(np.uint8).data)
            written += piece.nbytes
            if progress is not None:
                progress(done + written, total, tensor.name)
        if written != tensor.bytes:
            raise ConversionError(
                f"tensor {tensor.name!r}: expected {tensor.bytes} bytes, found {written}"
            )
        file.write(bytes(padding(written)))
        done += written + padding(written)


def _check_target(path: Path, total: int, overwrite: bool) -> None:
    if path.is_dir():
        raise ModelFileError(f"{path}: expected the name of a file, found a folder")
    # The finished file is renamed over the target: a device or a pipe would be gone.
    if path.exists() and not path.is_file():
        raise ModelFileError(f"{path}: expected a file or none, found a device, pipe or socket")
    if path.exists() and not overwrite:
        raise ModelFileError(f"{path}: expected no file, found one; --force replaces it")
    if not path.parent.is_dir():
        raise ModelFileError(f"{path}: expected the folder {path.parent}, found none")
    free = shutil.disk_usage(path.parent).free
    if free < total:
        raise ModelFileError(f"{path}: expected {total} bytes of free disk, found {free}")


def write_error(path: Path, total: int, error: OSError) -> ModelFileError:
    """What to tell of a file of so many bytes that could not be written."""
    # Windows has no quota error.
    if error.errno in (errno.ENOSPC, getattr(errno, "EDQUOT", errno.ENOSPC)):
        try:
            free = shutil.disk_usage(path.parent).free
        except OSError:
            free = 0
        return ModelFileError(
            f"{path}: the disk is full: expected {total} bytes to fit, found {free} free"
        )
    return ModelFileError(f"{path}: cannot be written: {error.strerror or error}")


def _sync_folder(folder: Path) -> None:
    """Makes the rename last through a power cut, where the system can sync a folder."""
    try:
        handle = os.open(folder, os.O_RDONLY)
    except OSError:
        return
    try:
        os.fsync(handle)
    except OSError:
        pass
    finally:
        os.close(handle)
