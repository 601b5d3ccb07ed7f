"""Evaluations against llama.cpp's logits by its definition, and against transformers."""

from __future__ import annotations

import json
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import checkpoints
import numpy as np
import pytest
from test_llama_cpp import WINDOW, logits, opened

from pyengine import Engine, Task, _answers, evaluate

Array = np.ndarray[Any, Any]
Stories = Callable[..., Path]

N_WINDOWS = 4
N_QUESTIONS = 16


def log_softmax(rows: Array) -> Array:
    wide = rows.astype(np.float64)
    wide -= wide.max(axis=1, keepdims=True)
    return wide - np.log(np.exp(wide).sum(axis=1, keepdims=True))


def test_divergence_is_llama_cpps(stories: Stories, valid_text: str) -> None:
    with Engine(stories("f16")) as base, Engine(stories("q4_0")) as model:
        ids = base.tokenize(valid_text)[: N_WINDOWS * WINDOW]
        text = base.detokenize(ids)
        found = evaluate(model, text=text, window=WINDOW, reference=base).models[0]
        begin = base.tokenizer.bos_id if base.tokenizer.add_bos else None
    n_windows = len(ids) // WINDOW
    divergences, same = [], []
    with opened(stories("f16")) as base_there, opened(stories("q4_0")) as model_there:
        for i in range(n_windows):
            part = ids[i * WINDOW : (i + 1) * WINDOW]
            part[0] = part[0] if begin is None else begin
            p, q = (
                log_softmax(logits(one, part)[WINDOW // 2 : -1])
                for one in (base_there, model_there)
            )
            divergences += (np.exp(p) * (p - q)).sum(axis=1).tolist()
            same += (p.argmax(axis=1) == q.argmax(axis=1)).tolist()
    assert found.divergence is not None
    assert found.divergence.n_tokens == len(divergences)
    # Its kernels round activations otherwise: divergences of 5e-4 lie between the two.
    assert found.divergence.mean.value == pytest.approx(np.mean(divergences), rel=0.02)
    assert found.divergence.median.value == pytest.approx(np.median(divergences), rel=0.05)
    assert found.divergence.same_top.value == pytest.approx(np.mean(same), abs=0.01)
    values = found.divergence.values.reshape(-1)
    assert np.corrcoef(values, divergences)[0, 1] > 0.98


@pytest.fixture(scope="module")
def hellaswag(fixtures: Path) -> Path:
    return fixtures / "data" / "hellaswag-val-1000.jsonl"


def test_endings_score_as_in_the_original(
    fixtures: Path, stories: Stories, hellaswag: Path
) -> None:
    reference = checkpoints.load(fixtures / "models" / "stories-29m")
    records = [json.loads(line) for line in hellaswag.read_text().splitlines()[:N_QUESTIONS]]
    task = Task.read("hellaswag", hellaswag, limit=N_QUESTIONS)
    right: dict[str, list[bool]] = {"acc": [], "acc_norm": []}
    with Engine(stories("f32")) as engine:
        prompts = [_answers.encode(engine, question, 0) for question in task.questions]
        with engine.session() as trunk, ThreadPoolExecutor(1) as workers:
            found = [
                values
                for group in _answers.groups(prompts)
                for values in _answers.ending_logprobs(engine, trunk, group, workers, None)
            ]
        for record, values in zip(records, found, strict=True):
            context = engine.tokenize(record["query"])
            expected = []
            for ending in record["choices"]:
                ids = engine.tokenize(record["query"] + " " + ending)
                rows = checkpoints.reference_logits(reference, ids).double().log_softmax(-1)
                expected.append(
                    sum(rows[i - 1, ids[i]].item() for i in range(len(context), len(ids)))
                )
            assert values == pytest.approx(expected, abs=2e-3)
            per_character = [
                value / len(ending)
                for value, ending in zip(expected, record["choices"], strict=True)
            ]
            right["acc"].append(int(np.argmax(expected)) == record["gold"])
            right["acc_norm"].append(int(np.argmax(per_character)) == record["gold"])
        (score,) = evaluate(engine, tasks=[task]).models[0].tasks
    assert {name: list(values) for name, values in score.right.items()} == right
