"""GGUF files: what is read from sound ones, and what is said of damaged ones."""

from __future__ import annotations

import dataclasses
import inspect
import json
import pickle
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
from gguf import GGMLQuantizationType
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny import Model, Shape, encode, random_model

import pyengine
from pyengine import (
    ArgumentError,
    ClosedError,
    Engine,
    ModelFile,
    ModelFileError,
    ModelFormatError,
    NumericError,
    PyengineError,
    TokenizerError,
    UnsupportedModelError,
    _native,
)
from pyengine._inspect import _json_value, printable

Spoil = Callable[[Model], None]
STRING, UINT32 = 8, 4


def raw_gguf(
    metadata: bytes = b"",
    tensors: bytes = b"",
    *,
    n_metadata: int = 0,
    n_tensors: int = 0,
    data: bytes = b"",
) -> bytes:
    """A version 3 file put together by hand."""
    head = b"GGUF" + struct.pack("<IQQ", 3, n_tensors, n_metadata) + metadata + tensors
    return head + bytes(-len(head) % 32) + data


def string(text: bytes) -> bytes:
    return struct.pack("<Q", len(text)) + text


def raw_tensor(name: bytes, dims: list[int], kind: int, offset: int) -> bytes:
    layout = f"<I{len(dims)}QIQ"
    return string(name) + struct.pack(layout, len(dims), *dims, kind, offset)


# ---- sound files ----


@pytest.mark.parametrize("dtype", ["F32", "F16", "BF16", "Q8_0", "Q4_0"])
def test_the_directory_is_that_of_gguf_py(make_model: Callable[[Shape], Path], dtype: str) -> None:
    path = make_model(Shape(dtype=dtype))
    reader = gguf.GGUFReader(path)
    with ModelFile(path) as file:
        assert (file.version, file.n_parts, file.n_bytes) == (3, 1, path.stat().st_size)
        assert len(file.tensors) == len(reader.tensors)
        for found, expected in zip(file.tensors, reader.tensors, strict=True):
            assert found.name == expected.name
            assert found.dtype == expected.tensor_type.name
            assert found.shape == tuple(expected.shape.tolist()[::-1])
            assert found.n_bytes == expected.n_bytes
            assert found.offset == expected.data_offset
            assert found.part == 0


@pytest.mark.parametrize("vocabulary", ["bpe", "spm"])
def test_the_metadata_is_that_of_gguf_py(
    make_model: Callable[[Shape], Path], vocabulary: str
) -> None:
    path = make_model(Shape(vocabulary=vocabulary))
    reader = gguf.GGUFReader(path)
    expected = {
        key: item.contents() for key, item in reader.fields.items() if not key.startswith("GGUF.")
    }
    with ModelFile(path) as file:
        assert list(file.metadata) == list(expected)
        for key, value in file.metadata.items():
            plain = value.tolist() if isinstance(value, np.ndarray) else value
            assert plain == expected[key], key
            assert type(plain) is type(expected[key]), key


def test_every_metadata_type_is_read(tmp_path: Path) -> None:
    types = gguf.GGUFValueType
    entries: dict[str, tuple[Any, gguf.GGUFValueType, gguf.GGUFValueType | None]] = {
        "u8": (255, types.UINT8, None),
        "i8": (-128, types.INT8, None),
        "u16": (65535, types.UINT16, None),
        "i16": (-32768, types.INT16, None),
        "u32": (2**32 - 1, types.UINT32, None),
        "i32": (-(2**31), types.INT32, None),
        "u64": (2**64 - 1, types.UINT64, None),
        "i64": (-(2**63), types.INT64, None),
        "f32": (0.5, types.FLOAT32, None),
        "f64": (0.1, types.FLOAT64, None),
        "true": (True, types.BOOL, None),
        "text": ("n\u00e4me \U0001f600", types.STRING, None),
        "texts": (["a", "", "\u20ac"], types.ARRAY, types.STRING),
        "i8s": ([-1, 2], types.ARRAY, types.INT8),
        "flags": ([True, False], types.ARRAY, types.BOOL),
    }
    writer = gguf.GGUFWriter(tmp_path / "all.gguf", "llama")
    for key, (value, kind, sub) in entries.items():
        writer.add_key_value(key, value, kind, sub)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()
    with ModelFile(tmp_path / "all.gguf") as file:
        found = dict(file.metadata)
        assert file.tensors == ()
    assert found.pop("general.architecture") == "llama"
    for key, (value, _, _) in entries.items():
        plain = found[key].tolist() if isinstance(found[key], np.ndarray) else found[key]
        assert (plain, type(plain)) == (value, type(value)), key


