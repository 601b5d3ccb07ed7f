"""Texts embedded per second beside llama.cpp, on models of real shapes with random weights.

    python bench/embed.py [--shape minilm] [--type f16] [-t 2] [--tokens 16,64,256] [--rounds 4]

Needs llama-cpp-python beside pyengine (`make test-reference` sets up such a place). Each round goes
through both engines; a ratio is the median over rounds. Both tokenize, too: a word is a token.
"""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
import gguf
import llama_cpp
import numpy as np
from gguf import GGMLQuantizationType as Type

import pyengine

# Architecture, layers, width, hidden width, heads, context.
SHAPES = {
    "minilm": ("bert", 6, 384, 1536, 12, 512),
    "bge-base": ("bert", 12, 768, 3072, 12, 512),
    "nomic": ("nomic-bert", 12, 768, 3072, 12, 2048),
}
N_VOCAB = 30522


def write_model(path: Path, shape: str, kind: Type) -> None:
    """A model of a shape with the words w0, w1, ..."""
    arch, n_layers, width, hidden, n_heads, context = SHAPES[shape]
    writer = gguf.GGUFWriter(path, arch)
    writer.add_block_count(n_layers)
    writer.add_context_length(context)
    writer.add_embedding_length(width)
    writer.add_feed_forward_length(hidden)
    writer.add_head_count(n_heads)
    writer.add_layer_norm_eps(1e-12)
    writer.add_causal_attention(False)
    writer.add_pooling_type(gguf.PoolingType.MEAN)
    writer.add_token_type_count(2)
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]"]
    words = [f"\u2581w{i}" for i in range(N_VOCAB - len(special))]
    writer.add_tokenizer_model("bert")
    writer.add_token_list([*special, *words])
    writer.add_token_types([3] * len(special) + [1] * len(words))
    writer.add_pad_token_id(0)
    writer.add_unk_token_id(1)
    writer.add_bos_token_id(2)
    writer.add_sep_token_id(3)
    rng = np.random.default_rng(7)

    def matrix(name: str, rows: int, columns: int, dtype: Type = kind) -> None:
        values = rng.standard_normal((rows, columns), np.float32) * np.float32(columns**-0.5)
        writer.add_tensor(f"{name}.weight", gguf.quants.quantize(values, dtype), raw_dtype=dtype)

    def vectors(name: str, n: int, *, norm: bool) -> None:
        if norm:
            writer.add_tensor(f"{name}.weight", np.ones(n, np.float32))
        if norm or arch == "bert":
            writer.add_tensor(f"{name}.bias", np.full(n, 0.01, np.float32))

    matrix("token_embd", N_VOCAB, width)
    matrix("token_types", 2, width, Type.F32)
    vectors("token_embd_norm", width, norm=True)
    if arch == "bert":
        matrix("position_embd", context, width, Type.F32)
    for i in range(n_layers):
        at = f"blk.{i}."
        for part in ("attn_q", "attn_k", "attn_v") if arch == "bert" else ():
            matrix(at + part, width, width)
            vectors(at + part, width, norm=False)
        if arch != "bert":
            matrix(at + "attn_qkv", 3 * width, width)
            matrix(at + "ffn_gate", hidden, width)
        for part, rows, columns in (
            ("attn_output", width, width),
            ("ffn_up", hidden, width),
            ("ffn_down", width, hidden),
        ):
            matrix(at + part, rows, columns)
            vectors(at + part, rows, norm=False)
        vectors(at + "attn_output_norm", width, norm=True)
        vectors(at + "layer_output_norm", width, norm=True)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def seconds(clock: Callable[[], float], embed: Callable[[list[str]], Any], texts: Any) -> float:
    started = clock()
    embed(texts)
    return clock() - started


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--shape", type=click.Choice(list(SHAPES)), default="minilm", show_default=True)
@click.option("--type", "kind", default="f16", show_default=True, help="f32, f16, q8_0, q4_0.")
@click.option("-t", "--threads", default=2, show_default=True)
@click.option("--tokens", default="16,64,256", show_default=True, help="Lengths of texts.")
@click.option("--rounds", default=4, show_default=True)
@click.option("-b", "--batch", type=int, help="Ours; default: the engine's own.")
@click.option("--at-once", default=4096, show_default=True, help="Tokens of a measurement.")
@click.option("--cpu", is_flag=True, help="Processor time, where others compute: with -t 1.")
def main(
    shape: str,
    kind: str,
    threads: int,
    tokens: str,
    rounds: int,
    batch: int | None,
    at_once: int,
    cpu: bool,
) -> None:
    """Prints texts and tokens per second of both."""
    context = SHAPES[shape][5]
    clock = time.process_time if cpu else time.perf_counter
    rng = np.random.default_rng(1)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.gguf"
        write_model(path, shape, Type[kind.upper()])
        engine = pyengine.Engine(path, n_threads=threads, n_batch=batch)
        model = llama_cpp.Llama(
            str(path),
            embedding=True,
            n_ctx=context,
            n_batch=context,
            n_ubatch=context,
            n_threads=threads,
            n_threads_batch=threads,
            verbose=False,
        )
        click.echo(f"{shape} {kind}, {threads} threads, {engine.info.isa}")
        click.echo(f"{'tokens':>7} {'texts/s':>10} {'tokens/s':>10} {'llama.cpp':>10} {'times':>6}")
        for length in (int(part) for part in tokens.split(",")):
            n_texts = max(at_once // length, 1)
            ids = rng.integers(0, N_VOCAB - 4, (n_texts, length - 2))
            texts = [" ".join(f"w{i}" for i in row) for row in ids]
            found, expected = engine.embed(texts), np.array(model.embed(texts, normalize=True))
            if np.abs(found - expected).max() > 0.02:
                raise click.ClickException("the engines give different vectors")
            ours, theirs = [], []
            for _ in range(rounds):
                ours.append(seconds(clock, engine.embed, texts))
                theirs.append(seconds(clock, model.embed, texts))
            ratio = statistics.median(b / a for a, b in zip(ours, theirs, strict=True))
            mine, other = statistics.median(ours), statistics.median(theirs)
            click.echo(
                f"{length:>7} {n_texts / mine:>10.1f} {n_texts * length / mine:>10.0f} "
                f"{n_texts * length / other:>10.0f} {ratio:>6.2f}"
            )
        engine.close()
        model.close()


if __name__ == "__main__":
    main()
