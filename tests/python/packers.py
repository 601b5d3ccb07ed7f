"""Writers of quantized checkpoints, each from its format's description, element by element.

They share nothing with the converter. Every one gives the tensors to store and the matrix that
they stand for, scale * (code - zero) in float32.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import numpy as np

Array = np.ndarray[Any, Any]
# Safetensors' name of the type, and the bytes' array.
Stored = dict[str, tuple[str, Array]]
NF4 = (-1.0, -0.6961928, -0.52507305, -0.3949175, -0.28444138, -0.18477343, -0.091050036, 0.0)
NF4 += (0.0795803, 0.1609302, 0.2461123, 0.33791524, 0.44070983, 0.562617, 0.72295684, 1.0)


def bf16(values: Array) -> tuple[str, Array]:
    """Numbers that bf16 holds, as it stores them."""
    bits = np.ascontiguousarray(values, np.float32).view(np.uint32)
    assert not (bits & 0xFFFF).any()
    return "BF16", (bits >> 16).astype(np.uint16)


def pack(numbers: Array, bits: int) -> Array:
    """Rows of numbers as rows of 32-bit words, number i in bits [i * bits, ...)."""
    rows, count = numbers.shape
    words = np.zeros((rows, -(-count * bits // 32)), np.uint32)
    for row in range(rows):
        stream = sum(int(number) << (i * bits) for i, number in enumerate(numbers[row]))
        for i in range(words.shape[1]):
            words[row, i] = stream >> (32 * i) & 0xFFFFFFFF
    return words.view(np.int32)


def grid(
    rng: np.random.Generator, rows: int, columns: int, size: int, bits: int, symmetric: bool
) -> tuple[Array, Array, Array]:
    """Random codes, float16 scales and zero points [rows, groups]."""
    n_groups = -(-columns // size)
    codes = rng.integers(0, 1 << bits, (rows, columns))
    spread = 1 << (bits - 1)
    scales = rng.uniform(0.5, 1.5, (rows, n_groups)) / np.sqrt(columns) / spread
    zeros = np.full((rows, n_groups), spread)
    if not symmetric:
        zeros = rng.integers(spread - spread // 2, spread + spread // 2, (rows, n_groups))
    return codes, scales.astype(np.float16), zeros


def weights_of(codes: Array, scales: Array, zeros: Array, groups: Array) -> Array:
    """The matrix."""
    whole = (codes - zeros[:, groups]).astype(np.float32)
    return scales.astype(np.float32)[:, groups] * whole


def gptq(
    rng: np.random.Generator,
    rows: int,
    columns: int,
    *,
    bits: int = 4,
    size: int = 128,
    symmetric: bool = True,
    order: str = "none",
    less_one: bool = True,
) -> tuple[Stored, Array]:
    """`order` is what desc_act makes of the columns: "none", "scattered", or whole "blocks"."""
    size = columns if size < 0 else min(size, columns)
    codes, scales, zeros = grid(rng, rows, columns, size, bits, symmetric)
    groups = np.arange(columns) // size
    if order == "scattered":
        groups = rng.permutation(groups)
    if order == "blocks":
        groups = np.repeat(rng.permutation(groups[::32]), 32)
    stored_zeros = (zeros - less_one) % (1 << bits)
    return {
        "qweight": ("I32", np.ascontiguousarray(pack(codes, bits).T)),
        "qzeros": ("I32", pack(stored_zeros.T, bits)),
        "scales": ("F16", np.ascontiguousarray(scales.T)),
        "g_idx": ("I32", groups.astype(np.int32)),
    }, weights_of(codes, scales, zeros, groups)


def awq(
    rng: np.random.Generator, rows: int, columns: int, *, size: int = 128, symmetric: bool = False
) -> tuple[Stored, Array]:
    size = columns if size < 0 else min(size, columns)
    codes, scales, zeros = grid(rng, rows, columns, size, 4, symmetric)
    in_word = [0, 2, 4, 6, 1, 3, 5, 7]

    def words(numbers: Array) -> Array:
        mixed = numbers.reshape(len(numbers), -1, 8)[:, :, in_word]
        return pack(mixed.reshape(numbers.shape), 4)

    return {
        "qweight": ("I32", words(codes.T)),
        "qzeros": ("I32", words(zeros.T)),
        "scales": ("F16", np.ascontiguousarray(scales.T)),
    }, weights_of(codes, scales, zeros, np.arange(columns) // size)


def compressed(
    rng: np.random.Generator,
    rows: int,
    columns: int,
    *,
    bits: int = 4,
    size: int = 128,
    symmetric: bool = True,
    order: str = "none",
    words: bool = True,
    zeros_packed: bool = True,
) -> tuple[Stored, Array]:
    size = columns if size < 0 else min(size, columns)
    codes, scales, zeros = grid(rng, rows, columns, size, bits, symmetric)
    # Eight bits, as many as bf16 has.
    rounded = (scales.astype(np.float32).view(np.uint32) & 0xFFFF0000).view(np.float32)
    groups = np.arange(columns) // size
    half = 1 << (bits - 1)
    stored: Stored = {"weight_scale": bf16(rounded)}
    if order == "scattered":
        groups = rng.permutation(groups)
        stored["weight_g_idx"] = ("I32", groups.astype(np.int32))
    if words:
        stored["weight_packed"] = ("I32", pack(codes, bits))
        stored["weight_shape"] = ("I64", np.array([rows, columns]))
        if not symmetric and zeros_packed:
            stored["weight_zero_point"] = ("I32", np.ascontiguousarray(pack(zeros.T, bits).T))
    else:
        stored["weight"] = ("I8", (codes - half).astype(np.int8))
    if not symmetric and not (words and zeros_packed):
        stored["weight_zero_point"] = ("I8", (zeros - half).astype(np.int8))
    return stored, weights_of(codes, rounded, zeros, groups)


def e4m3(code: int) -> float:
    """One 8-bit float, from its definition."""
    sign, exponent, fraction = code >> 7, code >> 3 & 15, code & 7
    value = fraction / 8 * 2.0**-6 if exponent == 0 else (1 + fraction / 8) * 2.0 ** (exponent - 7)
    return -value if sign else value


def fp8(
    rng: np.random.Generator,
    rows: int,
    columns: int,
    *,
    block: tuple[int, int] | None = (128, 128),
    powers: bool = False,
    scale: str = "weight_scale_inv",
    per_row: bool = False,
) -> tuple[Stored, Array]:
    codes = rng.integers(0, 256, (rows, columns), dtype=np.uint8)
    codes[(codes & 127) > 0x77] ^= 0x40  # large ones rare, none NaN
    values = np.array([e4m3(c) if c & 127 != 127 else 0 for c in range(256)], np.float32)[codes]
    shape = (
        (-(-rows // block[0]), -(-columns // block[1])) if block else (rows if per_row else 1, 1)
    )
    scales = rng.uniform(0.5, 1.5, shape).astype(np.float32) / np.float32(64 * np.sqrt(columns))
    if powers:
        scales = np.exp2(np.floor(np.log2(scales)))
    wide = np.repeat(scales, block[0] if block else rows // shape[0], axis=0)[:rows]
    wide = np.repeat(wide, block[1] if block else columns, axis=1)[:, :columns]
    return {
        "weight": ("F8_E4M3", codes),
        scale: ("F32", scales if block or per_row else scales.reshape(1)),
    }, values * wide


def nf4(
    rng: np.random.Generator,
    rows: int,
    columns: int,
    *,
    nested: bool = True,
    dtype: str = "bfloat16",
) -> tuple[Stored, Array]:
    codes = rng.integers(0, 16, rows * columns, dtype=np.uint8)
    table = np.array(NF4, np.float32)
    n_blocks = rows * columns // 64
    state: dict[str, Any] = {"quant_type": "nf4", "blocksize": 64, "dtype": dtype}
    state["shape"] = [rows, columns]
    stored: Stored = {}
    if nested:
        inner = np.sort(rng.uniform(-1, 1, 256)).astype(np.float32)
        largest = rng.uniform(0.05, 0.1, -(-n_blocks // 256)).astype(np.float32)
        index = rng.integers(0, 256, n_blocks, dtype=np.uint8)
        state |= {"nested_blocksize": 256, "nested_dtype": "float32", "nested_offset": 0.15}
        scales = inner[index] * np.repeat(largest, 256)[:n_blocks] + np.float32(0.15)
        stored["weight.absmax"] = ("U8", index)
        stored["weight.nested_absmax"] = ("F32", largest)
        stored["weight.nested_quant_map"] = ("F32", inner)
    else:
        scales = rng.uniform(0.1, 0.2, n_blocks).astype(np.float32)
        stored["weight.absmax"] = ("F32", scales)
    stored["weight"] = ("U8", (codes[0::2] << 4 | codes[1::2]).reshape(-1, 1))
    stored["weight.quant_map"] = ("F32", table)
    text = np.frombuffer(json.dumps(state).encode(), np.uint8)
    stored["weight.quant_state.bitsandbytes__nf4"] = ("U8", text)
    return stored, (table[codes] * np.repeat(scales, 64)).reshape(rows, columns)


def llm_int8(rng: np.random.Generator, rows: int, columns: int) -> tuple[Stored, Array]:
    codes = rng.integers(-127, 128, (rows, columns)).astype(np.int8)
    largest = rng.uniform(0.1, 0.3, rows).astype(np.float32)
    return {
        "weight": ("I8", codes),
        "SCB": ("F32", largest),
        "weight_format": ("U8", np.zeros((), np.uint8)),
    }, codes.astype(np.float32) * (largest * np.float32(1 / 127))[:, None]


def safetensors(tensors: Mapping[str, tuple[str, Array]]) -> bytes:
    """The file."""
    header: dict[str, Any] = {}
    blobs, at = [], 0
    for name, (dtype, array) in tensors.items():
        blob = array.tobytes()
        span = [at, at + len(blob)]
        header[name] = {"dtype": dtype, "shape": list(array.shape), "data_offsets": span}
        blobs.append(blob)
        at += len(blob)
    text = json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + b"".join(blobs)
