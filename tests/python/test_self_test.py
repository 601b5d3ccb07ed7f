"""Converted files carry a test of their tokenizer and template, and opening them runs it."""

from __future__ import annotations

import json
import shutil
import struct
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tokenizers

import converters
from converters import _self_test as made
from pyengine import ChatTemplateError, ConversionError, Engine, ModelFile, TokenizerError
from pyengine._pretokenizers import PRE_TOKENIZERS
from pyengine._self_test import CHAT_HASH, IDS, LENGTHS, TEMPLATE_HASH, TEXTS, check_tokenizer
from pyengine._tokenizer import Tokenizer

GOLDEN = Path(__file__).parents[1] / "golden" / "llama-grouped-tied"
TEMPLATE = "{{ bos_token }}{% for m in messages %}[{{ m.role }}]{{ m.content }}{% endfor %}"
USER = [{"role": "user", "content": "Hi"}]


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    """A copy of a small checkpoint, with a chat template."""
    folder = tmp_path / "checkpoint"
    shutil.copytree(GOLDEN, folder)
    path = folder / "tokenizer_config.json"
    config = json.loads(path.read_text()) if path.is_file() else {}
    path.write_text(json.dumps(config | {"chat_template": TEMPLATE}))
    return folder


@pytest.fixture
def converted(checkpoint: Path, tmp_path: Path) -> Path:
    out = tmp_path / "model.gguf"
    converters.convert(checkpoint, out, dtype="f32")
    return out


def patched(path: Path, old: bytes, new: bytes) -> Path:
    """The file with some of its bytes replaced by as many others."""
    data = path.read_bytes()
    assert data.count(old) >= 1 and len(old) == len(new)
    out = path.with_name("patched.gguf")
    out.write_bytes(data.replace(old, new, 1))
    return out


def metadata(path: Path) -> dict[str, Any]:
    with ModelFile(path) as file:
        return dict(file.metadata)


def test_a_converted_file_holds_the_test_and_passes_it(converted: Path) -> None:
    found = metadata(converted)
    texts = found[TEXTS]
    assert len(texts) >= 35 and len(texts) == len(found[LENGTHS])
    assert found[LENGTHS].sum() == len(found[IDS])
    assert len(found[TEMPLATE_HASH]) == len(found[CHAT_HASH]) == 64
    with Engine(converted, n_threads=1) as engine:
        assert engine.chat(USER, max_tokens=1).usage.completion_tokens <= 1
        started = time.perf_counter()
        check_tokenizer(found, engine.tokenizer)
        assert time.perf_counter() - started < 0.5


def test_the_ids_are_the_originals(converted: Path, checkpoint: Path) -> None:
    found = metadata(converted)
    original = tokenizers.Tokenizer.from_file(str(checkpoint / "tokenizer.json"))
    ids = np.split(found[IDS], found[LENGTHS].cumsum()[:-1])
    for text, expected in zip(found[TEXTS], ids, strict=True):
        assert original.encode(text, add_special_tokens=False).ids == expected.tolist()


def test_another_tokenizer_is_named_when_the_file_is_opened(converted: Path) -> None:
    one = struct.pack("<Q", 1)  # the length before each letter
    changed = patched(converted, one + b"a" + one + b"b", one + b"b" + one + b"a")
    with pytest.raises(TokenizerError, match=r"texts\[\d+\]: .*: expected the ids .* found \["):
        Engine(changed)


def test_another_template_is_named_when_the_file_is_opened(converted: Path) -> None:
    changed = patched(converted, b"[{{ m.role }}]", b"<{{ m.role }}>")
    with pytest.raises(ChatTemplateError, match=r"chat_template_sha256: expected .*, found '"):
        Engine(changed)


def test_another_rendering_is_named_at_the_first_chat(converted: Path) -> None:
    digest = metadata(converted)[CHAT_HASH].encode()
    changed = patched(converted, digest, digest[::-1])
    with Engine(changed, n_threads=1) as engine:
        assert engine.generate("Hi", max_tokens=1).tokens is not None
        for _ in range(2):
            with pytest.raises(ChatTemplateError, match="chat_sha256: expected the chat as it was"):
                engine.chat(USER)
        engine.chat(USER, template="{{ bos_token }}", max_tokens=1)  # another template is allowed


@pytest.mark.parametrize(
    ("key", "value"),
    [
        (TEXTS, None),
        (TEXTS, ["a"]),
        (TEXTS, 3),
        (LENGTHS, np.array([1], np.uint32)),
        (LENGTHS, np.array([-1, 1], np.int32)),
        (IDS, np.array([0.5])),
        (IDS, "x"),
    ],
)
def test_a_damaged_test_is_named(converted: Path, key: str, value: Any) -> None:
    found = metadata(converted) | {key: value}
    with pytest.raises(TokenizerError, match=r"selftest.texts: expected texts, lengths and ids"):
        check_tokenizer(found, Tokenizer.from_metadata(found))


