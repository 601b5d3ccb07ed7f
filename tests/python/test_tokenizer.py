"""Tokenizer: equal to the original libraries, byte exact, and clear about bad metadata.

The tests against real vocabularies need the folder that PYENGINE_FIXTURES names; all else is
covered by vocabularies made here.
"""

from __future__ import annotations

import io
import json
import os
import unicodedata
from functools import cache
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import tokenizers
from hypothesis import given, settings
from hypothesis import strategies as st
from sentencepiece import SentencePieceProcessor, SentencePieceTrainer

from converters._sentencepiece import _messages
from pyengine._byte_bpe import BYTE_OF
from pyengine._errors import ArgumentError, TokenizerError
from pyengine._pretokenizers import NFC_NAMES, PRE_TOKENIZERS, composes, identify
from pyengine._text import Utf8Stream
from pyengine._tokenizer import Tokenizer

FIXTURES = os.environ.get("PYENGINE_FIXTURES")
needs_fixtures = pytest.mark.skipif(
    FIXTURES is None, reason="PYENGINE_FIXTURES names no folder of real vocabularies"
)
REAL = ["llama-spm", "phi-3", "gpt-2", "llama-bpe", "qwen2", "gemma-4"]
SEPARATOR = "\n__ggml_vocab_test__\n"
UNICODE = st.text(st.characters(exclude_categories=["Cs"]), max_size=60)

NASTY = [
    "",
    " ",
    "  ",
    " " * 1000,
    "\t",
    "\n",
    "\r\n",
    "\n\n\n \n",
    " \t \r\n\t x",
    "Hello, world!  It's  we'LL 'S \u017f't",
    "a\x00b\x00",
    "\x00",
    "".join(map(chr, range(1, 32))) + "\x7f\x80\x9f\xad",
    "\U0001f468\u200d\U0001f469\u200d\U0001f467 \U0001f1e9\U0001f1ea \U0001f44d\U0001f3fd",
    "\U0001f636\u200d\U0001f32b\ufe0f",
    "\u4e2d\u6587\u6d4b\u8bd5\u3002\u65e5\u672c\u8a9e\u30c6\u30b9\u30c8\uff01\ud55c\uad6d\uc5b4",
    "\u0645\u0631\u062d\u0628\u0627 \u202eabc\u202c \u05e9\u05dc\u05d5\u05dd",
    "e\u0301 \u00e9 a\u0328\u0301 \u0e01\u0e33\u0e48 \u0915\u094d\u0937\u093f",
    "\ufeffbom \ufffd \uffff \U0010ffff \u00a0\u2003\u3000\u2028\u2029\u200b",
    "3 33 333 3333 33333 1,234,567.89 \u0663\u0663 \u2167 \u00bd",
    "<s></s><unk><|endoftext|><0x0A><|im_end|>[INST]",
    "def f(x):\n    return x ** 2  # \u00b2\n\n\n\tif x: pass\r\n",
    "\U0001d54f\u212a\u017f\u0130\u0131\u1e9e",
    "abc" * 400,
]

COMPOSING = "eaA\u030a\u0301\u0328\u0315\u1112\u1161\u11ab\u212b\u0344 x>"


def kept(text: str, pre: str) -> str:
    """What comes back of a text that was cut by a rule of that name."""
    return unicodedata.normalize("NFC", text) if pre in NFC_NAMES else text


def fixture(*parts: str) -> Path:
    assert FIXTURES is not None
    return Path(FIXTURES, *parts)


@cache
def gguf_tokenizer(name: str) -> Tokenizer:
    reader = gguf.GGUFReader(fixture("vocab", f"ggml-vocab-{name}.gguf"))
    return Tokenizer.from_metadata({key: f.contents() for key, f in reader.fields.items()})


def json_metadata(parsed: dict[str, Any]) -> dict[str, Any]:
    """What a converter writes for a tokenizer.json."""
    by_id = {token: text for text, token in parsed["model"]["vocab"].items()}
    added = {token["id"]: token for token in parsed["added_tokens"]}
    by_id |= {token: entry["content"] for token, entry in added.items()}
    merges = [m if isinstance(m, str) else " ".join(m) for m in parsed["model"]["merges"]]
    n_vocab = max(by_id) + 1
    types = [
        5 if i not in by_id else 1 if i not in added else 3 if added[i]["special"] else 4
        for i in range(n_vocab)
    ]
    return {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": identify(parsed),
        "tokenizer.ggml.tokens": [by_id.get(i, f"[PAD{i}]") for i in range(n_vocab)],
        "tokenizer.ggml.token_type": types,
        "tokenizer.ggml.merges": merges,
    }


@cache
def json_pair(*parts: str) -> tuple[Tokenizer, tokenizers.Tokenizer]:
    path = fixture(*parts)
    parsed = json.loads(path.read_text("utf-8"))
    original = tokenizers.Tokenizer.from_file(str(path))
    return Tokenizer.from_metadata(json_metadata(parsed)), original


@cache
def mistral_pair() -> tuple[Tokenizer, Any]:
    path = str(fixture("tokenizers", "mistral-v3", "tokenizer.model"))
    original: Any = SentencePieceProcessor()
    original.Load(path)
    ids = range(original.vocab_size())
    types = [
        2
        if original.IsUnknown(i)
        else 3
        if original.IsControl(i)
        else 6
        if original.IsByte(i)
        else 1
        for i in ids
    ]
    return Tokenizer.from_metadata(
        {
            "tokenizer.ggml.model": "llama",
            "tokenizer.ggml.tokens": [original.IdToPiece(i) for i in ids],
            "tokenizer.ggml.scores": np.array([original.GetScore(i) for i in ids], np.float32),
            "tokenizer.ggml.token_type": np.array(types, np.int32),
        }
    ), original


