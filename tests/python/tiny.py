"""Tiny models for the tests: random weights, or a script that is always recited.

A model is built as two plain dictionaries, metadata and tensors, which a test may spoil before
it saves them. Everything is written by gguf-py and encoded by gguf-py's quantizer, so nothing
here can repeat a mistake of pyengine's own.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import gguf
import numpy as np
from gguf import GGMLQuantizationType, GGUFValueType

Array = np.ndarray[Any, Any]

START, END = "<|start|>", "<|end|>"
_NORMAL, _UNKNOWN, _CONTROL, _USER_DEFINED, _, _BYTE = range(1, 7)
_MERGES = (
    "t h", "th e", "Ġ the", "i n", "a n", "Ġ a", "Ġ w", "o u", "Ġ s", "e r", "Ġ t", "Ġt o",
    "an d", "Ġ and", "Ġw a", "Ġwa s", "r e", "Ġ b", "h e", "Ã ©", "â Ĥ",
)  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Shape:
    """What the random model is like; the defaults are grouped-query attention, untied, F32.

    Attributes:
        rope_linear: Factor of linear scaling, or None.
        rope_factors: Give every rotation frequency a divisor of its own, as llama3 scaling does.
        bias: Biases on every projection of attention and MLP.
        dtype: GGUF type of all matrices.
        vocabulary: "bpe" (byte-level, GPT-2) or "spm" (SentencePiece with byte fallback).
    """

    layers: int = 2
    width: int = 64
    ffn: int = 96
    heads: int = 4
    kv_heads: int = 2
    head_width: int = 16
    context: int = 256
    rope_base: float = 10000.0
    rope_linear: float | None = None
    rope_factors: bool = False
    tied: bool = False
    bias: bool = False
    dtype: str = "F32"
    vocabulary: str = "bpe"
    seed: int = 1


@dataclass
class Model:
    """A GGUF file before it is written.

    Attributes:
        metadata: By key, general.architecture included.
        tensors: Values as numpy has them (rows first), or bytes where the type is given.
        types: GGUF types of tensors whose values are encoded bytes already.
    """

    metadata: dict[str, Any]
    tensors: dict[str, Array]
    types: dict[str, GGMLQuantizationType] = field(default_factory=dict)

    def save(self, path: Path, *, part_tensors: int = 0) -> Path:
        """Writes the file and gives its path; the first part's when it is split."""
        writer = gguf.GGUFWriter(
            path, self.metadata["general.architecture"], split_max_tensors=part_tensors
        )
        for key, value in self.metadata.items():
            if key != "general.architecture":
                kind = _value_type(value)
                sub = _value_type(value[0]) if kind is GGUFValueType.ARRAY else None
                writer.add_key_value(key, value, kind, sub)
        for name, data in self.tensors.items():
            writer.add_tensor(name, data, raw_dtype=self.types.get(name))
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
        if not part_tensors:
            return path
        return min(path.parent.glob(f"{path.stem}-00001-of-*.gguf"))


