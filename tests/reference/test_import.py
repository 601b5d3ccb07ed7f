"""Quantized checkpoints against the libraries that write and read them."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from gguf import GGUFReader
from gguf.quants import dequantize
from safetensors.torch import save_file
from transformers.integrations.finegrained_fp8 import Fp8Dequantize

import converters

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent / "python"))

from quantized import CONFIG, SHAPES, WIDTH, groups_of, paired  # noqa: E402

Tensors = dict[str, torch.Tensor]


class Layers:
    """A small Llama whose matrices a library quantizes; `expected` is what it makes of them."""

    def __init__(self, config: dict[str, Any], seed: int = 3) -> None:
        torch.manual_seed(seed)
        self.config = {**CONFIG, "num_hidden_layers": 1, "quantization_config": config}
        vocab, at = CONFIG["vocab_size"], "model.layers.0."
        self.stored: Tensors = {
            "model.embed_tokens.weight": torch.randn(vocab, WIDTH).bfloat16(),
            "lm_head.weight": torch.randn(vocab, WIDTH).bfloat16(),
            "model.norm.weight": torch.ones(WIDTH),
            f"{at}input_layernorm.weight": torch.ones(WIDTH),
            f"{at}post_attention_layernorm.weight": torch.ones(WIDTH),
        }
        self.expected: dict[str, np.ndarray[Any, Any]] = {}

    def add(self, module: str, stored: Tensors, expected: torch.Tensor) -> None:
        self.stored |= {
            f"model.layers.0.{module}.{name}": part.contiguous() for name, part in stored.items()
        }
        target, values = SHAPES[module][0], expected.float().numpy()
        self.expected[target] = paired(values) if target in ("attn_q", "attn_k") else values

    def check(self, folder: Path, kind: str) -> None:
        """Converts and compares bit for bit."""
        (folder / "config.json").write_text(json.dumps(self.config))
        tokenizer = HERE.parent / "golden" / "llama-grouped-tied" / "tokenizer.json"
        shutil.copy(tokenizer, folder)
        save_file(self.stored, folder / "model.safetensors")
        converters.convert(folder, folder / "out.gguf")
        found = {tensor.name: tensor for tensor in GGUFReader(folder / "out.gguf").tensors}
        assert len(self.expected) == len(SHAPES)
        for target, values in self.expected.items():
            tensor = found[f"blk.0.{target}.weight"]
            assert tensor.tensor_type.name == kind
            assert np.array_equal(dequantize(tensor.data, tensor.tensor_type), values), target
        (folder / "model.safetensors").unlink()
        torch.save(self.stored, folder / "pytorch_model.bin")
        converters.convert(folder, folder / "pickled.gguf")
        assert (folder / "pickled.gguf").read_bytes() == (folder / "out.gguf").read_bytes()


@pytest.mark.parametrize(
    ("bits", "size", "symmetric", "kind"),
    [(4, 128, True, "Q4_0"), (4, 32, False, "Q5_0"), (8, None, True, "Q8_0")],
)
def test_packed_integers_of_compressed_tensors(
    tmp_path: Path, bits: int, size: int | None, symmetric: bool, kind: str
) -> None:
    base = pytest.importorskip("compressed_tensors.compressors.pack_quantized.base")
    quantization = pytest.importorskip("compressed_tensors.quantization")
    stated = {"num_bits": bits, "symmetric": symmetric, "group_size": size, "type": "int"}
    stated["strategy"] = "group" if size else "channel"
    scheme = quantization.QuantizationScheme(
        targets=["Linear"], weights=quantization.QuantizationArgs(**stated)
    )
    layers = Layers(groups_of("pack-quantized", **stated))
    for module, (_, rows, columns) in SHAPES.items():
        n_groups = columns // size if size else 1
        scale = (torch.rand(rows, n_groups) / 100 + 0.01).half().float()
        state = {"weight": torch.randn(rows, columns) / 20, "weight_scale": scale}
        if not symmetric:
            zeros = torch.randint(-4, 4, (rows, n_groups), dtype=torch.int8)
            state["weight_zero_point"] = zeros
        packed = base.PackedQuantizationCompressor.compress(state, scheme)
        whole = base.PackedQuantizationCompressor.decompress(dict(packed), scheme)["weight"]
        layers.add(module, packed, whole)
    layers.check(tmp_path, kind)


@pytest.mark.parametrize("kind", ["nf4", "fp4"])
@pytest.mark.parametrize("nested", [False, True])
@pytest.mark.parametrize(("dtype", "written"), [("bfloat16", "BF16"), ("float16", "F16")])
def test_four_bits_of_bitsandbytes(
    tmp_path: Path, kind: str, nested: bool, dtype: str, written: str
) -> None:
    functional = pytest.importorskip("bitsandbytes.functional")
    layers = Layers({"quant_method": "bitsandbytes", "load_in_4bit": True})
    for module, (_, rows, columns) in SHAPES.items():
        weights = (torch.randn(rows, columns) / 20).to(getattr(torch, dtype))
        codes, state = functional.quantize_4bit(
            weights, blocksize=64, quant_type=kind, compress_statistics=nested
        )
        stored = {f"weight.{name}": part for name, part in state.as_dict(packed=True).items()}
        layers.add(module, {"weight": codes, **stored}, functional.dequantize_4bit(codes, state))
    layers.check(tmp_path, written)


def test_eight_bits_of_bitsandbytes(tmp_path: Path) -> None:
    functional = pytest.importorskip("bitsandbytes.functional")
    layers = Layers({"quant_method": "bitsandbytes", "load_in_8bit": True})
    for module, (_, rows, columns) in SHAPES.items():
        # So that a 127th of the largest weight is a number of 16 bits.
        weights = torch.randint(-126, 127, (rows, columns)) / 128
        weights[:, 3] = 127 / 128
        codes, largest, _ = functional.int8_vectorwise_quant(weights.half())
        stored = {"weight": codes, "SCB": largest}
        layers.add(module, stored, functional.int8_vectorwise_dequant(codes, largest))
    layers.check(tmp_path, "Q8_0")


@pytest.mark.parametrize(("powers", "dtype"), [(False, "F32"), (False, "BF16"), (True, "BF16")])
def test_8_bit_floats_of_transformers(tmp_path: Path, powers: bool, dtype: str) -> None:
    layers = Layers({"quant_method": "fp8", "weight_block_size": [32, 64]})
    layers.config["torch_dtype"] = {"F32": "float32", "BF16": "bfloat16"}[dtype]
    theirs = Fp8Dequantize(None)
    for module, (_, rows, columns) in SHAPES.items():
        weights = torch.randn(rows, columns).to(torch.float8_e4m3fn)
        scales = torch.rand(rows // 32, columns // 64) / 20 + 0.01
        if powers:
            scales = scales.log2().floor().exp2()
        whole = theirs._dequantize_one(
            weights, scales, torch.float32 if dtype == "F32" else torch.bfloat16
        )
        layers.add(module, {"weight": weights, "weight_scale_inv": scales}, whole)
    layers.check(tmp_path, dtype)
