"""Every pre-tokenizer name cuts words as llama.cpp does, on one real vocabulary."""

from __future__ import annotations

import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf
import llama_cpp
import pytest
import transformers

from pyengine import Tokenizer
from pyengine._pretokenizers import PRE_TOKENIZERS

TEXTS = [
    "Hello, world!  It's  we'LL 'S \u017f't HELLO W\u00f6rld don'T",
    " " * 40 + "x\n\n\n \n \t \r\n\t x  ",
    "3 33 333 3333 33333 1,234,567.89 \u0663\u0663\u0663\u0663 \u2167 \u00bd x/y/z //n\n",
    "\u4e2d\u6587\u5b57\u3068\u30ab\u30ca\u3002\uc548\ub155 \u3131\u3134 \u3105\u3106",
    "\u0645\u0631\u062d\u0628\u0627 \u05e9\u05dc\u05d5\u05dd \u0393\u03b5\u03b9\u03ac",
    "e\u0301 \u0915\u094d\u0937\u093f \u01c5abc \u02b0a \u3005\u3007 \U0001f468\u200d\U0001f469",
    "def f(x):\n    return x ** 2  # \u00b2\n\n\n\tif x: pass\r\n",
]

DECOMPOSED = [
    "cafe\u0301 nai\u0308ve u\u0308ber",
    "\u1112\u1161\u11ab\u1100\u116e\u11a8",
    "\u212b \u2126 \u0344 a\u0315\u0300\u05ae\u0301b",
    "\u0418\u0306 \u304b\u3099 \u0915\u093c",
]
# It composes no letters and accents.
AS_THERE = {"pyengine.tokenizer.nfc": False}


@pytest.fixture(scope="module")
def renamed(
    fixtures: Path, tmp_path_factory: pytest.TempPathFactory
) -> Callable[[str], tuple[Tokenizer, Path]]:
    """Qwen 2's vocabulary under another rule, as ours and as a file."""
    source = fixtures / "vocab" / "ggml-vocab-qwen2.gguf"
    fields = gguf.GGUFReader(source).fields
    metadata: dict[str, Any] = {
        key: field.contents() for key, field in fields.items() if key.startswith("tokenizer.ggml.")
    }
    data, key = source.read_bytes(), b"tokenizer.ggml.pre"
    at = data.index(struct.pack("<Q", len(key)) + key) + 8 + len(key) + 4
    (length,) = struct.unpack("<Q", data[at : at + 8])
    out = tmp_path_factory.mktemp("vocabularies") / "vocabulary.gguf"

    def make(name: str) -> tuple[Tokenizer, Path]:
        value = struct.pack("<Q", len(name)) + name.encode()
        out.write_bytes(data[:at] + value + data[at + 8 + length :])
        return Tokenizer.from_metadata(metadata | {"tokenizer.ggml.pre": name} | AS_THERE), out

    return make


@pytest.mark.parametrize("name", PRE_TOKENIZERS)
def test_equal_to_llama_cpp(renamed: Callable[[str], tuple[Tokenizer, Path]], name: str) -> None:
    ours, path = renamed(name)
    model = llama_cpp.Llama(str(path), vocab_only=True, verbose=False)
    try:
        for text in TEXTS:
            expected = model.tokenize(text.encode(), add_bos=False, special=False)
            assert ours.encode(text, add_special=False) == expected, text
    finally:
        model.close()


def test_qwen_composes_letters_and_accents_as_transformers_does(fixtures: Path) -> None:
    source = fixtures / "vocab" / "ggml-vocab-qwen2.gguf"
    fields = {key: f.contents() for key, f in gguf.GGUFReader(source).fields.items()}
    ours = Tokenizer.from_metadata(fields)
    tokens, kinds = fields["tokenizer.ggml.tokens"], fields["tokenizer.ggml.token_type"]
    vocab = {token: i for i, token in enumerate(tokens) if kinds[i] == gguf.TokenType.NORMAL}
    merges = [tuple(merge.split(" ")) for merge in fields["tokenizer.ggml.merges"]]
    original = transformers.Qwen2Tokenizer(vocab=vocab, merges=merges)
    for text in [*TEXTS, *DECOMPOSED]:
        expected = original(text, add_special_tokens=False).input_ids
        assert ours.encode(text, add_special=False) == expected, text
    for text in DECOMPOSED:
        raw = Tokenizer.from_metadata(fields | AS_THERE).encode(text, add_special=False)
        assert raw != ours.encode(text, add_special=False)
