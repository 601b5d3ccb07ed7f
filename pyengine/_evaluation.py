"""How good a model is: on a text, beside a reference, on tasks, and against another model."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

import numpy as np

from pyengine._answers import encode, ending_logprobs, greedy_texts, groups
from pyengine._arguments import instance
from pyengine._divergence import Divergence, divergence
from pyengine._engine import Engine
from pyengine._errors import ArgumentError, CancelledError
from pyengine._perplexity import Perplexity, perplexity, score_text
from pyengine._session import CancelFlag
from pyengine._statistics import (
    Difference,
    Mean,
    answer_difference,
    mean,
    window_difference,
)
from pyengine._tasks import Question, Task

# GSM8K as lm-evaluation-harness runs it.
_MAX_TOKENS = 256
_STOPS = ("Question:", "</s>", "<|im_end|>")
_STRICT = re.compile(r"#### (-?[0-9.,]+)")
_FLEXIBLE = re.compile(r"-?[$0-9.,]{2,}|-?[0-9]+")

Progress = Callable[[str, int, int], None]


@dataclass(frozen=True, slots=True)
class TaskScore:
    """How many questions of a task a model gets right.

    Attributes:
        name: The task's.
        n_questions: Questions answered.
        n_shots: Solved examples before each.
        accuracies: Share of right answers by each way of counting: ``"acc"``, the ending with
            the largest log-probability; ``"acc_norm"``, with the largest per character;
            ``"strict_match"``, the number behind ``####``; ``"flexible_extract"``, the last
            number.
        right: The same for each question, in order.
    """

    name: str
    n_questions: int
    n_shots: int
    accuracies: Mapping[str, Mean]
    right: Mapping[str, Sequence[bool]] = field(repr=False, compare=False)


@dataclass(frozen=True, slots=True)
class ModelScores:
    """What was measured of one model.

    Attributes:
        path: Its file.
        perplexity: Of the text, if there was one.
        divergence: From the reference, if there was one.
        tasks: In the order asked for.
    """

    path: str
    perplexity: Perplexity | None
    divergence: Divergence | None
    tasks: tuple[TaskScore, ...]


@dataclass(frozen=True, slots=True)
class Evaluation:
    """What :func:`evaluate` measured.

    Attributes:
        models: The model's scores, then those of the one that it is compared with.
        reference: The reference's perplexity, if there was one.
        window: Tokens per window of the text.
        differences: The second model less the first, with confidence intervals.
        complete: False when it was cancelled; scores then are of what was done.
    """

    models: tuple[ModelScores, ...]
    reference: Perplexity | None
    window: int
    differences: tuple[Difference, ...]
    complete: bool


def evaluate(
    engine: Engine,
    *,
    text: str | None = None,
    window: int = 512,
    reference: Engine | None = None,
    tasks: Sequence[Task] = (),
    compare: Engine | None = None,
    progress: Progress | None = None,
    cancel: CancelFlag | None = None,
) -> Evaluation:
    """Measures a model, and another one beside it.

    Numbers do not depend on threads, batch size or instruction set of the engines, but for
    the C library's exponential, which may differ in the last bit between machines.

    Args:
        engine: The model.
        text: For perplexity, and for divergence where there is a reference.
        window: Tokens per window of the text, of which the second half is scored.
        reference: The model that divergences are measured from, usually the same one
            unquantized.
        tasks: From :meth:`Task.read`.
        compare: A second model, measured in the same way.
        progress: Called with what is being done, and how much of it is done and in all:
            tokens of a text, questions of a task.
        cancel: Ends it from another thread; the result then holds what was done.

    Raises:
        ArgumentError: Nothing to measure, a reference without a text, vocabularies that
            differ, a text too short for the window, or a window too long for a context.
        ContextFullError: A question does not fit the context; names its line.
        CancelledError: ``cancel`` was raised before anything was done.
    """
    for name, value in (("engine", engine), ("reference", reference), ("compare", compare)):
        if value is not None or name == "engine":
            instance(name, value, Engine, "an Engine")
    if text is None and reference is not None:
        raise ArgumentError("reference: expected a text to compare on, found none")
    if text is None and not tasks:
        raise ArgumentError("evaluate: expected a text or a task, found neither")
    run = _Run(progress, cancel if cancel is not None else CancelFlag())
    models = [engine] if compare is None else [engine, compare]
    if text is not None:
        run.text(models, reference, text, window)
    for task in tasks:
        run.task(models, task)
    return run.result(models, window)


class _Run:
    """An evaluation as it grows."""

    def __init__(self, progress: Progress | None, cancel: CancelFlag) -> None:
        self._progress = progress
        self._cancel = cancel
        self._perplexities: list[Perplexity] = []
        self._divergences: list[Divergence] = []
        self._reference: Perplexity | None = None
        self._tasks: list[list[TaskScore]] = []

    def result(self, models: Sequence[Engine], window: int) -> Evaluation:
        scores = tuple(
            ModelScores(
                model.file.path,
                self._perplexities[i] if self._perplexities else None,
                self._divergences[i] if self._divergences else None,
                tuple(task[i] for task in self._tasks if i < len(task)),
            )
            for i, model in enumerate(models)
        )
        if not self._perplexities and not self._tasks:
            raise CancelledError("evaluation cancelled before anything was measured")
        differences = tuple(_differences(*scores)) if len(scores) == 2 else ()
        complete = not self._cancel.is_cancelled
        return Evaluation(scores, self._reference, window, differences, complete)

    def text(
        self, models: Sequence[Engine], reference: Engine | None, text: str, window: int
    ) -> None:
        for other in (*models[1:], *([] if reference is None else [reference])):
            check_vocabularies(models[0], other, text)
        try:
            windows = score_text(
                models, reference, text, window, self._report("text"), self._cancel
            )
        except CancelledError:
            return
        losses = np.stack([part.losses for part in windows], axis=1)
        self._perplexities = [perplexity(one) for one in losses[: len(models)]]
        if reference is not None:
            self._reference = perplexity(losses[-1])
            values = np.stack([part.divergences for part in windows], axis=1)
            same = np.stack([part.same_top for part in windows], axis=1)
            self._divergences = [
                divergence(values[i], same[i], losses[i], losses[-1]) for i in range(len(models))
            ]

    def task(self, models: Sequence[Engine], task: Task) -> None:
        scores = []
        for i, model in enumerate(models):
            right: list[dict[str, bool]] = []
            report = self._report(task.name + (", second" if i else ""))
            try:
                for answers in _answers(model, task, report, self._cancel):
                    right += answers
            except CancelledError:
                pass
            if right:
                columns = {name: tuple(one[name] for one in right) for name in right[0]}
                accuracies = {name: mean(column) for name, column in columns.items()}
                scores.append(TaskScore(task.name, len(right), task.n_shots, accuracies, columns))
        if scores:
            self._tasks.append(scores)

    def _report(self, what: str) -> Callable[[int, int], None]:
        def report(done: int, total: int) -> None:
            if self._progress is not None:
                self._progress(what, done, total)

        return report


# ---- tasks ----


def _answers(
    engine: Engine, task: Task, report: Callable[[int, int], None], cancel: CancelFlag
) -> Iterator[list[dict[str, bool]]]:
    """For a few questions at a time, whether each is answered rightly."""
    prompts = []
    for question in task.questions:
        _check(cancel)
        # Told before hours of work rather than after them.
        prompts.append(encode(engine, question, _MAX_TOKENS))
    done = 0
    with engine.session() as trunk, ThreadPoolExecutor(engine.info.n_threads) as workers:
        for group in groups(prompts):
            _check(cancel)
            questions = task.questions[done : done + len(group)]
            if questions[0].endings:
                found = ending_logprobs(engine, trunk, group, workers, cancel)
                yield [
                    _chosen(question, values, normed=task.name != "mmlu")
                    for question, values in zip(questions, found, strict=True)
                ]
            else:
                texts = greedy_texts(
                    engine, trunk, group, max_tokens=_MAX_TOKENS, stops=_STOPS, cancel=cancel
                )
                yield [
                    _solved(question, text) for question, text in zip(questions, texts, strict=True)
                ]
            done += len(group)
            report(done, len(prompts))


def _check(cancel: CancelFlag) -> None:
    if cancel.is_cancelled:
        raise CancelledError("evaluation cancelled")


def _chosen(question: Question, logprobs: Sequence[float], *, normed: bool) -> dict[str, bool]:
    values = np.array(logprobs)
    right = {"acc": int(values.argmax()) == question.gold}
    if normed:
        per_character = values / [len(text) for text in question.endings]
        right["acc_norm"] = int(per_character.argmax()) == question.gold
    return right


def _solved(question: Question, text: str) -> dict[str, bool]:
    strict = _STRICT.search(text)
    flexible = _FLEXIBLE.findall(text)
    gold = _number(str(question.gold))
    return {
        "strict_match": strict is not None and _number(strict[1]) == gold,
        "flexible_extract": bool(flexible) and _number(flexible[-1]) == gold,
    }


def _number(text: str) -> str:
    """A number's text without what is written around and within it."""
    text = text.rpartition("#### ")[2].replace(",", "").replace("$", "").strip()
    return text.removesuffix(".").lower()


