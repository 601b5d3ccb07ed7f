"""What a file of weights offers, whatever its format."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]
Floats = NDArray[np.float32]


@dataclass(frozen=True)
class TensorEntry:
    """One stored tensor.

    Attributes:
        name: As the checkpoint spells it.
        dtype: The stored element type, in safetensors' spelling ("BF16").
        shape: Slowest dimension first.
        start: Byte offset of the first element in the file; 0 where the format hides it.
        idle: It holds zeros that a model may do without.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    start: int = 0
    idle: bool = False


class TensorFile(Protocol):
    """A file of named tensors, read a few rows at a time."""

    path: Path

    @property
    def entries(self) -> Mapping[str, TensorEntry]:
        """Every tensor by name."""
        ...

    def read_rows(self, name: str, first: int, last: int) -> Floats:
        """Reads [first, last) along the slowest dimension as float32, in memory of its own."""
        ...

    def read_bytes(self, name: str, first: int, last: int) -> Array:
        """Reads [first, last) of a tensor of bytes (U8), in memory of its own."""
        ...

    def read_stored(self, name: str, first: int, last: int) -> Array:
        """The same of any type: floats as `read_rows`, integers as they are, F8 as bytes."""
        ...

    def close(self) -> None:
        """Releases the file; safe to call twice."""
        ...