ORIGINALS = [("models", "stories-29m"), ("tokenizers", "dolma2")]


def bpe_metadata(**changes: Any) -> dict[str, Any]:
    tokens = [*BYTE_OF, "he", "ll", "hell", "hello", "\u0120hello"]
    tokens += ["<|endoftext|>", "<|im_end|>", "<tool>", "<tool>>"]
    types = [1] * (len(tokens) - 4) + [3, 3, 4, 4]
    metadata = {
        "model": "gpt2",
        "pre": "gpt-2",
        "tokens": tokens,
        "token_type": types,
        "merges": ["h e", "l l", "he ll", "hell o", "\u0120 hello"],
        "eos_token_id": tokens.index("<|endoftext|>"),
    } | changes
    return {f"tokenizer.ggml.{k}": v for k, v in metadata.items() if v is not None}


def spm_metadata(**changes: Any) -> dict[str, Any]:
    tokens = ["<unk>", "<s>", "</s>", *(f"<0x{b:02X}>" for b in range(256))]
    tokens += ["<|end|>", "<tool>", "\u2581", "a", "b", "\u2581a", "ab", "\u2581ab", "\u2581\u2581"]
    types = [2, 3, 3, *[6] * 256, 3, 4, *[1] * 7]
    scores = [0.0] * (len(tokens) - 4) + [-1.0, -2.0, -3.0, -4.0]
    metadata = {
        "model": "llama",
        "tokens": tokens,
        "token_type": types,
        "scores": scores,
    } | changes
    return {f"tokenizer.ggml.{k}": v for k, v in metadata.items() if v is not None}


def spm_id(text: str) -> int:
    index: int = spm_metadata()["tokenizer.ggml.tokens"].index(text)
    return index


def bpe_id(text: str) -> int:
    index: int = bpe_metadata()["tokenizer.ggml.tokens"].index(text)
    return index


# Against the originals.


@needs_fixtures
@pytest.mark.parametrize("name", REAL)
def test_published_vectors(name: str) -> None:
    tokenizer = gguf_tokenizer(name)
    path = fixture("vocab", f"ggml-vocab-{name}.gguf")
    # Not read_text: it would turn \r\n into \n.
    texts = Path(f"{path}.inp").read_bytes().decode("utf-8").split(SEPARATOR)
    lines = Path(f"{path}.out").read_text("utf-8").splitlines()
    if texts[-1] == "" and len(texts) > len(lines):
        texts.pop()  # most files end with a separator, too
    assert len(texts) == len(lines) > 40
    for text, line in zip(texts, lines, strict=True):
        assert tokenizer.encode(text, add_special=False) == [int(x) for x in line.split()], text


@needs_fixtures
@pytest.mark.parametrize("name", REAL)
def test_real_vocabularies_round_trip(name: str) -> None:
    tokenizer = gguf_tokenizer(name)
    for text in [*NASTY, "".join(NASTY)]:
        ids = tokenizer.encode(text, add_special=False)
        assert tokenizer.decode(ids) == kept(text, tokenizer.pre)


@needs_fixtures
def test_real_vocabularies_have_their_special_ids() -> None:
    llama3, phi3, qwen2 = map(gguf_tokenizer, ["llama-bpe", "phi-3", "qwen2"])
    assert (llama3.bos_id, llama3.add_bos, set(llama3.eog_ids)) == (128000, True, {128001, 128009})
    assert (phi3.bos_id, phi3.add_bos, set(phi3.eog_ids)) == (1, True, {32000, 32007})
    assert (qwen2.add_bos, set(qwen2.eog_ids)) == (False, {151643, 151645})
    assert qwen2.encode("<|im_end|>", parse_special=True) == [151645]
    assert 151645 not in qwen2.encode("<|im_end|>")


@needs_fixtures
@pytest.mark.parametrize("folder", ORIGINALS, ids=lambda f: f[-1])
@settings(max_examples=150, deadline=None)
@given(text=UNICODE)
def test_byte_level_equals_tokenizers(folder: tuple[str, str], text: str) -> None:
    ours, original = json_pair(*folder, "tokenizer.json")
    ids = ours.encode(text, parse_special=True)
    assert ids == original.encode(text, add_special_tokens=False).ids
    assert ours.decode(ids) == text


@needs_fixtures
@pytest.mark.parametrize("folder", ORIGINALS, ids=lambda f: f[-1])
@pytest.mark.parametrize("text", NASTY)
def test_byte_level_equals_tokenizers_on_nasty_text(folder: tuple[str, str], text: str) -> None:
    ours, original = json_pair(*folder, "tokenizer.json")
    ids = ours.encode(text, parse_special=True)
    assert ids == original.encode(text, add_special_tokens=False).ids


@needs_fixtures
@pytest.mark.parametrize("text", [*NASTY, " \u2581 \u2581x"])
def test_sentencepiece_equals_the_original_on_nasty_text(text: str) -> None:
    ours, original = mistral_pair()
    assert ours.encode(text) == [1, *original.Encode(text)]


@needs_fixtures
@settings(max_examples=300, deadline=None)
@given(UNICODE)
def test_sentencepiece_equals_the_original(text: str) -> None:
    ours, original = mistral_pair()
    ids = ours.encode(text, add_special=False)
    assert ids == original.Encode(text)
    assert ours.decode(ids) == text.replace("\u2581", " ")


@needs_fixtures
def test_identify_real_files() -> None:
    for folder, name in zip(ORIGINALS, ["gpt-2", "dbrx"], strict=True):
        assert identify(json.loads(fixture(*folder, "tokenizer.json").read_text())) == name