def test_nested_arrays_empty_arrays_and_odd_bytes_are_read(tmp_path: Path) -> None:
    inner = (
        struct.pack("<IQ300i", 5, 300, *range(300)) + struct.pack("<IQ", STRING, 1) + string(b"x")
    )
    entries = (
        string(b"nested") + struct.pack("<IIQ", 9, 9, 2) + inner,
        string(b"empty") + struct.pack("<IIQ", 9, 5, 0),
        string(b"bytes\xff") + struct.pack("<I", STRING) + string(b"a\xfe\x00b"),
    )
    path = tmp_path / "odd.gguf"
    path.write_bytes(raw_gguf(b"".join(entries), n_metadata=3))
    with ModelFile(path) as file:
        metadata = file.metadata
    numbers, texts = metadata["nested"]
    assert (numbers.tolist(), texts) == (list(range(300)), ["x"])
    assert metadata["empty"].tolist() == []
    assert metadata["bytes\udcff"] == "a\udcfe\x00b"


def test_a_version_2_file_is_read(tmp_path: Path, model_path: Path) -> None:
    data = bytearray(model_path.read_bytes())
    data[4] = 2
    path = tmp_path / "v2.gguf"
    path.write_bytes(data)
    with ModelFile(path) as file, ModelFile(model_path) as original:
        assert file.version == 2
        assert file.tensors == original.tensors
        assert file.unsupported_reason() is None


def test_what_was_read_before_close_stays_and_the_rest_is_refused(model_path: Path) -> None:
    with ModelFile(model_path) as file:
        tensors = file.tensors
    file.close()
    assert file.tensors is tensors
    with pytest.raises(ClosedError, match="expected an open file, found it closed"):
        _ = file.metadata


def test_a_closed_file_is_no_reason_against_the_model(model_path: Path) -> None:
    with ModelFile(model_path) as file:
        pass
    with pytest.raises(ClosedError):
        file.unsupported_reason()


def test_a_path_may_be_a_string_or_a_path_with_any_characters(
    tmp_path: Path, model_path: Path
) -> None:
    path = tmp_path / "m\u00f6del \u20ac.gguf"
    path.write_bytes(model_path.read_bytes())
    for form in (path, str(path)):
        with ModelFile(form) as file:
            assert file.unsupported_reason() is None


# ---- split files ----


def test_a_split_model_is_opened_as_one(model: Model, model_path: Path, tmp_path: Path) -> None:
    first = model.save(tmp_path / "split.gguf", part_tensors=5)
    with Engine(first) as split, Engine(model_path) as whole:
        assert split.file.n_parts == 5
        assert {tensor.part for tensor in split.file.tensors} == set(range(5))
        assert split.file.n_bytes == sum(p.stat().st_size for p in tmp_path.iterdir())
        expected = whole.logits(list(range(40)))
        assert np.array_equal(split.logits(list(range(40))), expected)


def test_a_missing_part_is_named(model: Model, tmp_path: Path) -> None:
    first = model.save(tmp_path / "split.gguf", part_tensors=5)
    (tmp_path / "split-00003-of-00005.gguf").unlink()
    with pytest.raises(ModelFileError, match=r"split-00003-of-00005\.gguf"):
        ModelFile(first)


def test_a_later_part_is_not_taken_for_the_first(model: Model, tmp_path: Path) -> None:
    model.save(tmp_path / "split.gguf", part_tensors=5)
    with pytest.raises(ArgumentError, match=r"first part of a split model.*-00001-of-00005"):
        ModelFile(tmp_path / "split-00002-of-00005.gguf")


