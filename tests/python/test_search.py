"""The search for scales: better than plain rounding, weighted by column, refusing bad input."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from pyengine import (
    ArgumentError,
    NumericError,
    UnsupportedModelError,
    dequantize,
    find_lattice,
    quantize,
)

Array = np.ndarray[Any, Any]
TYPES = ["Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0", "Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K"]
TYPES += ["IQ4_NL", "IQ4_XS", "MXFP4"]


def error(weights: Array, importance: Array, blocks: Array, dtype: str) -> float:
    off = weights.astype(np.float64) - dequantize(blocks, dtype)
    return float((importance * off**2).sum())


@pytest.mark.parametrize("dtype", TYPES)
def test_error_is_below_plain_rounding(dtype: str) -> None:
    rng = np.random.default_rng(1)
    weights = rng.normal(size=(8, 512)).astype(np.float32)
    importance = np.exp(rng.normal(size=512)).astype(np.float32)
    plain = quantize(weights, dtype)
    equal = quantize(weights, dtype, method="search")
    searched = quantize(weights, dtype, method="search", importance=importance)
    assert searched.shape == plain.shape
    ones = np.ones(512)
    assert error(weights, ones, equal, dtype) < error(weights, ones, plain, dtype)
    assert error(weights, importance, searched, dtype) < error(weights, importance, equal, dtype)


def test_bytes_do_not_depend_on_the_scale_of_importance() -> None:
    rng = np.random.default_rng(2)
    weights = rng.normal(size=(2, 3, 64)).astype(np.float32)
    importance = np.exp(rng.normal(size=64)).astype(np.float32)
    once = quantize(weights, "Q4_1", method="search", importance=importance)
    again = quantize(weights, "Q4_1", method="search", importance=importance * np.float32(2**40))
    assert once.shape == (2, 3, 40)
    np.testing.assert_array_equal(once, again)


def test_bad_input_is_refused() -> None:
    weights = np.ones((2, 32), np.float32)
    ones = np.ones(32, np.float32)

    def search(importance: Any = None, dtype: str = "Q4_0", of: Array = weights) -> Array:
        return quantize(of, dtype, method="search", importance=importance)

    with pytest.raises(ArgumentError, match=r"importance: expected 32 numbers.*\(31,\)"):
        search(ones[:31])
    with pytest.raises(ArgumentError, match="importance 4: expected 0 or more, found -1"):
        search(np.where(np.arange(32) == 4, np.float32(-1), ones))
    with pytest.raises(NumericError, match="importance 4: expected a number, found nan"):
        search(np.where(np.arange(32) == 4, np.float32("nan"), ones))
    with pytest.raises(NumericError, match="weight 40: expected a number, found inf"):
        search(of=np.where(np.arange(64).reshape(2, 32) == 40, np.float32("inf"), weights))
    with pytest.raises(NumericError, match="weights 0 to 31: expected a Q4_0 scale"):
        search(of=weights * np.float32(1e9))
    with pytest.raises(UnsupportedModelError, match="F16"):
        search(dtype="F16")
    with pytest.raises(ArgumentError, match="plain, search"):
        quantize(weights, "Q4_0", method="best")
    with pytest.raises(ArgumentError, match="importance"):
        quantize(weights, "Q4_0", importance=ones)
    assert search(of=np.zeros((0, 32), np.float32)).shape == (0, 18)


def to_bf16(values: Array) -> Array:
    bits = np.ascontiguousarray(values, np.float32).view(np.uint32)
    return ((bits + 0x7FFF + (bits >> 16 & 1)) & 0xFFFF0000).astype(np.uint32).view(np.float32)


@pytest.mark.parametrize("dtype", ["Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0"])
def test_lattices_are_found_again(dtype: str) -> None:
    rng = np.random.default_rng(5)
    free = rng.normal(size=(4, 2, 96)).astype(np.float32)
    trained = dequantize(quantize(free, dtype), dtype)
    for source, rounded in {
        "F32": lambda x: x,
        "F16": lambda x: x.astype(np.float16).astype(np.float32),
        "BF16": to_bf16,
    }.items():
        weights = rounded(trained)
        weights[2, 1, 64:] = free[2, 1, 64:]
        blocks, found = find_lattice(weights, dtype, source=source)
        assert found.shape == (4, 2, 3)
        assert (~found).sum() == 1 and not found[2, 1, 2]
        back = rounded(dequantize(blocks, dtype))
        np.testing.assert_array_equal(
            back.reshape(-1, 32)[found.ravel()], weights.reshape(-1, 32)[found.ravel()]
        )
        assert not dequantize(blocks, dtype)[2, 1, 64:].any()
    # Without being told that they were rounded, few grids can be seen: where no product is.
    assert find_lattice(to_bf16(trained), dtype)[1].mean() < 0.2


def test_lattices_of_other_types_are_refused() -> None:
    weights = np.zeros((1, 256), np.float32)
    with pytest.raises(UnsupportedModelError, match="Q4_K"):
        find_lattice(weights, "Q4_K")
    with pytest.raises(ArgumentError, match="source"):
        find_lattice(weights, "Q4_0", source="Q8_0")
    with pytest.raises(ArgumentError, match="whole blocks"):
        find_lattice(weights[:, :33], "Q4_0")
    assert find_lattice(weights, "Q4_0")[1].all()
