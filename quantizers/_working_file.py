"""The file that is being made: the source's metadata, and tensors written in any order."""

from __future__ import annotations

import os
import secrets
import shutil
import struct
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
import numpy.typing as npt

from converters._encode import TensorType
from pyengine import ModelFileError
from quantizers._weights import Weights

_ALIGNMENT = 32
_U32, _STRING = 4, 8


class WorkingFile:
    """A complete GGUF file from the start, whose quantized tensors are zeros until written.

    An engine may have it open meanwhile: it sees what is written. It lies beside its target
    under a name of its own, gets the target's name by :meth:`finish`, and is removed
    otherwise.

    Args:
        target: The file to make.
        source: Where metadata and tensors come from.
        types: The type of each tensor that changes, by name; others are copied.
        file_type: What general.file_type says.
        report: What ``pyengine.quantization`` says.

    Raises:
        ModelFileError: The disk is too full, or the file cannot be written.
    """

    def __init__(
        self,
        target: Path,
        source: Weights,
        types: Mapping[str, TensorType],
        file_type: int,
        report: str,
    ) -> None:
        self.path = target.with_name(f"{target.name}.{os.getpid()}-{secrets.token_hex(4)}.partial")
        self._target = target
        self._places: dict[str, int] = {}
        header, sizes = self._header(source, types, file_type, report)
        total = len(header) + sum(_padded(size) for size in sizes.values())
        free = shutil.disk_usage(target.parent).free
        if free < total:
            raise ModelFileError(f"{target}: expected {total} bytes of free disk, found {free}")
        self.n_bytes = total
        try:
            self._file: Any = self.path.open("xb")
            self._file.write(header)
            self._file.truncate(total)
            for name in source.index:
                if name not in types:
                    self.write(name, source.raw(name))
        except OSError as error:
            self.close()
            raise ModelFileError(f"{target}: cannot be written: {error.strerror}") from error

    def _header(
        self, source: Weights, types: Mapping[str, TensorType], file_type: int, report: str
    ) -> tuple[bytes, dict[str, int]]:
        ours = {
            b"general.file_type": struct.pack("<II", _U32, file_type),
            b"general.quantization_version": struct.pack("<II", _U32, 2),
            b"pyengine.quantization": struct.pack("<IQ", _STRING, len(report.encode()))
            + report.encode(),
        }
        entries = {key: value for key, value in source.metadata() if key != b"general.alignment"}
        entries.update(ours)
        parts = [b"GGUF", struct.pack("<IQQ", 3, len(source.index), len(entries))]
        for key, value in entries.items():
            parts += [struct.pack("<Q", len(key)), key, value]
        sizes: dict[str, int] = {}
        offset = 0
        for info in source.file.tensors:
            kind = types.get(info.name)
            rows = int(np.prod(info.shape[:-1], dtype=np.int64))
            size = info.n_bytes if kind is None else rows * kind.row_bytes(info.shape[-1])
            name = info.name.encode("utf-8", "surrogateescape")
            code = source.code(info.name) if kind is None else kind.code
            dims = info.shape[::-1]
            parts += [struct.pack("<Q", len(name)), name]
            parts.append(struct.pack(f"<I{len(dims)}QIQ", len(dims), *dims, code, offset))
            self._places[info.name] = offset
            sizes[info.name] = size
            offset += _padded(size)
        header = b"".join(parts)
        header += bytes(_padded(len(header)) - len(header))
        self._places = {name: place + len(header) for name, place in self._places.items()}
        return header, sizes

    def write(self, name: str, blocks: npt.NDArray[np.uint8]) -> None:
        """Writes a whole tensor."""
        self._file.seek(self._places[name])
        self._file.write(np.ascontiguousarray(blocks).reshape(-1).data)
        self._file.flush()

    def finish(self) -> None:
        """Gives the file its name."""
        try:
            self._file.flush()
            os.fsync(self._file.fileno())
            self.path.replace(self._target)
        except OSError as error:
            raise ModelFileError(f"{self._target}: cannot be written: {error.strerror}") from error

    def close(self) -> None:
        """Removes the file unless it is finished."""
        if hasattr(self, "_file"):
            self._file.close()
        self.path.unlink(missing_ok=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


def _padded(size: int) -> int:
    return size + -size % _ALIGNMENT
