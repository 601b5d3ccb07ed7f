"""The data of the tensors to write, a run of rows at a time."""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np

from converters import _encode
from converters._checkpoint import Checkpoint
from converters._encode import TensorType
from converters._family import Rule
from converters._grid import Grid
from converters._mapping import Mapped, pair_rows
from converters._packed import Piece
from converters._source import Array, Floats
from converters._summary import Import
from converters._types import Planned

# float32 bytes of one piece. A piece lives in up to four forms at once (as read, as float32,
# re-ordered, packed), so peak memory is a few times this whatever the size of the model; and the
# codes of one quantized matrix, where rows do not lie together in the file.
_PIECE_BYTES = 8 << 20


class _Loss:
    """How far the written weights of a tensor are from the checkpoint's."""

    def __init__(self) -> None:
        self.weights = self.differing = 0
        self.kept = True
        self._largest = self._worst = self._squares = self._errors = 0.0

    def add(self, stored: Floats, written: Floats, kept: bool) -> None:
        """Counts some weights in."""
        self.kept = self.kept and kept
        self.weights += stored.size
        self._largest = max(self._largest, float(stored.max()), -float(stored.min()))
        self._squares += float(np.sum(np.square(stored, dtype=np.float64)))
        error = written.reshape(stored.shape) - stored
        differing = int(np.count_nonzero(error))
        if differing:
            self.differing += differing
            self._worst = max(self._worst, float(error.max()), -float(error.min()))
            self._errors += float(np.sum(np.square(error, dtype=np.float64)))

    def report(self, name: str, stored: str, written: str) -> Import:
        """The tensor's line in the summary."""
        return Import(
            name,
            stored,
            written,
            self.kept,
            self.weights,
            self.differing,
            self._worst / self._largest if self.differing and self._largest else self._worst,
            math.sqrt(self._errors / self._squares) if self.differing and self._squares else 0.0,
        )


