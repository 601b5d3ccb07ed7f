"""Tensor encodings: numpy arrays to GGUF blocks and back, by the core's definition."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from pyengine._arguments import choice
from pyengine._errors import ArgumentError
from pyengine._native import call, ffi, lib

_DTYPES: dict[str, int] = {
    name.removeprefix("PE_DTYPE_"): getattr(lib, name)
    for name in dir(lib)
    if name.startswith("PE_DTYPE_")
}


def type_number(name: str) -> int:
    return int(choice("dtype", name.upper() if isinstance(name, str) else name, _DTYPES))


def row_bytes(number: int, n_weights: int) -> int:
    info = ffi.new("pe_dtype_info *")
    call(lib.pe_dtype_describe, info, number)
    if n_weights % info.block_weights:
        raise ArgumentError(
            f"{ffi.string(info.name).decode()}: expected rows of whole blocks of "
            f"{info.block_weights} weights, found rows of {n_weights}"
        )
    return n_weights // int(info.block_weights) * int(info.block_bytes)


def _float_rows(weights: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    if np.ndim(weights) == 0:
        raise ArgumentError("weights: expected 1 dimension or more, found a single number")
    if np.asarray(weights).dtype.kind not in "fiu":
        raise ArgumentError(f"weights: expected numbers, found {np.asarray(weights).dtype}")
    return np.ascontiguousarray(weights, np.float32)


def quantize(
    weights: npt.NDArray[np.float32],
    dtype: str,
    *,
    method: str = "plain",
    importance: npt.NDArray[np.float32] | None = None,
) -> npt.NDArray[np.uint8]:
    """Encodes an array, with GGUF's plain rounding or with the scales of least error.

    Plain rounding gives the bytes of llama.cpp's quantizer without an importance matrix. The search
    takes for each block the scales and minimums by which the sum of ``importance[column] *
    (weight - value)**2`` becomes least, as far as it finds; it is never above plain rounding's.

    Args:
        weights: Float32, any number of dimensions; the last is the row.
        dtype: Any type the engine computes with: ``"F16"``, ``"Q8_0"``, ``"Q4_K"``, ...
        method: ``"plain"`` or ``"search"``, which is for types of blocks and takes longer.
        importance: For the search: one number per column, 0 or more, such as the mean of the
            column's squared inputs; ``None`` for all the same.

    Returns:
        Bytes of the same shape but for the last dimension, which is the row's bytes.

    Raises:
        ArgumentError: An unknown type or method, a row that its blocks do not divide, or an
            importance of another length or below 0.
        UnsupportedModelError: A search for a type without blocks.
        NumericError: NaN or infinity, or a scale too large for the type; with its index.
    """
    number = type_number(dtype)
    searches = choice("method", method, {"plain": False, "search": True})
    source = _float_rows(weights)
    out = np.empty((*source.shape[:-1], row_bytes(number, source.shape[-1])), np.uint8)
    target = ffi.cast("void *", out.ctypes.data)
    floats = ffi.cast("const float *", source.ctypes.data)
    if not searches:
        if importance is not None:
            raise ArgumentError('importance: expected method="search" with it, found "plain"')
        call(lib.pe_quantize, target, number, floats, source.size)
        return out
    n_cols = source.shape[-1]
    columns = None
    if importance is not None:
        columns = np.asarray(importance)
        if columns.shape != (n_cols,) or columns.dtype.kind not in "fiu":
            raise ArgumentError(
                f"importance: expected {n_cols} numbers, one per column, "
                f"found {columns.dtype} of shape {columns.shape}"
            )
        columns = np.ascontiguousarray(columns, np.float32)
    call(
        lib.pe_quantize_weighted,
        target,
        number,
        floats,
        ffi.NULL if columns is None else ffi.cast("const float *", columns.ctypes.data),
        source.size // n_cols if n_cols else 0,
        n_cols,
    )
    return out


def find_lattice(
    weights: npt.NDArray[np.float32], dtype: str, *, source: str = "F32"
) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.bool_]]:
    """Finds the blocks whose weights lie exactly on one grid of a type.

    Checkpoints that were trained for a type hold such weights. ``found.mean()`` tells.

    Args:
        weights: Float32, any number of dimensions; the last is the row.
        dtype: ``"Q4_0"``, ``"Q4_1"``, ``"Q5_0"``, ``"Q5_1"`` or ``"Q8_0"``.
        source: What the weights were stored as: ``"F32"``, ``"F16"`` or ``"BF16"``. Values of the
            grid count when they round to them.

    Returns:
        Bytes, as ``quantize`` gives them, and for each block whether it was found. What was not
        found is zero bytes.

    Raises:
        ArgumentError: An unknown type, or a row that its blocks do not divide.
        UnsupportedModelError: A type without such grids.
    """
    number = type_number(dtype)
    stored = type_number(source)
    rows = _float_rows(weights)
    n_bytes = row_bytes(number, rows.shape[-1])
    out = np.empty((*rows.shape[:-1], n_bytes), np.uint8)
    found = np.zeros((*rows.shape[:-1], rows.shape[-1] // 32), np.bool_)
    call(
        lib.pe_find_lattice,
        ffi.cast("void *", out.ctypes.data),
        ffi.cast("uint8_t *", found.ctypes.data),
        number,
        stored,
        ffi.cast("const float *", rows.ctypes.data),
        rows.size,
    )
    return out, found


def dequantize(blocks: npt.NDArray[np.uint8], dtype: str) -> npt.NDArray[np.float32]:
    """Decodes bytes of whole blocks to float32, bit for bit as gguf-py does.

    Args:
        blocks: Bytes, any number of dimensions; the last is the row's bytes.
        dtype: Any type the engine computes with.

    Raises:
        ArgumentError: An unknown type, or rows that are not whole blocks.
    """
    number = type_number(dtype)
    if np.ndim(blocks) == 0:
        raise ArgumentError("blocks: expected 1 dimension or more, found a single number")
    source = np.ascontiguousarray(blocks)
    if source.dtype.itemsize != 1 or source.dtype.kind not in "iu":
        raise ArgumentError(f"blocks: expected bytes (uint8), found {source.dtype}")
    info = ffi.new("pe_dtype_info *")
    call(lib.pe_dtype_describe, info, number)
    if source.shape[-1] % info.block_bytes:
        raise ArgumentError(
            f"{dtype}: expected rows of whole blocks of {info.block_bytes} bytes, "
            f"found shape {source.shape}"
        )
    n_weights = source.shape[-1] // info.block_bytes * info.block_weights
    out = np.empty((*source.shape[:-1], n_weights), np.float32)
    call(
        lib.pe_dequantize,
        ffi.cast("float *", out.ctypes.data),
        number,
        ffi.cast("const void *", source.ctypes.data),
        out.size,
    )
    return out