# Byte-level BPE.


def test_bpe_merges_and_special_tokens() -> None:
    tokenizer = Tokenizer.from_metadata(bpe_metadata())
    end = bpe_id("<|endoftext|>")
    assert tokenizer.encode("hello hello") == [bpe_id("hello"), bpe_id("\u0120hello")]
    plain = tokenizer.encode("<|endoftext|>")
    assert end not in plain and tokenizer.decode(plain) == "<|endoftext|>"
    assert tokenizer.encode("<|endoftext|>hello", parse_special=True) == [end, bpe_id("hello")]
    assert tokenizer.encode("<tool>") == [bpe_id("<tool>")]
    assert tokenizer.encode("<tool>>") == [bpe_id("<tool>>")]
    assert tokenizer.decode([bpe_id("hello"), end]) == "hello<|endoftext|>"
    assert tokenizer.decode([bpe_id("hello"), end], skip_special=True) == "hello"
    assert tokenizer.token_bytes(end) == b"<|endoftext|>"
    assert tokenizer.token_bytes(end, skip_special=True) == b""
    assert tokenizer.token_bytes(bpe_id("\u0120hello")) == b" hello"
    assert tokenizer.is_control(end) and not tokenizer.is_control(bpe_id("<tool>"))
    assert tokenizer.eog_ids == {end, bpe_id("<|im_end|>")}
    assert (tokenizer.kind, tokenizer.pre) == ("gpt2", "gpt-2")
    assert tokenizer.n_vocab == 256 + 9
    assert (tokenizer.bos_id, tokenizer.eos_id) == (None, end)
    assert (tokenizer.add_bos, tokenizer.add_eos) == (False, False)


@pytest.mark.parametrize("pre", PRE_TOKENIZERS)
def test_every_rule_compiles_and_loses_nothing(pre: str) -> None:
    tokenizer = Tokenizer.from_metadata(bpe_metadata(pre=pre))
    for text in NASTY:
        assert tokenizer.decode(tokenizer.encode(text)) == kept(text, pre)


@pytest.mark.parametrize("pre", ["gpt-2", "qwen2", "deepseek-r1-qwen", "command-r"])
def test_a_name_implies_that_letters_and_accents_are_composed(pre: str) -> None:
    tokenizer = Tokenizer.from_metadata(bpe_metadata(pre=pre))
    composed = pre in ("qwen2", "command-r")
    assert (tokenizer.encode("cafe\u0301") == tokenizer.encode("caf\u00e9")) == composed
    for said in (True, False):
        metadata = bpe_metadata(pre=pre) | {"pyengine.tokenizer.nfc": said}
        tokenizer = Tokenizer.from_metadata(metadata)
        assert (tokenizer.encode("cafe\u0301") == tokenizer.encode("caf\u00e9")) == said
    for value in ("yes", 1, None):
        with pytest.raises(TokenizerError, match=r"pyengine\.tokenizer\.nfc: expected true or"):
            Tokenizer.from_metadata(bpe_metadata(pre=pre) | {"pyengine.tokenizer.nfc": value})


def test_what_is_composed_is_the_text_between_special_tokens() -> None:
    tokenizer = Tokenizer.from_metadata(bpe_metadata(pre="qwen2"))
    # ">" and a long solidus would be one letter; the token is found first, as the original does.
    ids = tokenizer.encode("<tool>\u0338e\u0301")
    assert ids[0] == bpe_id("<tool>")
    assert tokenizer.decode(ids[1:]) == "\u0338\u00e9"
    # Only the composed letter's bytes must have tokens.
    lacking = [token for token in BYTE_OF if BYTE_OF[token] not in "\u0301".encode()]
    metadata = bpe_metadata(
        pre="qwen2", tokens=lacking, token_type=None, merges=[], eos_token_id=None
    )
    tokenizer = Tokenizer.from_metadata(metadata)
    assert tokenizer.decode(tokenizer.encode("e\u0301")) == "\u00e9"
    with pytest.raises(TokenizerError, match="found none for 0x"):
        tokenizer.encode("x\u0301")


@settings(deadline=None)
@given(
    st.text(
        st.sampled_from("eaA\u030a\u0301\u0328\u0315\u1112\u1161\u11ab\u212b\u0344 x>"), max_size=12
    )
)
def test_composing_equals_the_librarys_own(text: str) -> None:
    tokenizer = Tokenizer.from_metadata(bpe_metadata(pre="qwen2"))
    again = tokenizer.decode(tokenizer.encode(text, add_special=False))
    assert again == tokenizers.normalizers.NFC().normalize_str(text)


@settings(deadline=None)
@given(UNICODE)
def test_bpe_streams_byte_exact(text: str) -> None:
    tokenizer = Tokenizer.from_metadata(bpe_metadata())
    stream = Utf8Stream()
    ids = tokenizer.encode(text)
    assert "".join(stream.feed(tokenizer.token_bytes(i)) for i in ids) + stream.flush() == text


def test_digits_stay_single_where_the_rule_says_so() -> None:
    tokens = [*BYTE_OF, "12"]
    for pre, expected in (("gpt-2", 1), ("smollm", 2), ("qwen2", 2), ("llama-bpe", 1)):
        metadata = bpe_metadata(
            pre=pre, tokens=tokens, token_type=None, merges=["1 2"], eos_token_id=None
        )
        assert len(Tokenizer.from_metadata(metadata).encode("12")) == expected, pre


def test_ignore_merges_takes_whole_words() -> None:
    # "hello" is a token, but no chain of merges reaches it.
    changes = {"merges": ["h e"], "bos_token_id": 0}
    for pre, expected in (("llama-bpe", 1), ("dbrx", 4)):
        tokenizer = Tokenizer.from_metadata(bpe_metadata(pre=pre, **changes))
        assert len(tokenizer.encode("hello", add_special=False)) == expected
        assert tokenizer.add_bos == (pre == "llama-bpe")