class Pieces:
    """Reads, re-orders and encodes, and keeps count of what quantized weights lose by it."""

    def __init__(self, checkpoint: Checkpoint) -> None:
        """Reads nothing yet.

        Args:
            checkpoint: Where the tensors come from; it must stay open.
        """
        self._checkpoint = checkpoint
        self._imports: list[Import] = []

    def imports(self) -> list[Import]:
        """What became of the quantized tensors so far."""
        return self._imports

    def of(self, planned: Planned) -> Iterator[Array]:
        """The data of one tensor.

        Raises:
            ConversionError: A weight is NaN, infinite, or too large for the type.
        """
        mapped, kind = planned.mapped, planned.out.kind
        if mapped.data is not None:
            yield _encode.encode(mapped.data, kind, mapped.target)
            return
        if mapped.packed and mapped.rule is not None:
            yield from self._mxfp4(mapped, mapped.rule)
            return
        matrices = self._checkpoint.matrices
        quantized = [matrices[name] for name in mapped.sources if name in matrices]
        loss = _Loss() if quantized else None
        for piece, where in self._rows(mapped):
            yield _written(piece, kind, where, loss)
        if loss is not None:
            stored = quantized[0].entry.dtype
            self._imports.append(loss.report(mapped.target, stored, kind.name))

    def _rows(self, mapped: Mapped) -> Iterator[tuple[Piece, str]]:
        """Rows as they are to be written, and what messages call where they come from."""
        rule = mapped.rule
        if rule is None:
            return
        for source in mapped.sources:
            where = f"{source} in {self._checkpoint.file_of(source)}"
            if rule.part:
                pieces = self._heads(mapped, rule, source)
            elif rule.experts == "stacked":
                pieces = self._experts(mapped, rule, source)
            else:
                pieces = self._runs(mapped, rule, source)
            for piece in pieces:
                yield piece, where

    def _runs(self, mapped: Mapped, rule: Rule, source: str) -> Iterator[Piece]:
        rows = mapped.shape[1] if rule.experts else mapped.shape[0] // len(mapped.sources)
        step = max(1, _PIECE_BYTES // (4 * math.prod(mapped.shape[2 if rule.experts else 1 :])))
        if mapped.head_rows:
            # Rows change places within their head, so a piece is whole heads.
            step = max(step - step % mapped.head_rows, mapped.head_rows)
        begin = rule.cut[0] * rows
        # Stored rows of one written row: more than one where they are stored as one long vector.
        one_vector = rule.stored and not mapped.order.rows
        each = self._checkpoint.entries[source].shape[0] // rows if one_vector else 1
        for first, last in mapped.order.rows or ((begin, begin + rows),):
            for at in range(first, last, step):
                end = min(at + step, last)
                piece = self._checkpoint.read_piece(source, at * each, end * each)
                yield _changed(piece, mapped, rule)

    def _heads(self, mapped: Mapped, rule: Rule, source: str) -> Iterator[Piece]:
        """Some of the rows of one head after the other."""
        heads, rows = mapped.shape[0], mapped.shape[2 if rule.transposed else 1]
        for head in range(heads):
            begin = head * (mapped.front + rows + mapped.behind) + mapped.front
            piece = self._checkpoint.read_piece(source, begin, begin + rows)
            yield np.ascontiguousarray(_floats(piece).T) if rule.transposed else piece

    def _experts(self, mapped: Mapped, rule: Rule, source: str) -> Iterator[Piece]:
        """One expert after the other, of which no more than one is in memory."""
        for expert in range(mapped.shape[0]):
            rows = self._checkpoint.read_rows(source, expert, expert + 1)[0]
            yield np.ascontiguousarray(_cut(rows.T if rule.transposed else rows, rule))

    def _mxfp4(self, mapped: Mapped, rule: Rule) -> Iterator[Array]:
        """The same of experts that stay as they are."""
        for expert in range(mapped.shape[0]):
            blocks, scales = (
                _cut(self._checkpoint.read_bytes(name, expert, expert + 1)[0], rule)
                for name in mapped.sources
            )
            yield _encode.pack_mxfp4(blocks, scales)


def _written(piece: Piece, kind: TensorType, where: str, loss: _Loss | None) -> Array:
    """Bytes of the type, with the checkpoint's own integers in every row that can have them."""
    made = piece.blocks(kind) if isinstance(piece, Grid) else None
    floats = _floats(piece)
    if made is None:
        data = _encode.encode(floats, kind, where)
    else:
        data, held = made
        if not held.all():
            data[~held] = _encode.encode(np.ascontiguousarray(floats[~held]), kind, where)
    if loss is not None:
        loss.add(floats, _encode.decode(data, kind), made is not None and bool(made[1].all()))
    return data


def _floats(piece: Piece) -> Floats:
    return piece.floats() if isinstance(piece, Grid) else piece


def _changed(piece: Piece, mapped: Mapped, rule: Rule) -> Piece:
    """What becomes of whole rows."""
    # Rows of another shape, too, unless they are only some of those that are stored.
    if rule.shift or rule.negated_exp or (rule.stored and not mapped.order.rows):
        piece = _floats(piece)
    if isinstance(piece, Grid):
        if mapped.head_rows:
            piece = piece.each(lambda rows: pair_rows(rows, mapped.head_rows))
        return piece.columns(mapped.order.columns) if mapped.order.columns else piece
    if mapped.head_rows:
        piece = pair_rows(piece, mapped.head_rows)
    if rule.shift:
        piece += np.float32(rule.shift)
    if rule.negated_exp:
        piece = -np.exp(piece)
    if rule.stored:
        piece = piece.reshape(-1, *mapped.shape[1:])
    if mapped.order.columns:
        piece = np.concatenate([piece[:, a:b] for a, b in mapped.order.columns], axis=1)
    return piece


def _cut(rows: Array, rule: Rule) -> Array:
    """The part of the rows that the rule takes."""
    part, parts = rule.cut
    if rule.alternates:
        return rows[part::parts]
    size = len(rows) // parts
    return rows[part * size : (part + 1) * size]