def test_parts_in_the_wrong_place_are_noticed(model: Model, tmp_path: Path) -> None:
    first = model.save(tmp_path / "split.gguf", part_tensors=5)
    second, third = (tmp_path / f"split-0000{i}-of-00005.gguf" for i in (2, 3))
    second.write_bytes(third.read_bytes())
    with pytest.raises(ModelFormatError, match=r"expected part 2 of 5, found part 3 of 5"):
        ModelFile(first)


def test_a_renamed_first_part_is_refused(model: Model, tmp_path: Path) -> None:
    first = model.save(tmp_path / "split.gguf", part_tensors=5)
    renamed = first.rename(tmp_path / "renamed.gguf")
    with pytest.raises(ArgumentError, match="-00001-of-00005"):
        ModelFile(renamed)


# ---- files that are no models ----


@pytest.fixture
def raw(tmp_path: Path) -> Callable[[bytes], Path]:
    def write(data: bytes) -> Path:
        path = tmp_path / "raw.gguf"
        path.write_bytes(data)
        return path

    return write


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ModelFileError, match=r"no-such\.gguf"):
        ModelFile(tmp_path / "no-such.gguf")
    with pytest.raises(ModelFileError, match=r"no-such\.gguf"):
        Engine(tmp_path / "no-such.gguf")


def test_a_directory_is_named(tmp_path: Path) -> None:
    with pytest.raises(ModelFileError, match=tmp_path.name):
        ModelFile(tmp_path)