def random_model(shape: Shape) -> Model:
    """A model of this shape whose every weight matters and whose logits spread by about 2."""
    vocabulary = bpe_vocabulary() if shape.vocabulary == "bpe" else spm_vocabulary()
    n_vocab = len(vocabulary["tokenizer.ggml.tokens"])
    model = Model(_hyperparameters(shape, n_vocab) | vocabulary, {})
    rng = np.random.default_rng(shape.seed)

    def matrix(name: str, rows: int, columns: int, gain: float = 1.0) -> None:
        std = gain / np.sqrt(columns)
        if shape.dtype == "Q6_K":
            _set(model, name, _random_q6_k(rng, rows, columns, std), shape.dtype)
            return
        _set(model, name, encode(rng.normal(0, std, (rows, columns)), shape.dtype), shape.dtype)

    def vector(name: str, n: int, mean: float, std: float) -> None:
        model.tensors[name] = rng.normal(mean, std, n).astype(np.float32)

    q_width, kv_width = shape.heads * shape.head_width, shape.kv_heads * shape.head_width
    matrix("token_embd.weight", n_vocab, shape.width, 2.0 if shape.tied else np.sqrt(shape.width))
    vector("output_norm.weight", shape.width, 1.0, 0.2)
    if not shape.tied:
        matrix("output.weight", n_vocab, shape.width, 2.0)
    if shape.rope_factors:
        factors = np.linspace(1.0, 8.0, shape.head_width // 2, dtype=np.float32)
        model.tensors["rope_freqs.weight"] = factors
    for layer in range(shape.layers):
        at = f"blk.{layer}."
        vector(at + "attn_norm.weight", shape.width, 1.0, 0.2)
        vector(at + "ffn_norm.weight", shape.width, 1.0, 0.2)
        for name, rows, columns, gain in (
            ("attn_q", q_width, shape.width, 1.5),
            ("attn_k", kv_width, shape.width, 1.5),
            ("attn_v", kv_width, shape.width, 1.0),
            ("attn_output", shape.width, q_width, 1.0),
            ("ffn_gate", shape.ffn, shape.width, 1.0),
            ("ffn_up", shape.ffn, shape.width, 1.0),
            ("ffn_down", shape.width, shape.ffn, 1.5),
        ):
            matrix(f"{at}{name}.weight", rows, columns, gain)
            if shape.bias:
                vector(f"{at}{name}.bias", rows, 0.0, 0.3)
    return model


def chain(pieces: Sequence[bytes], *, context: int = 256) -> Model:
    """A model that recites a script, whatever the sampling options.

    Token 0 begins, token 1 ends, and token ``2 + i`` is ``pieces[i]``. After token 0 comes
    token 2; after any piece the next one; after the last one token 1. Embeddings are one-hot
    and the layer is zero, so each logit is decided by the token before alone.
    """
    script = ["".join(_CHARS[byte] for byte in piece) for piece in pieces]
    # A byte-level BPE needs a merge, and gguf-py writes no empty list.
    tokens = [START, END, *script, "a", "b", "ab"]
    n_vocab, n_script = len(tokens), len(script)
    types = [_CONTROL] * 2 + [_NORMAL] * (n_vocab - 2)
    model = random_model(
        Shape(layers=1, width=n_vocab, ffn=2, heads=1, kv_heads=1, head_width=2, context=context)
    )
    model.metadata |= _vocabulary("gpt2", tokens, types, 0, 1)
    model.metadata |= {"tokenizer.ggml.pre": "gpt-2", "tokenizer.ggml.merges": ["a b"]}
    model.metadata["llama.vocab_size"] = n_vocab
    for name, data in model.tensors.items():
        model.tensors[name] = np.ones_like(data) if "norm" in name else np.zeros_like(data)
    model.tensors["token_embd.weight"] = np.eye(n_vocab, dtype=np.float32)
    output = np.zeros((n_vocab, n_vocab), np.float32)
    for token in range(n_vocab):
        follower = 2 if token == 0 and script else token + 1 if 2 <= token < n_script + 1 else 1
        output[follower, token] = 30 / np.sqrt(n_vocab)
    model.tensors["output.weight"] = output
    return model


def encode(values: Array, dtype: str) -> Array:
    """A matrix in a GGUF type, by gguf-py."""
    values = np.ascontiguousarray(values, np.float32)
    if dtype == "F32":
        return values
    if dtype == "F16":
        return values.astype(np.float16)
    return gguf.quants.quantize(values, GGMLQuantizationType[dtype])


# ---- vocabularies ----


def bpe_vocabulary() -> dict[str, Any]:
    """Byte-level BPE: a token for every byte, a few merges, a start and an end token.

    The euro sign is two tokens, its first two bytes and its last one.
    """
    merged = [merge.replace(" ", "") for merge in _MERGES]
    tokens = [*_CHARS, *merged, START, END, "<|plain|>"]
    n = len(tokens)
    types = [_NORMAL] * (n - 3) + [_CONTROL, _CONTROL, _USER_DEFINED]
    return _vocabulary("gpt2", tokens, types, n - 3, n - 2) | {
        "tokenizer.ggml.pre": "gpt-2",
        "tokenizer.ggml.merges": list(_MERGES),
    }


def spm_vocabulary() -> dict[str, Any]:
    """SentencePiece BPE with byte fallback."""
    words = ["\u2581t", "he", "in", "\u2581the", "\u2581a", "nd", "\u2581and", "er"]
    pieces = [*words, "\u2581", *map(chr, range(ord("a"), ord("z") + 1))]
    tokens = ["<unk>", "<s>", "</s>", *(f"<0x{b:02X}>" for b in range(256)), *pieces]
    types = [_UNKNOWN, _CONTROL, _CONTROL, *[_BYTE] * 256, *[_NORMAL] * len(pieces)]
    scores = [0.0] * 259 + [-float(i) for i in range(len(pieces))]
    return _vocabulary("llama", tokens, types, 1, 2) | {
        "tokenizer.ggml.scores": scores,
        "tokenizer.ggml.unknown_token_id": 0,
    }


def _vocabulary(
    kind: str, tokens: list[str], types: list[int], begin: int, end: int
) -> dict[str, Any]:
    return {
        "tokenizer.ggml.model": kind,
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.token_type": types,
        "tokenizer.ggml.bos_token_id": begin,
        "tokenizer.ggml.eos_token_id": end,
        "tokenizer.ggml.add_bos_token": True,
    }


def _byte_chars() -> list[str]:
    """GPT-2's printable stand-in of every byte, by byte."""
    printable = {*range(33, 127), *range(161, 173), *range(174, 256)}
    others = (chr(code) for code in range(256, 512))
    return [chr(byte) if byte in printable else next(others) for byte in range(256)]


_CHARS = _byte_chars()


# ---- details ----


def _hyperparameters(shape: Shape, n_vocab: int) -> dict[str, Any]:
    metadata = {
        "general.architecture": "llama",
        "llama.block_count": shape.layers,
        "llama.context_length": shape.context,
        "llama.embedding_length": shape.width,
        "llama.feed_forward_length": shape.ffn,
        "llama.attention.head_count": shape.heads,
        "llama.attention.head_count_kv": shape.kv_heads,
        "llama.attention.key_length": shape.head_width,
        "llama.attention.value_length": shape.head_width,
        "llama.attention.layer_norm_rms_epsilon": 1e-5,
        "llama.rope.dimension_count": shape.head_width,
        "llama.rope.freq_base": shape.rope_base,
        "llama.vocab_size": n_vocab,
    }
    if shape.rope_linear is not None:
        metadata["llama.rope.scaling.type"] = "linear"
        metadata["llama.rope.scaling.factor"] = shape.rope_linear
    return metadata


def _set(model: Model, name: str, data: Array, dtype: str) -> None:
    model.tensors[name] = data
    if dtype not in ("F32", "F16"):
        model.types[name] = GGMLQuantizationType[dtype]


def _random_q6_k(rng: np.random.Generator, rows: int, columns: int, std: float) -> Array:
    """Random blocks: gguf-py reads this type but does not write it."""
    n = rows * columns // 256
    quants = rng.integers(0, 256, (n, 192), np.uint8)
    scales = rng.integers(-40, 41, (n, 16)).astype(np.int8).view(np.uint8)
    # Quants spread by 18.5 and scales by 23.4.
    d = np.full((n, 1), std / (18.5 * 23.4), np.float16).view(np.uint8)
    return np.concatenate([quants, scales, d], axis=1).reshape(rows, -1)


def _value_type(value: Any) -> GGUFValueType:
    if isinstance(value, bool):
        return GGUFValueType.BOOL
    if isinstance(value, list):
        return GGUFValueType.ARRAY
    if isinstance(value, str):
        return GGUFValueType.STRING
    if isinstance(value, float):
        return GGUFValueType.FLOAT32
    return GGUFValueType.UINT32 if value >= 0 else GGUFValueType.INT32
