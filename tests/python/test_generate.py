"""Generation: which tokens are chosen, where the text ends, and how it arrives."""

from __future__ import annotations

import itertools
import math
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny import END, START, Model, Shape, chain

from pyengine import (
    ArgumentError,
    CancelFlag,
    ContextFullError,
    Engine,
    OutOfMemoryError,
    Sampler,
    Sampling,
    Session,
)

Recite = Callable[..., Engine]
SCRIPT = ("Hel", "lo", " w", "or", "ld", "!")


def log_softmax(row: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    wide = row.astype(np.float64)
    top = wide.max()
    return wide - top - np.log(np.exp(wide - top).sum())


def greedy_by_hand(engine: Engine, prompt: list[int], n: int) -> list[int]:
    tokens = list(prompt)
    while len(tokens) < len(prompt) + n:
        best = int(engine.logits(tokens)[-1].argmax())
        if best in engine.tokenizer.eog_ids:
            break
        tokens.append(best)
    return tokens[len(prompt) :]


# ---- which tokens ----


@pytest.mark.parametrize("prompt", ["the cat", "a", "\u20ac and \u00e9", "x" * 70])
def test_temperature_0_takes_the_most_likely_token_every_time(engine: Engine, prompt: str) -> None:
    found = engine.generate(prompt, max_tokens=40, temperature=0)
    assert found.tokens == greedy_by_hand(engine, engine.tokenize(prompt), 40)
    assert len(found.tokens) == 40 or found.finish_reason == "eos"


def test_the_same_seed_gives_the_same_text_and_others_do_not(engine: Engine) -> None:
    texts = {seed: engine.generate("the cat", max_tokens=20, seed=seed).text for seed in range(10)}
    again = {seed: engine.generate("the cat", max_tokens=20, seed=seed).text for seed in range(10)}
    assert again == texts
    assert len(set(texts.values())) == 10


def test_threads_do_not_change_the_text(model_path: Path, engine: Engine) -> None:
    expected = engine.generate("the cat", max_tokens=50, seed=7)
    with Engine(model_path, n_threads=1, n_batch=3) as other:
        assert other.generate("the cat", max_tokens=50, seed=7).tokens == expected.tokens


def test_a_drawn_seed_is_reported_and_repeats_the_text(engine: Engine) -> None:
    first, second = (engine.generate("the", max_tokens=20) for _ in range(2))
    assert first.seed != second.seed
    assert engine.generate("the", max_tokens=20, seed=first.seed).tokens == first.tokens


@pytest.mark.parametrize("seed", [0, 2**64 - 1])
def test_the_whole_range_of_seeds_is_taken(engine: Engine, seed: int) -> None:
    assert engine.generate("the", max_tokens=2, seed=seed).seed == seed


def test_tokens_are_those_that_the_sampler_picks_from_the_engines_logits(engine: Engine) -> None:
    options = {"temperature": 1.3, "top_k": 9, "repeat_penalty": 1.2, "penalty_window": 5}
    prompt = engine.tokenize("the cat and the other")
    sampler = Sampler(Sampling(**options), seed=11)
    for token in prompt:
        sampler.accept(token)
    tokens = list(prompt)
    for _ in range(20):
        tokens.append(sampler.pick(engine.logits(tokens)[-1]))
        sampler.accept(tokens[-1])
    found = engine.generate(prompt, max_tokens=20, seed=11, ignore_eos=True, **options)
    assert found.tokens == tokens[len(prompt) :]


def test_logit_bias_forces_and_bans_tokens(engine: Engine) -> None:
    forced = engine.generate("the", max_tokens=5, logit_bias={65: math.inf}, seed=1)
    assert forced.text == "AAAAA"
    best = greedy_by_hand(engine, engine.tokenize("the"), 1)[0]
    banned = engine.generate("the", max_tokens=1, temperature=0, logit_bias={best: -math.inf})
    row = engine.logits(engine.tokenize("the"))[-1]
    row[best] = -np.inf
    assert banned.tokens == [int(row.argmax())]


def test_ignore_eos_bans_every_token_that_ends_the_text(recite: Recite) -> None:
    engine = recite(*SCRIPT)
    assert engine.generate([0], temperature=0).finish_reason == "eos"
    going_on = engine.generate([0], temperature=0, max_tokens=20, ignore_eos=True)
    assert going_on.finish_reason == "length"
    assert len(going_on.tokens) == 20
    assert not set(going_on.tokens) & engine.tokenizer.eog_ids


def test_ignore_eos_outdoes_a_bias_towards_the_end(recite: Recite) -> None:
    engine = recite(*SCRIPT)
    found = engine.generate([0], max_tokens=3, ignore_eos=True, logit_bias={1: 100.0})
    assert found.text == "Hello w"


@pytest.mark.parametrize(
    "penalty",
    [{"repeat_penalty": 1e6}, {"presence_penalty": 1e6}, {"frequency_penalty": 1e6}],
    ids=lambda penalty: next(iter(penalty)),
)
def test_penalties_keep_tokens_of_prompt_and_text_away(
    engine: Engine, penalty: dict[str, float]
) -> None:
    prompt = engine.tokenize("the cat")
    plain = engine.generate(prompt, max_tokens=200, temperature=0, ignore_eos=True)
    assert len(set(plain.tokens)) < 200  # it repeats itself without
    found = engine.generate(
        prompt, max_tokens=200, temperature=0, ignore_eos=True, penalty_window=256, **penalty
    )
    assert len(set(found.tokens)) == 200
    assert not set(found.tokens) & set(prompt)


def test_penalties_see_no_further_than_their_window(engine: Engine) -> None:
    plain = engine.generate("the", max_tokens=30, temperature=0)
    options = {"max_tokens": 30, "temperature": 0, "repeat_penalty": 1e6}
    assert engine.generate("the", penalty_window=0, **options).tokens == plain.tokens
    tokens = engine.generate("the", penalty_window=3, **options).tokens
    assert all(len(set(tokens[i : i + 4])) == 4 for i in range(len(tokens) - 3))
    assert len(set(tokens)) < len(tokens)


# ---- where it ends ----


def test_an_end_token_ends_the_text_and_is_no_part_of_it(recite: Recite) -> None:
    found = recite(*SCRIPT).generate([0])
    assert (found.text, found.finish_reason) == ("Hello world!", "eos")
    assert found.tokens == [2, 3, 4, 5, 6, 7]


@pytest.mark.parametrize(
    ("max_tokens", "text"), [(0, ""), (1, "Hel"), (2, "Hello"), (5, "Hello world")]
)
def test_max_tokens_ends_the_text(recite: Recite, max_tokens: int, text: str) -> None:
    found = recite(*SCRIPT).generate([0], max_tokens=max_tokens)
    assert (found.text, found.finish_reason) == (text, "length")
    assert len(found.tokens) == found.usage.completion_tokens == max_tokens


def test_no_max_tokens_goes_on_to_the_contexts_last_position(recite: Recite) -> None:
    engine = recite(*(["ab"] * 60), context=40)
    found = engine.generate([0] * 10, max_tokens=None)
    # The token behind the last position needs no position of its own.
    assert (len(found.tokens), found.finish_reason) == (31, "length")


def test_a_prompt_that_fills_the_context_still_gives_a_token(recite: Recite) -> None:
    engine = recite(*SCRIPT, context=40)
    found = engine.generate([0] * 40, max_tokens=None)
    assert (found.text, found.finish_reason) == ("Hel", "length")


@pytest.mark.parametrize(
    ("stop", "text"),
    [
        ("o", "Hell"),
        ("lo w", "Hel"),
        ("Hello world!", ""),
        ("H", ""),
        ("!", "Hello world"),
        (["xyz", "wor", "o"], "Hell"),
        (["rld", "world"], "Hello "),
        (("ld", "world"), "Hello "),
    ],
)
def test_a_stop_string_ends_the_text_before_it(recite: Recite, stop: Any, text: str) -> None:
    engine = recite(*SCRIPT)
    found = engine.generate([0], stop=stop)
    assert (found.text, found.finish_reason) == (text, "stop")
    assert found.usage.completion_tokens == len(found.tokens)
    stream = engine.generate([0], stop=stop, stream=True)
    assert "".join(stream) == text
    assert stream.result.finish_reason == "stop"


def test_text_that_only_begins_a_stop_string_is_kept(recite: Recite) -> None:
    found = recite(*SCRIPT).generate([0], stop=["world!!", "Hello W", "!?"])
    assert (found.text, found.finish_reason) == ("Hello world!", "eos")


def test_a_stop_string_in_the_prompt_alone_does_not_stop(recite: Recite) -> None:
    assert recite(*SCRIPT).generate([2, 3], stop="Hello").text == " world!"


def test_a_stop_string_wins_over_the_token_limit_it_ends_at(recite: Recite) -> None:
    found = recite(*SCRIPT).generate([0], max_tokens=2, stop="lo")
    assert (found.text, found.finish_reason) == ("Hel", "stop")


def test_a_stop_string_made_of_a_broken_character_is_found_at_the_end(recite: Recite) -> None:
    found = recite("ab", b"\xe2\x82").generate([0], stop="\ufffd")
    assert (found.text, found.finish_reason) == ("ab", "stop")


@settings(max_examples=60, deadline=None)
@given(
    text=st.text(st.sampled_from("ab\u00e9\u20ac\U0001f600"), min_size=1, max_size=12),
    cuts=st.sets(st.integers(1, 40), max_size=12),
    stops=st.lists(st.text(st.sampled_from("ab\u00e9\u20ac"), min_size=1, max_size=3), max_size=3),
)
def test_text_and_stops_do_not_depend_on_where_tokens_are_cut(
    tmp_path_factory: pytest.TempPathFactory, text: str, cuts: set[int], stops: list[str]
) -> None:
    data = text.encode()
    ends = [0, *sorted(cut for cut in cuts if cut < len(data)), len(data)]
    pieces = [data[a:b] for a, b in itertools.pairwise(ends)]
    path = tmp_path_factory.mktemp("cut") / "chain.gguf"
    with Engine(chain(pieces).save(path), n_threads=1) as engine:
        stream = engine.generate([0], stop=stops, stream=True)
        given_out = list(stream)
    # As if the text came character by character: the first prefix that ends in a stop string.
    expected, reason = text, "eos"
    for n in range(1, len(text) + 1):
        met = [stop for stop in stops if text[:n].endswith(stop)]
        if met:
            expected, reason = text[: n - max(map(len, met))], "stop"
            break
    assert "".join(given_out) == expected
    assert stream.result.text == expected
    assert stream.result.finish_reason == reason
    assert all(given_out)
    so_far = ""
    for piece in given_out:  # no piece holds part of a character, or of the stop string
        piece.encode("utf-8")
        so_far += piece
        assert expected.startswith(so_far)


# ---- streams ----


def test_pieces_join_to_the_text(engine: Engine) -> None:
    for seed in range(10):
        options: dict[str, Any] = {"max_tokens": 60, "seed": seed, "temperature": 1.5, "top_k": 0}
        whole = engine.generate("the cat", **options)
        stream = engine.generate("the cat", stream=True, **options)
        pieces = list(stream)
        assert "".join(pieces) == whole.text == stream.result.text
        assert stream.result.tokens == whole.tokens
        raw = b"".join(engine.tokenizer.token_bytes(t, skip_special=True) for t in whole.tokens)
        assert whole.text == raw.decode("utf-8", "replace")


def test_a_character_split_over_tokens_arrives_whole(recite: Recite) -> None:
    engine = recite("a", b"\xe2", b"\x82", b"\xac", b"\xf0\x9f", b"\x98\x80b", b"\xe2\x82", "c")
    assert list(engine.generate([0], stream=True)) == ["a", "\u20ac", "\U0001f600b", "\ufffdc"]


def test_a_character_cut_off_by_the_end_becomes_a_replacement(recite: Recite) -> None:
    engine = recite("a", b"\xe2", b"\x82", b"\xac")
    assert engine.generate([0], max_tokens=3).text == "a\ufffd"


def test_a_stream_computes_nothing_until_asked(engine: Engine) -> None:
    stream = engine.generate("the cat", stream=True, max_tokens=5)
    assert engine.info.kv_bytes == 0
    assert stream.result.finish_reason == "cancelled"
    assert stream.result.tokens == []
    stream.close()
    assert list(stream) == []


def test_a_stream_left_early_frees_its_memory(engine: Engine) -> None:
    stream = engine.generate("the cat", stream=True, max_tokens=None, seed=1)
    next(stream)
    assert engine.info.kv_bytes > 0
    stream.close()
    assert engine.info.kv_bytes == 0
    result = stream.result
    assert (result.finish_reason, len(result.text) > 0) == ("cancelled", True)

    for _ in engine.generate("the cat", stream=True, max_tokens=None, seed=1):
        assert engine.info.kv_bytes > 0
        break
    assert engine.info.kv_bytes == 0


def test_two_streams_on_one_engine_do_not_disturb_each_other(engine: Engine) -> None:
    prompts = ["the cat", "and then"]
    options: dict[str, Any] = {"max_tokens": 30, "seed": 4}
    alone = [engine.generate(prompt, **options).text for prompt in prompts]
    streams = [engine.generate(prompt, stream=True, **options) for prompt in prompts]
    pairs = list(itertools.zip_longest(*streams, fillvalue=""))
    assert ["".join(part) for part in zip(*pairs, strict=True)] == alone


# ---- cancelling ----


def test_cancel_from_another_thread_keeps_what_there_is(engine: Engine) -> None:
    flag = CancelFlag()
    threading.Timer(0.05, flag.cancel).start()
    began = time.perf_counter()
    found = None
    while not flag.is_cancelled:  # the context is short: start again until the flag is raised
        found = engine.generate("the", max_tokens=None, ignore_eos=True, seed=1, cancel=flag)
        assert time.perf_counter() - began < 10
    assert found is not None
    assert engine.info.kv_bytes == 0
    cut = engine.generate("the", cancel=flag, seed=1)
    assert (cut.text, cut.tokens, cut.finish_reason) == ("", [], "cancelled")


def test_a_cancelled_stream_ends_with_its_text_so_far(engine: Engine) -> None:
    options: dict[str, Any] = {"max_tokens": 50, "seed": 3, "ignore_eos": True}
    whole = engine.generate("the", **options).text
    stream = engine.generate("the", stream=True, **options)
    pieces = [next(stream), next(stream)]
    canceller = threading.Thread(target=stream.cancel)
    canceller.start()
    canceller.join()
    pieces += list(stream)
    result = stream.result
    assert result.finish_reason == "cancelled"
    assert result.text == "".join(pieces)
    assert whole.startswith(result.text)
    assert len(result.tokens) < 10
    assert engine.info.kv_bytes == 0


def test_every_step_listens_to_the_cancel_flag(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    heard: list[Any] = []
    feed = Session.feed

    def listen(session: Session, tokens: Any, **options: Any) -> Any:
        heard.append(options.get("cancel"))
        return feed(session, tokens, **options)

    monkeypatch.setattr(Session, "feed", listen)
    flag = CancelFlag()
    engine.generate([1] * 40, max_tokens=3, ignore_eos=True, cancel=flag)
    assert heard == [flag] * 4  # two slices of the prompt, and two tokens behind the first


def test_cancel_interrupts_a_long_prompt(make_model: Callable[[Shape], Path]) -> None:
    path = make_model(Shape(layers=16, width=128, ffn=512, context=4096))
    flag = CancelFlag()
    with Engine(path, n_threads=1, isa="scalar") as engine:
        threading.Timer(0.1, flag.cancel).start()
        began = time.perf_counter()
        found = engine.generate([1] * 4096, cancel=flag)  # half a minute
        assert time.perf_counter() - began < 20
        assert found.finish_reason == "cancelled"
        assert found.timings.n_prefill < 4096


# ---- prompts ----


def test_ids_are_taken_as_they_are(engine: Engine) -> None:
    ids = engine.tokenize("the cat")
    assert ids[0] == engine.tokenizer.bos_id
    text = engine.generate("the cat", max_tokens=9, seed=1)
    assert engine.generate(ids, max_tokens=9, seed=1).tokens == text.tokens
    assert engine.generate(ids[1:], max_tokens=9, seed=1).tokens != text.tokens
    assert engine.generate(ids, max_tokens=1).usage.prompt_tokens == len(ids)
    assert engine.generate(np.array(ids), max_tokens=9, seed=1).tokens == text.tokens


def test_an_empty_text_starts_from_the_begin_token(engine: Engine) -> None:
    found = engine.generate("", max_tokens=9, seed=1)
    assert found.usage.prompt_tokens == 1
    begin = engine.tokenizer.bos_id
    assert begin is not None
    assert engine.generate([begin], max_tokens=9, seed=1).tokens == found.tokens


def test_an_empty_text_starts_from_it_even_where_texts_do_not(model: Model, tmp_path: Path) -> None:
    model.metadata["tokenizer.ggml.add_bos_token"] = False
    with Engine(model.save(tmp_path / "no-begin.gguf")) as engine:
        assert engine.tokenize("a") == [ord("a")]
        found = engine.generate("", max_tokens=9, temperature=0)
        begin = engine.tokenizer.bos_id
        assert begin is not None
        assert found.usage.prompt_tokens == 1
        assert found.tokens == greedy_by_hand(engine, [begin], 9)


def test_control_tokens_in_a_prompt_are_read_on_request_only(engine: Engine) -> None:
    read = engine.generate(f"a{END}b", max_tokens=1)
    spelled = engine.generate(f"a{END}b", max_tokens=1, parse_special=False)
    assert read.usage.prompt_tokens == 4  # begin, a, end, b
    assert spelled.usage.prompt_tokens > 8


def test_an_empty_list_is_no_prompt(engine: Engine) -> None:
    with pytest.raises(ArgumentError, match="prompt: expected 1 token or more, found none"):
        engine.generate([])


def test_a_prompt_beyond_the_context_is_refused_not_cut(engine: Engine) -> None:
    with pytest.raises(ContextFullError, match=r"prompt: expected at most 256 tokens.* found 257"):
        engine.generate([1] * 257)
    assert engine.generate([1] * 256, max_tokens=4).finish_reason in ("length", "eos")


def test_a_spent_kv_budget_is_an_error_and_frees_what_was_taken(model_path: Path) -> None:
    with Engine(model_path, max_kv_bytes=20_000) as engine:
        with pytest.raises(OutOfMemoryError, match="stay within 20000 bytes"):
            engine.generate("the", max_tokens=None, ignore_eos=True)
        assert engine.info.kv_bytes == 0


# ---- what is reported ----


def test_logprobs_are_the_log_softmax_of_the_logits(engine: Engine) -> None:
    prompt = engine.tokenize("the cat")
    found = engine.generate(prompt, max_tokens=12, seed=5, temperature=1.5, top_k=0, logprobs=3)
    assert found.logprobs is not None
    assert [entry.token for entry in found.logprobs] == found.tokens
    for i, entry in enumerate(found.logprobs):
        expected = log_softmax(engine.logits([*prompt, *found.tokens[:i]])[-1])
        assert entry.logprob == pytest.approx(expected[entry.token], abs=1e-5)
        best = np.argsort(-expected, kind="stable")[:3]
        assert [token for token, _ in entry.top] == best.tolist()
        assert [value for _, value in entry.top] == pytest.approx(expected[best], abs=1e-5)
        assert entry.text == engine.tokenizer.token_bytes(entry.token).decode("utf-8", "replace")
    assert len({entry.token == entry.top[0][0] for entry in found.logprobs}) == 2


def test_logprobs_ignore_bias_and_penalties(engine: Engine) -> None:
    prompt = engine.tokenize("the cat")
    expected = log_softmax(engine.logits(prompt)[-1])
    found = engine.generate(
        prompt, max_tokens=1, logprobs=1, logit_bias={65: math.inf}, repeat_penalty=2.0
    )
    assert found.logprobs is not None
    assert found.logprobs[0].token == 65
    assert found.logprobs[0].logprob == pytest.approx(expected[65], abs=1e-5)


@pytest.mark.parametrize(("count", "length"), [(0, 0), (1, 1), (280, 280)])
def test_as_many_alternatives_as_asked_for(engine: Engine, count: int, length: int) -> None:
    found = engine.generate("the", max_tokens=2, logprobs=count, seed=1)
    assert found.logprobs is not None
    assert [len(entry.top) for entry in found.logprobs] == [length, length]
    for entry in found.logprobs:
        assert entry.logprob < 0
        assert dict(entry.top).get(entry.token, entry.logprob) == pytest.approx(entry.logprob)


def test_no_logprobs_unless_asked_for(engine: Engine) -> None:
    assert engine.generate("the", max_tokens=2).logprobs is None


def test_usage_and_timings_count_tokens(recite: Recite) -> None:
    found = recite(*SCRIPT).generate([0, 0, 0])
    assert (found.usage.prompt_tokens, found.usage.completion_tokens) == (3, 6)
    assert found.usage.total_tokens == 9
    timings = found.timings
    assert (timings.n_prefill, timings.n_decode) == (3, 6)  # the end token is decoded, too
    assert timings.load_seconds > 0
    assert timings.prefill_tokens_per_second == pytest.approx(3 / timings.prefill_seconds)
    assert timings.decode_tokens_per_second == pytest.approx(6 / timings.decode_seconds)


def test_rates_of_nothing_are_0(recite: Recite) -> None:
    timings = recite(*SCRIPT).generate([0], max_tokens=0).timings
    assert timings.prefill_tokens_per_second == timings.decode_tokens_per_second == 0


@pytest.mark.parametrize("n_prompt", [1, 32, 33, 200])
def test_progress_rises_to_the_whole_prompt(engine: Engine, n_prompt: int) -> None:
    calls: list[tuple[int, int]] = []
    engine.generate([1] * n_prompt, max_tokens=3, progress=lambda *at: calls.append(at))
    done = [at for at, _ in calls]
    assert {total for _, total in calls} == {n_prompt}
    assert done == sorted(set(done))
    assert done[0] > 0
    assert done[-1] == n_prompt


def test_an_error_in_a_progress_callback_reaches_the_caller(engine: Engine) -> None:
    def fail(done: int, total: int) -> None:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        engine.generate("the", progress=fail)
    assert engine.info.kv_bytes == 0


def test_ctrl_c_in_a_progress_callback_frees_everything(engine: Engine) -> None:
    def interrupt(done: int, total: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        engine.generate("the", progress=interrupt)
    assert engine.info.kv_bytes == 0


# ---- invalid options ----


INVALID: list[tuple[dict[str, Any], str]] = [
    ({"temperature": -0.1}, "temperature: expected 0 or more, found -0.1"),
    ({"temperature": math.nan}, "temperature: expected 0 or more, found -?nan"),
    ({"temperature": math.inf}, "temperature: expected 0 or more, found inf"),
    ({"temperature": "warm"}, "temperature: expected a number, found 'warm'"),
    ({"temperature": True}, "temperature: expected a number, found True"),
    ({"temperature": None}, "temperature: expected a number, found None"),
    ({"top_k": -1}, r"top_k: expected an integer from 0 to 2\^32 - 1, found -1"),
    ({"top_k": 2**32}, r"top_k: expected an integer from 0 to 2\^32 - 1"),
    ({"top_k": 1.5}, "top_k: expected an integer, found 1.5"),
    ({"top_p": 0}, "top_p: expected above 0 and up to 1, found 0"),
    ({"top_p": 1.01}, "top_p: expected above 0 and up to 1, found 1.01"),
    ({"top_p": math.nan}, "top_p: expected above 0 and up to 1"),
    ({"min_p": -0.01}, "min_p: expected 0 to 1, found -0.01"),
    ({"min_p": 1.01}, "min_p: expected 0 to 1, found 1.01"),
    ({"min_p": math.nan}, "min_p: expected 0 to 1"),
    ({"repeat_penalty": 0}, "repeat_penalty: expected above 0, found 0"),
    ({"repeat_penalty": math.inf}, "repeat_penalty: expected above 0, found inf"),
    ({"presence_penalty": math.nan}, "presence_penalty: expected a number"),
    ({"presence_penalty": math.inf}, "presence_penalty: expected a number, found inf"),
    ({"frequency_penalty": -math.inf}, "frequency_penalty: expected a number, found -inf"),
    ({"penalty_window": -1}, "penalty_window: expected an integer from 0 to"),
    ({"penalty_window": 2**20 + 1}, "penalty_window: expected at most 1048576"),
    ({"logit_bias": {280: 1.0}}, "logit_bias: expected an integer from 0 to 279, found 280"),
    ({"logit_bias": {-1: 1.0}}, "logit_bias: expected an integer from 0 to 279, found -1"),
    ({"logit_bias": {"a": 1.0}}, "logit_bias: expected an integer, found 'a'"),
    ({"logit_bias": {1: math.nan}}, "logit_bias of token 1: expected a number, found NaN"),
    ({"logit_bias": {1: "high"}}, "logit_bias: expected a number, found 'high'"),
    ({"logit_bias": dict.fromkeys(range(280), -math.inf)}, "expected to leave a token.* banned"),
    ({"stop": ""}, "expected a non-empty string, found ''"),
    ({"stop": ["a", ""]}, "expected a non-empty string, found ''"),
    ({"stop": [1]}, "expected a non-empty string, found 1"),
    ({"max_tokens": -1}, r"max_tokens: expected an integer from 0 to 2\^63 - 1, found -1"),
    ({"max_tokens": 1.5}, "max_tokens: expected an integer, found 1.5"),
    ({"logprobs": -1}, "logprobs: expected an integer from 0 to 280, found -1"),
    ({"logprobs": 281}, "logprobs: expected an integer from 0 to 280, found 281"),
    ({"temperature": 10**400}, "temperature: expected a number that a 32-bit float holds"),
    ({"temperature": 1e39}, r"temperature: expected a number that a 32-bit float holds"),
    ({"top_p": 1e-50}, "top_p: expected a number that a 32-bit float holds, found 1e-50"),
    ({"stop": 5}, "stop: expected a string or a sequence of strings, found int"),
    ({"logprobs": 1.5}, "logprobs: expected an integer, found 1.5"),
    ({"max_tokens": True}, "max_tokens: expected an integer, found True"),
    ({"cancel": 5}, "cancel: expected a CancelFlag, found int"),
    ({"logit_bias": [1]}, "logit_bias: expected a mapping of token ids to numbers, found list"),
    ({"prompt": b"abc"}, "prompt: expected integers, found bytes"),
    ({"seed": -1}, r"seed: expected an integer from 0 to 2\^64 - 1, found -1"),
    ({"seed": 2**64}, r"seed: expected an integer from 0 to 2\^64 - 1, found 18446744073709551616"),
    ({"seed": 1.5}, "seed: expected an integer"),
    ({"seed": True}, "seed: expected an integer"),
    ({"prompt": [280]}, r"prompt\[0\]: expected an id from 0 to 279, found 280"),
    ({"prompt": [-1]}, r"prompt\[0\]: expected an id"),
    ({"prompt": [1.5]}, "prompt: expected a flat sequence of integers"),
    ({"prompt": "\ud800"}, "text: expected Unicode text, found a lone surrogate"),
]


@pytest.mark.parametrize(("options", "message"), INVALID, ids=lambda value: str(value)[:40])
def test_options_outside_their_range_are_named(
    engine: Engine, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(ArgumentError, match=message):
        engine.generate(**{"prompt": "the", "max_tokens": 2} | options)
    assert engine.info.kv_bytes == 0


VALID: list[dict[str, Any]] = [
    {"temperature": 1e-30},
    {"temperature": 1e30},
    {"top_k": 2**32 - 1},
    {"top_k": 1},
    {"top_p": 1e-30},
    {"min_p": 1},
    {"repeat_penalty": 1e-30},
    {"presence_penalty": -5.0, "frequency_penalty": 1e30},
    {"penalty_window": 2**20, "repeat_penalty": 2.0},
    {"logit_bias": {0: 1e30, 1: -1e30}},
    {"temperature": np.float32(0.5), "top_k": np.int64(3)},
]


@pytest.mark.parametrize("options", VALID, ids=str)
def test_extreme_options_inside_their_range_work(engine: Engine, options: dict[str, Any]) -> None:
    found = engine.generate("the", max_tokens=5, seed=1, **options)
    assert found.tokens or found.finish_reason == "eos"


@pytest.mark.parametrize("options", [{"top_k": 1}, {"min_p": 1}, {"top_p": 1e-30}], ids=str)
def test_a_choice_of_one_is_the_most_likely(engine: Engine, options: dict[str, Any]) -> None:
    found = engine.generate("the", max_tokens=20, seed=1, **options)
    assert found.tokens == engine.generate("the", max_tokens=20, temperature=0).tokens


def test_start_is_the_begin_token_of_the_tiny_vocabulary(engine: Engine) -> None:
    assert engine.tokenize(START, parse_special=True, add_special=False) == [
        engine.tokenizer.bos_id
    ]