TWO_OVERLAPPING = raw_tensor(b"one", [8], 0, 0) + raw_tensor(b"two", [8], 0, 0)
HEADERS: dict[str, tuple[bytes, type[PyengineError], str]] = {
    "empty": (b"", ModelFormatError, "magic|empty"),
    "another format": (b"PK\x03\x04" + bytes(60), ModelFormatError, "GGUF.*found 50 4b 03 04"),
    "text": (b"<html>not a model</html>", ModelFormatError, "expected a GGUF file"),
    "big-endian": (
        b"GGUF" + struct.pack(">IQQ", 3, 0, 0),
        UnsupportedModelError,
        "little-endian GGUF file, found a big-endian one",
    ),
    "version 1": (b"GGUF" + struct.pack("<IQQ", 1, 0, 0), UnsupportedModelError, "found 1"),
    "version 4": (
        b"GGUF" + struct.pack("<IQQ", 4, 0, 0),
        UnsupportedModelError,
        "expected GGUF version 2 or 3, found 4",
    ),
    "version 0": (b"GGUF" + struct.pack("<IQQ", 0, 0, 0), UnsupportedModelError, "found 0"),
    "2^40 tensors": (
        raw_gguf(n_tensors=2**40, data=bytes(4096)),
        ModelFormatError,
        "tensor count: expected at most .*, found 1099511627776",
    ),
    "2^40 entries": (
        raw_gguf(n_metadata=2**40, data=bytes(4096)),
        ModelFormatError,
        "metadata count: expected at most .*, found 1099511627776",
    ),
    "key of 2^62 bytes": (
        raw_gguf(struct.pack("<Q", 2**62) + b"key", n_metadata=1, data=bytes(64)),
        ModelFormatError,
        "metadata key.*expected 4611686018427387904 bytes",
    ),
    "string of 2^62 bytes": (
        raw_gguf(string(b"key") + struct.pack("<IQ", STRING, 2**62), n_metadata=1),
        ModelFormatError,
        "metadata string.*expected 4611686018427387904 bytes",
    ),
    "array of 2^62 numbers": (
        raw_gguf(string(b"list") + struct.pack("<IIQ", 9, 10, 2**62), n_metadata=1),
        ModelFormatError,
        "list: array length: .* found 4611686018427387904",
    ),
    "array nested too deep": (
        raw_gguf(
            string(b"deep") + struct.pack("<I", 9) + struct.pack("<IQ", 9, 1) * 9, n_metadata=1
        ),
        ModelFormatError,
        "deep: array items: .*nested at most 4 deep",
    ),
    "unknown metadata type": (
        raw_gguf(string(b"key") + struct.pack("<II", 13, 0), n_metadata=1),
        ModelFormatError,
        "key: expected a metadata type from 0 to 12, found 13",
    ),
    "key given twice": (
        raw_gguf((string(b"key") + struct.pack("<II", UINT32, 1)) * 2, n_metadata=2),
        ModelFormatError,
        "key: expected each key once, found it twice",
    ),
    "alignment of 3": (
        raw_gguf(string(b"general.alignment") + struct.pack("<II", UINT32, 3), n_metadata=1),
        ModelFormatError,
        "general.alignment: expected a power of two .*, found 3",
    ),
    "dimensions overflow": (
        raw_gguf(tensors=raw_tensor(b"big", [2**32, 2**30, 4], 0, 0), n_tensors=1),
        ModelFormatError,
        r"big: dimension 2: .*product below 2\^63",
    ),
    "size overflows": (
        raw_gguf(tensors=raw_tensor(b"big", [2**31, 2**31], 0, 0), n_tensors=1, data=bytes(64)),
        ModelFormatError,
        "big: expected a size that fits 64 bits, found 4611686018427387904 weights",
    ),
    "a dimension of 0": (
        raw_gguf(tensors=raw_tensor(b"none", [8, 0], 0, 0), n_tensors=1),
        ModelFormatError,
        "none: dimension 1: expected 1 or more",
    ),
    "5 dimensions": (
        raw_gguf(tensors=raw_tensor(b"five", [1] * 5, 0, 0), n_tensors=1),
        ModelFormatError,
        "five: expected at most 4 dimensions, found 5",
    ),
    "unknown tensor type": (
        raw_gguf(tensors=raw_tensor(b"odd", [8], 4096, 0), n_tensors=1, data=bytes(64)),
        UnsupportedModelError,
        "odd: expected a known tensor type, found number 4096",
    ),
    "partial block": (
        raw_gguf(tensors=raw_tensor(b"part", [33], 8, 0), n_tensors=1, data=bytes(64)),
        ModelFormatError,
        "part: expected rows of whole Q8_0 blocks of 32 weights, found rows of 33",
    ),
    "misaligned offset": (
        raw_gguf(tensors=raw_tensor(b"off", [8], 0, 4), n_tensors=1, data=bytes(64)),
        ModelFormatError,
        "off: offset: expected a multiple of 32, found 4",
    ),
    "offset past the end": (
        raw_gguf(tensors=raw_tensor(b"far", [8], 0, 64), n_tensors=1, data=bytes(64)),
        ModelFormatError,
        "far: expected 32 bytes at offset 64.*cut short",
    ),
    "offset overflows": (
        raw_gguf(tensors=raw_tensor(b"far", [8], 0, 2**64 - 32), n_tensors=1, data=bytes(64)),
        ModelFormatError,
        "far: expected 32 bytes at offset 18446744073709551584",
    ),
    "overlap": (
        raw_gguf(tensors=TWO_OVERLAPPING, n_tensors=2, data=bytes(64)),
        ModelFormatError,
        "(one|two): expected its own place in the file, found it overlapping (one|two)",
    ),
    "tensor given twice": (
        raw_gguf(
            tensors=raw_tensor(b"one", [8], 0, 0) + raw_tensor(b"one", [8], 0, 32),
            n_tensors=2,
            data=bytes(64),
        ),
        ModelFormatError,
        "one: expected each tensor once, found it twice",
    ),
}