# ---- two models ----


def check_vocabularies(first: Engine, second: Engine, text: str) -> None:
    """Refuses two models whose distributions over tokens cannot be compared on a text.

    Raises:
        ArgumentError: Names what differs.
    """

    def refuse(what: str, one: object, other: object) -> None:
        raise ArgumentError(
            f"{second.file.path}: expected the vocabulary of {first.file.path}, {what} {one!r}, "
            f"found {other!r}"
        )

    if first.n_vocab != second.n_vocab:
        refuse("number of logits", first.n_vocab, second.n_vocab)
    one, other = first.tokenizer, second.tokenizer
    if one.n_vocab != other.n_vocab:
        refuse("number of tokens", one.n_vocab, other.n_vocab)
    for token in range(one.n_vocab):
        texts = one.token_bytes(token), other.token_bytes(token)
        if texts[0] != texts[1]:
            refuse(f"token {token}", *texts)
    begins = [t.bos_id if t.add_bos else None for t in (one, other)]
    if begins[0] != begins[1]:
        refuse("begin token", *begins)
    ids, others = (e.tokenize(text, add_special=False) for e in (first, second))
    if ids != others:
        at = next((i for i, (a, b) in enumerate(zip(ids, others, strict=False)) if a != b), 0)
        refuse(f"token {at} of the text", ids[at : at + 4], others[at : at + 4])


def _differences(first: ModelScores, second: ModelScores) -> Iterator[Difference]:
    if first.perplexity is not None and second.perplexity is not None:
        yield window_difference("loss", first.perplexity.losses, second.perplexity.losses)
    if first.divergence is not None and second.divergence is not None:
        yield window_difference("divergence", first.divergence.values, second.divergence.values)
    for one, other in zip(first.tasks, second.tasks, strict=False):
        n = min(one.n_questions, other.n_questions)
        for name in one.right:
            yield answer_difference(
                f"{one.name} {name}", one.right[name][:n], other.right[name][:n]
            )