def test_ignore_merges_never_makes_a_control_token() -> None:
    tokens = [*BYTE_OF, "stop"]
    metadata = bpe_metadata(
        pre="llama-bpe", tokens=tokens, token_type=[1] * 256 + [3], merges=[], eos_token_id=None
    )
    assert len(Tokenizer.from_metadata(metadata).encode("stop")) == 4


def test_bos_and_eos_follow_the_flags() -> None:
    tokenizer = Tokenizer.from_metadata(
        bpe_metadata(bos_token_id=3, add_bos_token=True, add_eos_token=True)
    )
    eos = bpe_id("<|endoftext|>")
    assert tokenizer.encode("") == [3, eos]
    assert tokenizer.encode("hello") == [3, bpe_id("hello"), eos]
    assert tokenizer.encode("hello", add_special=False) == [bpe_id("hello")]


def test_missing_pre_is_the_default_rule() -> None:
    assert Tokenizer.from_metadata(bpe_metadata(pre=None)).pre == "default"


def test_tokens_may_be_bytes_and_invalid_utf8() -> None:
    tokens = [t.encode() for t in bpe_metadata()["tokenizer.ggml.tokens"]]
    metadata = bpe_metadata(tokens=[*tokens, b"\xff\xfe"], token_type=None, eos_token_id=None)
    tokenizer = Tokenizer.from_metadata(metadata)
    assert tokenizer.encode("hello") == [bpe_id("hello")]
    assert tokenizer.token_bytes(len(tokens)) == b"\xff\xfe"
    assert tokenizer.decode([len(tokens)]) == "\ufffd\ufffd"


def test_eot_and_harmony_end_tokens() -> None:
    tokens = [*BYTE_OF, "<|end|>", "<|return|>", "<|call|>", "x1", "<eos>"]
    types = [1] * 256 + [3, 3, 3, 1, 1]
    metadata = bpe_metadata(
        tokens=tokens, token_type=types, merges=[], eos_token_id=257, eot_token_id=259
    )
    assert Tokenizer.from_metadata(metadata).eog_ids == {257, 258, 259}


# SentencePiece BPE.


def test_spm_pieces_and_prefix() -> None:
    tokenizer = Tokenizer.from_metadata(spm_metadata())
    tool, end = spm_id("<tool>"), spm_id("<|end|>")
    assert tokenizer.encode("ab") == [1, spm_id("\u2581ab")]
    assert tokenizer.encode("") == [1]
    assert tokenizer.decode(tokenizer.encode(" ab", add_special=False)) == " ab"
    # After a special token the text gets the prefix again.
    ids = tokenizer.encode("ab<tool>ab", add_special=False)
    assert ids == [spm_id("\u2581ab"), tool, spm_id("\u2581ab")]
    assert tokenizer.decode(ids) == "ab<tool>ab"
    assert end not in tokenizer.encode("<|end|>")
    ids = tokenizer.encode("<|end|> ab", add_special=False, parse_special=True)
    assert ids[0] == end and tokenizer.decode(ids) == "<|end|> ab"
    assert tokenizer.decode(ids, skip_special=True) == " ab"
    assert tokenizer.token_bytes(spm_id("\u2581ab")) == b" ab"
    assert tokenizer.token_bytes(spm_id("<0x0A>")) == b"\n"
    assert tokenizer.encode("\n", add_special=False) == [spm_id("\u2581"), spm_id("<0x0A>")]
    assert (tokenizer.bos_id, tokenizer.eos_id, tokenizer.add_bos) == (1, 2, True)
    assert tokenizer.eog_ids == {2, end}
    assert tokenizer.kind == "llama"


def test_spm_without_space_prefix() -> None:
    tokenizer = Tokenizer.from_metadata(spm_metadata(add_space_prefix=False))
    assert tokenizer.encode("ab", add_special=False) == [spm_id("ab")]
    assert tokenizer.decode([spm_id("\u2581ab")]) == " ab"


@settings(deadline=None)
@given(UNICODE, st.booleans())
def test_spm_round_trip(text: str, prefix: bool) -> None:
    tokenizer = Tokenizer.from_metadata(spm_metadata(add_space_prefix=prefix))
    for sample in (text, f"{text}<tool>{text}<|end|>"):
        for parse_special in (False, True):
            ids = tokenizer.encode(sample, add_special=False, parse_special=parse_special)
            assert tokenizer.decode(ids) == sample.replace("\u2581", " ")


def test_spm_round_trip_of_nasty_text() -> None:
    tokenizer = Tokenizer.from_metadata(spm_metadata())
    for text in [*NASTY, "".join(NASTY)]:
        assert tokenizer.decode(tokenizer.encode(text, add_special=False)) == text


def test_spm_strange_vocabularies_load() -> None:
    base = spm_metadata()
    tokens = [*base["tokenizer.ggml.tokens"], "", "", "a", "[PAD]", "<pad>", "unused", b"\xff"]
    types = [*base["tokenizer.ggml.token_type"], 1, 4, 1, 2, 3, 5, 1]
    scores = [*base["tokenizer.ggml.scores"], *[0.0] * 7]
    n_vocab = len(tokens)
    tokenizer = Tokenizer.from_metadata(
        spm_metadata(tokens=tokens, token_type=types, scores=scores, padding_token_id=n_vocab - 3)
    )
    assert tokenizer.n_vocab == n_vocab
    assert tokenizer.encode("a[PAD]<pad>")[:2] == [1, spm_id("\u2581a")]
    assert tokenizer.token_bytes(n_vocab - 5) == b"a"
    assert tokenizer.decode([n_vocab - 1]) == "\ufffd"


