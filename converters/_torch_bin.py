"""Reader of pytorch_model.bin, the one place that needs torch."""

from __future__ import annotations

import importlib
import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from converters._source import Array, Floats, TensorEntry
from pyengine._errors import ConversionError

_DTYPES = {"torch.float32": "F32", "torch.float16": "F16", "torch.bfloat16": "BF16"}
_CODES = {
    "torch.uint8": "U8",
    "torch.int8": "I8",
    "torch.int32": "I32",
    "torch.int64": "I64",
    "torch.float8_e4m3fn": "F8_E4M3",
    "torch.float8_e5m2": "F8_E5M2",
}
_NAMES = _DTYPES | _CODES


class TorchBinFile:
    """One pytorch_model.bin, mapped and not loaded.

    The file is a pickle. Only `weights_only` loading is used, which builds tensors and nothing
    else, so a file cannot run code here.
    """

    def __init__(self, path: Path) -> None:
        """Opens the file.

        Args:
            path: The file.

        Raises:
            ConversionError: torch is not installed, or the file holds no table of tensors.
        """
        self.path = path
        try:
            # By name: torch is an optional extra, and type checking must not need it.
            torch: Any = importlib.import_module("torch")
        except ImportError:
            raise ConversionError(
                f"{path}: expected torch, which this format needs, found none; "
                "run: pip install pyengine[torch]"
            ) from None
        self._torch = torch
        try:
            table = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
        except OSError:
            raise
        except Exception as error:
            if isinstance(error, pickle.UnpicklingError):
                # torch's own text goes on to advise loading the file unsafely.
                reason = "a pickle that is damaged or holds more than tensors"
            else:
                reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
            raise ConversionError(
                f"{path}: expected a torch file of plain tensors, found: {reason}"
            ) from None
        if not isinstance(table, dict) or not all(
            isinstance(name, str) and isinstance(tensor, torch.Tensor)
            for name, tensor in table.items()
        ):
            raise ConversionError(
                f"{path}: expected a table of named tensors, found {type(table).__name__}"
            )
        self._tensors: dict[str, Any] = dict(table)
        self._entries = {
            name: TensorEntry(
                name, _NAMES.get(str(tensor.dtype), str(tensor.dtype)), tuple(tensor.shape)
            )
            for name, tensor in self._tensors.items()
        }

    @property
    def entries(self) -> Mapping[str, TensorEntry]:
        """Every tensor by name."""
        return self._entries

    def read_bytes(self, name: str, first: int, last: int) -> Array:
        """Reads [first, last) of a tensor of bytes along the slowest dimension.

        Raises:
            ConversionError: The element type is another.
        """
        rows = self._tensors[name][first:last].contiguous()
        if rows.dtype != self._torch.uint8:
            raise ConversionError(
                f"{self.path}: tensor {name!r}: expected dtype U8, found {rows.dtype}"
            )
        return np.array(rows.numpy(), copy=True)

    def read_stored(self, name: str, first: int, last: int) -> Array:
        """Reads [first, last) along the slowest dimension, codes as they are.

        Raises:
            ConversionError: The element type is of no use.
        """
        kind = self._entries[name].dtype
        if kind not in _CODES.values():
            return self.read_rows(name, first, last)
        tensor = self._tensors[name]
        rows = (tensor[first:last] if tensor.dim() else tensor.reshape(1)).contiguous()
        if kind.startswith("F8"):
            rows = rows.view(self._torch.uint8)
        return np.array(rows.numpy(), copy=True)

    def close(self) -> None:
        """Drops the mapping; safe to call twice."""
        self._tensors = {}

    def read_rows(self, name: str, first: int, last: int) -> Floats:
        """Reads [first, last) along the slowest dimension.

        Args:
            name: A name out of `entries`.
            first: First row.
            last: One past the last row.

        Returns:
            float32 of shape (last - first, ...), in memory of its own.

        Raises:
            ConversionError: The element type is no float of 16 or 32 bits.
        """
        entry = self._entries[name]
        if entry.dtype not in _DTYPES.values():
            raise ConversionError(
                f"{self.path}: tensor {name!r}: expected dtype F32, F16 or BF16, "
                f"found {entry.dtype}"
            )
        rows = self._tensors[name][first:last].to(self._torch.float32).contiguous()
        # The copy keeps the result alive after close(), which drops the mapping under it.
        result: Floats = np.array(rows.numpy(), dtype=np.float32, copy=True)
        return result
