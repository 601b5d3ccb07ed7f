"""Layers of a model by themselves, and taps that show what its matrices are multiplied with.

For those who choose how weights are stored; generating text needs none of it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from pyengine._errors import ArgumentError
from pyengine._native import call, ffi, lib
from pyengine._session import CancelFlag, Session

Floats = npt.NDArray[np.float32]


@dataclass
class Tap:
    """What one matrix of the file is multiplied with.

    Attributes:
        tensor: Its index in the file. The token embedding, where it is the head as well, is
            seen as the head.
        rows: Filled with the inputs of the run's tokens, ``[n_tokens, n_cols]``, or None. Not of
            stacked matrices (experts).
        residual: Filled with the residual stream as it stands then, ``[n_tokens, d_model]``, or
            None.
        sums: Squares of inputs are added, float64 ``[n_stacked, n_cols]``, or None.
        counts: Tokens are added, uint64 ``[n_stacked]``, beside ``sums``.
        order: 0 for a matrix that the run did not multiply with, else 1 for the first
            product of those tapped and so on; the same for what was one operation.
    """

    tensor: int
    rows: Floats | None = None
    residual: Floats | None = None
    sums: npt.NDArray[np.float64] | None = None
    counts: npt.NDArray[np.uint64] | None = None
    order: int = field(default=0, init=False)


def _pointer(array: npt.NDArray[Any] | None, kind: str) -> Any:
    if array is None:
        return ffi.NULL
    if not array.flags.c_contiguous:
        raise ArgumentError("layers: expected contiguous arrays, found one with gaps")
    return ffi.cast(kind, array.ctypes.data)


def run_layers(
    session: Session,
    tokens: npt.NDArray[np.uint32],
    first: int,
    end: int,
    x: Floats,
    *,
    logits: Floats | None = None,
    taps: Sequence[Tap] = (),
    ends_with_taps: bool = False,
    cancel: CancelFlag | None = None,
) -> None:
    """Runs layers ``first`` to before ``end`` over one text, from position 0.

    Args:
        session: An empty one; it is empty again afterwards.
        tokens: The text, ``[n_tokens]``.
        first: 0 begins with the tokens' embeddings.
        end: Up to the number of layers; one more means the last norm and the head.
        x: ``[n_tokens, d_model]``, the residual stream in front of ``first`` (not read for 0),
            then behind the last layer run, or behind the last norm.
        logits: ``[n_tokens, n_vocab]`` to be filled, with the head only.
        taps: What to watch.
        ends_with_taps: Stop when every tap has seen its product; ``x`` is then the
            residual stream as it stood.
        cancel: Stops the call from another thread.

    Raises:
        ArgumentError: A range or an array of the wrong size, or a session with tokens.
        UnsupportedModelError: Layers that need what earlier ones stored cannot run alone.
        OutOfMemoryError: Memory or the KV budget is spent.
        NumericError: A logit is NaN or infinite.
        CancelledError: ``cancel`` was raised.
    """
    engine = session.engine
    shape = (len(tokens), engine.info.d_model)
    if x.shape != shape or x.dtype != np.float32 or tokens.dtype != np.uint32:
        raise ArgumentError(f"layers: expected x of float32 {shape}, found {x.dtype} {x.shape}")
    if logits is not None and logits.shape != (len(tokens), engine.n_vocab):
        raise ArgumentError(
            f"logits: expected shape {(len(tokens), engine.n_vocab)}, found {logits.shape}"
        )
    tensors = engine.file.tensors
    raw = ffi.new("pe_tap[]", len(taps))
    for each, tap in zip(raw, taps, strict=True):
        tensor_shape = tensors[tap.tensor].shape
        stacked = int(np.prod(tensor_shape[:-2], dtype=np.int64))
        for what, array, wanted in (
            ("rows", tap.rows, (len(tokens), tensor_shape[-1])),
            ("residual", tap.residual, (len(tokens), engine.info.d_model)),
            ("sums", tap.sums, (stacked, tensor_shape[-1])),
            ("counts", tap.counts, (stacked,)),
        ):
            if array is not None and array.shape != wanted:
                raise ArgumentError(f"tap: expected {what} of {wanted}, found {array.shape}")
        if (tap.sums is None) != (tap.counts is None):
            raise ArgumentError("tap: expected sums and counts together, found one of them")
        each.tensor = tap.tensor
        each.rows = _pointer(tap.rows, "float *")
        each.residual = _pointer(tap.residual, "float *")
        each.sums = _pointer(tap.sums, "double *")
        each.counts = _pointer(tap.counts, "uint64_t *")
    run = ffi.new("pe_layer_run *")
    run.struct_bytes = ffi.sizeof("pe_layer_run")
    run.first_layer, run.end_layer, run.n_tokens = first, end, len(tokens)
    run.tokens = _pointer(np.ascontiguousarray(tokens), "const uint32_t *")
    run.x, run.logits = _pointer(x, "float *"), _pointer(logits, "float *")
    run.taps, run.n_taps, run.ends_with_taps = raw, len(taps), int(ends_with_taps)
    flag = cancel.pointer if cancel is not None else ffi.NULL
    with engine.lock:
        call(lib.pe_session_run_layers, session.handle, run, flag)
    for each, tap in zip(raw, taps, strict=True):
        tap.order = each.order