def test_spm_without_byte_tokens() -> None:
    def drop_bytes(values: list[Any]) -> list[Any]:
        return values[:3] + values[259:]

    base = {k: v for k, v in spm_metadata().items() if k != "tokenizer.ggml.model"}
    changes = {k.rpartition(".")[2]: drop_bytes(v) for k, v in base.items()}
    tokenizer = Tokenizer.from_metadata(spm_metadata(**changes))
    assert tokenizer.encode("\u00e9", add_special=False)[-1] == 0
    changes["token_type"][0] = 1
    tokenizer = Tokenizer.from_metadata(spm_metadata(**changes))
    with pytest.raises(TokenizerError, match=r"token_type: expected byte tokens or an unknown"):
        tokenizer.encode("\u00e9")


# Bad metadata and bad arguments.

N_BPE, N_SPM = 265, 268


@pytest.mark.parametrize(
    ("metadata", "message"),
    [
        ({}, r"ggml\.model: .*found none; the file holds no tokenizer"),
        (bpe_metadata(model="rwkv"), r"ggml\.model: expected one of 'gpt2' .* found 'rwkv'"),
        (bpe_metadata(model=7), r"ggml\.model: expected a string, found 7"),
        (bpe_metadata(tokens=None), r"ggml\.tokens: expected an array, found none"),
        (bpe_metadata(tokens=[]), r"ggml\.tokens: expected at least one token, found none"),
        (bpe_metadata(tokens="abc"), r"ggml\.tokens: expected an array, found str 'abc'"),
        (bpe_metadata(tokens=["a", 1]), r"ggml\.tokens\[1\]: expected a string, found int"),
        (bpe_metadata(merges=None), r"ggml\.merges: expected an array, found none"),
        (bpe_metadata(merges=["h e", "x"]), r"ggml\.merges\[1\]: expected two .* found 'x'"),
        (bpe_metadata(merges=["h e l"]), r"ggml\.merges\[0\]: expected two .* found 'h e l'"),
        (bpe_metadata(merges=["x y"]), r"ggml\.merges: expected merges of tokens .* `xy`"),
        (bpe_metadata(pre="new"), r"ggml\.pre: expected .*llama-bpe.*qwen2.* found 'new'; if"),
        (bpe_metadata(token_type=[1]), rf"token_type: expected {N_BPE} entries.*found 1$"),
        (bpe_metadata(token_type=[9] * N_BPE), r"token_type\[0\]: expected types 1 to 6, found 9"),
        (bpe_metadata(bos_token_id=N_BPE), rf"bos_token_id: expected an id .* found {N_BPE}$"),
        (bpe_metadata(eos_token_id=-1), r"eos_token_id: expected an id from 0 to .* found -1$"),
        (bpe_metadata(eot_token_id="x"), r"eot_token_id: expected an id .* found 'x'"),
        (
            bpe_metadata(add_bos_token=[1, 2]),
            r"add_bos_token: expected true or false, found \[1, 2\]",
        ),
        (
            bpe_metadata(token_type=[[1]] * N_BPE),
            r"token_type\[0\]: expected types 1 to 6, found \[1\]",
        ),
        (bpe_metadata(padding_token_id=999), r"padding_token_id: .* found 999"),
        (bpe_metadata(add_bos_token=True), r"bos_token_id: expected an id, since .* found none"),
        (bpe_metadata(add_eos_token="no"), r"add_eos_token: expected true or false, found 'no'"),
        (spm_metadata(scores=None), r"ggml\.scores: expected an array, found none"),
        (spm_metadata(scores=[0.0]), rf"scores: expected {N_SPM} entries.*found 1$"),
        (spm_metadata(token_type=None), r"token_type: expected an array, found none"),
        (spm_metadata(unknown_token_id=N_SPM), r"unknown_token_id: .* found 268"),
        (
            spm_metadata(token_type=[2, 3, 3, *[6] * 255, *[1] * 10]),
            r"token_type: expected byte tokens .* found 255",
        ),
        (
            spm_metadata(token_type=[6] * N_SPM),
            r"tokens\[0\]: expected a byte token .* found '<unk>'",
        ),
    ],
)
def test_bad_metadata(metadata: dict[str, Any], message: str) -> None:
    with pytest.raises(TokenizerError, match=message):
        Tokenizer.from_metadata(metadata)


def test_bad_arguments() -> None:
    tokenizer = Tokenizer.from_metadata(bpe_metadata())
    for token in (-1, tokenizer.n_vocab):
        for call in (tokenizer.token_bytes, tokenizer.is_control, lambda t: tokenizer.decode([t])):
            with pytest.raises(
                ArgumentError, match=rf"expected an integer from 0 to 264, found {token}"
            ):
                call(token)
    with pytest.raises(ArgumentError, match="lone surrogate at index 1"):
        tokenizer.encode("a\ud800")


def test_a_byte_without_a_token_is_not_dropped_in_silence() -> None:
    tokens = [t for t in BYTE_OF if t != "z"]
    metadata = bpe_metadata(tokens=tokens, token_type=None, merges=[], eos_token_id=None)
    tokenizer = Tokenizer.from_metadata(metadata)
    assert tokenizer.decode(tokenizer.encode("abc")) == "abc"
    with pytest.raises(TokenizerError, match="found none for 0x7a"):
        tokenizer.encode("xyz")


# Identifying a rule.


def split(pattern: str, behavior: str = "Isolated", *, invert: bool = False) -> dict[str, Any]:
    return {
        "type": "Split",
        "pattern": {"Regex": pattern},
        "behavior": behavior,
        "invert": invert,
    }


