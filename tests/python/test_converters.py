"""Tests of the converters: tiny checkpoints made here, read back with gguf-py."""

from __future__ import annotations

import errno
import hashlib
import io
import json
import math
import os
import shutil
import struct
import sys
import tracemalloc
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import sentencepiece
import tokenizers
from tokenizers import decoders, models, pre_tokenizers, trainers

import converters
import pyengine
from converters import __main__ as cli
from converters import _encode, _gguf_writer
from converters._mapping import ModelMapping, pair_rows
from converters._progress import ProgressBar
from converters._safetensors import SafetensorsFile
from pyengine._errors import ArgumentError, ConversionError, ModelFileError

Json = dict[str, Any]
Tensors = dict[str, np.ndarray[Any, Any]]

LAYERS, WIDTH, FFN, HEADS, KV_HEADS, HEAD_WIDTH, VOCAB = 2, 64, 96, 4, 2, 16, 320
CONFIG: Json = {
    "architectures": ["LlamaForCausalLM"],
    "hidden_size": WIDTH,
    "intermediate_size": FFN,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": HEADS,
    "num_key_value_heads": KV_HEADS,
    "vocab_size": VOCAB,
    "max_position_embeddings": 128,
    "rms_norm_eps": 1e-5,
    "rope_theta": 5000.0,
    "hidden_act": "silu",
    "bos_token_id": 0,
    "eos_token_id": 0,
    "tie_word_embeddings": False,
}
LLAMA3_ROPE: Json = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}
COMPILED = _encode._encode
TEXT = ["the cat sat on the mat", "the dog ate the cat food", "a cat and a dog and a mat"] * 20


def weights(*, tied: bool = False, bias: bool = False) -> Tensors:
    """Random weights of CONFIG's shapes under the checkpoint's names."""
    rng = np.random.default_rng(7)

    def make(*shape: int) -> np.ndarray[Any, Any]:
        return rng.normal(0, 0.1, shape).astype(np.float32)

    q, kv = HEADS * HEAD_WIDTH, KV_HEADS * HEAD_WIDTH
    out = {"model.embed_tokens.weight": make(VOCAB, WIDTH), "model.norm.weight": make(WIDTH)}
    if not tied:
        out["lm_head.weight"] = make(VOCAB, WIDTH)
    for i in range(LAYERS):
        at = f"model.layers.{i}."
        out[at + "input_layernorm.weight"] = make(WIDTH)
        out[at + "post_attention_layernorm.weight"] = make(WIDTH)
        for name, rows, columns in (
            ("self_attn.q_proj", q, WIDTH),
            ("self_attn.k_proj", kv, WIDTH),
            ("self_attn.v_proj", kv, WIDTH),
            ("self_attn.o_proj", WIDTH, q),
            ("mlp.gate_proj", FFN, WIDTH),
            ("mlp.up_proj", FFN, WIDTH),
            ("mlp.down_proj", WIDTH, FFN),
        ):
            out[f"{at}{name}.weight"] = make(rows, columns)
            if bias:
                out[f"{at}{name}.bias"] = make(rows)
    return out


