"""A checkpoint with an adapter merged into it, a few rows at a time as they are read."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from converters._checkpoint import Checkpoint
from converters._encode import BF16, TensorType
from converters._families import LEFT_OUT_PREFIXES
from converters._lora import Adapter, Delta
from converters._mapping import ModelMapping, plain_name
from converters._packed import Piece
from converters._source import Floats, TensorEntry
from pyengine._errors import ConversionError

_EMBEDDING, _HEAD = "model.embed_tokens.weight", "lm_head.weight"


class MergedCheckpoint(Checkpoint):
    """A checkpoint whose matrices are W + scale * B A, whatever reads them."""

    def __init__(self, folder: Path, adapter: Adapter) -> None:
        """Opens the folder and checks that the adapter fits it.

        Args:
            folder: The base.
            adapter: Stays open, and the caller's, until this is closed.

        Raises:
            ConversionError: The base is broken, or has not what the adapter changes.
            OSError: A file cannot be read.
        """
        adapter.refuse_transposed()
        super().__init__(folder)
        self._adapter = adapter
        self.files |= adapter.paths
        try:
            self._refuse_tied()
            names = {plain_name(name): name for name in super().entries}
            self._deltas = {
                self._named(names, source).name: delta for source, delta in adapter.deltas.items()
            }
            self._replaced = {
                self._named(names, source).name: name for source, name in adapter.replaced.items()
            }
            self._check_all()
        except BaseException:
            self.close()
            raise

    def read_rows(self, name: str, first: int, last: int) -> Floats:
        """Reads rows of one tensor as the adapter leaves them."""
        if name in self._replaced:
            return self._adapter.file.read_rows(self._replaced[name], first, last)
        rows = super().read_rows(name, first, last)
        if name in self._deltas:
            _add(rows, self._adapter, self._deltas[name], first, last)
        return rows

    def read_piece(self, name: str, first: int, last: int) -> Piece:
        """The same; quantized ones as they are where the adapter leaves them alone."""
        if self._is_adapted(name):
            return self.read_rows(name, first, last)
        return super().read_piece(name, first, last)

    def fits(self, name: str) -> tuple[Mapping[TensorType, bool], TensorType]:
        """As of the base, but no integers hold a sum."""
        kinds, rounded = super().fits(name)
        if self._is_adapted(name):
            return {}, BF16 if rounded.quantized else rounded
        return kinds, rounded

    def _is_adapted(self, name: str) -> bool:
        return name in self._replaced or name in self._deltas

    def _named(self, names: Mapping[str, str], source: str) -> TensorEntry:
        if source not in names or source.startswith(LEFT_OUT_PREFIXES):
            raise ConversionError(
                f"{self.folder}: expected a tensor {source!r} as the adapter in "
                f"{self._adapter.folder} changes it, found none "
                "that is converted"
            )
        return super().entries[names[source]]

    def _refuse_tied(self) -> None:
        """Where one tensor is embedding and head, an adapter speaks of only one of the two."""
        stored = {plain_name(name) for name in super().entries}
        if _HEAD in stored and not ModelMapping(self.config, str(self.folder)).tied:
            return
        for source in (_EMBEDDING, _HEAD):
            if source in self._adapter.deltas or source in self._adapter.replaced:
                raise ConversionError(
                    f"{self._adapter.folder}: tensor {source!r}: expected it to stay as it is, "
                    "since it is embedding and output head at once, found it adapted"
                )

    def _check_all(self) -> None:
        for name, delta in self._deltas.items():
            shape = super().entries[name].shape
            if len(shape) != 2:
                raise ConversionError(
                    f"tensor {name!r}: expected a matrix that the adapter changes, "
                    f"found shape {list(shape)}"
                )
            self._adapter.check(delta, *shape)
        for name, other in self._replaced.items():
            shape, found = super().entries[name].shape, self._adapter.file.entries[other].shape
            if shape != found:
                raise ConversionError(
                    f"{self._adapter.file.path}: tensor {other!r}: expected the base's shape "
                    f"{list(shape)}, found {list(found)}"
                )


def _add(rows: Floats, adapter: Adapter, delta: Delta, first: int, last: int) -> None:
    """Adds scale * B A to rows [first, last) in place.

    One rank after the other: a matrix product would leave the order of its sums, and so the last
    bit, to whatever library numpy was built with.
    """
    file = adapter.file
    if delta.embedding:
        left = file.read_rows(delta.a, 0, delta.rank)[:, first:last].T
        right = file.read_rows(delta.b, 0, file.entries[delta.b].shape[0]).T
    else:
        left = file.read_rows(delta.b, first, last)
        right = file.read_rows(delta.a, 0, delta.rank)
    scaled = left * np.float32(delta.scale)
    total, term = np.zeros_like(rows), np.empty_like(rows)
    for i in range(delta.rank):
        np.multiply(scaled[:, i : i + 1], right[i], out=term)
        total += term
    rows += total