def tokenizer_json(*stages: dict[str, Any], **changes: Any) -> dict[str, Any]:
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "use_regex": False}
    return {
        "model": {"type": "BPE", "ignore_merges": changes.pop("ignore_merges", False)},
        "normalizer": None,
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": [*stages, byte_level]},
    } | changes


@pytest.mark.parametrize("name", [name for name in PRE_TOKENIZERS if name != "default"])
def test_identify_every_rule(name: str) -> None:
    rule = PRE_TOKENIZERS[name]
    found = identify(tokenizer_json(*map(split, rule.patterns), ignore_merges=rule.ignore_merges))
    assert found is not None and PRE_TOKENIZERS[found].patterns == rule.patterns
    assert PRE_TOKENIZERS[found].ignore_merges == rule.ignore_merges


def test_identify_knows_other_spellings() -> None:
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "use_regex": True}
    digits = {"type": "Digits", "individual_digits": True}
    sequence = {"type": "Sequence", "pretokenizers": [digits, byte_level]}
    llama3 = PRE_TOKENIZERS["llama-bpe"].patterns[0]
    assert identify(tokenizer_json(pre_tokenizer=byte_level)) == "gpt-2"
    assert identify(tokenizer_json(pre_tokenizer=sequence)) == "starcoder"
    assert identify(tokenizer_json(split(llama3, "Removed", invert=True))) == "dbrx"
    assert identify(tokenizer_json(split(llama3), ignore_merges=True)) == "llama-bpe"
    qwen2 = PRE_TOKENIZERS["qwen2"].patterns[0]
    assert identify(tokenizer_json(split(qwen2), normalizer={"type": "NFC"})) == "qwen2"


@pytest.mark.parametrize(
    ("normalizer", "expected"),
    [
        (None, False),
        ({"type": "NFC"}, True),
        ({"type": "Sequence", "normalizers": []}, False),
        ({"type": "Sequence", "normalizers": [{"type": "NFC"}]}, True),
        ({"type": "Sequence", "normalizers": [{"type": "NFC"}, {"type": "Lowercase"}]}, None),
        ({"type": "Sequence", "normalizers": None}, None),
        ({"type": "Sequence", "normalizers": ["NFC"]}, None),
        ({"type": "NFKC"}, None),
        ({}, None),
        ("NFC", None),
    ],
)
def test_whether_a_file_composes(normalizer: Any, expected: bool | None) -> None:
    parsed = tokenizer_json(split(PRE_TOKENIZERS["qwen2"].patterns[0]), normalizer=normalizer)
    assert composes(parsed) is expected
    assert identify(parsed) == (None if expected is None else "qwen2")


@pytest.mark.parametrize(
    "parsed",
    [
        {},
        tokenizer_json(),
        tokenizer_json(split("x+")),
        tokenizer_json(split(r"\p{N}", "Removed", invert=True)),
        tokenizer_json(split(PRE_TOKENIZERS["qwen2"].patterns[0], "MergedWithNext")),
        tokenizer_json(split(PRE_TOKENIZERS["qwen2"].patterns[0]), ignore_merges=True),
        tokenizer_json(
            split(PRE_TOKENIZERS["qwen2"].patterns[0]), normalizer={"type": "Lowercase"}
        ),
        tokenizer_json(split(PRE_TOKENIZERS["qwen2"].patterns[0]), model={"type": "Unigram"}),
        tokenizer_json(pre_tokenizer=None),
        tokenizer_json(pre_tokenizer={"type": "ByteLevel", "add_prefix_space": True}),
        tokenizer_json(pre_tokenizer={"type": "Metaspace"}),
        tokenizer_json({"type": "Metaspace"}),
        tokenizer_json(
            pre_tokenizer={
                "type": "Sequence",
                "pretokenizers": [
                    {"type": "ByteLevel", "add_prefix_space": False, "use_regex": False},
                    split(PRE_TOKENIZERS["qwen2"].patterns[0]),
                ],
            }
        ),
        tokenizer_json(pre_tokenizer=split(PRE_TOKENIZERS["qwen2"].patterns[0])),
    ],
)
def test_identify_admits_what_it_does_not_know(parsed: dict[str, Any]) -> None:
    assert identify(parsed) is None


# Gemma's BPE.


def gemma_metadata(**changes: Any) -> dict[str, Any]:
    tokens = ["<pad>", "<eos>", "<bos>", "<unk>", *(f"<0x{b:02X}>" for b in range(256))]
    tokens += ["\u2581", "a", "b", "\n", "\u2581a", "ab", "\u2581ab", "\n\n", "\n\u2581", "<|turn>"]
    metadata = {
        "model": "gemma4",
        "tokens": tokens,
        "token_type": [3, 3, 3, 3, *[6] * 256, *[1] * 9, 4],
        "merges": ["\u2581 a", "a b", "\u2581a b", "\n \n", "\n \u2581"],
        "bos_token_id": 2,
        "eos_token_id": 1,
        "unknown_token_id": 3,
        "add_bos_token": False,
    } | changes
    return {f"tokenizer.ggml.{k}": v for k, v in metadata.items() if v is not None}


def test_gemma_merges_across_words_and_lines() -> None:
    tokenizer = Tokenizer.from_metadata(gemma_metadata())
    index = gemma_metadata()["tokenizer.ggml.tokens"].index
    ids = [index("ab"), index("\u2581ab"), index("\n\n"), index("\u2581a")]
    assert tokenizer.encode("ab ab\n\n a", add_special=False) == ids
    assert tokenizer.encode("a") == [2, index("a")]  # whatever the file says
    assert tokenizer.encode("\n a", add_special=False) == [index("\n"), index("\u2581a")]
    assert tokenizer.encode("\u00e9", add_special=False) == [index("<0xC3>"), index("<0xA9>")]
    assert tokenizer.encode("a<|turn> b")[2] == index("<|turn>")
    assert tokenizer.decode(ids) == "ab ab\n\n a"


