"""Every model family: converter and engine against logits that transformers computed.

tests/golden/make_goldens.py wrote the checkpoints and the logits; torch is not needed here.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import converters
from converters._families import FAMILIES
from pyengine import Engine

GOLDEN = Path(__file__).parent.parent / "golden"
NAMES = sorted(path.parent.name for path in (GOLDEN / "families").glob("*/logits.npy"))
# Random weights are of one size: 4 bits leave more of them the fewer columns there are.
BOUNDS = {"f16": 0.01, "bf16": 0.03, "q8_0": 0.1, "q4_1": 0.8, "q4_0": 0.8}

Array = np.ndarray[Any, Any]
Converted = Callable[[str, str], Path]


@pytest.fixture(scope="module")
def converted(tmp_path_factory: pytest.TempPathFactory) -> Converted:
    folder = tmp_path_factory.mktemp("families")

    def convert(name: str, dtype: str) -> Path:
        source, out = folder / name, folder / f"{name}-{dtype}.gguf"
        if not source.exists():
            shutil.copytree(GOLDEN / "families" / name, source)
            shutil.copy(GOLDEN / "llama-grouped-tied" / "tokenizer.json", source)
        if not out.exists():
            converters.convert(source, out, dtype=dtype)
        return out

    return convert


def tokens_of(name: str) -> list[int]:
    tokens: list[int] = json.loads((GOLDEN / "families" / name / "tokens.json").read_text("utf-8"))
    return tokens


def expected_of(name: str) -> Array:
    rows: Array = np.load(GOLDEN / "families" / name / "logits.npy")
    return rows


def test_every_architecture_has_a_golden() -> None:
    kinds = {
        json.loads((GOLDEN / "families" / name / "config.json").read_text("utf-8"))["model_type"]
        for name in NAMES
    }
    tested = {family.architecture for family in FAMILIES.values() if family.model_type in kinds}
    assert tested | {"llama"} == {family.architecture for family in FAMILIES.values()}


@pytest.mark.parametrize("name", NAMES)
def test_f32_logits_equal_those_of_transformers(converted: Converted, name: str) -> None:
    tokens, expected = tokens_of(name), expected_of(name)
    assert expected.std() > 0.8  # so that 1e-4 says something
    with Engine(converted(name, "f32"), n_threads=2) as engine:
        found = engine.logits(tokens)[-len(expected) :]
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-4)


@pytest.mark.parametrize("dtype", BOUNDS)
@pytest.mark.parametrize("name", NAMES)
def test_narrower_types_stay_near_the_original(converted: Converted, name: str, dtype: str) -> None:
    tokens, expected = tokens_of(name), expected_of(name)
    with Engine(converted(name, dtype), n_threads=2) as engine:
        found = engine.logits(tokens)[-len(expected) :]
    assert np.sqrt(np.mean((found - expected) ** 2)) / expected.std() < BOUNDS[dtype]


@pytest.mark.parametrize("kv_type", ["auto", "q8_0"])
@pytest.mark.parametrize("dtype", ["f32", "q4_0"])
@pytest.mark.parametrize("name", NAMES)
def test_no_bit_depends_on_how_a_text_is_cut(
    converted: Converted, name: str, dtype: str, kv_type: Any
) -> None:
    tokens = tokens_of(name)
    path = converted(name, dtype)
    with Engine(path, n_threads=1, kv_type=kv_type) as engine:
        expected = engine.logits(tokens)
    with Engine(path, n_threads=3, n_batch=7, kv_type=kv_type) as engine:
        session = engine.session()
        parts = [tokens[:1], tokens[1:34], tokens[34:70], *([t] for t in tokens[70:])]
        found = np.concatenate([session.feed(part, logits="all") for part in parts])
        assert np.array_equal(found, expected)
        session.rewind(41)
        fork = session.fork()
        assert np.array_equal(fork.feed(tokens[41:], logits="all"), expected[41:])
        assert np.array_equal(session.feed(tokens[41:50], logits="all"), expected[41:50])


@pytest.mark.parametrize("name", NAMES)
def test_no_bit_depends_on_the_instruction_set(converted: Converted, name: str) -> None:
    tokens = tokens_of(name)
    with Engine(converted(name, "q8_0"), n_threads=1, isa="scalar") as engine:
        expected = engine.logits(tokens)
    with Engine(converted(name, "q8_0"), n_threads=2) as engine:
        assert np.array_equal(engine.logits(tokens), expected)
