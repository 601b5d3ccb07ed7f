"""Makes a GGUF model of a real shape with random weights: speed does not depend on them.

    python bench/make_model.py 1b q4_0 OUT.gguf [--layers N]

The vocabulary is the bundled model's, padded with made-up tokens to the shape's size. As
llama.cpp's quantizer does, 4- and 5-bit files get a Q6_K output head.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click
import gguf
import numpy as np
from gguf import GGMLQuantizationType as Type

import pyengine

# Llama shapes: layers, width, hidden width, heads, KV heads, head width, tied embedding.
SHAPES = {
    "1b": (16, 2048, 8192, 32, 8, 64, True),
    "3b": (28, 3072, 8192, 24, 8, 128, True),
    "8b": (32, 4096, 14336, 32, 8, 128, False),
}
VOCABULARY = 128256

# Where a block's fp16 fields lie and what makes weights of about 0.02: (offset, value).
FIELDS = {
    "Q4_0": [(0, 4.5e-3)], "Q4_1": [(0, 4.5e-3), (2, -3.4e-2)],
    "Q5_0": [(0, 2.2e-3)], "Q5_1": [(0, 2.2e-3), (2, -3.4e-2)], "Q8_0": [(0, 2.7e-4)],
    "Q2_K": [(80, 1e-3), (82, 2e-3)], "Q3_K": [(108, 5e-4)],
    "Q4_K": [(0, 1.5e-4), (2, 1.1e-3)], "Q5_K": [(0, 8e-5), (2, 1.1e-3)],
    "Q6_K": [(208, 3e-5)], "IQ4_NL": [(0, 3e-4)], "IQ4_XS": [(0, 2e-5)],
}  # fmt: skip


def random_tensor(rng: np.random.Generator, kind: Type, rows: int, width: int) -> Any:
    """Rows of random blocks with sane scales."""
    if kind in (Type.F32, Type.F16, Type.BF16):
        values = rng.standard_normal((rows, width), np.float32) * np.float32(0.02)
        return gguf.quants.quantize(values, kind)
    n_weights, n_bytes = gguf.GGML_QUANT_SIZES[kind]
    blocks = rng.integers(0, 256, (rows * (width // n_weights), n_bytes), np.uint8)
    for at, value in FIELDS.get(kind.name, []):
        blocks[:, at : at + 2] = np.frombuffer(np.float16(value).tobytes(), np.uint8)
    if kind == Type.MXFP4:
        blocks[:, 0] = 120
    return blocks.reshape(rows, -1)


def add_vocabulary(writer: gguf.GGUFWriter) -> None:
    """The bundled model's tokenizer fields, the lists padded."""
    reader = gguf.GGUFReader(pyengine.bundled_model())
    for key, field in reader.fields.items():
        if not key.startswith("tokenizer."):
            continue
        value = field.contents()
        if field.types[0] != gguf.GGUFValueType.ARRAY:
            writer.add_key_value(key, value, field.types[0])
            continue
        n_missing = VOCABULARY - len(value)
        if key.endswith(".tokens"):
            value = [*value, *(f"<pad_{i}>" for i in range(n_missing))]
        elif key.endswith(".scores"):
            value = [*value, *[-1e9] * n_missing]
        elif key.endswith(".token_type"):
            value = [*value, *[int(gguf.TokenType.UNUSED)] * n_missing]
        writer.add_array(key, value)


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.argument("shape", type=click.Choice(list(SHAPES)))
@click.argument("kind", type=click.Choice(["f32", "f16", "bf16", *map(str.lower, FIELDS), "mxfp4"]))
@click.argument("out", type=click.Path(path_type=Path))
@click.option("--layers", type=int, help="Fewer than the shape has.")
def main(shape: str, kind: str, out: Path, layers: int | None) -> None:
    """Writes OUT."""
    n_layers, width, hidden, n_heads, n_kv, head_width, tied = SHAPES[shape]
    n_layers = min(n_layers, layers or n_layers)
    dtype = Type[kind.upper()]
    head = dtype if dtype in (Type.F32, Type.F16, Type.BF16, Type.Q8_0) else Type.Q6_K
    rng = np.random.default_rng(7)
    made: dict[tuple[int, int, Type], Any] = {}
    writer = gguf.GGUFWriter(out, "llama")
    writer.add_block_count(n_layers)
    writer.add_context_length(131072)
    writer.add_embedding_length(width)
    writer.add_feed_forward_length(hidden)
    writer.add_head_count(n_heads)
    writer.add_head_count_kv(n_kv)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_freq_base(500000.0)
    writer.add_rope_dimension_count(head_width)
    writer.add_vocab_size(VOCABULARY)
    add_vocabulary(writer)

    def matrix(name: str, rows: int, columns: int, of: Type = dtype) -> None:
        key = (rows, columns, of)
        if key not in made:  # layers share their random bytes, as arrays; not in the file
            made[key] = random_tensor(rng, of, rows, columns)
        quantized = of not in (Type.F32, Type.F16)
        writer.add_tensor(name, made[key], raw_dtype=of if quantized else None)

    matrix("token_embd.weight", VOCABULARY, width, head if tied else dtype)
    if not tied:
        matrix("output.weight", VOCABULARY, width, head)
    writer.add_tensor("output_norm.weight", np.ones(width, np.float32))
    for i in range(n_layers):
        block = f"blk.{i}."
        for name in ("attn_norm", "ffn_norm"):
            writer.add_tensor(f"{block}{name}.weight", np.ones(width, np.float32))
        matrix(f"{block}attn_q.weight", n_heads * head_width, width)
        matrix(f"{block}attn_k.weight", n_kv * head_width, width)
        matrix(f"{block}attn_v.weight", n_kv * head_width, width)
        matrix(f"{block}attn_output.weight", width, n_heads * head_width)
        matrix(f"{block}ffn_gate.weight", hidden, width)
        matrix(f"{block}ffn_up.weight", hidden, width)
        matrix(f"{block}ffn_down.weight", width, hidden)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


if __name__ == "__main__":
    main()
