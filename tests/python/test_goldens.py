"""Converter and engine together against logits that transformers computed.

tests/golden/make_goldens.py wrote the checkpoints and the logits; torch is not needed here.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import converters
from pyengine import Engine

GOLDEN = Path(__file__).parent.parent / "golden"
NAMES = ["llama-grouped-tied", "llama3-rope-biases", "mistral-linear-rope"]


@pytest.fixture(scope="module")
def converted(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str, str], Path]:
    folder = tmp_path_factory.mktemp("goldens")

    def convert(name: str, dtype: str) -> Path:
        out = folder / f"{name}-{dtype}.gguf"
        if not out.exists():
            converters.convert(GOLDEN / name, out, dtype=dtype)
        return out

    return convert


def expected_of(name: str) -> tuple[dict[str, Any], np.ndarray[Any, Any]]:
    recorded = json.loads((GOLDEN / name / "expected.json").read_text("utf-8"))
    return recorded, np.load(GOLDEN / name / "logits.npy")


def test_every_golden_is_tested() -> None:
    assert sorted(path.parent.name for path in GOLDEN.glob("*/logits.npy")) == NAMES


@pytest.mark.parametrize("name", NAMES)
def test_text_becomes_the_ids_that_transformers_saw(
    converted: Callable[[str, str], Path], name: str
) -> None:
    recorded, _ = expected_of(name)
    with Engine(converted(name, "f32"), n_threads=1) as engine:
        tokens = engine.tokenize(recorded["text"], add_special=False)
        assert tokens == recorded["tokens"]
        assert engine.detokenize(tokens) == recorded["text"]


@pytest.mark.parametrize("name", NAMES)
def test_f32_logits_equal_those_of_transformers_at_every_position(
    converted: Callable[[str, str], Path], name: str
) -> None:
    recorded, expected = expected_of(name)
    with Engine(converted(name, "f32"), n_threads=2) as engine:
        found = engine.logits(recorded["tokens"])
    assert found.shape == expected.shape
    assert expected.std() > 0.8  # so that 1e-4 says something
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-4)


@pytest.mark.parametrize("name", NAMES)
def test_greedy_tokens_equal_those_of_transformers(
    converted: Callable[[str, str], Path], name: str
) -> None:
    recorded, _ = expected_of(name)
    greedy = recorded["greedy"]
    with Engine(converted(name, "f32"), n_threads=2) as engine:
        found = engine.generate(
            recorded["tokens"], temperature=0, max_tokens=len(greedy), ignore_eos=True
        )
    assert found.tokens == greedy


@pytest.mark.parametrize(
    ("dtype", "bound"),
    [("f16", 0.01), ("bf16", 0.02), ("q8_0", 0.1), ("q4_1", 0.5), ("q4_0", 0.5)],
)
@pytest.mark.parametrize("name", NAMES)
def test_narrower_types_stay_near_the_original(
    converted: Callable[[str, str], Path], name: str, dtype: str, bound: float
) -> None:
    recorded, expected = expected_of(name)
    with Engine(converted(name, dtype), n_threads=2) as engine:
        found = engine.logits(recorded["tokens"])
    assert np.sqrt(np.mean((found - expected) ** 2)) / expected.std() < bound
