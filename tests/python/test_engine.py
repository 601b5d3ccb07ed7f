"""Engine and sessions: right numbers, the same bits however they are asked for, clean ends."""

from __future__ import annotations

import copy
import gc
import os
import pickle
import platform
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy_llama import NumpyLlama
from tiny import Shape, random_model

import pyengine
from pyengine import (
    ArgumentError,
    CancelFlag,
    ClosedError,
    ContextFullError,
    Engine,
    ModelFile,
    OutOfMemoryError,
    PyengineError,
)
from pyengine._native import lib

PAGE = 32  # positions
KV_TYPES = ["f32", "f16", "q8_0", "q4_0"]
ISAS = sorted(
    name.removeprefix("PE_ISA_").lower()
    for name in dir(lib)
    if name.startswith("PE_ISA_") and name not in ("PE_ISA_BEST", "PE_ISA_SCALAR")
)
SHAPES = {
    "grouped": {},
    "one head per KV head": {"kv_heads": 4},
    "many heads per KV head": {"heads": 40, "kv_heads": 2, "head_width": 8},
    "head width of its own": {"head_width": 24},
    "odd widths": {"width": 50, "ffn": 70, "head_width": 10},
    "one layer": {"layers": 1},
    "tied": {"tied": True},
    "biases": {"bias": True},
    "linear rope": {"rope_linear": 4.0},
    "rope factors": {"rope_factors": True},
    "rope base": {"rope_base": 500000.0},
    "SentencePiece": {"vocabulary": "spm"},
}
QUANTIZED = ("Q8_0", "Q4_0", "Q4_1", "Q6_K")
# Odd sizes reach the tails of every loop: rows that fill no tile, heads that fill no vector.
ODD: dict[str, dict[str, Any]] = {
    "F32": {"width": 50, "ffn": 70, "head_width": 10},
    "F16": {"width": 50, "ffn": 70, "head_width": 10},
    "BF16": {"width": 50, "ffn": 70, "heads": 9, "kv_heads": 3, "head_width": 6},
    "Q8_0": {"width": 96, "ffn": 160, "heads": 8, "kv_heads": 2, "head_width": 12},
    "Q4_0": {"width": 96, "ffn": 160, "heads": 4, "kv_heads": 1, "head_width": 24},
    "Q4_1": {"width": 96, "ffn": 160, "heads": 6, "kv_heads": 2, "head_width": 16},
    "Q6_K": {"width": 256, "ffn": 512, "heads": 8, "kv_heads": 2, "head_width": 32},
}


def shape_of(dtype: str) -> Shape:
    return Shape(dtype=dtype, bias=True, **ODD[dtype])


def random_tokens(n: int, seed: int = 3, below: int = 256) -> list[int]:
    return np.random.default_rng(seed).integers(0, below, n).tolist()


def resident_bytes() -> int:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


needs_proc = pytest.mark.skipif(
    not Path("/proc/self/statm").exists(), reason="this system does not say what memory is resident"
)


# ---- the numbers ----


@pytest.mark.parametrize("name", SHAPES)
def test_f32_logits_equal_an_independent_float64_forward_pass(
    make_model: Callable[[Shape], Path], name: str
) -> None:
    path = make_model(Shape(**SHAPES[name]))
    tokens = random_tokens(3 * PAGE + 5)
    with Engine(path, n_threads=2) as engine:
        found = engine.logits(tokens)
    expected = NumpyLlama(path).logits(tokens)
    assert expected.std() > 1.5  # so that 1e-4 says something
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-4)


@pytest.mark.parametrize("dtype", ["F16", "BF16"])
@pytest.mark.parametrize(("kv_type", "bound"), [("f32", 1e-4), ("f16", 5e-3)])
def test_16_bit_weights_add_no_error_and_a_16_bit_cache_little(
    make_model: Callable[[Shape], Path], dtype: str, kv_type: Any, bound: float
) -> None:
    path = make_model(shape_of(dtype))
    tokens = random_tokens(3 * PAGE + 5)
    with Engine(path, n_threads=2, kv_type=kv_type) as engine:
        found = engine.logits(tokens)
    expected = NumpyLlama(path, kv_f16=kv_type == "f16").logits(tokens)
    np.testing.assert_allclose(found, expected, rtol=0, atol=bound)


