"""Writes the blocks that tests/python/test_quant.py compares with: those of llama.cpp's quantizer.

Run it in the environment of tests/reference/requirements.txt, from the repository's root:

    python tests/golden/make_quants.py
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent / "reference"))

import ggml  # noqa: E402


def samples() -> np.ndarray[Any, Any]:
    """Super-blocks, two or more of a kind."""
    rng = np.random.default_rng(11)
    normal = rng.normal(0, 1, (18, 256))
    spread = np.repeat(10.0 ** rng.uniform(-6, 2, (2, 16)), 16, axis=1)
    rows = [
        normal[:2],
        normal[2:4] * 0.02,
        rng.laplace(0, 0.05, (2, 256)),
        rng.standard_t(1.5, (2, 256)).clip(-1e4, 1e4),
        np.abs(normal[4:6]),
        -np.abs(normal[6:8]),
        normal[8:10] * spread,
        np.where(rng.random((2, 256)) < 0.03, normal[10:12], 0.0),
        rng.integers(-8, 8, (2, 256)),
        np.where(rng.random((2, 256)) < 1 / 64, 100.0, normal[12:14] * 1e-3),
        normal[14:16] * 1e-9,
        normal[16:18] * np.repeat(rng.random((2, 8)) < 0.5, 32, axis=1),
        np.stack([np.zeros(256), np.full(256, 0.7)]),
        np.stack([np.full(256, -0.7), np.linspace(-3, 40, 256)]),
        # For these the first or last that a search tries is the best, in one type or another.
        np.stack([np.random.default_rng(seed).normal(0, 1, 256) for seed in (44, 110, 416, 2541)]),
    ]
    return np.concatenate(rows).astype(np.float32) + np.float32(0.0)  # without -0


def main() -> None:
    weights = samples()
    blocks = {name: ggml.quantize(weights, name) for name in ggml.CODES}
    np.savez_compressed(HERE / "quants.npz", weights=weights, **blocks)


if __name__ == "__main__":
    main()