def test_files_without_it_load_as_before(checkpoint: Path, tmp_path: Path) -> None:
    out = tmp_path / "plain.gguf"
    converters.convert(checkpoint, out, dtype="f32", self_test=False)
    assert not [key for key in metadata(out) if key.startswith("pyengine.")]
    with Engine(out, n_threads=1) as engine:
        assert engine.chat(USER, max_tokens=1).seed >= 0


def test_a_tokenizer_that_comes_out_otherwise_is_not_written(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(made, "_original", lambda source: lambda text: [0])
    with pytest.raises(ConversionError, match=r"expected the original's ids \[0\]"):
        converters.convert(checkpoint, tmp_path / "no.gguf", dtype="f32")
    assert not (tmp_path / "no.gguf").exists()


@pytest.mark.parametrize(
    ("template", "keys"),
    [
        ("{{ strftime_now('%d') }}", {TEMPLATE_HASH}),  # another text tomorrow
        ("{% broken", {TEMPLATE_HASH}),
        (TEMPLATE, {TEMPLATE_HASH, CHAT_HASH}),
    ],
)
def test_only_what_stays_the_same_is_hashed(
    checkpoint: Path, tmp_path: Path, template: str, keys: set[str]
) -> None:
    (checkpoint / "tokenizer_config.json").write_text(json.dumps({"chat_template": template}))
    out = tmp_path / "model.gguf"
    converters.convert(checkpoint, out, dtype="f32")
    assert set(metadata(out)) & {TEMPLATE_HASH, CHAT_HASH} == keys
    with Engine(out, n_threads=1) as engine:
        assert engine.generate("Hi", max_tokens=1).tokens is not None


@pytest.mark.parametrize("composes", [True, False])
@pytest.mark.parametrize("named", ["gpt-2", "qwen2"])
def test_letters_and_accents_are_composed_as_the_original_does(
    checkpoint: Path, tmp_path: Path, named: str, composes: bool
) -> None:
    path = checkpoint / "tokenizer.json"
    described = json.loads(path.read_text())
    described["normalizer"] = {"type": "NFC"} if composes else {"type": "Sequence"}
    if not composes:
        described["normalizer"]["normalizers"] = []
    if named == "qwen2":
        cut = {"type": "Split", "behavior": "Isolated", "invert": False}
        cut["pattern"] = {"Regex": PRE_TOKENIZERS[named].patterns[0]}
        byte_level = described["pre_tokenizer"] | {"use_regex": False}
        described["pre_tokenizer"] = {"type": "Sequence", "pretokenizers": [cut, byte_level]}
    path.write_text(json.dumps(described))
    original = tokenizers.Tokenizer.from_file(str(path))
    out = tmp_path / "model.gguf"
    converters.convert(checkpoint, out, dtype="f32")
    found = metadata(out)
    assert found["tokenizer.ggml.pre"] == named
    assert found.get("pyengine.tokenizer.nfc") == (
        None if composes == (named == "qwen2") else composes
    )
    assert [text for text in found[TEXTS] if "e\u0301" in text]
    with Engine(out, n_threads=1) as engine:
        for text in ("e\u0301", "\u212b\u0301 \u1112\u1161\u11ab", "a\u0315\u0300\u05ae\u0301b"):
            ids = engine.tokenize(text, add_special=False)
            assert ids == original.encode(text, add_special_tokens=False).ids
        same = engine.tokenize("e\u0301") == engine.tokenize("\u00e9")
    assert same == composes


@pytest.mark.parametrize("side", ["lstrip", "rstrip"])
def test_tokens_that_take_white_space_along_do_so_here(
    checkpoint: Path, tmp_path: Path, side: str
) -> None:
    path = checkpoint / "tokenizer.json"
    described = json.loads(path.read_text())
    described["added_tokens"][0][side] = True
    name = described["added_tokens"][0]["content"]
    path.write_text(json.dumps(described))
    original = tokenizers.Tokenizer.from_file(str(path))
    out = tmp_path / "model.gguf"
    converters.convert(checkpoint, out, dtype="f32")
    with Engine(out, n_threads=1) as engine:
        for text in (f"a {name} \n b{name}", f"{name}\u2003{name}\n\t{name}", f" {name} "):
            found = engine.tokenize(text, add_special=False, parse_special=True)
            assert found == original.encode(text, add_special_tokens=False).ids
        assert len(engine.tokenize(f" {name} ", add_special=False, parse_special=True)) == 2
