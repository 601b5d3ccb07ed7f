"""The converter and the engine together against the model that transformers runs."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import checkpoints
import numpy as np
import pytest
import tokenizers
import torch

from pyengine import Engine

Array = np.ndarray[Any, Any]
Tiny = Callable[[str], tuple[Path, Path]]
Stories = Callable[..., Path]

WINDOW = 512


@pytest.fixture(scope="module")
def reference(fixtures: Path) -> Any:
    return checkpoints.load(fixtures / "models" / "stories-29m")


@pytest.fixture(scope="module")
def f16(stories: Stories) -> Iterator[Engine]:
    with Engine(stories("f16")) as engine:
        yield engine


# So deep that float32's own error is beyond the bound; what is in it is tested less deep.
TOO_DEEP = {"deepseek2 lite deep"}


@pytest.mark.parametrize("name", [n for n in checkpoints.VARIANTS if n not in TOO_DEEP])
def test_tiny_logits_equal_at_every_position(tiny: Tiny, name: str) -> None:
    source, path = tiny(name)
    words = tokenizers.Tokenizer.from_file(str(source / "tokenizer.json"))
    tokens = words.encode(checkpoints.TEXT).ids[:200]
    expected = checkpoints.reference_logits(checkpoints.load(source), tokens).numpy()
    assert expected.std() > 0.8  # so that 1e-4 says something
    with Engine(path) as engine:
        assert engine.tokenize(checkpoints.TEXT, add_special=False)[:200] == tokens
        np.testing.assert_allclose(engine.logits(tokens), expected, rtol=0, atol=1e-4)
        session = engine.session()
        one_by_one = [session.feed([token])[0] for token in tokens]
        np.testing.assert_allclose(one_by_one, expected, rtol=0, atol=1e-4)


def test_short_contexts_have_longrope_factors_of_their_own(tiny: Tiny) -> None:
    source, path = tiny("phi3 longrope")
    words = tokenizers.Tokenizer.from_file(str(source / "tokenizer.json"))
    tokens = words.encode(checkpoints.TEXT).ids[:64]
    expected = checkpoints.reference_logits(checkpoints.load(source), tokens).numpy()
    with Engine(path, n_ctx=64) as engine:
        np.testing.assert_allclose(engine.logits(tokens), expected, rtol=0, atol=1e-4)
    with Engine(path, n_ctx=65) as engine:
        assert np.abs(engine.logits(tokens) - expected).max() > 0.1


def test_trained_logits_equal_at_every_position(
    reference: Any, stories: Stories, valid_text: str
) -> None:
    with Engine(stories("f32")) as engine:
        tokens = engine.tokenize(valid_text[:4000])[:WINDOW]
        found = engine.logits(tokens)
    assert len(tokens) == WINDOW
    expected = checkpoints.reference_logits(reference, tokens).numpy()
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-3)


def test_trained_tokenizer_gives_the_ids_of_the_original(
    fixtures: Path, f16: Engine, valid_text: str
) -> None:
    path = fixtures / "models" / "stories-29m" / "tokenizer.json"
    original = tokenizers.Tokenizer.from_file(str(path))
    expected = original.encode(valid_text, add_special_tokens=False).ids
    assert f16.tokenize(valid_text, add_special=False) == expected


def test_16_bit_perplexity_is_that_of_the_original(
    reference: Any, f16: Engine, valid_text: str
) -> None:
    ids = f16.tokenize(valid_text)
    total, n_scored = 0.0, 0
    for begin in range(0, len(ids) - WINDOW + 1, WINDOW):
        part = ids[begin : begin + WINDOW]
        if f16.tokenizer.add_bos:
            part[0] = f16.tokenizer.bos_id or 0
        rows = checkpoints.reference_logits(reference, part).double().log_softmax(-1)
        scored = range(WINDOW // 2 + 1, WINDOW)
        total -= sum(rows[at - 1, part[at]].item() for at in scored)
        n_scored += len(scored)
    found = f16.perplexity(valid_text, window=WINDOW)
    assert found.n_tokens == n_scored
    assert found.value == pytest.approx(math.exp(total / n_scored), rel=0.002)


def test_16_bit_greedy_continuations_are_those_of_the_original(
    reference: Any, f16: Engine, valid_text: str
) -> None:
    words = valid_text.split()
    prompts = [" ".join(words[i * 1000 : i * 1000 + 8 + i]) for i in range(20)]
    n_equal = 0
    for prompt in prompts:
        ids = f16.tokenize(prompt)
        found = f16.generate(ids, max_tokens=64, temperature=0, ignore_eos=True).tokens
        expected = reference.generate(
            torch.tensor([ids]), do_sample=False, min_new_tokens=64, max_new_tokens=64
        )[0, len(ids) :].tolist()
        if found == expected:
            n_equal += 1
            continue
        at = next(i for i in range(64) if found[i] != expected[i])
        row = checkpoints.reference_logits(reference, ids + expected[:at])[-1]
        gap = row[expected[at]] - row[found[at]]
        assert 0 <= gap < 0.02, f"{prompt!r}: token {at} differs, logits by {gap:.4f}"
    assert n_equal >= 19
