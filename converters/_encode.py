"""Tensor types of a GGUF file: what they are called, how long their rows are, how to write them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from converters._source import Array, Floats
from pyengine._errors import ConversionError

_F16_MAX = 65504.0


@dataclass(frozen=True)
class TensorType:
    """One tensor type.

    Attributes:
        name: GGUF's spelling.
        code: The number in a tensor's directory entry.
        file_type: general.file_type of a file whose matrices are of this type.
        block: Weights per block; a row must be whole blocks.
        block_bytes: Bytes of one block.
    """

    name: str
    code: int
    file_type: int
    block: int
    block_bytes: int

    @property
    def quantized(self) -> bool:
        """Whether weights share a scale."""
        return self.block > 1

    def row_bytes(self, columns: int) -> int:
        """Bytes of one row of `columns` weights, which must be whole blocks."""
        return columns // self.block * self.block_bytes


F32 = TensorType("F32", 0, 0, 1, 4)
F16 = TensorType("F16", 1, 1, 1, 2)
BF16 = TensorType("BF16", 30, 32, 1, 2)
Q8_0 = TensorType("Q8_0", 8, 7, 32, 34)
Q4_0 = TensorType("Q4_0", 2, 2, 32, 18)
Q4_1 = TensorType("Q4_1", 3, 3, 32, 20)
Q5_0 = TensorType("Q5_0", 6, 8, 32, 22)
Q5_1 = TensorType("Q5_1", 7, 9, 32, 24)
Q2_K = TensorType("Q2_K", 10, 10, 256, 84)
Q3_K = TensorType("Q3_K", 11, 11, 256, 110)
Q4_K = TensorType("Q4_K", 12, 14, 256, 144)
Q5_K = TensorType("Q5_K", 13, 16, 256, 176)
Q6_K = TensorType("Q6_K", 14, 18, 256, 210)
IQ4_NL = TensorType("IQ4_NL", 20, 25, 32, 18)
IQ4_XS = TensorType("IQ4_XS", 23, 30, 256, 136)
MXFP4 = TensorType("MXFP4", 39, 38, 32, 17)

BY_NAME = {
    kind.name.lower(): kind
    for kind in (
        *(F32, F16, BF16, Q8_0, Q6_K, Q5_K, Q5_1, Q5_0),
        *(Q4_K, Q4_1, Q4_0, IQ4_XS, IQ4_NL, MXFP4, Q3_K, Q2_K),
    )
}


def _encode(array: Floats, type_name: str) -> Array:
    """Packs rows into blocks; the only call into the compiled core."""
    # Late: float types, and reading this package, must not need the compiled core.
    from pyengine import quantize

    packed: Array = quantize(np.ascontiguousarray(array, dtype=np.float32), type_name)
    return packed


def _check_range(array: Floats, name: str, limit: float, why: str) -> None:
    """Refuses NaN, infinity and what the target cannot hold.

    The extremes alone are looked at: NaN wins every comparison in numpy's min and max, and a mask
    as large as the array is not needed.
    """
    low, high = float(array.min()), float(array.max())
    if np.isnan(low) or np.isnan(high):
        raise ConversionError(f"tensor {name!r}: expected finite weights, found NaN")
    if np.isinf(low) or np.isinf(high):
        raise ConversionError(f"tensor {name!r}: expected finite weights, found infinity")
    worst = low if -low > high else high
    if abs(worst) > limit:
        raise ConversionError(
            f"tensor {name!r}: expected weights within +-{limit:g} for {why}, found {worst:g}"
        )


def encode(array: Floats, kind: TensorType, name: str) -> Array:
    """Turns rows of weights into the bytes of a tensor type.

    Args:
        array: float32; for a quantized type, rows of whole blocks.
        kind: The type to write.
        name: The tensor's name, for messages.

    Returns:
        A contiguous array whose memory is what the file holds, little endian.

    Raises:
        ConversionError: A weight is NaN, infinite, or too large for the type.
    """
    if kind is F32:
        _check_range(array, name, np.inf, kind.name)
        return np.ascontiguousarray(array, dtype="<f4")
    if kind is F16:
        _check_range(array, name, np.inf, kind.name)
        with np.errstate(over="ignore"):
            half = array.astype("<f2")
        # Asked of the result: values a little above the maximum still round down to it.
        if np.isinf(half.min()) or np.isinf(half.max()):
            worst = float(array.flat[int(np.abs(array).argmax())])
            raise ConversionError(
                f"tensor {name!r}: expected weights within +-{_F16_MAX:g} for F16, found {worst:g}"
            )
        return half
    if kind is BF16:
        # Beyond this a value would round up to infinity (float32 max is 3.4028e38).
        _check_range(array, name, 3.3961e38, kind.name)
        bits = np.ascontiguousarray(array, dtype=np.float32).view(np.uint32)
        # Round to nearest, ties to even: add half a step, less one when the kept part is even.
        rounded = bits >> 16
        rounded &= 1
        rounded += bits
        rounded += 0x7FFF
        rounded >>= 16
        return rounded.astype("<u2")
    # Blocks keep scale and offset as float16, but for MXFP4's power of two.
    _check_range(array, name, np.inf if kind is MXFP4 else _F16_MAX, kind.name)
    packed = _encode(array, kind.name)
    rows = array.shape[0]
    expected = (rows, kind.row_bytes(array.shape[1]))
    if packed.dtype != np.uint8 or packed.shape != expected:
        raise ConversionError(
            f"tensor {name!r}: expected the quantizer to return uint8 {expected}, "
            f"found {packed.dtype} {packed.shape}"
        )
    return np.ascontiguousarray(packed)


def decode(data: Array, kind: TensorType) -> Floats:
    """What `encode`'s bytes stand for."""
    if kind in (F32, F16):
        return data.astype(np.float32)
    if kind is BF16:
        return (data.astype(np.uint32) << 16).view(np.float32)
    from pyengine import dequantize

    return dequantize(data, kind.name)


def pack_mxfp4(blocks: Array, scales: Array) -> Array:
    """Turns a checkpoint's MXFP4 into GGUF's: the same bits in another order.

    Args:
        blocks: uint8 [rows, blocks, 16]; byte i has weight 2 i in its low nibble and weight
            2 i + 1 in its high one.
        scales: uint8 [rows, blocks], powers of two.

    Returns:
        uint8 [rows, blocks * 17]: the scale, then byte i with weight i in its low nibble and
        weight i + 16 in its high one.
    """
    weights = np.stack([blocks & 15, blocks >> 4], axis=-1).reshape(*blocks.shape[:2], 32)
    packed = weights[..., :16] | (weights[..., 16:] << 4)
    whole = np.concatenate([scales[..., None], packed], axis=-1)
    return np.ascontiguousarray(whole).reshape(blocks.shape[0], -1)