@pytest.mark.parametrize("name", HEADERS)
def test_a_damaged_file_is_refused_with_what_is_wrong(
    raw: Callable[[bytes], Path], name: str
) -> None:
    data, error, message = HEADERS[name]
    path = raw(data)
    with pytest.raises(error, match=message) as caught:
        ModelFile(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_file_cut_short_anywhere_is_refused(
    raw: Callable[[bytes], Path], model_path: Path
) -> None:
    data = model_path.read_bytes()
    for i in range(64):
        with pytest.raises(ModelFormatError, match=r"raw\.gguf: "):
            ModelFile(raw(data[: len(data) * i // 64]))
    with pytest.raises(ModelFormatError, match="cut short"):
        ModelFile(raw(data[:-32]))


@settings(max_examples=100, deadline=None)
@given(data=st.data())
def test_a_header_with_changed_bytes_opens_or_raises_our_own_error(
    tmp_path_factory: pytest.TempPathFactory, model_path: Path, data: st.DataObject
) -> None:
    damaged = bytearray(model_path.read_bytes())
    header = gguf.GGUFReader(model_path).data_offset
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, header - 1))
        damaged[at] = data.draw(st.sampled_from([0, 1, 0x7F, 0x80, 0xFF]) | st.integers(0, 255))
    path = tmp_path_factory.getbasetemp() / "damaged.gguf"
    path.write_bytes(damaged)
    try:
        with ModelFile(path) as file:
            assert file.metadata is not None
            assert file.tensors is not None
            reason = file.unsupported_reason()
        with Engine(path, n_threads=1, n_ctx=32) as engine:
            assert reason is None
            engine.generate([1], max_tokens=2)
    except PyengineError as error:
        assert str(error)


# ---- models that do not fit together ----


def changed(**metadata: Any) -> Spoil:
    return lambda model: model.metadata.update(
        {key.replace("__", "."): value for key, value in metadata.items()}
    )


def without(*names: str) -> Spoil:
    def spoil(model: Model) -> None:
        for name in names:
            model.tensors.pop(name, None)
            model.metadata.pop(name, None)

    return spoil


def reshaped(name: str, *shape: int) -> Spoil:
    return lambda model: model.tensors.update({name: np.zeros(shape, np.float32)})


def retyped(name: str, kind: GGMLQuantizationType, *shape: int) -> Spoil:
    """Gives a tensor a type by bytes of zeros."""

    def spoil(model: Model) -> None:
        block, size = gguf.GGML_QUANT_SIZES[kind]
        model.tensors[name] = np.zeros((*shape[:-1], shape[-1] // block * size), np.uint8)
        model.types[name] = kind

    return spoil


# What is spoilt, the exception, and a part of its message.
MODELS: dict[str, tuple[Spoil, type[PyengineError], str]] = {
    "architecture": (
        changed(general__architecture="mamba"),
        UnsupportedModelError,
        'architecture: expected one of .*llama.*, found "mamba"',
    ),
    "missing weight": (
        without("blk.1.ffn_up.weight"),
        ModelFormatError,
        r"blk\.1\.ffn_up\.weight: expected a tensor \[96, 64\], found none",
    ),
    "two missing weights": (
        without("blk.0.attn_q.weight", "blk.1.ffn_up.weight"),
        ModelFormatError,
        r"blk\.0\.attn_q\.weight: .*\(and 1 more\)",
    ),
    "missing embedding": (
        without("token_embd.weight"),
        ModelFormatError,
        "token_embd.weight: expected a tensor, found none",
    ),
    "mis-shaped weight": (
        reshaped("blk.0.attn_k.weight", 64, 64),
        ModelFormatError,
        r"blk\.0\.attn_k\.weight: expected shape \[64, 32\], found \[64, 64, 1, 1\]",
    ),
    "weight with swapped dimensions": (
        reshaped("blk.0.ffn_up.weight", 64, 96),
        ModelFormatError,
        r"blk\.0\.ffn_up\.weight: expected shape \[64, 96\], found \[96, 64",
    ),
    "mis-shaped norm": (
        reshaped("output_norm.weight", 63),
        ModelFormatError,
        r"output_norm\.weight: expected shape \[64, 1\]",
    ),
    "tensor type": (
        retyped("blk.0.ffn_up.weight", GGMLQuantizationType.Q4_K, 96, 256),
        ModelFormatError,  # the shape is wrong, too, and is looked at first
        r"blk\.0\.ffn_up\.weight",
    ),
    "quantized norm": (
        retyped("blk.0.attn_norm.weight", GGMLQuantizationType.Q8_0, 64),
        UnsupportedModelError,
        r"blk\.0\.attn_norm\.weight: expected an F32 vector, found Q8_0",
    ),
    "unknown weight": (
        reshaped("blk.0.attn_q_norm.weight", 16),
        UnsupportedModelError,
        r"blk\.0\.attn_q_norm\.weight: expected only weights that architecture llama",
    ),
    "weight of a layer too many": (
        reshaped("blk.2.attn_norm.weight", 64),
        UnsupportedModelError,
        r"blk\.2\.attn_norm\.weight: .* of 2 layers",
    ),
    "experts": (
        changed(llama__expert_count=8, llama__expert_used_count=2),
        ModelFormatError,
        r"blk\.0\.ffn_gate_inp\.weight: expected a tensor .* found none",
    ),
    "rope scaling": (
        changed(llama__rope__scaling__type="ntk"),
        UnsupportedModelError,
        'rope.scaling.type: expected none, linear, yarn or longrope, found "ntk"',
    ),
    "windows of fewer layers than there are": (
        changed(
            llama__attention__sliding_window=8, llama__attention__sliding_window_pattern=[True]
        ),
        ModelFormatError,
        "sliding_window_pattern: expected a flag for layer 1, found an array of 1 items",
    ),
    "windows that are no flags": (
        changed(
            llama__attention__sliding_window=8,
            llama__attention__sliding_window_pattern=["a", "b"],
        ),
        ModelFormatError,
        "sliding_window_pattern: expected a flag for layer 0, found an array of 2 items",
    ),
    "scale of nothing": (
        changed(llama__attention__scale=0.0),
        ModelFormatError,
        "attention scale: expected 1e-06 to 1000000, found 0",
    ),
    "rope factor of 0": (
        lambda model: model.tensors.update({"rope_freqs.weight": np.zeros(8, np.float32)}),
        ModelFormatError,
        "rope_freqs.weight: expected factors above 0 that keep angles below 2\\^28, found 0 at 0",
    ),
    "missing hyper-parameter": (
        without("llama.attention.head_count"),
        ModelFormatError,
        "llama.attention.head_count: expected a value, found no such key",
    ),
    "hyper-parameter of another type": (
        changed(llama__block_count="two"),
        ModelFormatError,
        "llama.block_count: expected an integer",
    ),
    "0 layers": (
        changed(llama__block_count=0),
        ModelFormatError,
        "number of layers: expected 1 to 21, found 0",
    ),
    "2^31 layers": (
        changed(llama__block_count=2**31),
        ModelFormatError,
        "number of layers: expected 1 to 21, found 2147483648",
    ),
    "0 heads": (
        changed(llama__attention__head_count=0),
        ModelFormatError,
        "number of heads: expected 1 to 65536, found 0",
    ),
    "heads that share unevenly": (
        changed(llama__attention__head_count_kv=3),
        ModelFormatError,
        "heads: expected a multiple of the 3 KV heads, found 4",
    ),
    "odd rotation": (
        changed(llama__rope__dimension_count=15),
        ModelFormatError,
        "rotated dimensions: expected an even number, found 15",
    ),
    "rotation wider than heads": (
        changed(llama__rope__dimension_count=18),
        ModelFormatError,
        "rotated dimensions: expected 0 to 16, found 18",
    ),
    "context of 0": (
        changed(llama__context_length=0),
        ModelFormatError,
        "context length: expected 1 to .* found 0",
    ),
    "epsilon": (
        changed(llama__attention__layer_norm_rms_epsilon=-1.0),
        ModelFormatError,
        "norm epsilon: expected 0 to 1, found -1",
    ),
    "short vocabulary": (
        changed(tokenizer__ggml__tokens=["a", "b"]),
        ModelFormatError,
        r"vocabulary: expected as many tokens as the embedding has rows \(280\), found 2",
    ),
    "no tokenizer": (
        without("tokenizer.ggml.model"),
        TokenizerError,
        "tokenizer.ggml.model",
    ),
    "no tokens": (without("tokenizer.ggml.tokens"), TokenizerError, "tokenizer.ggml.tokens"),
    "no merges": (without("tokenizer.ggml.merges"), TokenizerError, "tokenizer.ggml.merges"),
    "tokenizer of another kind": (
        changed(tokenizer__ggml__model="bert"),
        TokenizerError,
        "tokenizer.ggml.model: .* found 'bert'",
    ),
    "pre-tokenizer": (
        changed(tokenizer__ggml__pre="no-such-rule"),
        TokenizerError,
        "tokenizer.ggml.pre.*no-such-rule",
    ),
}


@pytest.mark.parametrize("name", MODELS)
def test_a_model_that_cannot_run_is_refused_with_what_is_wrong(
    model: Model, tmp_path: Path, name: str
) -> None:
    spoil, error, message = MODELS[name]
    spoil(model)
    path = model.save(tmp_path / "spoilt.gguf")
    with pytest.raises(error, match=message) as caught:
        Engine(path)
    assert "\n" not in str(caught.value)
    with ModelFile(path) as file:  # what it is can still be looked at
        assert file.metadata["general.architecture"]
        reason = file.unsupported_reason()
    if error is TokenizerError:
        assert reason is None
    else:
        assert reason == str(caught.value)
        assert str(path) in reason or "block_count" in reason


def test_an_unsupported_tensor_type_is_named(tmp_path: Path) -> None:
    model = random_model(Shape(width=256, head_width=64))
    retyped("blk.0.ffn_up.weight", GGMLQuantizationType.IQ2_XXS, 96, 256)(model)
    path = model.save(tmp_path / "iq2_xxs.gguf")
    message = r"blk\.0\.ffn_up\.weight: expected a tensor type .*, found IQ2_XXS"
    with pytest.raises(UnsupportedModelError, match=message):
        Engine(path)
    with ModelFile(path) as file:
        tensor = next(t for t in file.tensors if t.name == "blk.0.ffn_up.weight")
    assert (tensor.dtype, tensor.shape) == ("IQ2_XXS", (96, 256))


def test_absent_optional_hyperparameters_take_their_defaults(
    model: Model, model_path: Path, tmp_path: Path
) -> None:
    without(
        "llama.attention.key_length",
        "llama.attention.value_length",
        "llama.rope.dimension_count",
        "llama.rope.freq_base",
        "llama.vocab_size",
    )(model)
    with Engine(model.save(tmp_path / "short.gguf")) as short, Engine(model_path) as full:
        assert np.array_equal(short.logits([1, 2, 3]), full.logits([1, 2, 3]))


def test_an_absent_kv_head_count_is_the_head_count(
    make_model: Callable[[Shape], Path], tmp_path: Path
) -> None:
    model = random_model(Shape(kv_heads=4))
    without("llama.attention.head_count_kv")(model)
    path = make_model(Shape(kv_heads=4))
    with Engine(model.save(tmp_path / "mha.gguf")) as short, Engine(path) as full:
        assert np.array_equal(short.logits([1, 2, 3]), full.logits([1, 2, 3]))


@pytest.mark.parametrize("value", [np.nan, np.inf])
@pytest.mark.parametrize(
    "name", ["blk.1.ffn_down.weight", "output.weight", "blk.0.attn_k.weight", "output_norm.weight"]
)
def test_weights_that_are_no_numbers_are_noticed(
    model: Model, tmp_path: Path, name: str, value: float
) -> None:
    model.tensors[name].flat[-5] = value
    with Engine(model.save(tmp_path / "nan.gguf"), n_threads=2) as engine:
        for _ in range(2):
            with pytest.raises(NumericError, match="logits: expected finite numbers"):
                engine.generate("the cat", max_tokens=5)
        assert engine.info.kv_bytes == 0
        with engine.session() as session:
            with pytest.raises(NumericError):
                session.feed([1, 2, 3])
            assert session.n_tokens == 0


def test_an_engine_goes_on_after_a_token_without_a_number(model: Model, tmp_path: Path) -> None:
    good = random_model(Shape()).save(tmp_path / "good.gguf")
    model.tensors["token_embd.weight"][65] = np.nan
    bad = model.save(tmp_path / "nan.gguf")
    with Engine(good) as sound, Engine(bad) as engine, engine.session() as session:
        session.feed([1, 2, 3])
        held = engine.info.kv_bytes
        with pytest.raises(NumericError):
            session.feed([4, 65, *range(60)])
        assert session.n_tokens == 3
        assert engine.info.kv_bytes == held
        expected = sound.logits([1, 2, 3, 4, 6])[-1:]
        assert np.array_equal(session.feed([4, 6]), expected)


@pytest.mark.parametrize("dtype", ["F16", "BF16", "Q8_0", "Q4_0", "Q4_1"])
def test_infinite_scales_are_noticed_in_every_type(tmp_path: Path, dtype: str) -> None:
    model = random_model(Shape(dtype=dtype, layers=1))
    blocks = encode(np.ones((96, 64)), dtype)
    spoilt = {"F16": 0x7C00, "BF16": 0x7F80}.get(dtype, 0x7C00)
    blocks.view(np.uint16).flat[0] = spoilt  # the first weight, or the first block's scale
    model.tensors["blk.0.ffn_up.weight"] = blocks
    with (
        Engine(model.save(tmp_path / "inf.gguf")) as engine,
        pytest.raises(NumericError, match="logits"),
    ):
        engine.generate("the", max_tokens=3)


# ---- the package's own names ----


def test_every_status_of_the_core_has_an_exception() -> None:
    codes = {
        getattr(_native.lib, name): name for name in dir(_native.lib) if name.startswith("PE_ERR_")
    }
    assert set(codes) == set(_native.EXCEPTIONS)
    assert len(set(_native.EXCEPTIONS.values())) == len(codes)


TREE: dict[str, type[Exception]] = {
    "ArgumentError": ValueError,
    "CancelledError": RuntimeError,
    "ChatTemplateError": ValueError,
    "ClosedError": ValueError,
    "ContextFullError": ValueError,
    "ConversionError": ValueError,
    "DownloadError": OSError,
    "ModelFileError": OSError,
    "ModelFormatError": ValueError,
    "NumericError": ArithmeticError,
    "OutOfMemoryError": MemoryError,
    "TaskFileError": ValueError,
    "TokenizerError": ValueError,
    "UnsupportedModelError": ValueError,
}


def test_every_exception_is_a_pyengine_error_and_a_builtin_one() -> None:
    public = [getattr(pyengine, name) for name in pyengine.__all__]
    errors = {
        item.__name__: item
        for item in public
        if isinstance(item, type) and issubclass(item, PyengineError) and item is not PyengineError
    }
    assert set(errors) == set(TREE)
    for name, error in errors.items():
        assert issubclass(error, TREE[name])
        assert str(error("a message")) == "a message"
        assert str(pickle.loads(pickle.dumps(error("a message")))) == "a message"
        assert (error.__doc__ or "").endswith(".")


def test_all_lists_the_public_names_in_order() -> None:
    public = {
        name
        for name, item in vars(pyengine).items()
        if not name.startswith("_") and not inspect.ismodule(item)
    }
    assert set(pyengine.__all__) == public
    assert pyengine.__all__ == sorted(pyengine.__all__)
    for name in pyengine.__all__:
        assert inspect.getdoc(getattr(pyengine, name))


def test_results_are_frozen(engine: Engine) -> None:
    for item in (engine.info, engine.file.tensors[0], engine.generate("the", max_tokens=1)):
        field = dataclasses.fields(item)[0].name
        with pytest.raises(dataclasses.FrozenInstanceError):
            setattr(item, field, None)


def test_a_path_with_a_nul_is_refused_and_not_cut(model_path: Path) -> None:
    with pytest.raises(ArgumentError, match="path: expected a text without NUL"):
        ModelFile(f"{model_path}\0.bak")


def test_json_holds_nested_arrays_and_numbers_that_json_lacks() -> None:
    value = [[np.array([1, 2], np.int32)], [float("nan"), float("-inf"), 1.5]]
    assert json.loads(json.dumps(_json_value(value, True), allow_nan=False)) == [
        [[1, 2]],
        ["nan", "-inf", 1.5],
    ]


def test_text_for_a_terminal_holds_nothing_that_it_would_obey() -> None:
    assert printable("a\x1b[31mred\udcff") == "a\ufffd[31mred\ufffd"
