"""Tensor encodings: the bytes that gguf-py writes, and the numbers that it reads."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
from gguf import GGMLQuantizationType
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hypothesis_numpy

from pyengine import ArgumentError, NumericError, dequantize, quantize

Array = np.ndarray[Any, Any]
# What gguf-py encodes; llama.cpp's own quantizer made the golden of all types.
BLOCKS = ("Q8_0", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "MXFP4")
WRITTEN = ("F32", "F16", "BF16", *BLOCKS)
GOLDEN = np.load(Path(__file__).parent.parent / "golden" / "quants.npz")
# The fp16 fields of each type's block; MXFP4 has a byte, which any value fits.
SCALES = {
    "Q8_0": [0],
    "Q4_0": [0],
    "Q4_1": [0, 2],
    "Q5_0": [0],
    "Q5_1": [0, 2],
    "Q2_K": [80, 82],
    "Q3_K": [108],
    "Q4_K": [0, 2],
    "Q5_K": [0, 2],
    "Q6_K": [208],
    "IQ4_NL": [0],
    "IQ4_XS": [0],
    "MXFP4": [],
}
READ = ("F32", "F16", "BF16", *SCALES)
SMALLEST_MXFP4 = 2.0**-125
TINY = float(np.finfo(np.float32).smallest_subnormal)


def expected_bytes(values: Array, dtype: str) -> Array:
    out = gguf.quants.quantize(values, GGMLQuantizationType[dtype])
    return np.ascontiguousarray(out).view(np.uint8)


def check(values: Array, dtype: str) -> None:
    values = np.asarray(values, np.float32)
    with np.errstate(all="ignore"):
        expected = expected_bytes(values, dtype)
    found = quantize(values, dtype)
    assert found.dtype == np.uint8
    if dtype in BLOCKS:
        found, expected = (part.reshape(values.size // 32, -1) for part in (found, expected))
        if dtype == "MXFP4":
            check_below_mxfp4(values, dequantize(found, dtype))
            lost = np.abs(values.reshape(-1, 32)).max(axis=1) < SMALLEST_MXFP4
            np.testing.assert_array_equal(found[~lost], expected[~lost])
            return
        lost = has_no_scale(values.reshape(-1, 32))
        # gguf-py casts infinity to an integer here, which gives what the processor makes of it.
        decoded = dequantize(found[lost], dtype)
        np.testing.assert_array_equal(decoded, np.zeros_like(decoded))
        found, expected = found[~lost], expected[~lost]
    np.testing.assert_array_equal(found, expected)


def check_below_mxfp4(values: Array, decoded: Array) -> None:
    """Where gguf-py casts a negative exponent, the smallest one there is leaves half a step."""
    small = np.abs(values.reshape(-1, 32)) < SMALLEST_MXFP4
    error = np.abs(values.reshape(-1, 32).astype(np.float64) - decoded)
    assert (error[small & small.all(axis=1, keepdims=True)] <= 2.0**-127).all()


def has_no_scale(blocks: Array) -> Array:
    """Blocks with a step so small that its inverse is beyond float32, and the step 0 in fp16."""
    spread = np.maximum(np.abs(blocks).max(axis=1), np.ptp(blocks, axis=1))
    return (spread > 0) & (spread < 1e-36)


def samples() -> dict[str, Array]:
    rng = np.random.default_rng(5)
    n = (64, 256)
    normal = rng.normal(0, 1, n)
    steps = rng.integers(-127, 128, n)
    steps[:, ::32] = 127  # so that the scale is exactly 1
    four_bits = rng.integers(-16, 15, n) / 2  # halves: between two integers
    four_bits[:, ::32] = -8
    ramp = rng.integers(0, 31, n) / 2
    ramp[:, ::32], ramp[:, 1::32] = 0, 15
    return {
        "normal": normal,
        "small normal": normal * 0.02,
        "uniform": rng.uniform(-1, 1, n),
        "heavy tails": rng.standard_t(1.5, n).clip(-3e4, 3e4),
        "all positive": np.abs(normal),
        "all negative": -np.abs(normal),
        "one large": np.where(rng.random(n) < 1 / 32, 100.0, normal * 1e-3),
        "zeros": np.zeros(n),
        "negative zeros": np.full(n, -0.0),
        "mixed zeros": np.where(rng.random(n) < 0.5, 0.0, -0.0),
        "mostly zeros": np.where(rng.random(n) < 0.02, normal, -0.0),
        "equal values": np.full(n, 0.7),
        "plus and minus the same": rng.choice([-1.5, 1.5], n),
        "integers": rng.integers(-8, 8, n),
        "8-bit ties": steps + 0.5 * (steps < 100),
        "4-bit ties": four_bits,
        "4-bit ties from 0": ramp,
        "tiny": normal * 1e-37,
        "subnormal": rng.integers(-5, 6, n) * TINY,
        "subnormal scales": normal * 3e-6,
        "large": normal * 1e4,
        "wide range": normal * 10.0 ** rng.integers(-30, 4, n),
    }


SAMPLES = samples()


@pytest.mark.parametrize("sample", SAMPLES)
@pytest.mark.parametrize("dtype", WRITTEN)
def test_encoding_equals_gguf_py_byte_for_byte(dtype: str, sample: str) -> None:
    check(SAMPLES[sample], dtype)


@pytest.mark.parametrize("dtype", WRITTEN)
@settings(max_examples=200, deadline=None)
@given(data=st.data())
def test_any_array_is_encoded_as_gguf_py_does(dtype: str, data: st.DataObject) -> None:
    limit = data.draw(st.sampled_from([1e-40, 1e-6, 1.0, 240.0, 6e4]))
    values = data.draw(
        hypothesis_numpy.arrays(
            np.float32,
            st.sampled_from([(32,), (1, 64), (3, 32), (2, 1, 96)]),
            elements=st.floats(np.float32(-limit).item(), np.float32(limit).item(), width=32),
            fill=st.just(np.float32(0)) | st.just(np.float32(-0.0)),
        )
    )
    check(values, dtype)


@pytest.mark.parametrize("dtype", SCALES)
def test_encoding_equals_llama_cpps_byte_for_byte(dtype: str) -> None:
    np.testing.assert_array_equal(quantize(GOLDEN["weights"], dtype), GOLDEN[dtype])


@pytest.mark.parametrize("order", [("Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K"), ("Q4_0", "IQ4_XS")])
def test_what_has_more_bits_or_a_better_search_is_nearer(order: tuple[str, ...]) -> None:
    values = SAMPLES["normal"].astype(np.float32)
    errors = [np.square(dequantize(quantize(values, t), t) - values).mean() for t in order]
    assert errors == sorted(errors, reverse=True)


@pytest.mark.parametrize("sample", SAMPLES)
@pytest.mark.parametrize("dtype", SCALES)
def test_blocks_do_not_depend_on_their_neighbours(dtype: str, sample: str) -> None:
    values = SAMPLES[sample].astype(np.float32)
    one_by_one = np.concatenate([quantize(row, dtype) for row in values])
    assert np.array_equal(quantize(values, dtype).ravel(), one_by_one)
    assert np.isfinite(dequantize(quantize(values, dtype), dtype)).all()


@pytest.mark.parametrize("dtype", ["F16", "BF16"])
def test_float_encodings_round_every_kind_of_number_as_gguf_py_does(dtype: str) -> None:
    rng = np.random.default_rng(6)
    bits = rng.integers(0, 2**32, 1 << 16, np.uint32)
    # Halfway cases: the lower half of the bits is exactly the tie, or next to it.
    ties = (bits & 0xFFFF0000) | rng.choice([0x7FFF, 0x8000, 0x8001], bits.size).astype(np.uint32)
    halves = (bits & 0xFFFFE000) | rng.choice([0xFFF, 0x1000, 0x1001], bits.size).astype(np.uint32)
    values = np.concatenate([bits, ties, halves]).view(np.float32)
    check(np.where(np.isfinite(values), values, 0), dtype)


def test_f16_encodes_every_half_exactly() -> None:
    halves = np.arange(65536, dtype=np.uint16).view(np.float16)
    halves = halves[np.isfinite(halves)]
    found = quantize(halves.astype(np.float32), "F16").view(np.float16)
    assert np.array_equal(found.view(np.uint16), halves.view(np.uint16))


@pytest.mark.parametrize("dtype", READ)
def test_decoding_equals_gguf_py_bit_for_bit(dtype: str) -> None:
    rng = np.random.default_rng(7)
    block, size = gguf.GGML_QUANT_SIZES[GGMLQuantizationType[dtype]]
    blocks = rng.integers(0, 256, (2000, size), np.uint8)
    for at in SCALES.get(dtype, []):  # any finite half, subnormal and negative ones included
        halves = rng.integers(0, 0x7C00, 2000) | rng.integers(0, 2, 2000) << 15
        blocks[:, at : at + 2] = halves.astype("<u2").view(np.uint8).reshape(-1, 2)
    with np.errstate(all="ignore"):
        expected = gguf.quants.dequantize(blocks, GGMLQuantizationType[dtype])
    found = dequantize(blocks, dtype)
    assert found.dtype == np.float32
    assert found.shape == (2000, block)
    number = np.isfinite(expected)  # F32, F16 and BF16 blocks are any bits
    assert np.array_equal(np.isfinite(found), number)
    assert np.array_equal(found.view(np.uint32)[number], expected.view(np.uint32)[number])
    infinite = np.isinf(expected)
    assert np.array_equal(found[infinite], expected[infinite])


@pytest.mark.parametrize("dtype", READ)
def test_decoding_keeps_the_other_dimensions(dtype: str) -> None:
    _, size = gguf.GGML_QUANT_SIZES[GGMLQuantizationType[dtype]]
    blocks = np.zeros((2, 3, 4 * size), np.uint8)
    block, _ = gguf.GGML_QUANT_SIZES[GGMLQuantizationType[dtype]]
    assert dequantize(blocks, dtype).shape == (2, 3, 4 * block)


def test_other_memory_layouts_and_types_of_numbers_are_taken() -> None:
    values = np.random.default_rng(8).normal(0, 1, (64, 64)).astype(np.float32)
    assert np.array_equal(quantize(values.T, "Q8_0"), quantize(values.T.copy(), "Q8_0"))
    assert np.array_equal(quantize(values[:, ::2], "Q8_0"), quantize(values[:, ::2].copy(), "Q8_0"))
    assert np.array_equal(quantize(values.astype(np.float64), "Q4_0"), quantize(values, "Q4_0"))
    assert quantize(np.zeros((0, 64), np.float32), "Q8_0").shape == (0, 68)
    assert np.array_equal(quantize(values, "q8_0"), quantize(values, "Q8_0"))


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("dtype", SCALES)
def test_what_is_no_number_is_refused_with_its_place(dtype: str, value: float) -> None:
    values = np.ones((4, 256), np.float32)
    values[2, 5] = value
    with pytest.raises(NumericError, match=r"\b517\b"):
        quantize(values, dtype)


@pytest.mark.parametrize("value", [1e10, -1e14, 1e20, -1e30, 3e38])
@pytest.mark.parametrize("dtype", [name for name in SCALES if name != "MXFP4"])
def test_a_scale_beyond_16_bits_is_refused(dtype: str, value: float) -> None:
    values = np.zeros((1, 512), np.float32)
    values[0, 300] = value
    with pytest.raises(NumericError, match=r"weights (256|288) to .*scale that fits fp16"):
        quantize(values, dtype)


@pytest.mark.parametrize("value", [1e10, -1e14, 1e20, -1e30, 3e38])
def test_scales_of_mxfp4_reach_as_far_as_float32(value: float) -> None:
    values = np.zeros((1, 32), np.float32)
    values[0, 20] = value
    decoded = dequantize(quantize(values, "MXFP4"), "MXFP4")
    np.testing.assert_allclose(decoded, values, rtol=0.34)


@pytest.mark.parametrize("dtype", ["Q8_1", "IQ2_XXS", "", "int4"])
def test_types_that_cannot_be_written_are_refused(dtype: str) -> None:
    with pytest.raises(ArgumentError, match=f"dtype: expected one of .*{dtype.upper()}"):
        quantize(np.zeros(256, np.float32), dtype)


def test_rows_that_are_no_whole_blocks_are_refused() -> None:
    with pytest.raises(ArgumentError, match="Q8_0: expected rows of whole blocks of 32 weights"):
        quantize(np.zeros((2, 48), np.float32), "Q8_0")
    with pytest.raises(ArgumentError, match="Q6_K: expected rows of whole blocks of 256 weights"):
        quantize(np.zeros((2, 128), np.float32), "Q6_K")
    with pytest.raises(ArgumentError, match="whole blocks of 34 bytes"):
        dequantize(np.zeros((2, 35), np.uint8), "Q8_0")


def test_a_single_number_is_refused() -> None:
    with pytest.raises(ArgumentError, match="1 dimension or more"):
        quantize(np.float32(1.0), "F16")


def test_what_is_no_number_or_no_byte_is_refused() -> None:
    with pytest.raises(ArgumentError, match="weights: expected numbers, found complex128"):
        quantize(np.zeros(32, np.complex128), "F32")
    with pytest.raises(ArgumentError, match=r"blocks: expected bytes \(uint8\), found int32"):
        dequantize(np.zeros(34, np.int32), "Q8_0")
    with pytest.raises(ArgumentError, match=r"dtype: expected one of .*, found 5"):
        quantize(np.zeros(32, np.float32), 5)
