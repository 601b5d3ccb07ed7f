"""Blocks are those of llama.cpp's quantizer, byte for byte."""

from __future__ import annotations

from typing import Any

import ggml
import numpy as np
import pytest

from pyengine import quantize

Array = np.ndarray[Any, Any]


def samples() -> dict[str, Array]:
    rng = np.random.default_rng(12)
    n = (1024, 1024)
    normal = rng.normal(0, 1, n)
    found = {
        "normal": normal,
        "trained": normal * 0.02,
        "laplace": rng.laplace(0, 0.02, n),
        "heavy tails": rng.standard_t(1.5, n).clip(-3e4, 3e4),
        "positive": rng.random(n),
        "negative": -rng.random(n),
        "integers": rng.integers(-20, 21, n),
        "halves": rng.integers(-40, 41, n) / 2,
        "sparse": np.where(rng.random(n) < 0.02, normal, 0.0),
        "one large": np.where(rng.random(n) < 1 / 64, 100.0, normal * 1e-3),
        "constant runs": np.repeat(rng.normal(0, 1, (1024, 32)), 32, axis=1),
        "scale by run": normal * np.repeat(10.0 ** rng.uniform(-25, 3, (1024, 64)), 16, axis=1),
        # No smaller: a step without an inverse is what that file makes of an infinite float.
        "scale by row": normal * 10.0 ** rng.uniform(-33, 3, (1024, 1)),
    }
    # Nor of -0, whose sign is kept here, as gguf-py does, in blocks of nothing else.
    return {name: np.float32(0) + values.astype(np.float32) for name, values in found.items()}


SAMPLES = samples()


@pytest.mark.parametrize("sample", SAMPLES)
@pytest.mark.parametrize("dtype", ggml.NAMES)
def test_blocks_equal_llama_cpps_byte_for_byte(dtype: str, sample: str) -> None:
    np.testing.assert_array_equal(
        quantize(SAMPLES[sample], dtype), ggml.quantize(SAMPLES[sample], dtype)
    )
