"""Quantized checkpoints that are broken, or of another kind: what is refused, and how."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import packers
import pytest
from packers import Array
from quantized import Q_PROJ, Source
from test_import import EXACT, NEAR

import converters
from pyengine import ConversionError


def spoil(
    name: str, dtype: str | None = None, array: Array | None = None
) -> Callable[[Source], None]:
    def change(source: Source) -> None:
        if dtype is None or array is None:
            del source.stored[Q_PROJ + name]
        else:
            source.stored[Q_PROJ + name] = (dtype, array)

    return change


def edit(name: str, index: Any, value: float) -> Callable[[Source], None]:
    def change(source: Source) -> None:
        source.stored[Q_PROJ + name][1][index] = value

    return change


def configure(**values: object) -> Callable[[Source], None]:
    return lambda source: source.config["quantization_config"].update(values)


I32, HALF = np.int32, np.float16
BAD: dict[str, tuple[str, Callable[[Source], None], str]] = {
    "short words": (
        "gptq",
        spoil("qweight", "I32", np.zeros((15, 128), I32)),
        r"q_proj\.g_idx': expected shape \[120\], found \[128\]",
    ),
    "words of another type": (
        "gptq",
        spoil("qweight", "F16", np.zeros((16, 128), HALF)),
        r"q_proj\.qweight': expected dtype I32, found F16",
    ),
    "words in a row": (
        "gptq",
        spoil("qweight", "I32", np.zeros(2048, I32)),
        r"q_proj\.qweight': expected a matrix that is not empty, found shape \[2048\]",
    ),
    "another matrix": (
        "gptq",
        lambda source: source.stored.update(
            {Q_PROJ + n: p for n, p in packers.gptq(np.random.default_rng(1), 64, 128)[0].items()}
        ),
        r"q_proj\.weight': expected shape \[128, 128\] as .*, found \[64, 128\]",
    ),
    "no scales": (
        "gptq",
        spoil("scales"),
        r"q_proj\.scales': expected it, since .*, found no such",
    ),
    "few scales": (
        "gptq",
        spoil("scales", "F16", np.ones((1, 64), HALF)),
        r"q_proj\.scales': expected shape \[1, 128\], found \[1, 64\]",
    ),
    "no zero points": ("gptq", spoil("qzeros"), r"q_proj\.qzeros': expected it"),
    "a group too many": (
        "gptq",
        edit("g_idx", 5, 1),
        r"q_proj\.weight': expected groups of columns from 0 to 0, found 1",
    ),
    "a group below": ("gptq", edit("g_idx", 5, -3), r"groups of columns from 0 to 0, found -3"),
    "NaN": ("gptq", edit("scales", (0, 9), np.nan), r"q_proj\.weight': .*found nan at \[9, 0\]"),
    "infinity": (
        "awq",
        edit("scales", (0, 9), np.inf),
        r"q_proj\.weight': .*found inf at \[9, 0\]",
    ),
    "zeros": ("gptq", edit("scales", slice(None), 0), "expected scales that are not all zero"),
    "other bits": ("gptq", configure(bits=5), "expected codes of 2, 3, 4, 8 bits, found 5"),
    "no bits": ("gptq", configure(bits=None), "bits: expected a positive integer, found None"),
    "bits that are not there": ("gptq", configure(bits=8), r"expected shape \[.*\], found"),
    "another layout": (
        "gptq",
        configure(checkpoint_format="marlin"),
        "checkpoint_format: expected 'gptq' or 'gptq_v2', found 'marlin'",
    ),
    "a method": (
        "gptq",
        configure(quant_method="hqq"),
        r"quant_method: expected weights that are not quantized, or one of awq, .*, found 'hqq'",
    ),
    "torchao": (
        "gptq",
        configure(quant_method="torchao"),
        "found 'torchao'; its tensors can be read by torchao alone: load the model",
    ),
    "no method": ("gptq", configure(quant_method=None), "quant_method: .*found None"),
    "awq's other layout": (
        "awq",
        configure(version="gemv"),
        "version: expected 'gemm', found 'gemv'",
    ),
    "awq's bits": ("awq", configure(bits=8), "bits: expected 4, found 8"),
    "awq's group": (
        "awq",
        configure(group_size=48),
        "expected whole groups of 48 inputs, found 128",
    ),
    "both": (
        "awq",
        spoil("weight", "F16", np.zeros((128, 128), HALF)),
        r"q_proj\.weight': expected it quantized or plain, found both",
    ),
    "compressed shape": (
        "compressed",
        edit("weight_shape", 1, 256),
        r"weight_packed': expected words of 2, 4 or 8 bits for a matrix of \[128, 256\]",
    ),
    "compressed scales": (
        "compressed",
        spoil("weight_scale", "BF16", np.ones((128, 3), np.uint16)),
        "expected a number of groups that divides 128 columns, found 3",
    ),
    "compressed format": (
        "compressed",
        configure(format="nvfp4-pack-quantized"),
        "format: expected one of pack-quantized, .* found 'nvfp4-pack-quantized'",
    ),
    "sparsity": (
        "compressed",
        configure(sparsity_config={"format": "sparse-24-bitmask"}),
        "sparsity_config: expected none, found",
    ),
    "rotations": (
        "compressed",
        configure(transform_config={"config_groups": {"u": {}}}),
        "transform_config: expected none, found",
    ),
    "fp8 NaN": ("fp8", edit("weight", (3, 4), 127), r"q_proj\.weight': expected finite weights"),
    "fp8 scales": (
        "fp8",
        spoil("weight_scale_inv", "F32", np.ones((2, 1), np.float32)),
        r"weight_scale_inv': expected shape \[1, 1\], found \[2, 1\]",
    ),
    "fp8 no scales": ("fp8", spoil("weight_scale_inv"), r"weight_scale_inv': expected it"),
    "fp8 NaN scale": ("fp8", edit("weight_scale_inv", (0, 0), np.nan), r"found nan at \[0, 0\]"),
    "fp8 block": ("fp8", configure(weight_block_size=[128]), "weight_block_size: expected two"),
    "nf4 bytes": (
        "nf4",
        spoil("weight", "U8", np.zeros((100, 1), np.uint8)),
        r"q_proj\.weight': expected shape \[8192, 1\], found \[100, 1\]",
    ),
    "nf4 state": (
        "nf4",
        spoil("weight.quant_state.bitsandbytes__nf4", "U8", np.frombuffer(b"{", np.uint8)),
        "quant_state.bitsandbytes__nf4: expected JSON",
    ),
    "nf4 scale": (
        "nf4",
        edit("weight.nested_absmax", 0, np.inf),
        r"weight\.nested_absmax': expected finite scales, found inf",
    ),
    "int8 layout": (
        "LLM.int8",
        spoil("weight_format", "U8", np.array(1, np.uint8)),
        "weight_format': expected 0, rows as they are, found 1",
    ),
    "int8 scales": (
        "LLM.int8",
        spoil("SCB", "F32", np.ones(7, np.float32)),
        r"SCB': expected shape \[128\], found \[7\]",
    ),
}


@pytest.mark.parametrize("name", BAD)
def test_what_is_broken_is_refused_by_name(tmp_path: Path, name: str) -> None:
    base, change, message = BAD[name]
    config, packer = (EXACT.get(base) or NEAR[base])[:2]
    source = Source(json.loads(json.dumps(config)), packer)
    change(source)
    out = tmp_path / "out.gguf"
    with pytest.raises(ConversionError, match=message):
        converters.convert(source.save(tmp_path / "source"), out)
    assert list(tmp_path.glob("out*")) == []