@pytest.mark.parametrize("dtype", QUANTIZED)
def test_quantized_weights_are_used_as_gguf_decodes_them(
    make_model: Callable[[Shape], Path], dtype: str
) -> None:
    path = make_model(shape_of(dtype))
    tokens = random_tokens(3 * PAGE + 5)
    with Engine(path, n_threads=2) as engine:
        found = engine.logits(tokens)
    expected = NumpyLlama(path).logits(tokens)
    # All that is left is the rounding of activations to 8 bits.
    error = np.sqrt(np.mean((found - expected) ** 2)) / expected.std()
    assert error < 0.03


@pytest.mark.parametrize("dtype", QUANTIZED)
def test_quantized_products_round_activations_exactly_as_documented(
    make_model: Callable[[Shape], Path], dtype: str
) -> None:
    path = make_model(shape_of(dtype))
    expected = NumpyLlama(path, engine_rounding=True)
    errors = []
    with Engine(path, n_threads=2, kv_type="f32") as engine:
        for seed in range(20):
            tokens = random_tokens(3, seed)
            errors.append(np.abs(engine.logits(tokens) - expected.logits(tokens)).max())
    # Now and then float32 and float64 fall on two sides of a rounding boundary, which moves
    # everything after it; short sequences keep most of them free of that.
    assert np.median(errors) < 1e-4


def test_sixteen_bit_cache_is_chosen_unless_all_weights_are_f32(
    make_model: Callable[[Shape], Path],
) -> None:
    with Engine(make_model(Shape())) as engine:
        assert engine.info.kv_type == "f32"
    with Engine(make_model(shape_of("Q8_0"))) as engine:
        assert engine.info.kv_type == "f16"
    with Engine(make_model(Shape()), kv_type="f16") as engine:
        assert engine.info.kv_type == "f16"


def test_info_describes_the_model(engine: Engine) -> None:
    info, shape = engine.info, Shape()
    assert info.architecture == "llama"
    assert (info.n_layers, info.d_model) == (shape.layers, shape.width)
    assert (info.n_heads, info.n_kv_heads) == (shape.heads, shape.kv_heads)
    assert info.n_ctx == info.n_ctx_train == engine.n_ctx == shape.context
    assert info.n_vocab == engine.n_vocab == engine.tokenizer.n_vocab
    assert info.n_threads == 2
    # One key and one value of every KV head per position and layer, 4 bytes each.
    per_position = shape.layers * shape.kv_heads * 2 * shape.head_width * 4
    assert info.kv_page_bytes == PAGE * per_position
    assert info.weight_bytes == sum(tensor.n_bytes for tensor in engine.file.tensors)
    embedding = next(t for t in engine.file.tensors if t.name == "token_embd.weight")
    assert info.decode_bytes == info.weight_bytes - embedding.n_bytes


# ---- perplexity ----


