"""Sessions of a model with recurrent layers: whatever happens to one, its logits stay the same."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import converters
from pyengine import CancelFlag, CancelledError, Engine, OutOfMemoryError

GOLDEN = Path(__file__).parent.parent / "golden"
NAMES = ["granitehybrid", "lfm2"]

Array = np.ndarray[Any, Any]


@pytest.fixture(scope="module", params=NAMES)
def model(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Path]:
    folder = tmp_path_factory.mktemp("state") / request.param
    shutil.copytree(GOLDEN / "families" / request.param, folder)
    shutil.copy(GOLDEN / "llama-grouped-tied" / "tokenizer.json", folder)
    out = folder / "out.gguf"
    converters.convert(folder, out, dtype="q8_0")
    yield out


@pytest.fixture(scope="module")
def tokens(model: Path) -> list[int]:
    golden: list[int] = json.loads((model.parent / "tokens.json").read_text("utf-8"))
    return (golden * 3)[:200]


@pytest.fixture(scope="module")
def expected(model: Path, tokens: list[int]) -> Array:
    with Engine(model, n_threads=1, n_batch=256) as engine:
        return engine.logits(tokens)


def test_going_back_to_every_position(model: Path, tokens: list[int], expected: Array) -> None:
    with Engine(model, n_threads=2, n_batch=48) as engine:
        assert engine.info.state_bytes > 0
        whole = engine.session()
        whole.feed(tokens, logits="none")
        for to in range(len(tokens)):
            with whole.fork() as session:
                session.rewind(to)
                assert session.tokens == tokens[:to]
                found = session.feed(tokens[to : to + 3], logits="all")
                assert np.array_equal(found, expected[to : to + 3])
        for to in reversed(range(0, len(tokens), 7)):
            whole.rewind(to)
            assert np.array_equal(whole.feed([tokens[to]])[0], expected[to])


def test_a_cancelled_feed_leaves_no_trace(model: Path, tokens: list[int], expected: Array) -> None:
    raised = CancelFlag()
    raised.cancel()
    with Engine(model, n_threads=2, n_batch=16) as engine, engine.session() as session:
        for begin in range(0, len(tokens), 25):
            with pytest.raises(CancelledError):
                session.feed(tokens[begin:], cancel=raised)
            assert session.n_tokens == begin
            found = session.feed(tokens[begin : begin + 25], logits="all")
            assert np.array_equal(found, expected[begin : begin + 25])


def test_a_budget_without_room_for_checkpoints_changes_no_bit(
    model: Path, tokens: list[int], expected: Array
) -> None:
    with Engine(model) as engine:
        page, state = engine.info.kv_page_bytes, engine.info.state_bytes
    with Engine(model, max_kv_bytes=7 * page + state, n_batch=16) as engine:
        with engine.session() as session:
            for begin in range(0, len(tokens), 40):
                found = session.feed(tokens[begin : begin + 40], logits="all")
                assert np.array_equal(found, expected[begin : begin + 40])
            session.rewind(100)
            assert np.array_equal(session.feed(tokens[100:], logits="all"), expected[100:])
            assert engine.info.kv_bytes_peak <= 7 * page + state
        assert engine.info.kv_bytes == 0
    with (
        Engine(model, max_kv_bytes=page + state - 1) as engine,
        pytest.raises(OutOfMemoryError, match="a state of"),
    ):
        engine.session().feed(tokens[:1])


def test_several_answers_of_one_prompt_are_those_of_each_alone(
    model: Path, tokens: list[int]
) -> None:
    with Engine(model, n_threads=2) as engine:
        options: dict[str, Any] = {"max_tokens": 20, "temperature": 0, "ignore_eos": True}
        alone = engine.generate(tokens[:70], **options).tokens
        session = engine.session()
        session.feed(tokens[:90], logits="none")
        session.rewind(0)
        session.feed(tokens[:70], logits="none")
        rows = [session.fork() for _ in range(3)]
        for row in rows:
            row.rewind(69)
            found: list[int] = []
            logits = row.feed(tokens[69:70])
            while len(found) < 20:
                found.append(int(logits[0].argmax()))
                logits = row.feed([found[-1]])
            assert found == alone
