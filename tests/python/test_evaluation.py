"""Evaluations of tiny models against numbers recomputed from their logits."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tiny import Shape, random_model

from pyengine import (
    ArgumentError,
    CancelFlag,
    CancelledError,
    ContextFullError,
    Engine,
    Evaluation,
    Task,
    _answers,
    _divergence,
    _evaluation,
    _perplexity,
    evaluate,
)

Array = np.ndarray[Any, Any]
Maker = Callable[[Shape], Path]

TEXT = "the cat and the other one was in town; " * 12
WINDOW = 40


@pytest.fixture(scope="module")
def other(make_model: Maker) -> Iterator[Engine]:
    """The shared tiny model with weights of 4 bits."""
    with Engine(make_model(Shape(dtype="Q4_0")), n_threads=2) as opened:
        yield opened


@pytest.fixture(scope="module")
def third(make_model: Maker) -> Iterator[Engine]:
    """Random weights of another seed."""
    with Engine(make_model(Shape(seed=2)), n_threads=1) as opened:
        yield opened


def log_softmax(logits: Array) -> Array:
    wide = logits.astype(np.float64)
    top = wide.max(axis=-1, keepdims=True)
    return wide - top - np.log(np.exp(wide - top).sum(axis=-1, keepdims=True))


def rows_of(engine: Engine) -> tuple[Array, Array]:
    """Log-probabilities at scored positions, ``[window, token, n_vocab]``, and what followed."""
    ids = engine.tokenize(TEXT)
    rows, targets = [], []
    for i in range(len(ids) // WINDOW):
        part = [ids[0], *ids[i * WINDOW + 1 : (i + 1) * WINDOW]]
        rows.append(log_softmax(engine.logits(part))[WINDOW // 2 : -1])
        targets.append(part[WINDOW // 2 + 1 :])
    return np.array(rows), np.array(targets)


# ---- rows ----


def score(rows: list[Array], reference: Array | None, targets: Any) -> _divergence.RowScores:
    with ThreadPoolExecutor(2) as workers:
        return _divergence.score_rows(rows, reference, np.array(targets), workers)


def test_divergence_of_two_coins_by_hand() -> None:
    fair = np.array([[5.0, 5.0]], np.float32)
    bent = np.log(np.array([[1.0, 3.0]], np.float32))
    found = score([bent], fair, [1])
    assert found.divergences[0, 0] == pytest.approx(
        0.5 * math.log(0.5 / 0.25) + 0.5 * math.log(0.5 / 0.75), rel=1e-7
    )
    assert found.losses[:, 0] == pytest.approx([-math.log(0.75), math.log(2)], rel=1e-7)
    # The largest logit is the first of equal ones.
    assert not found.same_top[0, 0]


def test_equal_rows_diverge_by_exactly_nothing() -> None:
    rows = np.random.default_rng(3).normal(0, 5, (7, 1000)).astype(np.float32)
    found = score([rows, rows + 0], rows, np.arange(7))
    assert (found.divergences == 0).all()
    assert found.same_top.all()
    assert (found.losses == found.losses[0]).all()


def test_rounding_gives_no_negative_divergence() -> None:
    rows = np.random.default_rng(3).normal(0, 5, (50, 1000)).astype(np.float32)
    # Softmax does not see a constant, and this one is added without rounding to most.
    found = score([rows + np.float32(2**-10)], rows, np.arange(50))
    assert found.divergences.min() == 0
    assert 0 < found.divergences.max() < 1e-12


def test_extreme_logits_give_finite_numbers() -> None:
    low, high = np.float32(-3e38), np.float32(3e38)
    first, second = np.array([[high, low, 0]]), np.array([[low, high, 0]])
    found = score([second], first, [1])
    assert np.isfinite(found.losses).all()
    assert found.divergences[0, 0] == pytest.approx(6e38, rel=1e-6)


@pytest.mark.parametrize("n_vocab", [3, 1000, 40_000])
def test_rows_are_dealt_out_without_a_trace(n_vocab: int, monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(5)
    p, q = rng.normal(0, 4, (2, 33, n_vocab)).astype(np.float32)
    targets = rng.integers(0, n_vocab, 33)
    found = score([q], p, targets)
    log_p, log_q = log_softmax(p), log_softmax(q)
    assert found.divergences[0] == pytest.approx(
        (np.exp(log_p) * (log_p - log_q)).sum(axis=1), rel=1e-10
    )
    assert found.losses[1] == pytest.approx(-log_p[np.arange(33), targets], rel=1e-12)
    monkeypatch.setattr(_divergence, "_PIECE", 1)
    one = score([q], p, targets)
    assert np.array_equal(found.divergences, one.divergences)
    assert np.array_equal(found.losses, one.losses)
    alternatives = _divergence.score_alternatives(q[4], targets[[4, 9]])
    assert alternatives[0] == found.losses[0, 4]
    assert alternatives[1] == pytest.approx(-log_q[4, targets[9]], rel=1e-12)


# ---- texts ----


def test_divergence_is_that_of_the_models_logits(engine: Engine, other: Engine) -> None:
    log_p, targets = rows_of(engine)
    log_q, _ = rows_of(other)
    values = (np.exp(log_p) * (log_p - log_q)).sum(axis=-1)
    found = evaluate(other, text=TEXT, window=WINDOW, reference=engine)
    (model,) = found.models
    assert found.complete
    assert model.divergence is not None
    assert model.perplexity is not None
    assert found.reference is not None
    assert model.divergence.values == pytest.approx(values, rel=1e-9, abs=1e-12)
    assert model.divergence.n_tokens == values.size == model.perplexity.n_tokens
    assert model.divergence.mean.value == pytest.approx(values.mean())
    assert model.divergence.mean.error == pytest.approx(values.std(ddof=1) / math.sqrt(values.size))
    by_window = values.mean(axis=1)
    assert len(by_window) > 3
    assert model.divergence.window_error == pytest.approx(
        by_window.std(ddof=1) / math.sqrt(len(by_window))
    )
    assert model.divergence.median.value == pytest.approx(np.median(values))
    assert model.divergence.p99.value == pytest.approx(np.quantile(values, 0.99))
    assert model.divergence.maximum == pytest.approx(values.max())
    same = log_p.argmax(axis=-1) == log_q.argmax(axis=-1)
    assert 0 < same.mean() < 1
    assert model.divergence.same_top.value == same.mean()
    at = (*np.indices(targets.shape), targets)
    assert model.divergence.log_ratio.value == pytest.approx((log_p[at] - log_q[at]).mean())
    assert model.perplexity.value == pytest.approx(np.exp(-log_q[at].mean()))
    losses = -log_q[at].mean(axis=1)
    assert model.perplexity.window_error == pytest.approx(
        model.perplexity.value * losses.std(ddof=1) / math.sqrt(len(losses))
    )
    assert found.reference.value == pytest.approx(np.exp(-log_p[at].mean()))


def test_perplexity_is_the_engines_own(engine: Engine, other: Engine) -> None:
    found = evaluate(other, text=TEXT, window=WINDOW, reference=engine)
    assert found.models[0].perplexity == other.perplexity(TEXT, window=WINDOW)
    assert found.reference == engine.perplexity(TEXT, window=WINDOW)


def test_a_model_does_not_diverge_from_itself(engine: Engine) -> None:
    found = evaluate(engine, text=TEXT, window=WINDOW, reference=engine, compare=engine)
    for model in found.models:
        assert model.divergence is not None
        assert model.divergence.maximum == 0.0
        assert model.divergence.same_top.value == 1.0
    assert [one.better for one in found.differences] == [None, None]


def test_differences_are_paired_by_window(engine: Engine, other: Engine, third: Engine) -> None:
    found = evaluate(third, text=TEXT, window=WINDOW, reference=engine, compare=other)
    alone = evaluate(other, text=TEXT, window=WINDOW, reference=engine)
    assert found.models[1] == alone.models[0]
    loss, apart = found.differences
    first, second = (model.perplexity for model in found.models)
    assert first is not None
    assert second is not None
    assert loss.name == "loss"
    assert loss.value == pytest.approx((second.losses - first.losses).mean())
    assert (loss.n, apart.n) == (first.n_windows, first.n_windows)
    # 4-bit weights are nearer to the model than other random ones are.
    assert apart.high < 0
    assert apart.better == 1


@pytest.mark.parametrize(
    "options",
    [{"n_threads": 1}, {"n_threads": 3}, {"n_batch": 1}, {"n_batch": 7}, {"isa": "scalar"}],
    ids=str,
)
def test_threads_batches_and_instructions_do_not_change_a_number(
    make_model: Maker,
    engine: Engine,
    other: Engine,
    tasks: list[Task],
    options: dict[str, Any],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    expected = evaluate(other, text=TEXT, window=WINDOW, reference=engine, tasks=tasks)
    monkeypatch.setattr(_perplexity, "_MOST_ROWS", 3)
    monkeypatch.setattr(_answers, "_SESSIONS", 2)
    monkeypatch.setattr(_answers, "_ENDINGS", 3)
    path, reference = make_model(Shape(dtype="Q4_0")), make_model(Shape())
    with Engine(path, **options) as model, Engine(reference, **options) as base:
        found = evaluate(model, text=TEXT, window=WINDOW, reference=base, tasks=tasks)
    assert found == expected
    for one, two in zip(found.models, expected.models, strict=True):
        assert one.divergence is not None
        assert two.divergence is not None
        assert np.array_equal(one.divergence.values, two.divergence.values)
        assert [task.right for task in one.tasks] == [task.right for task in two.tasks]


def test_progress_counts_tokens_and_questions(engine: Engine, tasks: list[Task]) -> None:
    calls: list[tuple[str, int, int]] = []
    evaluate(engine, text=TEXT, window=WINDOW, tasks=tasks[:1], compare=engine,
             progress=lambda *at: calls.append(at))  # fmt: skip
    total = len(engine.tokenize(TEXT)) // WINDOW * WINDOW
    text = [done for what, done, n in calls if what == "text" and n == total]
    assert text == sorted(text)
    assert text[-1] == total
    assert ("hellaswag", 10, 10) in calls
    assert ("hellaswag, second", 10, 10) in calls


# ---- tasks ----


@pytest.fixture(scope="module")
def tasks(tmp_path_factory: pytest.TempPathFactory) -> list[Task]:
    """A file of each task of endings; ten questions or eight."""
    folder = tmp_path_factory.mktemp("tasks")
    rng = np.random.default_rng(9)
    words = np.array(
        [
            "the",
            "cat",
            "was",
            "in",
            "a",
            "town",
            "and",
            "other",
            "ones",
            "went",
            "to",
            "his",
            "house",
            "he",
            "ate",
        ]
    )

    def text(least: int, most: int) -> str:
        return " ".join(rng.choice(words, rng.integers(least, most)))

    def write(name: str, records: list[dict[str, Any]]) -> Path:
        path = folder / name
        path.write_text("\n".join(map(json.dumps, records)))
        return path

    hellaswag = [
        {"activity_label": "A", "ctx_a": text(2, 9), "ctx_b": text(1, 4),
         "endings": [text(1, 9) for _ in range(4)], "label": int(rng.integers(4))}
        for _ in range(10)
    ]  # fmt: skip
    arc = [
        {"question": text(3, 9), "choices": {"text": [text(1, 3) for _ in range(3 + i % 2)],
         "label": ["A", "B", "C", "D"][: 3 + i % 2]}, "answerKey": "C"}
        for i in range(10)
    ]  # fmt: skip
    mmlu = [
        {"question": text(2, 5), "choices": [text(1, 2) for _ in range(4)],
         "answer": int(rng.integers(4)), "subject": "ab"[i // 4]}
        for i in range(8)
    ]  # fmt: skip
    return [
        Task.read("hellaswag", write("hellaswag.jsonl", hellaswag)),
        Task.read("arc", write("arc.jsonl", arc)),
        Task.read("mmlu", write("mmlu.jsonl", mmlu)),
    ]


def naive(engine: Engine, task: Task) -> list[list[float]]:
    """Log-probabilities of all endings, each from all its tokens in a session of its own."""
    found = []
    for question in task.questions:
        n = len(engine.tokenize(question.prompt))
        found.append([])
        for ending in question.endings:
            ids = engine.tokenize(f"{question.prompt} {ending}")
            scores = log_softmax(engine.logits(ids))
            found[-1].append(sum(scores[i - 1, ids[i]] for i in range(n, len(ids))))
    return found


def test_accuracies_are_those_of_endings_scored_one_by_one(
    engine: Engine, tasks: list[Task]
) -> None:
    found = evaluate(engine, tasks=tasks)
    assert found.models[0].perplexity is None
    for task, shown in zip(tasks, found.models[0].tasks, strict=True):
        scores = naive(engine, task)
        acc = [int(np.argmax(s)) == q.gold for s, q in zip(scores, task.questions, strict=True)]
        normed = [
            int(np.argmax([v / len(e) for v, e in zip(s, q.endings, strict=True)])) == q.gold
            for s, q in zip(scores, task.questions, strict=True)
        ]
        assert list(shown.right["acc"]) == acc
        assert shown.accuracies["acc"].value == pytest.approx(np.mean(acc))
        assert shown.n_questions == len(task.questions)
        if task.name == "mmlu":
            assert list(shown.right) == ["acc"]
        else:
            assert list(shown.right["acc_norm"]) == normed
    right = [one.right["acc"] for one in found.models[0].tasks]
    assert any(map(any, right))
    assert not all(map(all, right))


def test_differences_are_the_second_models_answers_less_the_firsts(
    engine: Engine, third: Engine, tasks: list[Task]
) -> None:
    found = evaluate(engine, tasks=tasks, compare=third)
    names = [f"{task.name} {name}" for task in found.models[0].tasks for name in task.accuracies]
    assert [one.name for one in found.differences] == names
    first, second = (
        [mean.value for task in model.tasks for mean in task.accuracies.values()]
        for model in found.models
    )
    values = [one.value for one in found.differences]
    assert values == pytest.approx(np.subtract(second, first))
    assert any(values)
    assert not any(one.lower_is_better for one in found.differences)


def test_log_probabilities_of_endings_are_exact(engine: Engine, tasks: list[Task]) -> None:
    for task in tasks:
        prompts = [_answers.encode(engine, question, 0) for question in task.questions]
        with engine.session() as trunk, ThreadPoolExecutor(1) as workers:
            found = [
                values
                for group in _answers.groups(prompts)
                for values in _answers.ending_logprobs(engine, trunk, group, workers, None)
            ]
        for values, expected in zip(found, naive(engine, task), strict=True):
            assert values == pytest.approx(expected, rel=1e-9)
    assert engine.info.kv_bytes == 0


def test_what_questions_share_is_computed_once(
    engine: Engine, tasks: list[Task], monkeypatch: pytest.MonkeyPatch
) -> None:
    fed = 0
    feed = _answers.feed_several

    def counting(engine: Engine, feeds: Any, cancel: Any = None) -> Any:
        nonlocal fed
        fed += sum(len(ids) for _, ids, _ in feeds)
        return feed(engine, feeds, cancel)

    monkeypatch.setattr(_answers, "feed_several", counting)
    (mmlu,) = (task for task in tasks if task.name == "mmlu")
    prompts = [_answers.encode(engine, question, 0) for question in mmlu.questions]
    evaluate(engine, tasks=[mmlu])
    head = len(engine.tokenize(mmlu.questions[0].prompt.partition("\n\n")[0]))
    contexts = sum(len(prompt.context) for prompt in prompts)
    # An ending's last token is not fed.
    endings = sum(len(ending) - 1 for prompt in prompts for ending in prompt.endings)
    assert fed <= contexts - len(prompts) * (head - 1) + endings


def gsm8k(folder: Path, n: int) -> Task:
    path = folder / "gsm8k.jsonl"
    path.write_text(
        "\n".join(
            json.dumps({"question": f"What is the {i}th?", "answer": f"It is.\n#### {i}"})
            for i in range(n)
        )
    )
    return Task.read("gsm8k", path, shots=path, n_shots=1)


def test_greedy_answers_are_those_of_generate(make_model: Maker, tmp_path: Path) -> None:
    task = gsm8k(tmp_path, 5)
    with Engine(make_model(Shape(context=512, seed=4)), n_threads=1) as engine:
        prompts = [_answers.encode(engine, question, 30) for question in task.questions]
        for stops in ((), ("e", "zzz"), ("aa",)):
            with engine.session() as trunk:
                found = _answers.greedy_texts(
                    engine, trunk, prompts, max_tokens=30, stops=stops, cancel=None
                )
            assert found == [
                engine.generate(
                    question.prompt, temperature=0, max_tokens=30, stop=stops, parse_special=False
                ).text
                for question in task.questions
            ]
        (model,) = evaluate(engine, tasks=[task]).models
        assert list(model.tasks[0].accuracies) == ["strict_match", "flexible_extract"]
        assert (model.tasks[0].n_questions, model.tasks[0].n_shots) == (5, 1)


@pytest.mark.parametrize(
    ("text", "strict", "flexible"),
    [
        (" 1,000 + 234 = 1,234\n#### 1,234", True, True),
        (" #### 1234.\n\n", True, True),
        (" #### $1234", False, True),
        (" #### 12 #### 1234", False, True),
        (" The answer is 1234.", False, True),
        (" The answer is 1234, not 5", False, False),
        (" #### 1234\nSo 7 are left.", True, False),
        (" #### 1234.0", False, False),
        (" #### -1234", False, False),
        (" none", False, False),
        ("", False, False),
    ],
)
def test_numbers_of_worked_solutions(text: str, strict: bool, flexible: bool) -> None:
    question = _evaluation.Question("x", "", "", (), "So:\n#### 1,234")
    assert _evaluation._solved(question, text) == {
        "strict_match": strict,
        "flexible_extract": flexible,
    }


# ---- what goes wrong ----


def test_nothing_to_measure_is_an_error(engine: Engine) -> None:
    with pytest.raises(ArgumentError, match="expected a text or a task, found neither"):
        evaluate(engine)
    with pytest.raises(ArgumentError, match="reference: expected a text to compare on"):
        evaluate(engine, reference=engine)
    with pytest.raises(ArgumentError, match="engine: expected an Engine, found str"):
        evaluate("model.gguf", text=TEXT)  # type: ignore[arg-type]
    with pytest.raises(ArgumentError, match="compare: expected an Engine, found int"):
        evaluate(engine, text=TEXT, compare=3)  # type: ignore[arg-type]


def test_texts_and_windows_that_do_not_fit_are_named(engine: Engine, make_model: Maker) -> None:
    with (
        Engine(make_model(Shape(context=512))) as large,
        pytest.raises(ArgumentError, match="text: expected 512 tokens or more"),
    ):
        evaluate(large, text="the cat")
    with Engine(engine.file.path, n_ctx=32) as small:
        for reference in (small, engine):
            model = engine if reference is small else small
            with pytest.raises(ArgumentError, match="window: expected an integer from 4 to 32"):
                evaluate(model, text=TEXT, window=33, reference=reference)


def spoilt(path: Path, **metadata: Any) -> Path:
    """The tiny model with other metadata."""
    model = random_model(Shape())
    model.metadata |= {f"tokenizer.ggml.{key}": value for key, value in metadata.items()}
    return model.save(path)


def test_vocabularies_that_differ_are_told_apart(
    engine: Engine, make_model: Maker, tmp_path: Path
) -> None:
    tokens = list(random_model(Shape()).metadata["tokenizer.ggml.tokens"])
    tokens[17], tokens[18] = tokens[18], tokens[17]
    merges = list(random_model(Shape()).metadata["tokenizer.ggml.merges"])
    for path, message in (
        (make_model(Shape(vocabulary="spm")), "number of logits"),
        (spoilt(tmp_path / "tokens.gguf", tokens=tokens), r"token 17 b'\\x11', found b'\\x12'"),
        (spoilt(tmp_path / "bos.gguf", add_bos_token=False), "begin token .*, found None"),
        (spoilt(tmp_path / "merges.gguf", merges=merges[:2]), r"token \d+ of the text \["),
    ):
        with Engine(path) as other:
            for role in ("reference", "compare"):
                with pytest.raises(ArgumentError, match=message) as error:
                    evaluate(engine, text=TEXT, window=WINDOW, **{role: other})
                assert str(error.value).startswith(f"{path}: expected the vocabulary of ")


def test_tasks_need_no_common_vocabulary(
    engine: Engine, make_model: Maker, tasks: list[Task]
) -> None:
    with Engine(make_model(Shape(vocabulary="spm"))) as other:
        found = evaluate(engine, tasks=tasks[:1], compare=other)
    assert [one.name for one in found.differences] == ["hellaswag acc", "hellaswag acc_norm"]


def test_a_question_beyond_the_context_is_named(engine: Engine, tasks: list[Task]) -> None:
    long = replace(tasks[0].questions[3], prompt="the cat " * 200)
    task = replace(tasks[0], questions=(*tasks[0].questions, long))
    with pytest.raises(ContextFullError, match=r"hellaswag\.jsonl: line 4: expected a question of"):
        evaluate(engine, tasks=[task])
    assert engine.info.kv_bytes == 0


# ---- stopping ----


def stopped(engine: Engine, *, after: tuple[str, int], **arguments: Any) -> Evaluation:
    """An evaluation that is cancelled as soon as so much is reported."""
    flag = CancelFlag()

    def progress(what: str, done: int, total: int) -> None:
        if (what, done) >= after and what == after[0]:
            flag.cancel()

    return evaluate(engine, progress=progress, cancel=flag, **arguments)


def test_a_stopped_text_counts_whole_windows(engine: Engine, other: Engine) -> None:
    after = ("text", 2 * WINDOW)
    found = stopped(other, after=after, text=TEXT, window=WINDOW, reference=engine)
    whole = evaluate(other, text=TEXT, window=WINDOW, reference=engine)
    assert not found.complete
    part, full = found.models[0].perplexity, whole.models[0].perplexity
    assert part is not None
    assert full is not None
    assert part.n_windows == 2
    assert np.array_equal(part.losses, full.losses[:2])
    assert engine.info.kv_bytes == other.info.kv_bytes == 0


def test_a_stopped_task_counts_answered_questions(engine: Engine, tasks: list[Task]) -> None:
    found = stopped(engine, after=("arc", 8), tasks=tasks, compare=engine)
    assert not found.complete
    assert [len(model.tasks) for model in found.models] == [2, 1]
    assert [task.n_questions for task in found.models[0].tasks] == [10, 8]
    assert [one.name for one in found.differences] == ["hellaswag acc", "hellaswag acc_norm"]


def test_stopped_before_anything_was_measured(engine: Engine, tasks: list[Task]) -> None:
    flag = CancelFlag()
    flag.cancel()
    with pytest.raises(CancelledError):
        evaluate(engine, text=TEXT, window=WINDOW, tasks=tasks, cancel=flag)
