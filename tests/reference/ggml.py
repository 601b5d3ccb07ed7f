"""ggml's quantizers, which llama-cpp-python brings along."""

from __future__ import annotations

import ctypes
from pathlib import Path
from typing import Any

import gguf
import llama_cpp
import numpy as np

Array = np.ndarray[Any, Any]
NAMES = [
    *("Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0", "IQ4_NL", "MXFP4"),
    *("Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K", "IQ4_XS"),
]
CODES = {name: gguf.GGMLQuantizationType[name] for name in NAMES}

_BASE = ctypes.CDLL(str(next((Path(llama_cpp.__file__).parent / "lib").glob("*ggml-base.*"))))
_CHUNK = _BASE.ggml_quantize_chunk
_CHUNK.restype = ctypes.c_size_t
_CHUNK.argtypes = [ctypes.c_int, *[ctypes.c_void_p] * 2, *[ctypes.c_int64] * 3, ctypes.c_void_p]


def quantize(weights: Array, name: str) -> Array:
    """Rows of blocks, without an importance matrix."""
    source = np.ascontiguousarray(weights, np.float32)
    block, size = gguf.GGML_QUANT_SIZES[CODES[name]]
    out = np.zeros((source.shape[0], source.shape[1] // block * size), np.uint8)
    written = _CHUNK(CODES[name], source.ctypes.data, out.ctypes.data, 0, *source.shape, None)
    assert written == out.size
    return out
