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
from converters._gguf_writer import Field
from converters._mapping import ModelMapping
from pyengine import (
    CancelFlag,
    CancelledError,
    ConversionError,
    Engine,
    ModelFormatError,
    OutOfMemoryError,
)

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


@pytest.mark.parametrize(
    ("name", "key", "value", "message"),
    [
        ("granitehybrid", "ssm.inner_size", 0, "inner width of Mamba layers: expected 1 to"),
        ("granitehybrid", "ssm.inner_size", 2**32 - 1, "inner width of Mamba layers: expected 1"),
        ("granitehybrid", "ssm.inner_size", 62, "an inner width that 4 heads divide.*found a wid"),
        ("granitehybrid", "ssm.state_size", 0, "state size: expected 1 to 65536, found 0"),
        ("granitehybrid", "ssm.state_size", 2**32 - 1, "state size: expected 1 to 65536"),
        ("granitehybrid", "ssm.state_size", 48, "ssm_in.weight: expected shape"),
        ("granitehybrid", "ssm.time_step_rank", 0, "number of Mamba heads: expected 1"),
        ("granitehybrid", "ssm.time_step_rank", 5, "that 5 heads divide"),
        ("granitehybrid", "ssm.group_count", 0, "number of Mamba groups: expected 1 to 4"),
        ("granitehybrid", "ssm.group_count", 3, "that 3 groups divide"),
        ("granitehybrid", "ssm.group_count", 5, "number of Mamba groups: expected 1 to 4, found 5"),
        ("granitehybrid", "ssm.conv_kernel", 0, "tokens of the convolution: expected 1 to 16"),
        ("granitehybrid", "ssm.conv_kernel", 3, "ssm_conv1d.weight: expected shape"),
        ("lfm2", "shortconv.l_cache", 2**32 - 1, "tokens of the convolution: expected 1 to 16"),
        ("lfm2", "shortconv.l_cache", 2, "shortconv.conv.weight: expected shape"),
        ("lfm2", "attention.head_count_kv", [0, 2], "for each of 3 layers, found an array of 2"),
        ("lfm2", "attention.head_count_kv", [0, 2, 0, 0], "for each of 3 layers, found an array"),
        ("lfm2", "attention.head_count_kv", [0, 0, 0], "number of KV heads: expected 1 to 4"),
    ],
)
def test_sizes_that_do_not_fit_are_refused(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    name: str,
    key: str,
    value: int | list[int],
    message: str,
) -> None:
    fields = ModelMapping.fields

    def spoilt(self: ModelMapping) -> list[Field]:
        kept = [field for field in fields(self) if field.key != f"{name}.{key}"]
        assert len(kept) == len(fields(self)) - 1
        return [*kept, Field(f"{name}.{key}", "u32", value)]

    monkeypatch.setattr(ModelMapping, "fields", spoilt)
    folder = tmp_path / name
    shutil.copytree(GOLDEN / "families" / name, folder)
    shutil.copy(GOLDEN / "llama-grouped-tied" / "tokenizer.json", folder)
    converters.convert(folder, tmp_path / "out.gguf", dtype="f32")
    with pytest.raises(ModelFormatError, match=message):
        Engine(tmp_path / "out.gguf")


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("lfm2", {"conv_bias": True}, "conv_bias: expected None or False"),
        ("lfm2", {"layer_types": ["conv"]}, "layer_types: expected 3 times conv or full_attention"),
        ("lfm2", {"layer_types": ["conv"] * 3}, "layer_types: expected a layer of full_attention"),
        ("granitehybrid", {"mamba_n_heads": 3}, "mamba_n_heads: expected a divisor of 64"),
        ("granitehybrid", {"mamba_d_head": 8}, "mamba_d_head: expected 16 for 4 heads of 64"),
        ("granitehybrid", {"mamba_n_groups": 3}, "mamba_n_heads: expected a divisor of 64 that 3"),
        ("granitehybrid", {"mamba_proj_bias": True}, "mamba_proj_bias: expected None or False"),
        ("granitehybrid", {"time_step_limit": [0.1, 1.0]}, "time_step_limit: expected 0 to infi"),
        ("granitehybrid", {"position_embedding_type": "alibi"}, "position_embedding_type: expect"),
    ],
)
def test_configs_that_no_file_can_say_are_refused(
    name: str, change: dict[str, Any], message: str
) -> None:
    config = json.loads((GOLDEN / "families" / name / "config.json").read_text("utf-8"))
    with pytest.raises(ConversionError, match=message):
        ModelMapping({**config, **change})
