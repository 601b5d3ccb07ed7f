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


def _type_number(name: str) -> int:
    return int(choice("dtype", name.upper() if isinstance(name, str) else name, _DTYPES))


def _row_bytes(number: int, n_weights: int) -> int:
    info = ffi.new("pe_dtype_info *")
    call(lib.pe_dtype_describe, info, number)
    if n_weights % info.block_weights:
        raise ArgumentError(
            f"{ffi.string(info.name).decode()}: expected rows of whole blocks of "
            f"{info.block_weights} weights, found rows of {n_weights}"
        )
    return n_weights // int(info.block_weights) * int(info.block_bytes)


def quantize(weights: npt.NDArray[np.float32], dtype: str) -> npt.NDArray[np.uint8]:
    """Encodes an array with GGUF's plain rounding, byte for byte as llama.cpp does.

    That is its rounding without an importance matrix.

    Args:
        weights: Float32, any number of dimensions; the last is the row.
        dtype: Any type the engine computes with: ``"F16"``, ``"Q8_0"``, ``"Q4_K"``, ...

    Returns:
        Bytes of the same shape but for the last dimension, which is the row's bytes.

    Raises:
        ArgumentError: An unknown type, or a row that its blocks do not divide.
        NumericError: NaN or infinity, or a scale too large for the type; with its index.
    """
    number = _type_number(dtype)
    if np.ndim(weights) == 0:
        raise ArgumentError("weights: expected 1 dimension or more, found a single number")
    if np.asarray(weights).dtype.kind not in "fiu":
        raise ArgumentError(f"weights: expected numbers, found {np.asarray(weights).dtype}")
    source = np.ascontiguousarray(weights, np.float32)
    out = np.empty((*source.shape[:-1], _row_bytes(number, source.shape[-1])), np.uint8)
    call(
        lib.pe_quantize,
        ffi.cast("void *", out.ctypes.data),
        number,
        ffi.cast("const float *", source.ctypes.data),
        source.size,
    )
    return out


def dequantize(blocks: npt.NDArray[np.uint8], dtype: str) -> npt.NDArray[np.float32]:
    """Decodes bytes of whole blocks to float32, bit for bit as gguf-py does.

    Args:
        blocks: Bytes, any number of dimensions; the last is the row's bytes.
        dtype: Any type the engine computes with.

    Raises:
        ArgumentError: An unknown type, or rows that are not whole blocks.
    """
    number = _type_number(dtype)
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