def log_softmax(logits: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    wide = logits.astype(np.float64)
    top = wide.max(axis=-1, keepdims=True)
    return wide - top - np.log(np.exp(wide - top).sum(axis=-1, keepdims=True))


@pytest.mark.parametrize("window", [32, 33, 200])
def test_perplexity_scores_the_second_half_of_whole_windows(engine: Engine, window: int) -> None:
    text = "the cat and the other one was in town; " * 20
    ids = engine.tokenize(text)
    begin = engine.tokenizer.bos_id
    assert ids[0] == begin
    losses = []
    n_windows = len(ids) // window
    for i in range(n_windows):
        part = [begin, *ids[i * window + 1 : (i + 1) * window]]
        scores = log_softmax(engine.logits(part))
        losses += [-scores[j - 1, part[j]] for j in range(window // 2 + 1, window)]
    assert len(ids) % window  # a rest that is not scored
    found = engine.perplexity(text, window=window)
    assert (found.n_windows, found.n_tokens) == (n_windows, len(losses))
    assert found.value == pytest.approx(np.exp(np.mean(losses)), rel=1e-6)
    error = np.exp(np.mean(losses)) * np.std(losses, ddof=1) / np.sqrt(len(losses))
    assert found.error == pytest.approx(error, rel=1e-5)


def test_perplexity_reports_progress_and_keeps_no_memory(engine: Engine) -> None:
    calls: list[tuple[int, int]] = []
    engine.perplexity("the cat " * 60, window=64, progress=lambda *at: calls.append(at))
    assert calls == [(i + 1, len(calls)) for i in range(len(calls))]
    assert len(calls) > 1
    assert engine.info.kv_bytes == 0


@pytest.mark.parametrize("window", [3, 257])
def test_perplexity_refuses_impossible_windows(engine: Engine, window: int) -> None:
    with pytest.raises(
        ArgumentError, match=f"window: expected an integer from 4 to 256, found {window}"
    ):
        engine.perplexity("the cat", window=window)


def test_perplexity_refuses_a_text_shorter_than_a_window(engine: Engine) -> None:
    with pytest.raises(ArgumentError, match="text: expected 32 tokens or more"):
        engine.perplexity("the cat", window=32)


# ---- the same bits ----


@pytest.mark.parametrize("dtype", ODD)
def test_threads_batches_and_cuts_do_not_change_a_bit(
    make_model: Callable[[Shape], Path], dtype: str
) -> None:
    path = make_model(shape_of(dtype))
    tokens = random_tokens(2 * PAGE + 7)
    with Engine(path, n_threads=1) as engine:
        expected = engine.logits(tokens)
        with engine.session() as session:
            one_by_one = np.concatenate([session.feed([token]) for token in tokens])
        assert np.array_equal(one_by_one, expected)
    for n_threads, n_batch in ((2, 256), (5, 256), (2, 1), (1, 7), (2, 33)):
        with Engine(path, n_threads=n_threads, n_batch=n_batch) as engine:
            assert engine.info.n_batch == n_batch
            assert np.array_equal(engine.logits(tokens), expected)


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("kv_type", KV_TYPES)
@pytest.mark.parametrize("dtype", ODD)
def test_instruction_sets_give_the_bits_of_portable_code(
    make_model: Callable[[Shape], Path], dtype: str, kv_type: Any, isa: Any
) -> None:
    path = make_model(shape_of(dtype))
    tokens = random_tokens(2 * PAGE + 7)
    try:
        engine = Engine(path, n_threads=2, kv_type=kv_type, isa=isa)
    except ArgumentError as error:
        assert "what this processor has" in str(error)
        assert not (isa == "avx2" and has_avx2())
        pytest.skip(f"this processor has no {isa}")
    with engine:
        assert engine.info.isa == isa
        fast, fast_one = engine.logits(tokens), engine.logits(tokens[:1])
    with Engine(path, n_threads=2, kv_type=kv_type, isa="scalar") as engine:
        assert engine.info.isa == "scalar"
        assert np.array_equal(engine.logits(tokens), fast)
        assert np.array_equal(engine.logits(tokens[:1]), fast_one)


def has_avx2() -> bool:
    cpuinfo = Path("/proc/cpuinfo")
    if platform.machine() != "x86_64" or not cpuinfo.exists():
        return False
    return {"avx2", "fma", "f16c"} <= set(cpuinfo.read_text().split())


@pytest.mark.parametrize("head_width", [12, 32, 40, 64, 80, 96])
@pytest.mark.parametrize("kv_type", ["q8_0", "q4_0"])
def test_a_quantized_cache_is_near_and_does_not_depend_on_cuts_forks_or_threads(
    make_model: Callable[[Shape], Path], kv_type: Any, head_width: int
) -> None:
    path = make_model(Shape(heads=4, kv_heads=2, head_width=head_width))
    tokens = random_tokens(2 * PAGE + 7)
    exact = NumpyLlama(path).logits(tokens)
    with Engine(path, n_threads=1, kv_type=kv_type) as engine:
        assert engine.info.kv_type == kv_type
        # Whole blocks of 32, their integers and a 16-bit scale.
        blocks = -(-head_width // 32) * (34 if kv_type == "q8_0" else 18)
        assert engine.info.kv_page_bytes == PAGE * Shape().layers * 2 * 2 * blocks
        expected = engine.logits(tokens)
        error = np.sqrt(np.mean((expected - exact) ** 2)) / exact.std()
        assert error < (0.02 if kv_type == "q8_0" else 0.25)
        with engine.session() as session:
            session.feed(tokens[:50], logits="none")
            with session.fork() as fork:
                fork.feed(random_tokens(20), logits="none")
            session.feed(random_tokens(9), logits="none")
            session.rewind(35)
            rows = session.feed(tokens[35:], logits="all")
            assert np.array_equal(rows, expected[35:])
    for n_threads, n_batch in ((2, 1), (3, 7), (5, 33)):
        with Engine(path, n_threads=n_threads, n_batch=n_batch, kv_type=kv_type) as engine:
            assert np.array_equal(engine.logits(tokens), expected)


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_a_session_cut_forked_and_rewound_anywhere_equals_a_fresh_one(
    engine: Engine, data: st.DataObject
) -> None:
    n = data.draw(st.integers(1, 120), label="tokens")
    tokens = random_tokens(n, seed=n)
    expected = engine.logits(tokens)
    session = engine.session()
    try:
        while session.n_tokens < n:
            held = session.n_tokens
            step = data.draw(st.sampled_from(["feed", "detour", "fork", "rewind"]), label="step")
            if step == "feed":
                count = data.draw(st.integers(1, n - held), label="count")
                rows = session.feed(tokens[held : held + count], logits="all")
                assert np.array_equal(rows, expected[held : held + count])
            elif step == "detour":  # other tokens, then back
                session.feed(random_tokens(data.draw(st.integers(1, 40)), seed=n + 1))
                session.rewind(held)
            elif step == "fork":  # both go on, the old one first, which copies the last page
                with session as old:
                    session = old.fork()
                    rows = old.feed(tokens[held : held + 5], logits="all")
                    assert np.array_equal(rows, expected[held : held + 5])
            else:
                session.rewind(data.draw(st.integers(max(0, held - 40), held), label="to"))
    finally:
        session.close()
    assert engine.info.kv_bytes == 0


def test_logits_are_given_for_none_the_last_or_all_tokens(engine: Engine) -> None:
    tokens = random_tokens(10)
    expected = engine.logits(tokens)
    assert expected.shape == (10, engine.n_vocab)
    assert expected.dtype == np.float32
    with engine.session() as session:
        assert session.feed(tokens[:4], logits="none").shape == (0, engine.n_vocab)
        last = session.feed(np.array(tokens[4:], np.int64))
    assert np.array_equal(last, expected[-1:])


# ---- sessions ----


def test_forks_share_pages_until_one_of_them_writes(engine: Engine) -> None:
    page = engine.info.kv_page_bytes
    tokens = random_tokens(2 * PAGE + 1)
    with engine.session() as session:
        session.feed(tokens, logits="none")
        assert engine.info.kv_bytes == 3 * page
        with session.fork() as fork:
            assert fork.n_tokens == session.n_tokens
            assert engine.info.kv_bytes == 3 * page
            row = fork.feed([1])  # copies the page that both were filling
            assert np.array_equal(row, engine.logits([*tokens, 1])[-1:])
            assert engine.info.kv_bytes == 4 * page
        assert engine.info.kv_bytes == 3 * page
        session.rewind(PAGE)
        assert engine.info.kv_bytes == page
    assert engine.info.kv_bytes == 0
    assert engine.info.kv_bytes_peak >= 4 * page


def test_a_dropped_session_gives_its_pages_back(engine: Engine) -> None:
    session = engine.session()
    session.feed([1])
    assert engine.info.kv_bytes > 0
    del session
    gc.collect()
    assert engine.info.kv_bytes == 0


@pytest.mark.parametrize("n_tokens", [-1, 6])
def test_rewind_refuses_what_the_session_does_not_hold(engine: Engine, n_tokens: int) -> None:
    with engine.session() as session:
        session.feed([1, 2, 3, 4, 5])
        with pytest.raises(
            ArgumentError, match=f"expected an integer from 0 to 5, found {n_tokens}"
        ):
            session.rewind(n_tokens)
        assert session.n_tokens == 5


@pytest.mark.parametrize(
    ("tokens", "message"),
    [
        ([], "tokens: expected 1 token or more, found none"),
        ([0, -1], r"tokens\[1\]: expected an id from 0 to 279, found -1"),
        ([280], r"tokens\[0\]: expected an id from 0 to 279, found 280"),
        ([2**40], r"tokens\[0\]"),
        ([[1, 2]], r"flat sequence of integers, found shape \(1, 2\)"),
        ([1.5], "flat sequence of integers, found .* float64"),
        ([True], "flat sequence of integers, found .* bool"),
        ("abc", "tokens: expected integers, found str"),
    ],
)
def test_feed_refuses_what_are_no_token_ids(engine: Engine, tokens: Any, message: str) -> None:
    with engine.session() as session, pytest.raises(ArgumentError, match=message):
        session.feed(tokens)


def test_feed_refuses_an_unknown_choice_of_logits(engine: Engine) -> None:
    choice: Any = "first"
    with (
        engine.session() as session,
        pytest.raises(ArgumentError, match="expected one of none, last, all"),
    ):
        session.feed([1], logits=choice)


def test_a_full_context_is_an_error_that_changes_nothing(model_path: Path) -> None:
    tokens = random_tokens(40)
    with Engine(model_path, n_ctx=40, n_threads=1) as engine, engine.session() as session:
        session.feed(tokens[:30])
        with pytest.raises(ContextFullError, match="at most 40 tokens, found 30 held and 11 more"):
            session.feed(random_tokens(11))
        assert session.n_tokens == 30
        rest = session.feed(tokens[30:], logits="all")
        assert np.array_equal(rest, engine.logits(tokens)[30:])
        with pytest.raises(ContextFullError):
            session.feed([1])


def test_max_kv_bytes_bounds_all_sessions_together(model_path: Path) -> None:
    with Engine(model_path) as engine:
        page = engine.info.kv_page_bytes
    with Engine(model_path, max_kv_bytes=3 * page + 5) as engine:
        first, second = engine.session(), engine.session()
        first.feed(random_tokens(2 * PAGE))
        second.feed(random_tokens(PAGE))
        with pytest.raises(OutOfMemoryError, match=f"stay within {3 * page + 5} bytes"):
            second.feed([1])
        assert second.n_tokens == PAGE
        assert engine.info.kv_bytes == 3 * page
        first.close()
        row = second.feed([1])
        second.close()
        assert np.array_equal(row, engine.logits([*random_tokens(PAGE), 1])[-1:])
        assert engine.info.kv_bytes_peak <= 3 * page + 5


def test_a_failed_feed_takes_no_pages(model_path: Path) -> None:
    with Engine(model_path) as engine:
        page = engine.info.kv_page_bytes
    with Engine(model_path, max_kv_bytes=3 * page) as engine, engine.session() as session:
        with pytest.raises(OutOfMemoryError):
            session.feed(random_tokens(4 * PAGE))
        assert (session.n_tokens, engine.info.kv_bytes) == (0, 0)


def test_a_raised_cancel_flag_stops_a_feed_and_changes_nothing(engine: Engine) -> None:
    flag = pyengine.CancelFlag()
    with engine.session() as session:
        session.feed([1, 2, 3], cancel=flag)
        held = engine.info.kv_bytes
        flag.cancel()
        assert flag.is_cancelled
        with pytest.raises(pyengine.CancelledError, match="cancelled"):
            session.feed(random_tokens(60), cancel=flag)
        assert session.n_tokens == 3
        assert engine.info.kv_bytes == held
        assert np.array_equal(session.feed([4]), engine.logits([1, 2, 3, 4])[-1:])


# ---- open and close ----


def test_an_engine_closes_its_sessions_and_may_be_closed_twice(model_path: Path) -> None:
    with Engine(model_path) as engine:
        session = engine.session()
        session.feed([1, 2])
    engine.close()
    session.close()
    session.close()
    assert repr(engine).endswith(", closed)")
    with pytest.raises(ClosedError, match="session: expected it open"):
        session.feed([3])


USES: dict[str, Callable[[Engine], Any]] = {
    "logits": lambda engine: engine.logits([1]),
    "session": lambda engine: engine.session(),
    "info": lambda engine: engine.info,
    "generate": lambda engine: engine.generate("the"),
    "stream": lambda engine: list(engine.generate("the", stream=True)),
    "perplexity": lambda engine: engine.perplexity("the cat" * 20, window=8),
    "tensors": lambda engine: engine.file.tensors,
}


@pytest.mark.parametrize("use", USES)
def test_a_closed_engine_says_so(model_path: Path, use: str) -> None:
    with Engine(model_path) as engine:
        pass
    with pytest.raises(ClosedError, match=r"(engine|file|session)"):
        USES[use](engine)


@pytest.mark.parametrize("use", ["feed", "fork", "rewind", "n_tokens"])
def test_a_closed_session_says_so(engine: Engine, use: str) -> None:
    with engine.session() as session:
        session.feed([1])
    with pytest.raises(ClosedError, match="session: expected it open, found it closed"):
        {
            "feed": lambda: session.feed([1]),
            "fork": session.fork,
            "rewind": lambda: session.rewind(0),
            "n_tokens": lambda: session.n_tokens,
        }[use]()


CLOSED = """
import sys
import numpy as np
from pathlib import Path
from pyengine import Engine

def resident_bytes():
    return int(Path("/proc/self/statm").read_text().split()[1]) * int(sys.argv[2])

before = resident_bytes()
with Engine(sys.argv[1], n_batch=2048, n_threads=2, resident="off") as engine:
    session = engine.session()
    session.feed(np.arange(2048) % engine.n_vocab, logits="none")
    assert engine.info.scratch_bytes > 60e6
    assert engine.info.kv_bytes > 0
    used = resident_bytes() - before
left = resident_bytes() - before
assert used > 50e6, used
assert left < used / 4, (left, used)
"""


@needs_proc
def test_close_gives_memory_back_to_the_system(make_model: Callable[[Shape], Path]) -> None:
    # Scratch for 2048 tokens of these widths is some 80 MB, and most of it is written. In a
    # process of its own: here, what earlier tests have freed would be taken again.
    path = make_model(Shape(layers=1, ffn=4096, context=2048))
    page = str(os.sysconf("SC_PAGE_SIZE"))
    subprocess.run([sys.executable, "-c", CLOSED, str(path), page], check=True)


@needs_proc
def test_a_long_context_costs_nothing_until_it_is_used(make_model: Callable[[Shape], Path]) -> None:
    path = make_model(Shape(context=131072, heads=16, kv_heads=16, head_width=64))
    before = resident_bytes()
    with Engine(path, n_threads=1) as engine:
        assert engine.n_ctx == 131072
        assert engine.info.kv_bytes == engine.info.kv_bytes_peak == 0
        whole_context = engine.info.kv_page_bytes * 131072 // PAGE
        assert whole_context > 1e9
        engine.logits([1])
        assert engine.info.kv_bytes_peak == engine.info.kv_page_bytes
        assert resident_bytes() - before < 50e6


def test_an_engine_keeps_its_file_open_when_the_caller_closes_it(model_path: Path) -> None:
    with Engine(model_path) as engine:
        expected = engine.logits([1, 2])
        engine.file.close()
        assert np.array_equal(engine.logits([1, 2]), expected)


def test_sessions_outlive_a_dropped_engine(model_path: Path) -> None:
    engine = Engine(model_path)
    expected = engine.logits([1, 2])
    session = engine.session()
    del engine
    gc.collect()
    assert np.array_equal(session.feed([1, 2]), expected[-1:])


OPTIONS: list[tuple[dict[str, Any], str]] = [
    ({"n_ctx": 0}, "n_ctx: expected an integer from 1 to 2\\^32 - 1, found 0"),
    ({"n_ctx": -1}, "n_ctx: expected an integer"),
    ({"n_ctx": 2**32}, "n_ctx: expected an integer"),
    ({"n_ctx": 257}, "n_ctx: expected at most 256, the context .* trained for, found 257"),
    ({"n_ctx": 1.5}, "n_ctx: expected an integer"),
    ({"n_threads": 0}, "n_threads: expected an integer from 1"),
    ({"n_threads": 1025}, "n_threads: expected at most 1024, found 1025"),
    ({"n_threads": True}, "n_threads: expected an integer"),
    ({"n_batch": 0}, "n_batch: expected an integer from 1"),
    ({"n_batch": 4097}, "n_batch: expected at most 4096"),
    ({"max_kv_bytes": 0}, "max_kv_bytes: expected an integer from 1"),
    ({"kv_type": "q8"}, "kv_type: expected one of auto, f32, f16, q8_0, q4_0, found 'q8'"),
    ({"kv_type": None}, "kv_type: expected one of"),
    ({"isa": "sse"}, "isa: expected one of .*scalar.*, found 'sse'"),
]


@pytest.mark.parametrize(("options", "message"), OPTIONS, ids=lambda value: str(value)[:30])
def test_options_outside_their_range_are_named(
    model_path: Path, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(ArgumentError, match=message):
        Engine(model_path, **options)


# ---- several threads ----


def test_close_waits_for_a_generation_in_another_thread(model_path: Path) -> None:
    for _ in range(5):
        engine = Engine(model_path, n_threads=2)
        started = threading.Event()
        ends: list[BaseException | None] = []

        def work(engine: Engine = engine, started: Any = started, ends: Any = ends) -> None:
            try:
                while True:
                    for _ in engine.generate("the cat", max_tokens=None, stream=True):
                        started.set()
            except PyengineError as error:
                ends.append(error)

        thread = threading.Thread(target=work)
        thread.start()
        assert started.wait(20)
        engine.close()
        thread.join(20)
        assert not thread.is_alive()
        assert [type(end) for end in ends] == [ClosedError]


def test_many_threads_on_one_engine_get_what_they_would_get_alone(engine: Engine) -> None:
    prompts = ["the", "a cat", "and then", "x" * 50, "\u20ac", "in town", "was", "other"]

    def run(prompt: str) -> list[int]:
        return engine.generate(prompt, max_tokens=40, seed=len(prompt)).tokens

    alone = [run(prompt) for prompt in prompts]
    assert len({tuple(tokens) for tokens in alone}) == len(prompts)
    with ThreadPoolExecutor(len(prompts)) as pool:
        assert list(pool.map(run, prompts)) == alone
    assert engine.info.kv_bytes == 0


def test_two_engines_run_side_by_side(make_model: Callable[[Shape], Path]) -> None:
    paths = [make_model(Shape(seed=1)), make_model(Shape(seed=2))]
    engines = [Engine(path, n_threads=2) for path in paths]
    expected = [engine.logits(random_tokens(50)) for engine in engines]
    with ThreadPoolExecutor(2) as pool:
        for _ in range(5):
            found = list(pool.map(lambda engine: engine.logits(random_tokens(50)), engines))
            assert all(map(np.array_equal, found, expected))
    for engine in engines:
        engine.close()
    assert not np.array_equal(*expected)


def test_python_threads_run_during_a_long_feed(make_model: Callable[[Shape], Path]) -> None:
    path = make_model(Shape(layers=2, width=256, ffn=1024, context=1024))
    done = threading.Event()
    ticks: list[float] = []

    def tick() -> None:
        while not done.wait(0.005):
            ticks.append(time.perf_counter())

    with Engine(path, n_threads=1, isa="scalar") as engine, engine.session() as session:
        ticker = threading.Thread(target=tick)
        ticker.start()
        began = time.perf_counter()
        session.feed(random_tokens(256), logits="none")
        ended = time.perf_counter()
        done.set()
        ticker.join()
    assert ended - began > 0.05  # else the test says nothing
    assert sum(began < at < ended for at in ticks) >= 3


def test_random_model_is_the_same_every_time(tmp_path: Path) -> None:
    first = random_model(Shape()).save(tmp_path / "first.gguf")
    second = random_model(Shape()).save(tmp_path / "second.gguf")
    assert first.read_bytes() == second.read_bytes()
    with ModelFile(first) as file:
        assert len(file.tensors) == 3 + 9 * Shape().layers


@pytest.mark.parametrize("kind", ["engine", "session", "file", "stream", "cancel"])
def test_handles_cannot_be_copied_into_a_second_owner(kind: str, model_path: Path) -> None:
    with Engine(model_path) as engine, engine.session() as session:
        handle = {
            "engine": engine,
            "session": session,
            "file": engine.file,
            "stream": engine.generate("a", stream=True),
            "cancel": CancelFlag(),
        }[kind]
        for duplicate in (copy.copy, copy.deepcopy, pickle.dumps):
            with pytest.raises(TypeError, match="expected to stay one object"):
                duplicate(handle)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_forked_child_gets_an_error_and_no_deadlock(model_path: Path) -> None:
    engine = Engine(model_path, n_threads=2)
    session = engine.session()
    busy = threading.Thread(target=lambda: engine.generate([1], max_tokens=200, ignore_eos=True))
    busy.start()
    pid = os.fork()
    if pid == 0:  # the child: any hang is ended by the alarm, which gives another code
        signal.alarm(20)
        try:
            session.feed([1])
        except ClosedError as error:
            session.close()
            engine.close()
            os._exit(0 if "found its child" in str(error) else 3)
        os._exit(4)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    busy.join()
    engine.close()


# ---- resident weights ----


@pytest.mark.parametrize("dtype", QUANTIZED)
def test_weights_that_move_change_no_bit(make_model: Callable[[Shape], Path], dtype: str) -> None:
    path = make_model(shape_of(dtype))
    tokens = random_tokens(PAGE + 7)
    with Engine(path, n_threads=2, resident="off") as engine:
        expected = engine.logits(tokens)
        assert engine.info.resident_bytes_goal == 0
        assert engine.info.resident_why == "off, as asked"
    with Engine(path, n_threads=2, resident="auto") as engine:
        moves = engine.info.resident_bytes_goal > 0
        assert engine.info.resident_bytes == 0
        for _ in range(40):  # before, while and after they move
            assert np.array_equal(engine.logits(tokens), expected)
        assert engine.info.resident_bytes == engine.info.resident_bytes_goal
    if moves:
        with Engine(path, n_threads=2, resident="on") as engine:
            assert engine.info.resident_bytes == engine.info.resident_bytes_goal > 0
            assert np.array_equal(engine.logits(tokens), expected)
    else:
        with pytest.raises(pyengine.UnsupportedModelError, match="resident weights: expected"):
            Engine(path, n_threads=2, resident="on")


def test_an_unknown_resident_mode_is_refused() -> None:
    with pytest.raises(ArgumentError, match=r"resident: expected .*auto.*, found 'maybe'"):
        Engine(resident="maybe")  # type: ignore[arg-type]