def to_bf16(array: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """Cuts float32 to bf16 bits; exact when the low bits are zero."""
    return (np.ascontiguousarray(array).view(np.uint32) >> 16).astype(np.uint16)


def write_safetensors(path: Path, tensors: Tensors, dtype: str = "F32") -> None:
    encode: dict[str, Callable[[np.ndarray[Any, Any]], np.ndarray[Any, Any]]] = {
        "F32": lambda a: a.astype("<f4"),
        "F16": lambda a: a.astype("<f2"),
        "BF16": to_bf16,
    }
    header, blobs, at = {"__metadata__": {"format": "pt"}}, [], 0
    for name, array in tensors.items():
        blob = encode[dtype](array).tobytes()
        span = [at, at + len(blob)]
        header[name] = {"dtype": dtype, "shape": list(array.shape), "data_offsets": span}  # type: ignore[dict-item]
        blobs.append(blob)
        at += len(blob)
    write_raw(path, json.dumps(header).encode(), b"".join(blobs))


def write_raw(path: Path, header: bytes, data: bytes) -> None:
    path.write_bytes(struct.pack("<Q", len(header)) + header + data)


@pytest.fixture(scope="session")
def bpe() -> Json:
    """A byte-level BPE tokenizer.json with one special and one plain added token."""
    tokenizer = tokenizers.Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=290,
        special_tokens=["<|end|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(TEXT, trainer)
    tokenizer.add_tokens(["plain one"])
    result: Json = json.loads(tokenizer.to_str())
    return result


@pytest.fixture(scope="session")
def spm(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A SentencePiece BPE model with byte, control and user-defined pieces."""
    folder = tmp_path_factory.mktemp("spm")
    (folder / "text").write_text("\n".join(TEXT))
    sentencepiece.SentencePieceTrainer.train(
        input=str(folder / "text"),
        model_prefix=str(folder / "tokenizer"),
        model_type="bpe",
        vocab_size=300,
        byte_fallback=True,
        control_symbols=["[INST]"],
        user_defined_symbols=["<tool>"],
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        minloglevel=2,
    )
    return folder / "tokenizer.model"


@pytest.fixture(autouse=True)
def reference_quantizer(monkeypatch: pytest.MonkeyPatch) -> None:
    """gguf-py's quantizer instead of the compiled one; one test puts that back."""
    monkeypatch.setattr(
        _encode, "_encode", lambda a, t: gguf.quants.quantize(a, gguf.GGMLQuantizationType[t])
    )


class Maker:
    """Makes checkpoint folders in a test's own folder."""

    def __init__(self, root: Path, bpe: Json) -> None:
        self.root, self.bpe = root, bpe

    def __call__(
        self,
        config: Json | None = None,
        tensors: Tensors | None = None,
        *,
        tokenizer: Json | None = None,
        dtype: str = "F32",
        shards: int = 0,
        name: str = "model",
    ) -> Path:
        folder = self.root / name
        folder.mkdir()
        full = {**CONFIG, **(config or {})}
        (folder / "config.json").write_text(json.dumps(full))
        (folder / "tokenizer.json").write_text(json.dumps(tokenizer or self.bpe))
        if tensors is None:
            tensors = weights(
                tied=full["tie_word_embeddings"], bias=full.get("attention_bias", False)
            )
        if not shards:
            write_safetensors(folder / "model.safetensors", tensors, dtype)
            return folder
        names = list(tensors)
        table = {}
        for i in range(shards):
            part = {n: tensors[n] for n in names[i::shards]}
            write_safetensors(folder / f"part-{i}.safetensors", part, dtype)
            table.update(dict.fromkeys(part, f"part-{i}.safetensors"))
        index = {"weight_map": table}
        (folder / "model.safetensors.index.json").write_text(json.dumps(index))
        return folder


@pytest.fixture
def make(tmp_path: Path, bpe: Json) -> Maker:
    return Maker(tmp_path, bpe)


def read(path: Path) -> tuple[dict[str, Any], dict[str, gguf.ReaderTensor]]:
    reader = gguf.GGUFReader(path)
    fields = {key: field.contents() for key, field in reader.fields.items()}
    return fields, {tensor.name: tensor for tensor in reader.tensors}


def rotated(array: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """Row 2i + j of each head out of row i + j * half, spelled out index by index."""
    out = np.empty_like(array)
    half = HEAD_WIDTH // 2
    for row in range(array.shape[0]):
        head, inside = divmod(row, HEAD_WIDTH)
        out[row] = array[head * HEAD_WIDTH + (inside % 2) * half + inside // 2]
    return out


NAMES = {
    "model.embed_tokens": "token_embd",
    "model.norm": "output_norm",
    "lm_head": "output",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}


def expected_tensors(source: Tensors) -> Tensors:
    out = {}
    for name, array in source.items():
        stem, _, suffix = name.rpartition(".")
        prefix = ""
        if stem.startswith("model.layers."):
            layer, _, stem = stem.removeprefix("model.layers.").partition(".")
            prefix = f"blk.{layer}."
        if stem in ("self_attn.q_proj", "self_attn.k_proj"):
            array = rotated(array)
        out[f"{prefix}{NAMES[stem]}.{suffix}"] = array
    return out


def check_bytes(path: Path, source: Tensors, dtype: str, pure: bool) -> None:
    fields, found = read(path)
    codes = {"f32": 0, "f16": 1, "q4_0": 2, "q4_1": 3, "q8_0": 7, "bf16": 32}
    assert fields["general.file_type"] == codes[dtype]
    expected = expected_tensors(source)
    assert found.keys() == expected.keys()
    for name, array in expected.items():
        kind = "F32" if array.ndim == 1 else dtype.upper()
        if kind in ("Q4_0", "Q4_1") and not pure and name in ("token_embd.weight", "output.weight"):
            kind = "Q8_0"
        tensor = found[name]
        assert tensor.tensor_type.name == kind, name
        assert tuple(reversed(tensor.shape.tolist())) == array.shape
        wanted = gguf.quants.quantize(array, gguf.GGMLQuantizationType[kind])
        assert tensor.data.tobytes() == wanted.tobytes(), name


@pytest.mark.parametrize("dtype", ["f32", "f16", "bf16", "q8_0", "q4_0", "q4_1"])
@pytest.mark.parametrize(("tied", "pure"), [(False, False), (True, True)])
def test_bytes_equal_gguf_py(make: Maker, dtype: str, tied: bool, pure: bool) -> None:
    folder = make({"tie_word_embeddings": tied})
    out = folder.parent / "out.gguf"
    summary = converters.convert(folder, out, dtype=dtype, pure=pure)
    check_bytes(out, weights(tied=tied), dtype, pure)
    assert summary.size == out.stat().st_size
    assert summary.weights == sum(a.size for a in weights(tied=tied).values())
    # The new file has the mode any new file has, not that of a private temporary one.
    (folder / "probe").touch()
    assert out.stat().st_mode == (folder / "probe").stat().st_mode


@pytest.mark.parametrize("dtype", ["q8_0", "q4_0", "q4_1"])
def test_compiled_quantizer_equals_gguf_py(
    make: Maker, monkeypatch: pytest.MonkeyPatch, dtype: str
) -> None:
    monkeypatch.setattr(_encode, "_encode", COMPILED)
    pyengine = pytest.importorskip("pyengine", reason="the compiled core is not built")
    if not hasattr(pyengine, "quantize"):
        pytest.skip("this build of pyengine has no quantize")
    folder = make()
    out = folder.parent / "out.gguf"
    converters.convert(folder, out, dtype=dtype)
    check_bytes(out, weights(), dtype, False)


def test_bf16_rounds_ties_to_even() -> None:
    bits = np.array([0x3F808000, 0x3F818000, 0x3F808001, 0xBF807FFF, 0x00008000], np.uint32)
    array = bits.view(np.float32)
    found = _encode.encode(array, _encode.BF16, "x")
    assert found.tolist() == [0x3F80, 0x3F82, 0x3F81, 0xBF80, 0x0000]
    wanted = gguf.quants.quantize(array, gguf.GGMLQuantizationType.BF16)
    assert found.tobytes() == wanted.tobytes()


def test_pieces_do_not_show(make: Maker, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever the piece size, the bytes are the same; also the file is deterministic."""
    folder = make()
    converters.convert(folder, folder.parent / "a.gguf", dtype="q4_0")
    monkeypatch.setattr("converters._pieces._PIECE_BYTES", 4 * WIDTH * 20)
    converters.convert(folder, folder.parent / "b.gguf", dtype="q4_0")
    assert (folder.parent / "a.gguf").read_bytes() == (folder.parent / "b.gguf").read_bytes()


def test_biases_are_permuted_too(make: Maker) -> None:
    folder = make({"attention_bias": True, "mlp_bias": True})
    out = folder.parent / "out.gguf"
    converters.convert(folder, out, dtype="f16")
    check_bytes(out, weights(bias=True), "f16", False)


@pytest.mark.parametrize("dtype", ["F16", "BF16"])
def test_shards_and_short_floats(make: Maker, dtype: str) -> None:
    folder = make(dtype=dtype, shards=3)
    out = folder.parent / "out.gguf"
    converters.convert(folder, out, dtype="f32")
    stored = {
        name: a.astype(np.float16).astype(np.float32)
        if dtype == "F16"
        else (to_bf16(a).astype(np.uint32) << 16).view(np.float32)
        for name, a in weights().items()
    }
    check_bytes(out, stored, "f32", False)


def test_metadata(make: Maker) -> None:
    folder = make({"_name_or_path": "/home/somebody/Tiny Model/", "head_dim": HEAD_WIDTH})
    out = folder.parent / "out.gguf"
    converters.convert(folder, out, dtype="q4_0")
    fields, _ = read(out)
    wanted = {
        "general.architecture": "llama",
        "general.name": "Tiny Model",
        "general.file_type": 2,
        "general.quantization_version": 2,
        "llama.block_count": LAYERS,
        "llama.context_length": 128,
        "llama.embedding_length": WIDTH,
        "llama.feed_forward_length": FFN,
        "llama.attention.head_count": HEADS,
        "llama.attention.head_count_kv": KV_HEADS,
        "llama.attention.layer_norm_rms_epsilon": np.float32(1e-5),
        "llama.attention.key_length": HEAD_WIDTH,
        "llama.attention.value_length": HEAD_WIDTH,
        "llama.rope.dimension_count": HEAD_WIDTH,
        "llama.rope.freq_base": 5000.0,
        "llama.vocab_size": VOCAB,
    }
    assert {key: fields.get(key) for key in wanted} == wanted
    assert "llama.rope.scaling.type" not in fields


def test_linear_rope_in_both_spellings() -> None:
    for config in (
        {"rope_scaling": {"type": "linear", "factor": 4}, "rope_theta": 7.0},
        {"rope_parameters": {"rope_type": "linear", "factor": 4, "rope_theta": 7.0}},
    ):
        fields = {f.key: f.value for f in ModelMapping({**CONFIG, **config}).fields()}
        assert fields["llama.rope.scaling.type"] == "linear"
        assert fields["llama.rope.scaling.factor"] == 4
        assert fields["llama.rope.freq_base"] == 7.0


def test_llama3_factors(make: Maker) -> None:
    folder = make({"rope_scaling": LLAMA3_ROPE})
    out = folder.parent / "out.gguf"
    converters.convert(folder, out, dtype="q4_0", pure=True)
    fields, tensors = read(out)
    found = tensors["rope_freqs.weight"]
    expected = []
    for i in range(HEAD_WIDTH // 2):
        frequency = 5000.0 ** (-2 * i / HEAD_WIDTH)
        turns = 64 * frequency / (2 * math.pi)  # full turns over the trained context
        blend = min(max((turns - 1.0) / (4.0 - 1.0), 0.0), 1.0)
        expected.append(1 / (blend + (1 - blend) / 8.0))
    assert found.tensor_type.name == "F32"
    assert found.data.tolist() == pytest.approx(expected, rel=1e-6)
    assert {1.0, 8.0} < set(found.data.tolist())
    assert "llama.rope.scaling.type" not in fields


def test_rows_that_are_no_whole_blocks_fall_back(make: Maker) -> None:
    tensors = weights()
    for i in range(LAYERS):
        for name in ("gate_proj", "up_proj"):
            tensors[f"model.layers.{i}.mlp.{name}.weight"] = np.ones((40, WIDTH), np.float32)
        tensors[f"model.layers.{i}.mlp.down_proj.weight"] = np.ones((WIDTH, 40), np.float32)
    folder = make({"intermediate_size": 40}, tensors)
    out = folder.parent / "out.gguf"
    summary = converters.convert(folder, out, dtype="q4_1")
    assert [f.name for f in summary.fallbacks] == ["blk.0.ffn_down.weight", "blk.1.ffn_down.weight"]
    assert read(out)[1]["blk.0.ffn_down.weight"].tensor_type.name == "F16"
    assert "F16 instead of Q4_1: rows of 40 weights are not whole blocks of 32" in summary.table()


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"architectures": [[]]}, r"architectures: .* found \[\[\]\]"),
        ({"architectures": None, "model_type": []}, "model_type: .* found"),
        ({"architectures": ["MambaForCausalLM"]}, "architectures: .* found .'Mamba"),
        ({"architectures": None, "model_type": "gpt2"}, "model_type: .* found 'gpt2'"),
        ({"hidden_size": "64"}, "hidden_size: expected a positive integer, found '64'"),
        ({"hidden_size": True}, "hidden_size: expected a positive integer, found True"),
        ({"num_hidden_layers": 2**40}, "num_hidden_layers: expected a positive integer"),
        ({"num_attention_heads": 7}, "hidden_size: expected a multiple of 7 heads, found 64"),
        ({"num_key_value_heads": 3}, "num_key_value_heads: expected a divisor of 4 .* found 3"),
        ({"head_dim": 15}, "head_dim: expected an even number, found 15"),
        ({"rms_norm_eps": float("nan")}, "rms_norm_eps: expected a positive number, found nan"),
        ({"hidden_act": "gelu"}, "hidden_act: expected 'silu', found 'gelu'"),
        ({"quantization_config": {"quant_method": "gptq"}}, "quantization_config: .*'gptq'"),
        ({"rope_scaling": {"type": "ntk"}}, "rope_scaling: type: expected .* found 'ntk'"),
        ({"rope_scaling": {"type": "yarn"}}, "factor: expected a positive number, found nothing"),
        ({"rope_parameters": {"rope_type": "dynamic"}}, "rope_type: expected .* found 'dynamic'"),
        ({"rope_parameters": {"full_attention": {}}}, "full_attention: expected one setting"),
        ({"rope_scaling": {"type": "linear"}}, "factor: expected a positive number, found nothing"),
        ({"rope_scaling": {**LLAMA3_ROPE, "low_freq_factor": 4}}, "low_freq_factor: expected less"),
        ({"partial_rotary_factor": 0.5}, "partial_rotary_factor: expected 1.0, found 0.5"),
        (
            {"architectures": ["MistralForCausalLM"], "sliding_window": -1},
            "sliding_window: expected a positive integer, found -1",
        ),
    ],
)
def test_bad_config(config: Json, message: str) -> None:
    with pytest.raises(ConversionError, match=message):
        ModelMapping({**CONFIG, **config})


def test_config_defaults_of_each_architecture() -> None:
    plain = {k: v for k, v in CONFIG.items() if k != "num_key_value_heads"}
    assert ModelMapping(plain).shape.kv_heads == HEADS
    bare = {k: v for k, v in plain.items() if k != "architectures"}
    mistral = {**bare, "model_type": "mistral", "num_attention_heads": 16}
    assert ModelMapping(mistral).shape.kv_heads == 8
    key = "llama.attention.sliding_window"
    for config, window in (({}, 4096), ({"sliding_window": None}, None)):
        mapping = ModelMapping({**mistral, "max_position_embeddings": 32768, **config})
        assert {f.key: f.value for f in mapping.fields()}.get(key) == window


def test_missing_unknown_and_misshapen_tensors(make: Maker) -> None:
    base = weights()
    gone = {k: v for k, v in base.items() if "1.mlp.up" not in k}
    odd = {**base, "model.layers.0.extra": np.zeros(3, np.float32)}
    short = {**base, "model.norm.weight": np.zeros(3, np.float32)}
    for i, (tensors, message) in enumerate(
        (
            (gone, "model.layers.1.mlp.up_proj.weight': expected shape .96, 64., found no such"),
            (odd, "tensor 'model.layers.0.extra': expected only tensors of this architecture"),
            (short, r"'model.norm.weight': expected shape \[64\] .* found \[3\]"),
        )
    ):
        with pytest.raises(ConversionError, match=message):
            converters.convert(make(tensors=tensors, name=str(i)), make.root / "o.gguf")
    buffers = {**base, "model.layers.0.self_attn.rotary_emb.inv_freq": np.zeros(8, np.float32)}
    folder = make({"tie_word_embeddings": True}, buffers, name="buffers")
    converters.convert(folder, make.root / "o.gguf")
    assert "output.weight" not in read(make.root / "o.gguf")[1]


@pytest.mark.parametrize(
    ("value", "dtype", "message"),
    [
        (np.nan, "f32", "expected finite weights, found NaN"),
        (np.nan, "q4_0", "expected finite weights, found NaN"),
        (-np.inf, "bf16", "expected finite weights, found infinity"),
        (-7e4, "f16", "for F16, found -70000"),
        (7e4, "q4_0", "for Q4_0, found 70000"),
        (3.4e38, "bf16", "for BF16, found 3.4e.38"),
    ],
)
def test_weights_that_cannot_be_written(
    make: Maker, value: float, dtype: str, message: str
) -> None:
    tensors = weights()
    name = "model.layers.1.self_attn.q_proj.weight"
    tensors[name][3, 5] = value
    folder = make(tensors=tensors)
    with pytest.raises(ConversionError, match=f"{name}.*{message}"):
        converters.convert(folder, folder.parent / "out.gguf", dtype=dtype)
    assert sorted(p.name for p in folder.parent.iterdir()) == ["model"]


def span(begin: int, end: int, shape: object = None, dtype: object = "F32") -> Json:
    return {
        "dtype": dtype,
        "shape": [(end - begin) // 4] if shape is None else shape,
        "data_offsets": [begin, end],
    }


@pytest.mark.parametrize(
    ("header", "message"),
    [
        (b"{", "expected JSON, found an error"),
        (b"[]", "expected a JSON object, found list"),
        (b"\xff\xfe", "expected JSON, found an error"),
        (b"[" * 100_000, "expected JSON, found nesting too deep"),
        ({"a": 3}, "tensor 'a': expected an object, found int"),
        ({"a": span(0, 16, dtype="Q9")}, "tensor 'a': dtype: expected one of .* found 'Q9'"),
        ({"a": span(0, 16, dtype=["F32"])}, "tensor 'a': dtype"),
        ({"a": span(0, 16, [-4])}, "tensor 'a': shape: expected .* found .-4"),
        ({"a": span(0, 16, [True, 4])}, "tensor 'a': shape"),
        ({"a": span(0, 16, [5])}, "expected 20 bytes for F32 .5., found 16"),
        ({"a": span(0, 16, [2**62, 2**62])}, "found 16"),
        ({"a": {"dtype": "F32", "shape": [4]}}, "data_offsets: expected .begin, end. .* None"),
        ({"a": span(16, 0, [4])}, "data_offsets: expected"),
        ({"a": span(0, 12), "b": span(8, 16)}, "'b': .* begin at 12 .*overlap"),
        ({"a": span(0, 8), "b": span(12, 16)}, "'b': .* begin at 8 .*gap"),
        ({"a": span(0, 20)}, "'a': .* within 16, found .0, 20. .*end beyond"),
        ({"a": span(0, 12)}, "data: expected 12 bytes as the header says, found 16"),
        (
            b'{"a":{"dtype":"F32","shape":[4],"data_offsets":[0,16]},'
            b'"a":{"dtype":"F32","shape":[4],"data_offsets":[0,16]}}',
            "'a' appears twice",
        ),
    ],
)
def test_hostile_safetensors(tmp_path: Path, header: Json | bytes, message: str) -> None:
    path = tmp_path / "bad.safetensors"
    raw = header if isinstance(header, bytes) else json.dumps(header).encode()
    write_raw(path, raw, bytes(16))
    with pytest.raises(ConversionError, match=message) as caught:
        SafetensorsFile(path)
    assert str(path) in str(caught.value) and len(str(caught.value)) < 500


@pytest.mark.parametrize("raw", [b"", b"abc", struct.pack("<Q", 9) + b"{}", b"\xff" * 64])
def test_safetensors_header_beyond_the_file(tmp_path: Path, raw: bytes) -> None:
    path = tmp_path / "short.safetensors"
    path.write_bytes(raw)
    with pytest.raises(ConversionError, match="header length"):
        SafetensorsFile(path)


def test_safetensors_that_shrinks_or_has_integers(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    header = {"a": span(0, 16), "b": span(16, 32, [4], "I32")}
    write_raw(path, json.dumps(header).encode(), bytes(32))
    file = SafetensorsFile(path)
    assert file.read_rows("a", 1, 3).tolist() == [0, 0]
    with pytest.raises(ConversionError, match=r"'b': expected dtype .* found I32"):
        file.read_rows("b", 0, 4)
    os.truncate(path, path.stat().st_size - 24)
    with pytest.raises(ConversionError, match=r"'a': expected 16 bytes, found the end .* after 8"):
        file.read_rows("a", 0, 4)
    file.close()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda m: m.update({"model.norm.weight": "../x"}), "expected a file name, found '../x'"),
        (lambda m: m.update({"model.norm.weight": "no"}), "expected the file no, found no such"),
        (lambda m: m.update({"ghost": "part-1.safetensors"}), "expected the tensor 'ghost'"),
        (lambda m: m.pop("model.norm.weight"), "'model.norm.weight': .* found it in no list"),
        (lambda m: m.clear(), "weight_map: expected an object that is not empty"),
    ],
)
def test_bad_index(make: Maker, change: Callable[[Json], None], message: str) -> None:
    folder = make(shards=2)
    path = folder / "model.safetensors.index.json"
    index = json.loads(path.read_text())
    change(index["weight_map"])
    path.write_text(json.dumps(index))
    with pytest.raises(ConversionError, match=message):
        converters.convert(folder, folder.parent / "o.gguf")


def test_incomplete_folders(make: Maker, monkeypatch: pytest.MonkeyPatch) -> None:
    out = make.root / "o.gguf"
    with pytest.raises(ConversionError, match=r"config.json, found no such folder"):
        converters.convert(make.root / "nothing", out)
    folder = make()
    (folder / "tokenizer.json").unlink()
    with pytest.raises(ConversionError, match=r"tokenizer.json or tokenizer.model, found neither"):
        converters.convert(folder, out)
    (folder / "model.safetensors").unlink()
    with pytest.raises(ConversionError, match=r"expected one of model.safetensors, .* found none"):
        converters.convert(folder, out)
    (folder / "pytorch_model.bin").touch()
    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(ConversionError, match=r"pip install pyengine\[torch\]"):
        converters.convert(folder, out)
    (folder / "config.json").write_text("{")
    with pytest.raises(ConversionError, match=r"config.json: expected JSON"):
        converters.convert(folder, out)
    with pytest.raises(ArgumentError, match=r"dtype: expected one of .* found 'q7_0'"):
        converters.convert(folder, out, dtype="q7_0")


def converted_fields(folder: Path) -> dict[str, Any]:
    out = folder.parent / f"{folder.name}.gguf"
    converters.convert(folder, out, dtype="f16")
    fields = read(out)[0]
    return {k.removeprefix("tokenizer.ggml."): v for k, v in fields.items()}


def test_byte_bpe_fields(make: Maker, bpe: Json) -> None:
    folder = make()
    (folder / "tokenizer_config.json").write_text(
        json.dumps(
            {
                "bos_token": "<|end|>",
                "eos_token": {"content": "<|end|>"},
                "add_bos_token": True,
                "chat_template": "{{ x }}",
            }
        )
    )
    fields = converted_fields(folder)
    vocab = bpe["model"]["vocab"]
    assert (fields["model"], fields["pre"]) == ("gpt2", "gpt-2")
    assert "scores" not in fields
    assert len(fields["tokens"]) == VOCAB
    assert all(fields["tokens"][number] == text for text, number in vocab.items())
    plain = next(t["id"] for t in bpe["added_tokens"] if t["content"] == "plain one")
    assert fields["tokens"][plain : plain + 2] == ["plain one", f"[PAD{plain + 1}]"]
    assert fields["token_type"][0] == 3
    assert fields["token_type"][1:plain] == [1] * (plain - 1)
    assert fields["token_type"][plain:] == [4] + [5] * (VOCAB - plain - 1)
    assert fields["merges"] == [" ".join(pair) for pair in bpe["model"]["merges"]]
    assert (fields["bos_token_id"], fields["eos_token_id"]) == (0, 0)
    assert fields["add_bos_token"] is True
    assert fields["tokenizer.chat_template"] == "{{ x }}"


def test_merges_as_strings_and_with_spaces(make: Maker, bpe: Json) -> None:
    strings = json.loads(json.dumps(bpe))
    strings["model"]["merges"] = [" ".join(pair) for pair in bpe["model"]["merges"]]
    first = converted_fields(make(name="pairs"))
    assert converted_fields(make(tokenizer=strings, name="strings"))["merges"] == first["merges"]
    spaced = json.loads(json.dumps(bpe))
    spaced["model"]["merges"].append([" ", "a b"])
    assert converted_fields(make(tokenizer=spaced, name="spaced"))["merges"][-1] == "Ġ aĠb"
    strings["model"]["merges"][5] = "a b c"
    with pytest.raises(ConversionError, match="merge 5: expected two parts, found 'a b c'"):
        converted_fields(make(tokenizer=strings, name="bad"))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t["model"]["vocab"].update(big=VOCAB), "'big': .* vocab_size 320, found 320"),
        (lambda t: t["model"]["vocab"].update(twin=5), "id 5: expected one token, found"),
        (lambda t: t["model"]["vocab"].update(neg=-1), "'neg': expected an id from 0 up"),
        (
            lambda t: t["model"].update(type="Unigram"),
            "expected type 'BPE' or 'WordPiece', found 'Unigram'",
        ),
        (lambda t: t["model"].update(merges={}), "merges: expected a list, found dict"),
        (lambda t: t["model"].update(end_of_word_suffix="</w>"), "end_of_word_suffix: .*</w>"),
        (lambda t: t.update(added_tokens=[{"id": "1"}]), "added_tokens: expected objects"),
        (lambda t: t.update(added_tokens=[{"id": 900, "content": "x"}]), "found 900"),
        (lambda t: t.update(pre_tokenizer=None, decoder=None), "expected byte-level BPE"),
        (
            lambda t: t.update(pre_tokenizer={"type": "Digits", "individual_digits": True}),
            "pre_tokenizer: expected a known one, found .*Digits",
        ),
    ],
)
def test_bad_byte_bpe(make: Maker, bpe: Json, change: Callable[[Json], None], message: str) -> None:
    changed = json.loads(json.dumps(bpe))
    change(changed)
    folder = make(tokenizer=changed)
    with pytest.raises(ConversionError, match=message):
        converted_fields(folder)
    assert not list(folder.parent.glob("*.gguf*"))


def template(*parts: str) -> Json:
    items = [{"Sequence": {"id": "A"}} if p == "A" else {"SpecialToken": {"id": p}} for p in parts]
    return {"type": "TemplateProcessing", "single": items}


@pytest.mark.parametrize(
    ("processor", "wanted"),
    [
        (template("<|end|>", "A"), (True, None)),
        (template("<|end|>", "A", "<|end|>"), (True, True)),
        (template("A"), (None, None)),
        ({"type": "ByteLevel"}, (False, False)),
        (
            {"type": "Sequence", "processors": [{"type": "ByteLevel"}, template("<|end|>", "A")]},
            (True, False),
        ),
    ],
)
def test_what_is_added_around_a_text(
    make: Maker, bpe: Json, processor: Json, wanted: tuple[bool | None, bool | None]
) -> None:
    folder = make(tokenizer={**bpe, "post_processor": processor})
    fields = converted_fields(folder)
    assert (fields.get("add_bos_token"), fields.get("add_eos_token")) == wanted


def test_special_ids_from_other_files(make: Maker) -> None:
    folder = make({"bos_token_id": None, "eos_token_id": [7, 8], "pad_token_id": -1})
    (folder / "generation_config.json").write_text(
        json.dumps({"bos_token_id": 5, "pad_token_id": 9})
    )
    (folder / "chat_template.jinja").write_text("{{ y }}")
    fields = converted_fields(folder)
    assert [fields[f"{k}_token_id"] for k in ("bos", "eos", "padding")] == [5, 7, 9]
    assert fields["tokenizer.chat_template"] == "{{ y }}"
    (folder / "tokenizer_config.json").write_text(
        json.dumps(
            {
                "chat_template": [
                    {"name": "default", "template": "d"},
                    {"name": "tool use", "template": "t"},
                ]
            }
        )
    )
    summary = converters.convert(folder, make.root / "n.gguf", dtype="f16")
    fields = read(make.root / "n.gguf")[0]
    assert fields["tokenizer.chat_template"] == "d"
    assert fields["tokenizer.chat_template.tool_use"] == "t"
    assert fields["tokenizer.chat_templates"] == ["tool_use"]
    assert summary.notes == ("pad token: expected an id below 320, found -1; left out",)


def test_sentencepiece_fields(make: Maker, spm: Path) -> None:
    folder = make({"bos_token_id": 1, "eos_token_id": 2})
    (folder / "tokenizer.json").unlink()
    shutil.copy(spm, folder / "tokenizer.model")
    (folder / "added_tokens.json").write_text(json.dumps({"<extra>": 300}))
    (folder / "tokenizer_config.json").write_text(
        json.dumps(
            {
                "add_bos_token": True,
                "add_eos_token": False,
                "unk_token": "<unk>",
                "added_tokens_decoder": {
                    "0": {"content": "<unk>", "special": True},
                    "301": {"content": "<|im_end|>", "special": False},
                    "302": {"content": "two▁words", "special": False},
                },
            }
        )
    )
    fields = converted_fields(folder)
    processor = sentencepiece.SentencePieceProcessor(model_file=str(spm))
    assert (fields["model"], fields["pre"]) == ("llama", "default")
    for i in range(300):
        assert fields["tokens"][i] == processor.id_to_piece(i)
        assert fields["scores"][i] == pytest.approx(processor.get_score(i))
    kinds = {fields["tokens"][i]: fields["token_type"][i] for i in range(VOCAB)}
    named = ["<unk>", "<s>", "[INST]", "<tool>", "<0x41>", "▁the"]
    assert [kinds[name] for name in named] == [2, 3, 3, 4, 6, 1]
    assert [kinds[n] for n in ("<extra>", "<|im_end|>", "two words", "[PAD303]")] == [4, 3, 4, 5]
    assert [fields["scores"][i] for i in (300, 303)] == [-1000.0, -10000.0]
    ids = [fields[f"{k}_token_id"] for k in ("bos", "eos", "unknown")]
    assert ids == [1, 2, 0]
    assert (fields["add_bos_token"], fields["add_eos_token"]) == (True, False)
    assert "add_space_prefix" not in fields


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "expected a SentencePiece model of type bpe, found type unigram with 0 pieces"),
        (b"\x0a\x7f", "found a field of 127 bytes with 0 left"),
        (b"\x0a", "found the end of the file"),
        (b"\xff" * 20, "found a number longer than 10 bytes"),
        (b"\x0a\x03\x0a\x01\xff", "expected a SentencePiece model, found 'utf-8'"),
        (b"\x0a\x02\x18\x09", "found piece '' of type 9"),
        (b"\x0b", "found wire type 3"),
    ],
)
def test_bad_sentencepiece(make: Maker, data: bytes, message: str) -> None:
    folder = make()
    (folder / "tokenizer.model").write_bytes(data)
    with pytest.raises(ConversionError, match=message):
        converted_fields(folder)


def test_sentencepiece_larger_than_the_embedding(make: Maker, spm: Path) -> None:
    tensors = weights()
    for name in ("model.embed_tokens.weight", "lm_head.weight"):
        tensors[name] = tensors[name][:299]
    folder = make({"vocab_size": 299}, tensors)
    shutil.copy(spm, folder / "tokenizer.model")
    with pytest.raises(ConversionError, match="expected an id below vocab_size 299, found 299"):
        converted_fields(folder)


def json_of(spm: Path) -> Json:
    """The tokenizer.json that transformers makes of a SentencePiece BPE model."""
    processor = sentencepiece.SentencePieceProcessor(model_file=str(spm))
    vocab = {processor.id_to_piece(i): i for i in range(processor.get_piece_size())}
    merges = [
        (vocab[a], vocab[b], vocab[a + b], [a, b])
        for whole in vocab
        for cut in range(1, len(whole))
        for a, b in [(whole[:cut], whole[cut:])]
        if a in vocab and b in vocab
    ]
    merges.sort(key=lambda m: (-processor.get_score(m[2]), m[0], m[1]))
    special = ["<unk>", "<s>", "</s>", "[INST]"]
    added = [{"id": vocab[t], "content": t, "special": True} for t in special]
    added.append({"id": vocab["<tool>"], "content": "<tool>", "special": False})
    return {
        "added_tokens": added,
        "normalizer": {
            "type": "Sequence",
            "normalizers": [
                {"type": "Prepend", "prepend": "▁"},
                {"type": "Replace", "pattern": {"String": " "}, "content": "▁"},
            ],
        },
        "pre_tokenizer": None,
        "post_processor": template("<s>", "A"),
        "model": {
            "type": "BPE",
            "unk_token": "<unk>",
            "byte_fallback": True,
            "vocab": vocab,
            "merges": [m[3] for m in merges],
        },
    }


def test_sentencepiece_scores_from_json(make: Maker, spm: Path) -> None:
    described = json_of(spm)
    fields = converted_fields(make({"bos_token_id": 1}, tokenizer=described, name="derived"))
    folder = make({"bos_token_id": 1}, name="original")
    (folder / "tokenizer.json").unlink()
    shutil.copy(spm, folder / "tokenizer.model")
    wanted = converted_fields(folder)
    for key in ("model", "pre", "tokens", "token_type", "bos_token_id"):
        assert fields[key] == wanted[key], key
    for i, kind in enumerate(wanted["token_type"]):
        if kind == 1 and wanted["tokens"][i] != "▁":
            assert fields["scores"][i] == wanted["scores"][i]
    assert fields["add_bos_token"] is True
    runs = json.loads(json.dumps(described))
    for i in range(2, 5):
        runs["model"]["vocab"]["▁" * i] = 300 + i
    splits = ((1, 1), (1, 2), (1, 3), (2, 1), (2, 2), (3, 1))
    runs["model"]["merges"] += [["▁" * a, "▁" * b] for a, b in splits]
    spaced = converted_fields(make(tokenizer=runs, name="runs"))["scores"]
    assert spaced[302:305] == [-1e9] * 3
    assert spaced[:300] == [
        -1e9 if t == "▁" else s
        for t, s in list(zip(fields["tokens"], fields["scores"], strict=True))[:300]
    ]
    metaspace = {
        **described,
        "normalizer": None,
        "pre_tokenizer": {
            "type": "Metaspace",
            "replacement": "▁",
            "prepend_scheme": "never",
            "split": False,
        },
    }
    assert converted_fields(make(tokenizer=metaspace, name="never"))["add_space_prefix"] is False


@pytest.mark.parametrize("scheme", ["first", "always"])
@pytest.mark.parametrize("both", [False, True])
def test_spaces_before_text_are_those_of_metaspace(
    make: Maker, spm: Path, tmp_path: Path, scheme: str, both: bool
) -> None:
    described = json_of(spm) | {
        "version": "1.0",
        "normalizer": None,
        "post_processor": None,
        "pre_tokenizer": {
            "type": "Metaspace",
            "replacement": "\u2581",
            "prepend_scheme": scheme,
            "split": False,
        },
    }
    plain = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False}
    described["added_tokens"] = [plain | token for token in described["added_tokens"]]
    folder = make({"bos_token_id": 1}, tokenizer=described)
    if both:
        shutil.copy(spm, folder / "tokenizer.model")
    out = tmp_path / "out.gguf"
    converters.convert(folder, out, dtype="f32")
    fields, _ = read(out)
    assert len(fields["pyengine.selftest.texts"]) > 30
    ours = pyengine.Tokenizer.from_metadata(fields)
    original = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
    for text in ("the old", " the old", "[INST] the", "[INST]the old<tool>the", "the[INST]  old "):
        found = ours.encode(text, add_special=False, parse_special=True)
        assert found == original.encode(text, add_special_tokens=False).ids, text


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t["model"]["merges"].pop(3), "found no such merge; tokenizer.model is needed"),
        (
            lambda t: t["model"]["merges"].append(t["model"]["merges"][0]),
            "found them apart",
        ),
        (lambda t: t.update(normalizer={"type": "NFKC"}), "found normalizer .*NFKC"),
    ],
)
def test_json_that_scores_cannot_express(
    make: Maker, spm: Path, change: Callable[[Json], object], message: str
) -> None:
    described = json_of(spm)
    change(described)
    with pytest.raises(ConversionError, match=message):
        converted_fields(make(tokenizer=described))


class FailingFile(io.FileIO):
    """Accepts some bytes and then fails as `fault` says."""

    fault: BaseException
    room = 100_000

    def write(self, data: Any) -> int:
        self.room -= len(data)
        if self.room < 0:
            raise self.fault
        return super().write(data)


def fail_while_writing(monkeypatch: pytest.MonkeyPatch, fault: BaseException) -> None:
    """Makes every file that is newly created fail in the middle of the tensor data."""
    real: Callable[..., Any] = Path.open
    monkeypatch.setattr(FailingFile, "fault", fault, raising=False)
    monkeypatch.setattr(
        Path,
        "open",
        lambda path, mode="r", **rest: (
            FailingFile(path, mode) if mode == "xb" else real(path, mode, **rest)
        ),
    )


@pytest.mark.parametrize(
    ("fault", "kind", "message"),
    [
        (OSError(errno.ENOSPC, "full"), ModelFileError, "disk is full: expected [0-9]+ bytes"),
        (OSError(errno.EIO, "broken"), ModelFileError, "out.gguf: cannot be written: broken"),
        (KeyboardInterrupt("stop"), KeyboardInterrupt, "stop"),
        (RuntimeError("bug"), RuntimeError, "bug"),
    ],
)
def test_a_run_that_fails_leaves_nothing(
    make: Maker,
    monkeypatch: pytest.MonkeyPatch,
    fault: BaseException,
    kind: type[BaseException],
    message: str,
) -> None:
    folder = make()
    out = folder.parent / "out.gguf"
    out.write_text("old")
    fail_while_writing(monkeypatch, fault)
    with pytest.raises(kind, match=message):
        converters.convert(folder, out, dtype="f32", overwrite=True)
    assert out.read_text() == "old"
    assert sorted(p.name for p in folder.parent.iterdir()) == ["model", "out.gguf"]


def test_targets_that_are_refused(make: Maker, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = make()
    out = folder.parent / "out.gguf"
    out.write_text("old")
    with pytest.raises(ModelFileError, match="expected no file, found one; --force"):
        converters.convert(folder, out)
    assert out.read_text() == "old"
    with pytest.raises(ModelFileError, match="expected the name of a file, found a folder"):
        converters.convert(folder, folder)
    with pytest.raises(ModelFileError, match=r"expected the folder .*, found none"):
        converters.convert(folder, folder / "no" / "out.gguf")
    with pytest.raises(ConversionError, match="expected another file than the checkpoint's own"):
        converters.convert(folder, folder / "model.safetensors", overwrite=True)
    usage = shutil.disk_usage(folder)._replace(free=1000)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage)
    with pytest.raises(ModelFileError, match=r"expected [0-9]+ bytes of free disk, found 1000"):
        converters.convert(folder, folder.parent / "new.gguf")
    assert sorted(p.name for p in folder.parent.iterdir()) == ["model", "out.gguf"]


def test_writer_checks_what_it_is_given(tmp_path: Path) -> None:
    tensor = _gguf_writer.OutTensor("a", (2, 3), _encode.F32)
    header = _gguf_writer.build_header([], [tensor])
    short: Callable[[Any], Iterable[Any]] = lambda _: [np.zeros(5, np.float32)]  # noqa: E731
    with pytest.raises(ConversionError, match="'a': expected 24 bytes, found 20"):
        _gguf_writer.write_gguf(tmp_path / "o", header, [tensor], short)
    assert not list(tmp_path.iterdir())
    with pytest.raises(ConversionError, match="tensor 'a': expected once, found twice"):
        _gguf_writer.build_header([], [tensor, tensor])
    for field, message in (
        (_gguf_writer.Field("k", "u32", 2**32), "metadata k: expected a value that fits u32"),
        (_gguf_writer.Field("k", "str", "\ud800"), "expected valid Unicode"),
    ):
        with pytest.raises(ConversionError, match=message):
            _gguf_writer.build_header([field], [])


def test_peak_memory_stays_below_the_model(make: Maker) -> None:
    """The weights are holes in a sparse file, so only the output costs disk."""
    folder = make({"num_hidden_layers": 6, "intermediate_size": 2**16})
    header, at = {}, 0
    shapes = {name: a.shape for name, a in weights().items()}
    for name, shape in list(shapes.items()):
        for i in range(2, 6):
            if ".layers.0." in name:
                shapes[name.replace(".0.", f".{i}.")] = shape
    for name, shape in shapes.items():
        shape = tuple(2**16 if n == FFN else n for n in shape)
        size = 2 * math.prod(shape)
        header[name] = {"dtype": "BF16", "shape": shape, "data_offsets": [at, at + size]}
        at += size
    path = folder / "model.safetensors"
    write_raw(path, json.dumps(header).encode(), b"")
    os.truncate(path, path.stat().st_size + at)
    tracemalloc.start()
    try:
        summary = converters.convert(folder, folder.parent / "out.gguf", dtype="f32")
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert summary.size > 300e6
    assert peak < 40e6


def test_pair_rows_keeps_heads_apart() -> None:
    rows = np.arange(8, dtype=np.float32)
    assert pair_rows(rows, 4).tolist() == [0, 2, 1, 3, 4, 6, 5, 7]


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_progress_only_on_a_terminal() -> None:
    screen, pipe, hushed = Terminal(), io.StringIO(), Terminal()
    for stream, quiet in ((screen, False), (pipe, False), (hushed, True)):
        bar = ProgressBar(stream, quiet=quiet)
        bar(50, 100, "blk.0.attn_q.weight")
        bar(100, 100, "output.weight")
        bar.close()
    assert "50%" in screen.getvalue() and "MB/s" in screen.getvalue()
    assert "blk.0.attn_q" in screen.getvalue() and screen.getvalue().endswith(" \r")
    assert pipe.getvalue() == hushed.getvalue() == ""


def test_a_link_is_followed_and_a_pipe_is_left_alone(make: Maker, tmp_path: Path) -> None:
    source = make(name="tiny")
    real = tmp_path / "real.gguf"
    real.write_bytes(b"old")
    link = tmp_path / "link.gguf"
    link.symlink_to(real)
    converters.convert(source, link, dtype="f32", overwrite=True)
    assert link.is_symlink()
    assert real.read_bytes()[:4] == b"GGUF"
    pipe = tmp_path / "pipe.gguf"
    os.mkfifo(pipe)
    with pytest.raises(ModelFileError, match="expected a file or none, found a device, pipe"):
        converters.convert(source, pipe, dtype="f32", overwrite=True)
    assert pipe.is_fifo()


def test_cli(
    make: Maker, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = make(name="tiny")
    monkeypatch.chdir(make.root)
    assert cli.main(["tiny", "--type", "q8_0"]) == 0
    printed = capsys.readouterr()
    assert (make.root / "tiny-q8_0.gguf").is_file()
    assert "Q8_0" in printed.out and "bits per weight" in printed.out and printed.err == ""
    assert cli.main(["tiny", "--type", "q8_0"]) == 1
    printed = capsys.readouterr()
    assert printed.err.startswith("error: tiny-q8_0.gguf: expected no file")
    assert printed.err.count("\n") == 1 and printed.out == ""
    assert cli.main(["tiny", "--type", "q8_0", "--force", "--quiet"]) == 0
    assert capsys.readouterr() == ("", "")
    for wrong in (["tiny", "--type", "q2"], [], ["tiny", "--nonsense"]):
        assert cli.main(wrong) == 2
        assert capsys.readouterr().err.startswith("error: ")
    assert cli.main(["--help"]) == 0
    assert "HF_DIR" in capsys.readouterr().out
    fail_while_writing(monkeypatch, KeyboardInterrupt())
    assert cli.main(["tiny", "-o", "x.gguf", "--type", "f32"]) == 130
    assert capsys.readouterr().err == "error: interrupted; no file was written\n"
    assert sorted(p.name for p in make.root.iterdir()) == ["tiny", "tiny-q8_0.gguf"]
    (folder / "config.json").write_text("{")
    assert cli.main(["tiny", "-o", "y\n.gguf"]) == 1


def test_real_checkpoint(tmp_path: Path) -> None:
    root = os.environ.get("PYENGINE_FIXTURES")
    if not root:
        pytest.skip("PYENGINE_FIXTURES is not set")
    folder = Path(root) / "models" / "stories-29m"
    out = tmp_path / "out.gguf"
    converters.convert(folder, out, dtype="bf16")
    fields, tensors = read(out)
    assert len(tensors) == 74
    assert fields["general.name"] == "stories-29m"
    assert fields["tokenizer.ggml.pre"] == "gpt-2"
    assert len(fields["tokenizer.ggml.tokens"]) == 8192
    assert len(fields["tokenizer.ggml.merges"]) == 7935
    index = json.loads((folder / "model.safetensors.index.json").read_text())["weight_map"]
    name = "model.layers.7.self_attn.k_proj.weight"
    raw = (folder / index[name]).read_bytes()
    length = int.from_bytes(raw[:8], "little")
    begin, end = json.loads(raw[8 : 8 + length])[name]["data_offsets"]
    stored = np.frombuffer(raw[8 + length + begin : 8 + length + end], np.uint16).reshape(256, 512)
    found = tensors["blk.7.attn_k.weight"].data.view(np.uint16).reshape(256, 512)
    for row, origin in ((0, 0), (1, 32), (2, 1), (63, 63), (64, 64), (65, 96)):
        assert found[row].tolist() == stored[origin].tolist()


def test_the_bundled_model_is_what_the_converter_writes(tmp_path: Path) -> None:
    root = os.environ.get("PYENGINE_FIXTURES")
    if not root:
        pytest.skip("PYENGINE_FIXTURES is not set")
    out = tmp_path / "bundled.gguf"
    # It is older than the self-test.
    folder = Path(root) / "models" / "stories-29m"
    converters.convert(folder, out, dtype="q4_0", name="stories-29m", self_test=False)
    assert out.read_bytes() == pyengine.bundled_model().read_bytes()


def test_the_bundled_model_has_its_published_hash() -> None:
    model = pyengine.bundled_model()
    published, name = (model.parent / "SHA256SUMS").read_text().split()
    assert name == model.name
    assert hashlib.sha256(model.read_bytes()).hexdigest() == published
