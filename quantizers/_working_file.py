"""The file that is being made: the source's metadata, and tensors written in any order."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from converters._encode import TensorType
from converters._gguf_writer import (
    Field,
    OutTensor,
    choose_names,
    field_bytes,
    file_size,
    join_header,
    padding,
    put_in_place,
    write_error,
)
from quantizers._weights import Weights


class WorkingFile:
    """A complete GGUF file from the start, whose quantized tensors are zeros until written.

    An engine may have it open meanwhile: it sees what is written. It lies beside its target
    under a name of its own, gets the target's name by :meth:`finish`, and :meth:`close` removes
    it otherwise.

    Args:
        target: The file to make.
        source: Where metadata and tensors come from.
        types: The type of each tensor that changes, by name; others are copied.
        fields: Metadata that is added, or takes the place of the source's.
        overwrite: Replace a file that is there.

    Raises:
        ModelFileError: The target cannot be made, or the disk is too full.
    """

    def __init__(
        self,
        target: Path,
        source: Weights,
        types: Mapping[str, TensorType],
        fields: Sequence[Field],
        *,
        overwrite: bool = False,
    ) -> None:
        ours = {field.key.encode() for field in fields}
        entries = [entry for key, entry in source.metadata() if key not in ours and _is_kept(key)]
        tensors = [
            OutTensor(info.name, info.shape, types.get(info.name) or source.kind(info.name))
            for info in source.file.tensors
        ]
        header = join_header(entries + [field_bytes(field) for field in fields], tensors)
        self._places: dict[str, int] = {}
        at = len(header)
        for tensor in tensors:
            self._places[tensor.name] = at
            at += tensor.bytes + padding(tensor.bytes)
        self.n_bytes = file_size(header, tensors)
        self._overwrite = overwrite
        self._target, self.path = choose_names(target, self.n_bytes, overwrite)
        self._file: Any = None
        try:
            self._file = self.path.open("xb")
            self._file.write(header)
            self._file.truncate(self.n_bytes)
            for name in source.index:
                if name not in types:
                    self.write(name, source.raw(name))
        except BaseException as error:
            self.close()
            if isinstance(error, OSError):
                raise write_error(self._target, self.n_bytes, error) from error
            raise

    def write(self, name: str, blocks: npt.NDArray[np.uint8]) -> None:
        """Writes a whole tensor."""
        try:
            self._file.seek(self._places[name])
            self._file.write(np.ascontiguousarray(blocks).reshape(-1).data)
            self._file.flush()
        except OSError as error:
            raise write_error(self._target, self.n_bytes, error) from error

    def finish(self) -> None:
        """Gives the file its name."""
        try:
            os.fsync(self._file.fileno())
            put_in_place(self.path, self._target, self._overwrite)
        except OSError as error:
            raise write_error(self._target, self.n_bytes, error) from error

    def close(self) -> None:
        """Removes the file unless it is finished."""
        if self._file is not None:
            self._file.close()
        self.path.unlink(missing_ok=True)


def _is_kept(key: bytes) -> bool:
    """Whether an entry is true of the new file, which is one file and aligned to 32, too."""
    return key != b"general.alignment" and not key.startswith(b"split.")