@settings(deadline=None)
@given(UNICODE)
def test_gemma_round_trip(text: str) -> None:
    tokenizer = Tokenizer.from_metadata(gemma_metadata())
    assert tokenizer.decode(tokenizer.encode(text, add_special=False)) == text.replace(
        "\u2581", " "
    )


def test_gemma_needs_all_bytes() -> None:
    types = gemma_metadata()["tokenizer.ggml.token_type"]
    with pytest.raises(TokenizerError, match="for all 256 bytes, found 255"):
        Tokenizer.from_metadata(gemma_metadata(token_type=[*types[:4], 1, *types[5:]]))
    with pytest.raises(TokenizerError, match="merges: expected merges of tokens"):
        Tokenizer.from_metadata(gemma_metadata(merges=["x y"]))


# WordPiece and unigram, against models trained here by the original libraries.

CORPUS = [
    "The old lighthouse stood upon the rocks, and the keeper's daughter counted the ships.",
    "\u00c9t\u00e9 na\u00efve caf\u00e9 \u4e2d\u6587 \uff21\uff22 \u2163 3.14 x\u00b2 [a] don't",
    *(f"{a} {b}ing {c}s." for a in ("She", "He", "They") for b in ("walk", "talk", "count")
      for c in ("ship", "rock", "stone", "storm")),
]  # fmt: skip


@cache
def word_piece_pair(lowercase: bool) -> tuple[Tokenizer, tokenizers.BertWordPieceTokenizer]:
    original = tokenizers.BertWordPieceTokenizer(lowercase=lowercase)
    original.train_from_iterator(CORPUS, vocab_size=400, min_frequency=1, show_progress=False)
    special = {"[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"}
    by_id = sorted(original.get_vocab(), key=original.token_to_id)
    # As llama.cpp's converter writes them.
    tokens = [t if t in special else t[2:] if t.startswith("##") else "\u2581" + t for t in by_id]
    metadata = {
        "model": "bert",
        "tokens": tokens,
        "token_type": [3 if t in special else 1 for t in by_id],
        "bos_token_id": by_id.index("[CLS]"),
        "seperator_token_id": by_id.index("[SEP]"),
        "unknown_token_id": by_id.index("[UNK]"),
        "normalizer.lowercase": lowercase,
    }
    return Tokenizer.from_metadata(
        {f"tokenizer.ggml.{k}": v for k, v in metadata.items()}
    ), original


@pytest.mark.parametrize("lowercase", [True, False])
@settings(max_examples=200, deadline=None)
@given(text=st.one_of(UNICODE, st.lists(st.sampled_from(CORPUS)).map(" ".join)))
def test_word_piece_equals_tokenizers(lowercase: bool, text: str) -> None:
    ours, original = word_piece_pair(lowercase)
    assert ours.encode(text, add_special=False, parse_special=True) == original.encode(text).ids


@pytest.mark.parametrize("text", [*NASTY, *CORPUS, "x" * 101, "[MASK] [UNK]"])
def test_word_piece_equals_tokenizers_on_nasty_text(text: str) -> None:
    ours, original = word_piece_pair(True)
    assert ours.encode(text, add_special=False, parse_special=True) == original.encode(text).ids


def test_word_piece_decodes_to_words() -> None:
    ours, original = word_piece_pair(True)
    ids = ours.encode("The Keeper's Daughter")
    assert (ids[0], ids[-1]) == (original.token_to_id("[CLS]"), original.token_to_id("[SEP]"))
    assert ours.decode(ids, skip_special=True) == "the keeper ' s daughter"
    assert ours.decode(ids).startswith("[CLS]the keeper")


def test_word_piece_needs_an_unknown_token() -> None:
    metadata = {"model": "bert", "tokens": ["\u2581a"], "token_type": [1]}
    with pytest.raises(
        TokenizerError, match=r"for unknown words \(\[UNK\]\), found 'bert' without one"
    ):
        Tokenizer.from_metadata({f"tokenizer.ggml.{k}": v for k, v in metadata.items()})


@cache
def unigram_pair(rules: str, prefix: bool, squeeze: bool) -> tuple[Tokenizer, Any]:
    out = io.BytesIO()
    SentencePieceTrainer.train(
        sentence_iterator=iter(CORPUS * 20), model_writer=out, vocab_size=120,
        model_type="unigram", normalization_rule_name=rules, add_dummy_prefix=prefix,
        remove_extra_whitespaces=squeeze, hard_vocab_limit=False, minloglevel=2,
        character_coverage=0.98,
    )  # fmt: skip
    original: Any = SentencePieceProcessor()
    original.LoadFromSerializedProto(out.getvalue())
    ids = range(original.vocab_size())
    fields = dict(_messages(out.getvalue()))
    charsmap = dict(_messages(fields[3])).get(2, b"")
    metadata = {
        "model": "t5",
        "tokens": [original.IdToPiece(i) for i in ids],
        "scores": [original.GetScore(i) for i in ids],
        "token_type": [
            2 if original.IsUnknown(i) else 3 if original.IsControl(i) else 1 for i in ids
        ],
        "eos_token_id": 2,
        "unknown_token_id": 0,
        "add_space_prefix": prefix,
        "remove_extra_whitespaces": squeeze,
        "precompiled_charsmap": np.frombuffer(charsmap, np.int8),
    }
    return Tokenizer.from_metadata(
        {f"tokenizer.ggml.{k}": v for k, v in metadata.items()}
    ), original


