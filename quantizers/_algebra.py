"""The core's linear algebra for quantizers: moments, factors, rounding with feedback."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from pyengine._native import ClosableHandle, call, ffi, lib
from pyengine._quant import row_bytes, type_number

Floats = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Rounded:
    """A matrix in blocks.

    Attributes:
        blocks: Bytes, a row of them for each row.
        error: How far outputs are off, the sum over calibration tokens of squares.
        norm: The same sum of the outputs themselves.
    """

    blocks: npt.NDArray[np.uint8]
    error: float
    norm: float


class Algebra(ClosableHandle):
    """Threads that work on float32 arrays, whose results do not depend on how many they are.

    Args:
        n_threads: Default: usable cores.
    """

    def __init__(self, n_threads: int | None = None) -> None:
        out = ffi.new("pe_quantizer **")
        call(lib.pe_quantizer_new, out, n_threads or 0, lib.PE_ISA_BEST)
        self._handle = ffi.gc(out[0], lib.pe_quantizer_free)

    def close(self) -> None:
        """Ends the threads; closing twice is allowed."""
        if self._handle is not None:
            ffi.release(self._handle)
            self._handle = None

    def add_moments(self, sums: Floats, y: Floats, x: Floats) -> None:
        """sums += y.T @ x, for ``[n_rows, n_y]`` and ``[n_rows, n_x]``; y may be x."""
        a, b = _contiguous(y), _contiguous(x)
        if y is x:
            a = b
        call(lib.pe_quantizer_gram, self._handle, _at(sums), _at(a), _at(b), len(b),
             a.shape[1], b.shape[1])  # fmt: skip

    def factor(self, moments: Floats, damping: float) -> tuple[Floats, float]:
        """The factor of moments and their damping, which grows until it exists.

        Raises:
            NumericError: NaN or infinity among them.
        """
        out = moments.copy()
        found = ffi.new("float *")
        call(lib.pe_quantizer_factor, self._handle, _at(out), len(out), damping, found)
        return out, float(found[0])

    def solve(self, y: Floats, factor: Floats) -> Floats:
        """y times the inverse of what was factored."""
        out = np.array(y, np.float32, order="C")
        lib.pe_quantizer_solve(self._handle, _at(out), _at(factor), *out.shape)
        return out

    def product(self, a: Floats, b: Floats) -> Floats:
        """a @ b.T."""
        a, b = _contiguous(a), _contiguous(b)
        out = np.empty((len(a), len(b)), np.float32)
        lib.pe_quantizer_product(self._handle, _at(out), _at(a), _at(b), len(a), len(b),
             a.shape[1])  # fmt: skip
        return out

    def round(
        self, weights: Floats, dtype: str, moments: Floats, factor: Floats, n_sweeps: int
    ) -> Rounded:
        """Rounds a matrix so that its outputs change least.

        Args:
            weights: ``[n_rows, n_cols]``.
            dtype: A type of blocks.
            moments: Second moments of its inputs, ``[n_cols, n_cols]``.
            factor: Their factor, damped.
            n_sweeps: Times that every weight is moved again.

        Raises:
            ArgumentError: Rows that are not whole blocks.
            NumericError: NaN or infinity, or scales that leave fp16.
        """
        weights = _contiguous(weights)
        number = type_number(dtype)
        out = np.empty((len(weights), row_bytes(number, weights.shape[1])), np.uint8)
        job = ffi.new("pe_rounding *")
        job.struct_bytes = ffi.sizeof("pe_rounding")
        job.dtype, job.n_sweeps = number, n_sweeps
        job.n_rows, job.n_cols = weights.shape
        job.weights, job.factor, job.moments = _at(weights), _at(factor), _at(moments)
        job.out = ffi.cast("void *", out.ctypes.data)
        call(lib.pe_quantizer_round, self._handle, job)
        return Rounded(out, float(job.error), float(job.norm))


def _contiguous(x: Floats) -> Floats:
    return np.ascontiguousarray(x, np.float32)


def _at(array: Floats) -> Any:
    assert array.flags.c_contiguous and array.dtype == np.float32
    return ffi.cast("float *", array.ctypes.data)
