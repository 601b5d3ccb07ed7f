"""The search for scales against ggml's with an importance matrix: weighted errors."""

from __future__ import annotations

import ctypes
from typing import Any

import ggml
import gguf
import numpy as np
import pytest

from pyengine import dequantize, quantize

Array = np.ndarray[Any, Any]
SEARCHED = [name for name in ggml.NAMES if name not in ("MXFP4", "Q8_0")]


def weighted(weights: Array, importance: Array, name: str) -> Array:
    """ggml's bytes with an importance matrix."""
    source = np.ascontiguousarray(weights, np.float32)
    columns = np.ascontiguousarray(importance, np.float32)
    block, size = gguf.GGML_QUANT_SIZES[ggml.CODES[name]]
    out = np.zeros((source.shape[0], source.shape[1] // block * size), np.uint8)
    written = ggml._CHUNK(
        ggml.CODES[name],
        source.ctypes.data,
        out.ctypes.data,
        0,
        *source.shape,
        columns.ctypes.data_as(ctypes.c_void_p),
    )
    assert written == out.size
    return out


def error(weights: Array, importance: Array, blocks: Array, name: str) -> float:
    off = weights.astype(np.float64) - dequantize(blocks, name)
    return float((importance * off**2).sum())


@pytest.mark.parametrize("name", SEARCHED)
@pytest.mark.parametrize("kind", ["bell", "tails"])
def test_weighted_error_is_below_ggml(name: str, kind: str) -> None:
    rng = np.random.default_rng(7)
    shape = (64, 1024)
    weights = rng.normal(size=shape) if kind == "bell" else rng.standard_t(4, size=shape)
    weights = (0.02 * weights).astype(np.float32)
    importance = np.exp(rng.normal(size=shape[1])).astype(np.float32)
    theirs = error(weights, importance, weighted(weights, importance, name), name)
    ours = quantize(weights, name, method="search", importance=importance)
    ratio = error(weights, importance, ours, name) / theirs
    print(f"{name} {kind}: {ratio:.4f} of ggml's error")
    assert ratio < 1.0