@pytest.mark.parametrize("rules", ["identity", "nmt_nfkc", "nmt_nfkc_cf"])
@pytest.mark.parametrize(("prefix", "squeeze"), [(True, True), (True, False), (False, False)])
@settings(max_examples=60, deadline=None)
@given(text=st.one_of(UNICODE, st.lists(st.sampled_from(CORPUS)).map("  ".join)))
def test_unigram_equals_sentencepiece(rules: str, prefix: bool, squeeze: bool, text: str) -> None:
    ours, original = unigram_pair(rules, prefix, squeeze)
    assert ours.encode(text) == [*original.Encode(text), 2]


@pytest.mark.parametrize("text", [*NASTY, *CORPUS])
def test_unigram_equals_sentencepiece_on_nasty_text(text: str) -> None:
    ours, original = unigram_pair("nmt_nfkc", True, True)
    assert ours.encode(text, add_special=False) == original.Encode(text)


def test_unigram_decodes() -> None:
    ours, original = unigram_pair("nmt_nfkc", True, True)
    ids = ours.encode("  She   walks. ")
    assert ours.decode(ids, skip_special=True) == original.Decode(ids) == "She walks."


@pytest.mark.parametrize("charsmap", [[1, 2, 3], [255] * 64, [0] * 8, ["x"]])
def test_a_damaged_normalization_is_told(charsmap: list[Any]) -> None:
    metadata = spm_metadata(model="t5", precompiled_charsmap=charsmap)
    try:
        tokenizer = Tokenizer.from_metadata(metadata)
        tokenizer.encode("ab \u00e9")
    except TokenizerError as error:
        assert "tokenizer.ggml." in str(error)


# Special tokens that take white space along.


def test_special_tokens_can_take_white_space_along() -> None:
    metadata = bpe_metadata()
    left, right = bpe_id("<|im_end|>"), bpe_id("<|endoftext|>")
    metadata["pyengine.tokenizer.lstrip_ids"] = np.array([left], np.uint32)
    metadata["pyengine.tokenizer.rstrip_ids"] = [right]
    tokenizer = Tokenizer.from_metadata(metadata)
    text = "a <|endoftext|> \u2003\n b \t<|im_end|> c"
    ids = tokenizer.encode(text, parse_special=True)
    assert tokenizer.decode(ids) == "a <|endoftext|>b<|im_end|> c"
    assert tokenizer.decode(tokenizer.encode(text)) == text
    plain = Tokenizer.from_metadata(bpe_metadata())
    assert plain.decode(plain.encode(text, parse_special=True)) == text


@pytest.mark.parametrize("value", [[999], [-1], ["x"], 3])
def test_bad_white_space_ids(value: Any) -> None:
    metadata = bpe_metadata() | {"pyengine.tokenizer.rstrip_ids": value}
    with pytest.raises(TokenizerError, match="rstrip_ids: expected ids below 265, found"):
        Tokenizer.from_metadata(metadata)


@needs_fixtures
def test_phi_3_swallows_line_ends_after_its_markup() -> None:
    reader = gguf.GGUFReader(fixture("vocab", "ggml-vocab-phi-3.gguf"))
    metadata = {key: f.contents() for key, f in reader.fields.items()}
    text = "<|user|>\nHi<|end|>\n<|assistant|>\n"
    named = Tokenizer.from_metadata(metadata | {"general.name": "Phi-3 mini"})
    ids = named.encode(text, add_special=False, parse_special=True)
    assert [named.token_bytes(i) for i in ids] == [
        b"<|user|>",
        b" Hi",
        b"<|end|>",
        b"<|assistant|>",
    ]


def metaspace_pair(scheme: str) -> tuple[Tokenizer, tokenizers.Tokenizer]:
    tokens: list[str] = spm_metadata()["tokenizer.ggml.tokens"]
    vocab = {text: token for token, text in enumerate(tokens)}
    merges = [("\u2581", "a"), ("a", "b"), ("\u2581a", "b"), ("\u2581", "\u2581")]
    original = tokenizers.Tokenizer(
        tokenizers.models.BPE(vocab, merges, byte_fallback=True, unk_token="<unk>", fuse_unk=True)
    )
    original.pre_tokenizer = tokenizers.pre_tokenizers.Metaspace(
        prepend_scheme=scheme,  # type: ignore[arg-type]
        split=False,
    )
    original.add_special_tokens(["<s>", "</s>", "<|end|>"])
    original.add_tokens([tokenizers.AddedToken("<tool>", normalized=False)])
    scores = spm_metadata()["tokenizer.ggml.scores"]
    scores[-4:] = [-1.0, -2.0, -3.0, -4.0]
    metadata = spm_metadata(scores=scores) | {"pyengine.tokenizer.metaspace": scheme}
    return Tokenizer.from_metadata(metadata), original


@pytest.mark.parametrize("scheme", ["first", "always"])
@settings(deadline=None)
@given(
    st.lists(st.sampled_from(["a", "b", " ", "  ", "ab", "<tool>", "<|end|>", "</s>", "\u00e9"]))
)
def test_spaces_before_text_as_metaspace_puts_them(scheme: str, parts: list[str]) -> None:
    ours, original = metaspace_pair(scheme)
    text = "".join(parts)
    found = ours.encode(text, add_special=False, parse_special=True)
    assert found == original.encode(text, add_special_tokens=False).ids


def test_metaspace_is_one_of_two() -> None:
    with pytest.raises(TokenizerError, match="metaspace: expected first or always, found 'never'"):
        Tokenizer.from_metadata(spm_metadata() | {"pyengine.tokenizer.metaspace": "never"})
